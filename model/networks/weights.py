"""The weights in what a checkpoint's file holds: unwrapped, and named as the network names them.

Training frameworks put a state dict into others, put the names of their own modules before a network's, and
keep a moving average (EMA) beside the weights. Which of the two is taken is the caller's choice.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ...errors import CheckpointError, reason_of, some
from ...files import open_file

WEIGHTS_OF = ("model", "ema")
"""What may be asked for: the weights as trained, or their moving average."""

_DEPTH = 4  # of dictionaries in dictionaries
_ZIP, _PICKLE = b"PK\3\4", "data.pkl"
_MAKE_TUPLES = frozenset({pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3})
_DEEPEST = 64  # tuples in one another, of which PyTorch's have three
_LEGACY_PICKLES = 4  # magic number, protocol, system, content: PyTorch before 1.6

# Keys of the weights, and of their average, in what people save; the earlier before the later.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network", "module")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema_state_dict", "ema_model")
# Lightning's weight averaging puts the average in the weights' place, and the weights here.
_WEIGHTS_OF_AVERAGED = "current_model_state"

# What wrappers put before a network's names: DataParallel, torch.compile, Lightning's modules, others.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_AVERAGE_PREFIXES = ("ema.", "ema_model.", "model_ema.")
_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel


_OF_A_RUN = frozenset({"history", "best", "network", "optimiser"})
"""What the state of a run (see `training.run`) holds, of which no weights are described."""


class Weights(NamedTuple):
    """A state dict, and what there was to decide."""

    state: dict[str, Tensor]
    taken: str
    """Which they are, one of `WEIGHTS_OF`."""
    notes: tuple[str, ...]


def read_pytorch_file(path: Path) -> Any:
    """What `torch.save` wrote, read without running code and without more memory than the file is large.

    Raises:
        CheckpointError: it cannot be read so.
    """
    try:
        with open_file(path) as file:
            _check_size(path, file)
            file.seek(0)
            # Training scripts save their arguments beside the weights: a plain bag of values.
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
                return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        cause = reason_of(error) if error.filename else "it is damaged"
        raise CheckpointError(f"{path}: cannot read the checkpoint: {cause}") from error
    except Exception as error:  # PyTorch raises whatever a damaged file makes it stumble over
        # PyTorch's own words recommend the unsafe way to load; they stay out of the message.
        raise CheckpointError(
            f"{path}: neither safetensors nor a PyTorch state dict that loads without running code: "
            "give a file that save_checkpoint or torch.save(network.state_dict()) wrote"
        ) from error


def weights_in(content: Any, path: Path, weights_of: str | None) -> Weights:
    """The state dict in what a file holds.

    Args:
        content: a state dict, or dictionaries around one.
        path: the file, for messages.
        weights_of: one of `WEIGHTS_OF`; None for the weights as trained where there are both.

    Raises:
        CheckpointError: there is none, or not of what was asked for, or its tensors are no plain ones; or it
            is the state of a run.
    """
    if weights_of not in (None, *WEIGHTS_OF):
        raise CheckpointError(
            f"there are no weights of '{weights_of}': choose one of {', '.join(WEIGHTS_OF)}"
        )
    if isinstance(content, Mapping) and content.keys() >= _OF_A_RUN:
        raise CheckpointError(
            f"{path}: is what a run is resumed from: its best weights, with labels and preprocessing, are in "
            "best.safetensors beside it"
        )
    found = _unwrapped(content, path)
    notes: list[str] = []
    if len(found) == 2 and weights_of is None:
        notes.append(
            f"{path} holds the weights and their moving average, and the weights are taken: choose with "
            "--weights-of ema or --weights-of model (weights_of)"
        )
    wanted = weights_of or next(kind for kind in WEIGHTS_OF if kind in found)
    if wanted not in found:
        held = "a moving average alone" if "ema" in found else "weights and no moving average"
        raise CheckpointError(f"{path}: holds {held}: leave --weights-of {wanted} out")
    state, left_out = _stripped(found[wanted])
    if left_out:
        notes.append(f"{path}: {len(left_out)} tensors beside the network are left out: {some(left_out)}")
    _check_tensors(state, path)
    return Weights(state, wanted, tuple(notes))


def _check_size(path: Path, file: BinaryIO) -> None:
    """Refuses a file that says it is larger inside than it is: `torch.save` compresses nothing.

    Raises:
        CheckpointError: it does.
        pickle.UnpicklingError: what is pickled in it is none of PyTorch's, or nested without end.
    """
    size = path.stat().st_size
    if file.read(len(_ZIP)) == _ZIP:  # as PyTorch tells it, which does not ask how the file ends
        with zipfile.ZipFile(file) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
            pickles = [each for each in archive.infolist() if each.filename.lower().endswith(_PICKLE)]
            for entry in pickles if inside <= size else ():
                _Looked(archive.open(entry)).load()
    else:
        file.seek(0)
        looked = _Looked(file)
        for _ in range(_LEGACY_PICKLES):
            looked.load()
        inside = sum(looked.elements.values())  # of one byte at least
    if inside > size:
        raise CheckpointError(
            f"{path}: would take {inside:,} bytes or more, and the file has {size:,}: expected what "
            "torch.save writes"
        )


class _Nothing:
    """Stands for every object of a pickle that is looked at and not made."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...


class _Tuple(tuple[Any, ...]):
    """A tuple of a pickle that is looked at, and how many tuples are in one another in it."""

    depth = 1


def _bounded(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """What makes a tuple, and refuses one that is too deep: to hash it would end the process."""

    def bounded(looked: Any) -> None:
        load(looked)
        made = _Tuple(looked.stack[-1])
        made.depth += max((each.depth for each in made if isinstance(each, _Tuple)), default=0)
        if made.depth > _DEEPEST:
            raise pickle.UnpicklingError("tuples in tuples")
        looked.stack[-1] = made

    return bounded


class _Looked(pickle._Unpickler):
    """Looks through a pickle before PyTorch loads it; nothing in it is looked up or called.

    It is the one in Python: the one in C takes a pickle's word for how many things it remembers, and eight
    bytes of one would have it fill 64 GB. So would what makes an array of bytes, which is left out here.

    Attributes:
        elements: how many elements the storages have that it asks for, by the storage's key.
    """

    dispatch = {  # noqa: RUF012  # as it is in `pickle`
        code: _bounded(load) if bytes([code]) in _MAKE_TUPLES else load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) != pickle.BYTEARRAY8
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.elements: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _Nothing

    def persistent_load(self, asked: Any) -> Any:
        _, _, key, _, elements, *_ = asked  # ("storage", its type, its key, its device, its elements, …)
        self.elements[str(key)] = int(elements)
        return _Nothing()


def _unwrapped(content: Any, path: Path) -> dict[str, Mapping[str, Any]]:
    """The state dicts in what a file holds, by whose they are."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a state dict of tensors")
    if not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path}: holds a dictionary whose keys are not names, expected a state dict")
    found: dict[str, Mapping[str, Any]] = {}
    weights = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    average = next((content[key] for key in _AVERAGES if isinstance(content.get(key), Mapping)), None)
    if isinstance(content.get(_WEIGHTS_OF_AVERAGED), Mapping):
        weights, average = content[_WEIGHTS_OF_AVERAGED], weights
    if weights is None and average is None:
        if not content or not any(isinstance(value, Tensor) for value in content.values()):
            raise CheckpointError(
                f"{path}: holds no state dict: found {some([*content]) or 'nothing'}, expected tensors"
            )
        return _told_apart(content)
    if weights is not None:
        found.update(_innermost(weights, path))
    if average is not None:
        found["ema"] = next(iter(_innermost(average, path).values()))
    return found


def _innermost(content: Any, path: Path, depth: int = 0) -> dict[str, Mapping[str, Any]]:
    if depth == _DEPTH:
        raise CheckpointError(f"{path}: holds dictionaries in dictionaries, expected a state dict of tensors")
    inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    return _told_apart(content) if inner is None else _innermost(inner, path, depth + 1)


def _told_apart(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Weights and average where names tell them apart, as in a module that has both in it."""
    average = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(_AVERAGE_PREFIXES)
    }
    rest = {name: value for name, value in state.items() if name not in average}
    inner = {name.partition(".")[2]: value for name, value in average.items()}
    if not average:
        return {"ema" if _COUNTER in state else "model": state}
    return {"model": rest, "ema": inner} if any("." in name for name in rest) else {"ema": inner}


def _stripped(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The state dict without what wrappers put before its names, and what stands beside the network in it."""
    names = {name: name for name in state if name != _COUNTER}  # by the name as it is stripped so far
    left_out: list[str] = []
    while names:
        for prefix in _PREFIXES:
            inside = [name for name in names if name.startswith(prefix)]
            # A loss or a metric with tensors of its own may stand beside a network in a module around both.
            if len(inside) == len(names) or (prefix in ("model.", "net.") and 2 * len(inside) > len(names)):
                left_out += [names[name] for name in names if name not in set(inside)]
                names = {name.removeprefix(prefix): names[name] for name in inside}
                break
        else:
            break
    return {name: state[original] for name, original in names.items()}, left_out


def _check_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Refuses what is no plain tensor in memory.

    Raises:
        CheckpointError: some are not; they are named.
    """
    problems = [
        f"{name} is {kind}"
        for name, kind in ((name, _oddity(value)) for name, value in state.items())
        if kind
    ]
    if problems:
        raise CheckpointError(
            f"{path}: {len(problems)} values are no dense tensors of numbers: {some(problems)}: save it as "
            "torch.save(network.state_dict()) of an unquantised network does"
        )


def _oddity(value: Any) -> str:
    """What keeps a value from being a weight; empty where nothing does."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested:
        return "nested"
    if value.layout != torch.strided:
        return "sparse"
    if value.is_quantized:
        return "quantised"
    if value.is_complex():
        return "complex"
    if value.device.type != "cpu":
        return f"on {value.device}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"{tuple(value.shape)} numbers made of {value.untyped_storage().nbytes()} bytes"
    return ""
