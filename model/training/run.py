"""A run folder: what training leaves on disk, so that it survives being killed at any moment.

It holds::

    config.json        every figure of the run, written once, before the first epoch
    last.pt            the whole state after the last finished epoch: what a run resumes from
    best.safetensors   the weights of the best epoch, ready to export
    history.jsonl      one line for each epoch
    curve.png          the training curve
    metrics.json       the best weights measured on the validation and test splits (at the end)
    confusion.png      their confusion matrix on the test split (at the end)
    predictions.csv    what they say of every image of both splits (at the end)

Each file is replaced in one step. ``last.pt`` holds the best weights and the history too: whatever
a kill between two files left behind is written again from it, and at most the running epoch is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...data.coverage import COVERAGE
from ...data.splitting import DEALING
from ...errors import CheckpointError, InputError, TargetError, TrainingError, reason_of
from ...files import (
    check_writable_folder,
    folder_lock,
    make_folder,
    read_file,
    remove_leftovers,
    write_atomically,
    written_together,
)
from ...images import FULL_WHITE, LEAST_WHITE, MAX_SIZE
from ...measures.confusion import write_confusion_matrix
from ...measures.predictions import PREDICTIONS, Predictions, write_predictions
from ...schema import (
    CHANNELS,
    LABELS,
    OBJECT,
    SPREADS,
    TEXT,
    TRUTH,
    Kind,
    by_name,
    is_number,
    listed,
    maybe,
    number,
    parsed,
    record,
    whole,
)
from ..networks.checkpoint_file import BEST
from ..networks.family import Architecture
from ..networks.microscopic_mamba_family import MicroscopicMambaFamily
from ..networks.pretrained import PRETRAINED
from ..networks.registry import family_named
from ..networks.weights import read_pytorch_file
from .figures import option_of
from .history import Epoch, Result, best_of
from .plots import write_training_curve
from .recipe import Recipe

CONFIG, STATE, HISTORY = "config.json", "last.pt", "history.jsonl"
METRICS, CURVE, CONFUSION = "metrics.json", "curve.png", "confusion.png"
FILES = (CONFIG, STATE, BEST, HISTORY, METRICS, CURVE, CONFUSION, PREDICTIONS)
"""All that a run's folder may hold, beside TensorBoard's."""


_OF_RECIPES = ("recipe", "recipe.augmentation")  # what in a config options decide
_OF_OPTIONS = frozenset(
    {
        *("network", "white_level", "mpp", "data.group_by"),
        *("architecture.mifa", "architecture.parallel", "architecture.psffn"),
    }
)
_FIGURE = number(0, 1e9)
_RANGE = listed(_FIGURE, 2, 2)
_AUGMENTATION = record(
    {},
    optional={
        **dict.fromkeys(("crop_scale", "crop_ratio"), _RANGE),
        **dict.fromkeys(("horizontal_flip", "vertical_flip", "keep_shape"), TRUTH),
        **dict.fromkeys(("rotation", "colour", "focus"), _FIGURE),
    },
)
_WHOLE_FIGURES = ("epochs", "batch_size", "warmup_epochs", "patience", "accumulate", "seed")
RECIPE = record(
    {"augmentation": _AUGMENTATION},
    optional={
        **dict.fromkeys(_WHOLE_FIGURES, whole()),
        "image_size": whole(1, MAX_SIZE),
        **dict.fromkeys(("learning_rate", "weight_decay", "label_smoothing", "average_epochs"), _FIGURE),
        "preset": TEXT,
    },
)
"""A recipe as `dataclasses.asdict` and JSON have it."""
_DATA = record(
    {"labels": LABELS, "group_by": maybe(TEXT)},
    optional={
        "dealing": whole(0, DEALING),
        "copies_together": TRUTH,
        "digest": TEXT,
        "digests": by_name(TEXT),
        "counts": by_name(OBJECT),
    },
)
_WIDTHS = listed(whole(0, 65536), 1, 64)
_PART = Kind(
    "a switch, a number up to 65536, or a list of them",
    lambda value: isinstance(value, bool) or is_number(value, 0, 65536) or _WIDTHS.holds(value),
)
_CONFIG = record(
    {
        "recipe": RECIPE,
        "architecture": by_name(_PART),
        "data": _DATA,
        "normalisation": record(
            {"mean": CHANNELS, "std": SPREADS}, optional={"white_level": whole(LEAST_WHITE, FULL_WHITE)}
        ),
        "root": TEXT,
    },
    # What runs of earlier versions lack.
    optional={
        "network": TEXT,
        "skipped": by_name(TEXT),
        "dataset": maybe(TEXT),
        "notes": listed(TEXT),
        "covers": maybe(COVERAGE),
        "weights": maybe(PRETRAINED),
    },
)
"""What is read of `config.json`, and has to be there."""

_SHARE = number(0, 1)
_OF_SPLIT = record({"images": whole(1), "accuracy": _SHARE, "precision": _SHARE, "auc": maybe(_SHARE)})
_METRICS = record(
    {
        "epochs": whole(1),
        "best_epoch": whole(1),
        "seconds": _FIGURE,
        "val": _OF_SPLIT,
        "test": maybe(_OF_SPLIT),
    }
)
_MEASURE_AGAIN = "'mmdeploy train … --resume' writes it again"


@dataclass(frozen=True)
class Beginning:
    """What a run was begun with."""

    recipe: Recipe
    arch: Architecture
    group_by: str | None
    """Pattern of the groups in file names."""
    skipped: bool = False
    """Whether it left images out that could not be read."""
    dealing: int = 0
    """How a flat folder was dealt (see `splitting.DEALING`)."""


@dataclass(frozen=True)
class State:
    """All that an epoch changes."""

    history: tuple[Epoch, ...]
    network: dict[str, Tensor]
    best: dict[str, Tensor]
    """The best epoch's weights, on the CPU."""
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    """State of the mixed-precision loss's scaling; empty without."""
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """The averaged weights; empty where the recipe has none."""


def dealing_of(data: Mapping[str, Any]) -> int:
    """How the flat folder of a run was dealt (see `splitting.DEALING`), from its config's ``data``."""
    dealing: int = data.get("dealing", int(data.get("copies_together", False)))
    return dealing


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, where what goes on is not what was begun.

    Args:
        was: the `flat` figures that it was begun with.
        now: those that it shall go on with.
    """
    return [
        f"the images of the {name.rpartition('.')[2]} split are not those it was begun with"
        if name.startswith("data.digests.")
        else f"{_as_asked(name)} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]


def _as_asked(name: str) -> str:
    """A figure of a config as the command line calls it; what no option decides, by its own name."""
    group, _, figure = name.rpartition(".")
    return option_of(figure) if group in _OF_RECIPES or name in _OF_OPTIONS else name


class _Telling:
    """A file for `torch.save`, whose zip writer hides what the device answers.

    Attributes:
        error: why the last write failed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        with self._remembering():
            return self._file.write(content)

    def flush(self) -> None:
        with self._remembering():
            self._file.flush()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def _save(values: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, with an OSError where a write failed."""
    telling = _Telling(file)
    try:
        torch.save(values, telling)  # type: ignore[arg-type]  # it writes and flushes, no more
    except RuntimeError as error:
        raise telling.error or error from error


class RunFolder:
    """The files of one run. All writing methods raise TargetError where the disk refuses."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best = self.path / BEST

    def create(self) -> None:
        """Makes the folder, or takes one that is empty.

        Raises:
            TargetError: it holds something, or cannot be made.
        """
        self.check_new()
        self._make()

    def check_new(self) -> None:
        """Refuses a folder that holds something, or cannot be written.

        Raises:
            TargetError: it does, or cannot be read or written.
        """
        if (self.path / CONFIG).exists():
            raise TargetError(
                f"'{self.path}' holds a run already: resume it with --resume, or choose another folder"
            )
        try:
            names = [path.name for path in self.path.iterdir()] if self.path.exists() else []
        except OSError as error:
            raise TargetError(f"the folder '{self.path}' cannot be read: {reason_of(error)}") from error
        taken = sorted(name for name in names if not name.startswith("."))
        if taken:
            raise TargetError(f"'{self.path}' holds {taken[0]!r} and is no run: choose a new folder")
        self.check_writable()

    def check_writable(self) -> None:
        """Refuses a folder that cannot be made, or written into.

        Raises:
            TargetError: it cannot.
        """
        check_writable_folder(self.path)

    def _make(self) -> None:
        make_folder(self.path, parents=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder, which is made if it is not there.

        Raises:
            TargetError: another process trains there, or the folder cannot be made.
        """
        is_new = not self.path.exists()
        self._make()
        try:
            busy = f"'{self.path}' is trained by another process: wait for it, or choose another folder"
            with folder_lock(self.path, busy):
                yield
        finally:
            if is_new:
                with suppress(OSError):
                    self.path.rmdir()  # where the run did not come to its first file

    def tidy(self) -> None:
        """Removes the temporary files of a process that was killed while writing."""
        remove_leftovers(self.path)

    def read_config(self) -> dict[str, Any] | None:
        """The run's config; None where no run has begun.

        Raises:
            TrainingError: it cannot be read.
        """
        path = self.path / CONFIG
        try:
            config: dict[str, Any] = parsed(read_file(path), names=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path}: cannot be read: {reason_of(error)}") from error
        if problems := _CONFIG.problems(config):
            raise TrainingError(f"{path}: is not the config of a run of this version: {'; '.join(problems)}")
        return config

    def read_beginning(self) -> Beginning | None:
        """What the run was begun with; None where no run has begun.

        Raises:
            TrainingError: it cannot be read.
        """
        config = self.read_config()
        if config is None:
            return None
        try:
            # Runs begun before networks had names are Microscopic-Mamba's.
            family = family_named(config.get("network", MicroscopicMambaFamily.name))
            return Beginning(
                Recipe.from_dict(config["recipe"]),
                family.architecture_from(config["architecture"]),
                config["data"]["group_by"],
                bool(config.get("skipped")),
                dealing_of(config["data"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, InputError) as error:
            raise TrainingError(
                f"{self.path / CONFIG}: is not the config of a run of this version: {error!r}"
            ) from error

    def read_metrics(self) -> dict[str, Any]:
        """What the run came to, as `Result.to_dict` has it.

        Raises:
            TrainingError: the run is not finished, or its metrics cannot be read.
        """
        path = self.path / METRICS
        try:
            metrics: dict[str, Any] = parsed(read_file(path), names=True)
        except FileNotFoundError as error:
            raise TrainingError(
                f"'{self.path}' is not finished: continue it with 'mmdeploy train … --resume'"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path}: cannot be read: {reason_of(error)}: {_MEASURE_AGAIN}") from error
        if problems := _METRICS.problems(metrics):
            raise TrainingError(
                f"{path}: is not of a run of this version: {'; '.join(problems)}: {_MEASURE_AGAIN}"
            )
        return metrics

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes `config.json`."""
        self._write_json(CONFIG, config)

    def read_state(self) -> State | None:
        """The state after the last finished epoch; None where none is finished.

        Raises:
            TrainingError: it cannot be read.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            values = read_pytorch_file(path)
            history = tuple(Epoch(**epoch) for epoch in values.pop("history"))
            return State(history=history, **values)
        except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.filename:  # the file system's; PyTorch's own name no file
                raise TrainingError(f"{path}: cannot be read: {reason_of(cause)}") from error
            raise TrainingError(
                f"{path}: is not the state of a run of this version ({type(error).__name__}): "
                f"begin the run again in a new folder"
            ) from error

    def write_state(self, state: State) -> None:
        """Writes `last.pt`."""
        values = {**vars(state), "history": [asdict(epoch) for epoch in state.history]}
        write_atomically(self.path / STATE, lambda file: _save(values, file))

    def write_history(self, history: Sequence[Epoch]) -> None:
        """Writes `history.jsonl`."""
        lines = [json.dumps(asdict(epoch)) + "\n" for epoch in history]
        write_atomically(self.path / HISTORY, "".join(lines).encode())

    def draw_curve(self, history: Sequence[Epoch]) -> None:
        """Draws `curve.png`, from at least one epoch."""
        write_training_curve(self.path / CURVE, history, best_of(history))

    def write_result(self, result: Result, predictions: Mapping[str, Predictions]) -> None:
        """Writes `predictions.csv`, by split, `confusion.png`, and `metrics.json`, which says it is done."""
        metrics, split = (result.val, "validation") if result.test is None else (result.test, "test")
        with written_together():
            write_predictions(self.path / PREDICTIONS, predictions)
            write_confusion_matrix(self.path / CONFUSION, metrics, title=f"{split} split".capitalize())
            self._write_json(METRICS, result.to_dict())

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(values, indent=2) + "\n").encode())
