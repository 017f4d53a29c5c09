"""Training from scratch: the recipe applied to a data set, into a run folder.

Every random choice is seeded by (seed, epoch), so nothing of a random generator has to be saved, and a
resumed run equals one that was never stopped, bit for bit on a CPU.

Dims: B batch, S side of the square network input, C classes.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.coverage import Coverage
from ...data.folders import ImageFolder, check_trainable, read_training_folder
from ...data.imported import Channels
from ...data.readable import telling_of_skip_bad, unreadable_images, without
from ...data.samples import StackedSamples, sources_of
from ...data.scale import check_microns
from ...data.seen import Seen
from ...data.splitting import DEALING
from ...errors import BackendError, CheckpointError, ImageError, InputError, TrainingError, reason_of, some
from ...images import FULL_WHITE, Transform, noting, white_level_of, white_note
from ...machine import usable_cores
from ...measures.metrics import check_can_measure, metrics_of
from ...measures.predictions import Predictions
from ...pages.figures import check_can_draw
from ...version import __version__
from ..networks.checkpoint import save_checkpoint
from ..networks.family import Architecture, Network
from ..networks.pretrained import Pretrained
from ..networks.registry import DEFAULT, architecture_named, family_of, outline, with_switches
from .figures import FigureError
from .history import Epoch, Result, best_of, is_over
from .loading import (
    CACHE_BYTES,
    Batches,
    EvaluationImages,
    Images,
    ShuffledBatches,
    TrainingImages,
    channel_statistics,
    images_of,
    in_batches,
    telling_of_workers,
)
from .parallel import ALONE, Part, Processes, Shards, averaging_gradients, collected, dealt, take
from .recipe import Recipe
from .run import STATE, RunFolder, State, differences, flat
from .threads import set_threads

_Answer = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Logits, (B, C), and true classes, (B,), of a batch."""


@dataclass(frozen=True)
class Hardware:
    """What a run is computed on. It is no part of the recipe: a resumed run may change it.

    Raises:
        BackendError: a device that is not there, or mixed precision without CUDA.
    """

    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:<index>``."""
    amp: bool = False
    """Automatic mixed precision: float16 with loss scaling, CUDA only."""
    threads: int | None = None
    """CPU threads; None leaves them as they are, and shares the cores among several processes."""
    workers: int = 0
    """Processes that decode and augment images; 0 does it in this one."""
    cache_bytes: int = CACHE_BYTES
    """Decoded images kept in memory, at most: of all splits, by all processes and workers of a machine."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time, or an error. Those of the CPU always do."""

    def __post_init__(self) -> None:
        known = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", self.device)
        if known is None:
            raise BackendError(f"there is no device {self.device!r}: choose cpu, cuda or cuda:<index>")
        on_cuda = self.device != "cpu"
        if on_cuda and not torch.cuda.is_available():
            raise BackendError(
                f"device {self.device!r} was asked for, but PyTorch {torch.__version__} finds no CUDA"
            )
        if on_cuda and int(known[1] or 0) >= (count := torch.cuda.device_count()):
            raise BackendError(
                f"device {self.device!r} was asked for, but PyTorch finds {count} GPUs, from 0 on"
            )
        if self.amp and not on_cuda:
            raise BackendError("mixed precision needs CUDA: train without it on the CPU")


@dataclass(frozen=True)
class Plan:
    """What a run is about to do."""

    run: Path
    counts: dict[str, dict[str, int]]
    """Images by split and class name."""
    transform: Transform
    parameters: int
    epochs: int
    steps: int
    """Batches in each epoch."""
    done: int
    """Epochs finished before; above 0 in a resumed run."""
    recipe: Recipe = field(default_factory=Recipe)
    processes: int = 1
    """How many processes share every batch."""
    skipped: tuple[str, ...] = ()
    """Images that were left out because they cannot be read."""
    notes: tuple[str, ...] = ()
    """What there is to say of the data, a line each."""
    covers: Coverage | None = None
    """What the training images cover."""


class Listener(Protocol):
    """Is told how a run goes, on the first process. Epochs and steps count from 1."""

    def on_start(self, plan: Plan) -> None:
        """The run begins, or continues."""

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        """A batch is done."""

    def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
        """An epoch is done and saved."""


def train(
    data: ImageFolder,
    run: str | Path,
    arch: Architecture,
    recipe: Recipe | None = None,
    *,
    hardware: Hardware | None = None,
    processes: Processes = ALONE,
    resume: bool = False,
    white_level: int | None = None,
    mpp: float | None = None,
    weights: Pretrained | None = None,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Trains a network, from scratch or from pretrained weights. Seeds PyTorch's global random generator.

    Args:
        data: has the splits ``train`` and ``val``; ``test``, where there is one, is measured at the end.
        run: the run folder (see `model.training.run`), new unless ``resume``.
        arch: its number of classes is taken from the data.
        recipe: the paper's by default.
        hardware: the CPU by default.
        processes: those that `parallel.joined`, each of which calls this with the same arguments.
        resume: continue the run in the folder, from its first epoch where none is finished; on whatever
            number of processes.
        white_level: the value of white in 16-bit images; an import's, or that of the bits the training
            images use, where None.
        mpp: microns a pixel of the images as they are stored; an import's where None. It decides no weight:
            a run that is resumed may still learn it.
        weights: what the network begins with, but for its head. A run that is resumed knows them itself.
        listeners: are told of every step and epoch.

    Raises:
        DataError: a split is missing.
        InputError: the network takes no images of the recipe's size.
        ImageError: an image cannot be read; the message names it. Images to validate and test with are read
            before the first epoch. One that cannot be read any more in the end stops nothing: it is left out
            of the result, which names it.
        TargetError: the folder holds a run already, cannot be written, or another process trains in it.
        CheckpointError: the weights are of another network, or are no longer where the run had them from.
        TrainingError: the loss is no longer finite, the run to resume is another one, or another process
            stopped.
        BackendError: deterministic training needs an algorithm that there is not, or the network or
            the run's pictures a library.
    """
    hardware = hardware or Hardware()
    if hardware.threads is not None:
        set_threads(hardware.threads)
    elif processes.on_machine > 1:
        set_threads(max(1, usable_cores() // processes.on_machine))
    check_microns(mpp)
    arch, recipe = replace(arch, num_classes=len(data.labels)), recipe or Recipe()
    _check_can_train(arch, recipe)
    folder = RunFolder(run)
    if resume:
        data = _without_what_was_left_out(data, folder)
    _check_same_data(data, processes)
    with deterministic_algorithms(hardware.deterministic), ExitStack() as held:
        processes.from_first(lambda: held.enter_context(folder.locked()))
        trainer = _Trainer(
            *(data, folder, arch, recipe, hardware, processes, resume, listeners),
            white_level=white_level,
            mpp=mpp,
            weights=weights,
        )
        return trainer.run_to_the_end()


def train_folder(
    folder: str | Path,
    run: str | Path,
    *,
    network: str | None = None,
    switches: Mapping[str, bool] | None = None,
    preset: str | None = None,
    figures: Mapping[str, Any] | None = None,
    group_by: str | None = None,
    hardware: Hardware | None = None,
    processes: Processes = ALONE,
    resume: bool = False,
    skip_bad: bool = False,
    white_level: int | None = None,
    mpp: float | None = None,
    weights: str | Path | None = None,
    weights_of: str | None = None,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Trains as `train` does, from a folder; what is not given is the paper's, or that of the run to resume.

    Args:
        folder: holds the images (see `read_training_folder`); a flat one is split by the recipe's seed.
        run: the run folder.
        network: one of the registry's names; Microscopic-Mamba tiny, ``t``, by default.
        switches: further fields of its architecture by name, such as ``mifa=False``.
        preset: name of the recipe to start from; the paper's by default.
        figures: what the recipe and its augmentation have in place of the preset's figures, by field name.
        group_by: regular expression of the groups in file names.
        hardware: the CPU by default.
        processes: those that train together.
        resume: continue the run in the folder.
        skip_bad: read every image first, and leave out those that cannot be read.
        white_level: the value of white in 16-bit images; an import's, or that of the bits the training
            images use, where None.
        mpp: microns a pixel of the images as they are stored; an import's where None.
        weights: a file of pretrained weights that the network begins with, but for its head (see
            `networks.pretrained`).
        weights_of: which of them are taken where there are two, ``model`` or ``ema``.
        listeners: are told of every step and epoch.

    Raises:
        CheckpointError: the weights cannot be read, or are of another network.
        InputError: figures or a pattern that make no sense, or a size of images that the network does not
            take.
        DataError: a folder that cannot be trained on.
        ImageError: an image cannot be read; the message names it, and the options by which to go on.
    """
    pretrained = None if weights is None else Pretrained.read(weights, weights_of)
    begun = RunFolder(run).read_beginning() if resume else None
    if network or begun is None:
        arch = architecture_named(network or DEFAULT, **(switches or {}))
    else:
        arch = with_switches(begun.arch, switches or {})
    recipe = recipe_asked(preset, figures, begun.recipe if begun else None)
    # Before images are looked at, which may take long.
    _check_can_train(arch, recipe)
    folder_of_run = RunFolder(run)
    processes.from_first(folder_of_run.check_new if begun is None else folder_of_run.check_writable)
    data = data_asked(
        folder,
        recipe.seed,
        group_by if group_by is not None else begun.group_by if begun else None,
        dealing=DEALING if begun is None else begun.dealing,
        skip_bad=skip_bad or (begun is not None and begun.skipped),
        threads=(hardware or Hardware()).threads,
        processes=processes,
    )
    try:
        return train(
            data,
            run,
            arch,
            recipe,
            hardware=hardware,
            processes=processes,
            resume=resume,
            white_level=white_level,
            mpp=mpp,
            weights=pretrained,
            listeners=listeners,
        )
    except ImageError as error:
        ways = "mend or remove such images, or leave them out with --skip-bad"
        if folder_of_run.read_beginning() is not None:
            ways = "mend it and continue the run with --resume, or leave it out with --resume --skip-bad"
        raise ImageError(f"{error}: {ways}") from error


def _check_can_train(arch: Architecture, recipe: Recipe) -> None:
    """Says what a run lacks: a library, or a network that is built here and takes the recipe's images."""
    check_can_draw()
    check_can_measure()
    family = family_of(arch)
    if unavailable := family.unavailable():
        raise BackendError(f"network '{family.name_of(arch)}' cannot be trained here: {unavailable}")
    outline(arch, recipe.image_size)


def recipe_asked(
    preset: str | None = None, figures: Mapping[str, Any] | None = None, begun: Recipe | None = None
) -> Recipe:
    """A recipe from what somebody asks for.

    Args:
        preset: name of the recipe to start from; the paper's by default.
        figures: what the recipe and its augmentation have in place of the preset's figures, by field name.
        begun: the recipe of what is to go on, which stands for its preset: a preset's figures may have
            changed since.

    Raises:
        InputError: figures that make no sense.
    """
    try:
        base = begun if begun and preset in (None, begun.preset) else Recipe.of_preset(preset or "paper")
        return base.with_figures(**(figures or {}))
    except FigureError as error:
        raise InputError(f"the recipe makes no sense: {error.by_option()}") from error


def data_asked(
    folder: str | Path,
    seed: int,
    group_by: str | None = None,
    *,
    dealing: int = DEALING,
    skip_bad: bool = False,
    threads: int | None = None,
    processes: Processes = ALONE,
) -> ImageFolder:
    """The data to train on, from what somebody asks for.

    Args:
        folder: holds the images (see `read_training_folder`).
        seed: decides the split of a flat folder.
        group_by: regular expression of the groups in file names.
        dealing: how a flat folder is dealt (see `read_training_folder`).
        skip_bad: read every image first, and leave out those that cannot be read.
        threads: how many CPU threads read them.
        processes: those that train together, of which the first reads for all.

    Raises:
        InputError: a pattern that makes no sense.
        DataError: a folder that cannot be trained on.
    """
    try:
        groups = re.compile(group_by) if group_by is not None else None
    except re.error as error:
        raise InputError(f"the group pattern '{group_by}' is no regular expression: {error}") from error
    data = read_training_folder(folder, seed=seed, group_by=groups, dealing=dealing)
    if skip_bad:
        data = without(data, processes.from_first(lambda: unreadable_images(data, threads=threads)))
        check_trainable(data)
    return data


class _Trainer:
    """A run in memory: all that an epoch needs, and all that it changes."""

    def __init__(
        self,
        data: ImageFolder,
        folder: RunFolder,
        arch: Architecture,
        recipe: Recipe,
        hardware: Hardware,
        processes: Processes,
        resume: bool,
        listeners: Sequence[Listener],
        *,
        white_level: int | None,
        mpp: float | None,
        weights: Pretrained | None,
    ) -> None:
        self.labels, self.folder, self.recipe, self.hardware = data.labels, folder, recipe, hardware
        self.data = data
        self.processes = processes
        self.listeners = listeners if processes.is_first else ()
        self.device = torch.device(hardware.device)
        names = dict.fromkeys(("train", "val", *data.splits))
        room = hardware.cache_bytes // processes.on_machine
        images = images_of({name: data.split(name) for name in names}, room)
        torch.manual_seed(recipe.seed)
        self.network = family_of(arch).build(arch)
        state = folder.read_state() if resume else None
        if resume and (config := folder.read_config()) is not None:
            weights = _same_weights(folder.path, config.get("weights"), weights, needed=state is None)
        filled = () if weights is None or state is not None else weights.fill(self.network)
        self.network.to(self.device)
        self.transform, self.covers, notes = processes.from_first(
            lambda: self._begin(data, images["train"], arch, resume, white_level, mpp, weights)
        )
        for each in images.values():
            each.take_white(self.transform.white_level)

        self.judged = self.network
        """The network that is validated and kept: the trained one, or its average."""
        if recipe.average_epochs:
            self.judged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimiser = _optimiser_of(self.network, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=hardware.amp)
        self.history: list[Epoch] = []
        self.best_weights: dict[str, Tensor] = {}
        if state is not None:
            self._restore(state)

        self.replica = processes.replicate(self.network)
        self.order = ShuffledBatches(len(images["train"]), recipe.batch_size, recipe.seed)
        self.shards = Shards(self.order, recipe.accumulate, processes)
        training = TrainingImages(images["train"], recipe.augmentation, self.transform, recipe.seed)
        self.training_batches = Batches(
            training, hardware.workers, pinned=self.device.type == "cuda", batch_sampler=self.shards
        )
        self.evaluation_batches = self._evaluation_batches(images)
        self.plan = Plan(
            run=folder.path,
            counts=data.counts(),
            transform=self.transform,
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            epochs=recipe.epochs,
            steps=len(self.order),
            done=len(self.history),
            recipe=recipe,
            processes=processes.count,
            skipped=tuple(data.skipped),
            notes=(*notes, *filled),
            covers=self.covers,
        )

    def run_to_the_end(self) -> Result:
        """All epochs that are left, then the results."""
        with telling_of_workers():
            return self._run_to_the_end()

    def _run_to_the_end(self) -> Result:
        for listener in self.listeners:
            listener.on_start(self.plan)
        try:
            while not is_over(self.history, self.recipe):
                self._run_epoch()
        finally:
            if self.history and self.processes.is_first:
                self.folder.draw_curve(self.history)
        self.judged.load_state_dict(self.best_weights)
        result, predictions = self._measure()
        if self.processes.is_first:
            self.folder.write_result(result, predictions)
        return result

    def _evaluation_batches(self, images: Mapping[str, Images]) -> dict[str, Batches]:
        """This process's batches of every split but the training split."""
        return {
            name: Batches(
                EvaluationImages(split, self.transform),
                self.hardware.workers,
                pinned=self.device.type == "cuda",
                batch_sampler=dealt(in_batches(len(split), self.recipe.batch_size), self.processes),
            )
            for name, split in images.items()
            if name != "train"
        }

    def _measure(self) -> tuple[Result, dict[str, Predictions]]:
        """What the best weights come to and say of each image, without those that have become unreadable."""
        lost: tuple[str, ...] = ()
        try:
            own = {name: self._answers(name) for name in self.evaluation_batches}
        except ImageError:
            own = {}
        if not all(self.processes.gather(bool(own))):
            bad = self.processes.from_first(lambda: unreadable_images(_held_out(self.data)))
            lost = tuple(reason for found in bad.values() for reason in found.values())
            self.data = without(self.data, bad)
            left = {name: samples for name, samples in _held_out(self.data).splits.items() if samples}
            self.evaluation_batches = self._evaluation_batches(images_of(left, 0, self.transform.white_level))
            own = {name: self._answers(name) for name in self.evaluation_batches}
        predictions = {
            name: Predictions(
                self.labels,
                self.data.names(name),
                *self._collected(name, answers),
                self.data.drawn_together(name),
            )
            for name, answers in own.items()
        }
        metrics = {name: found.metrics() for name, found in predictions.items()}
        if "val" not in metrics:
            raise ImageError(f"{self.data.root}: no validation image can be read any more: {some(lost)}")
        result = Result(
            tuple(self.history),
            best_of(self.history).number,
            val=metrics["val"],
            test=metrics.get("test"),
            skipped=self.data.skipped,
            lost=lost,
        )
        return result, predictions

    def _begin(
        self,
        data: ImageFolder,
        images: Images,
        arch: Architecture,
        resume: bool,
        white_level: int | None,
        mpp: float | None,
        weights: Pretrained | None,
    ) -> tuple[Transform, Coverage | None, tuple[str, ...]]:
        """Checks the run to resume, or looks at the data and writes the config of a new one.

        Returns:
            The transform of the images, what they cover, and what there is to say of the data.
        """
        size = self.recipe.image_size
        identity = _plain(
            {
                "recipe": asdict(self.recipe),
                "network": family_of(arch).name_of(arch),
                "architecture": arch.to_dict(),
            }
        )
        if resume and (config := self.folder.read_config()) is not None:
            self.folder.tidy()
            notes = data.notes + _check_same_run(self.folder.path, config, identity, data)
            if {**config.get("skipped", {}), **data.skipped} != config.get("skipped", {}):
                changed = {"data": _described(data), "skipped": dict(data.skipped)}
                self.folder.write_config({**config, **changed})
            normalisation = config["normalisation"]
            white = normalisation.get("white_level", FULL_WHITE)
            if white_level not in (None, white):
                raise InputError(
                    f"{self.folder.path}: was trained with the white level {white}, not {white_level}: start "
                    "another run"
                )
            mean, std = tuple(normalisation["mean"]), tuple(normalisation["std"])
            return Transform(size, mean, std, white), self._covered_before(data, images, mpp), notes
        self.folder.create()
        with telling_of_skip_bad():
            white, mean, std, seen = _measured(data, images, size, white_level)
            covers = _covered(data, images, mpp)
        with noting() as tally:
            _check_readable(data, self.hardware.threads, white)
        notes = (*data.notes, *seen, *tally.lines())
        if covers is not None:
            notes += tuple(note for note in covers.notes if note not in notes)
        self.folder.write_config(
            {
                **identity,
                "weights": None if weights is None else weights.to_dict(),
                "data": _described(data),
                "overridden": self.recipe.overridden(),
                "kept": "averaged weights" if self.recipe.average_epochs else "trained weights",
                "normalisation": {"mean": mean, "std": std, "white_level": white},
                "covers": None if covers is None else covers.to_dict(),
                "root": str(data.root),
                "skipped": dict(data.skipped),
                "notes": notes,
                "dataset": data.name,
                "hardware": {
                    **asdict(self.hardware),
                    "threads": torch.get_num_threads(),
                    "processes": self.processes.count,
                },
                "versions": {
                    "msmamba": __version__,
                    "torch": str(torch.__version__),
                    "numpy": np.__version__,
                    "python": platform.python_version(),
                },
            }
        )
        return Transform(size, mean, std, white), covers, notes

    def _covered_before(self, data: ImageFolder, images: Images, mpp: float | None) -> Coverage | None:
        """What the images of a run that is resumed cover; microns that it does not know yet are written down.

        Raises:
            InputError: it was begun with other microns.
        """
        config = self.folder.read_config()
        assert config is not None  # else it is not resumed
        known = Coverage.from_dict(config.get("covers"))
        if mpp is None:
            return known
        covers = _covered(replace(data, covers=known or data.covers), images, mpp)
        if known is not None and known.microns not in (None, covers.microns if covers else None):
            raise InputError(
                f"{self.folder.path}: was begun with {known.to_text()}, not with {mpp:g} microns a pixel: "
                "leave --mpp out, or start another run"
            )
        if covers is not None:
            self.folder.write_config({**config, "covers": covers.to_dict()})
        return covers

    def _run_epoch(self) -> None:
        """One pass over the training images, validation, and everything saved."""
        started = time.perf_counter()
        number = len(self.history) + 1
        train_loss, train_accuracy = self._fit(number)
        trained = time.perf_counter()
        truth, logits = self._classify("val")
        val = metrics_of(logits, truth, self.labels)
        epoch = Epoch(
            number=number,
            learning_rate=self.optimiser.param_groups[0]["lr"],
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            val_auc=val.auc,
            seconds=time.perf_counter() - started,
            images_per_second=sum(self.order.sizes) / (trained - started),
        )
        # The first process's figures decide on all of them, so that they agree on when to stop.
        epoch = self.processes.from_first(lambda: epoch)
        self.history.append(epoch)
        is_best = best_of(self.history) is epoch
        if is_best:
            self.best_weights = _copied(self.judged)
        if self.processes.is_first:
            self._save(is_best)
        for listener in self.listeners:
            listener.on_epoch(epoch, is_best)

    def _fit(self, number: int) -> tuple[float, float]:
        """One pass over the training images: mean loss and accuracy."""
        self.order.epoch = number
        torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, number)).generate_state(1)[0]))
        self.network.train()
        loss_sum, right, seen = 0.0, 0.0, 0
        batches = iter(self.training_batches)
        for step, parts in enumerate(self.shards.steps, start=1):
            rate = self.recipe.learning_rate_at(number - 1 + (step - 0.5) / len(self.order))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            images = sum(part.whole for part in parts)
            self.optimiser.zero_grad(set_to_none=True)
            own_loss, own_right = 0.0, 0.0
            for part in parts:
                with averaging_gradients(self.replica, part is parts[-1]):
                    loss, hits = self._backward(part, *next(batches), images)
                own_loss += loss
                own_right += hits
            value, hits = self.processes.total(own_loss, own_right)
            if not math.isfinite(value):
                raise self._diverged(f"the loss became {value} in epoch {number}, step {step}")
            self.scaler.step(self.optimiser)
            self.scaler.update()
            if self.judged is not self.network:
                total = (number - 1) * len(self.order) + step
                kept = self.recipe.average_kept_at(total, len(self.order))
                move_towards(self.judged, self.network, 1 - kept)
            loss_sum += value * images
            right += hits
            seen += images
            for listener in self.listeners:
                listener.on_step(number, step, value)
        return loss_sum / seen, right / seen

    def _backward(self, part: Part, images: Tensor, labels: Tensor, batch: int) -> tuple[float, float]:
        """Adds the gradients of a part of a batch of ``batch`` images: its share of the loss, and hits."""
        take(self.network, part)
        truth = labels.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.hardware.amp):
            logits = self.replica(images.to(self.device, non_blocking=True))
        losses = functional.cross_entropy(
            logits.float(), truth, reduction="sum", label_smoothing=self.recipe.label_smoothing
        )
        loss = losses / (batch * part.copies)
        # A replica averages gradients over the processes, where their sum is wanted.
        self.scaler.scale(loss * self.processes.count).backward()
        hits = int((logits.argmax(dim=1) == truth).sum())
        return loss.item(), hits / part.copies

    def _classify(self, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """True classes, (N,), and logits, (N, C), of a split other than the training split."""
        return self._collected(split, self._answers(split))

    @torch.inference_mode()
    def _answers(self, split: str) -> list[_Answer]:
        """Logits and true classes of this process's batches of a split."""
        self.judged.eval()
        own: list[_Answer] = []
        for images, labels in self.evaluation_batches[split]:
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.hardware.amp):
                scores = self.judged(images.to(self.device, non_blocking=True))
            own.append((scores.float().cpu().numpy(), labels.numpy()))
        return own

    def _collected(
        self, split: str, own: list[_Answer]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """True classes, (N,), and logits, (N, C), of all processes' batches of a split."""
        logits, truth = map(np.concatenate, zip(*collected(own, self.processes), strict=True))  # (N, C), (N,)
        if not np.isfinite(logits).all():
            raise self._diverged(f"logits on the {split} split are no longer finite")
        return truth, logits

    def _diverged(self, what: str) -> TrainingError:
        kept = "no epoch was finished, so there is no checkpoint"
        if self.history:
            best = best_of(self.history)
            kept = (
                f"{self.folder.best} keeps epoch {best.number}, validation accuracy {best.val_accuracy:.3f}"
            )
        return TrainingError(
            f"{self.folder.path}: training diverged: {what}; {kept}; lower the learning rate "
            f"({self.recipe.learning_rate:g}) or warm up for longer ({self.recipe.warmup_epochs} epochs)"
        )

    def _save(self, is_best: bool) -> None:
        """Writes the state first: the other files can be written again from it."""
        self.folder.write_state(
            State(
                history=tuple(self.history),
                network=self.network.state_dict(),
                best=self.best_weights,
                optimiser=self.optimiser.state_dict(),
                scaler=self.scaler.state_dict(),
                averaged={} if self.judged is self.network else self.judged.state_dict(),
            )
        )
        if is_best:
            self._save_best()
        self.folder.write_history(self.history)

    def _save_best(self) -> None:
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.best_weights)
        save_checkpoint(
            self.folder.best,
            network,
            labels=self.labels,
            image_size=self.transform.size,
            mean=self.transform.mean,
            std=self.transform.std,
            white_level=self.transform.white_level,
            covers=self.covers,
            seen=self._seen,
        )

    @cached_property
    def _seen(self) -> Seen:
        """What goes with the weights, on the first process: by which images they came about."""
        return Seen.of(*(sources_of(self.data.split(name)) for name in ("train", "val")))

    def _restore(self, state: State) -> None:
        self.history = list(state.history)
        self.best_weights = state.best
        self.network.load_state_dict(state.network)
        if self.judged is not self.network:
            self.judged.load_state_dict(state.averaged)
        self.optimiser.load_state_dict(_renumbered(state, self.network, self.folder.path / STATE))
        if self.hardware.amp and state.scaler:
            self.scaler.load_state_dict(state.scaler)
        if self.processes.is_first:
            self._save_best()
            self.folder.write_history(self.history)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """PyTorch's deterministic algorithms for as long as the block runs, if wanted.

    Raises:
        BackendError: an operation has none.
    """
    if not wanted:
        yield
        return
    was, was_benchmarking = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise BackendError(
            f"this training cannot be deterministic: {reason_of(error)}: train without --deterministic"
        ) from error
    finally:
        torch.use_deterministic_algorithms(was)
        torch.backends.cudnn.benchmark = was_benchmarking


def _optimiser_of(network: Network, recipe: Recipe) -> torch.optim.Adam:
    parameters = dict(network.named_parameters())
    decayed, others = ([parameters[name] for name in names] for names in _optimised(network, parameters))
    return torch.optim.Adam(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,  # a quarter of the time of PyTorch's default on the CPU, a loop over the tensors
    )


def _optimised(network: Network, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The parameters that have weight decay, and those that have none, as the optimiser numbers them.

    Args:
        network: the one that has the parameters.
        names: tensors of its state dict, in the order of the numbers.
    """
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    every = dict(network.named_parameters(remove_duplicate=False))
    distinct = dict.fromkeys(first[id(every[name])] for name in names if name in every)
    spared = set(network.without_weight_decay())
    return [name for name in distinct if name not in spared], [name for name in distinct if name in spared]


def _renumbered(state: State, network: Network, path: Path) -> dict[str, Any]:
    """The optimiser's state of a run, in which parameters have numbers, by the numbers that they have now.

    An earlier version may have had a network's parts in another order, which is that of the weights beside.

    Args:
        state: the run's.
        network: with the run's weights.
        path: the state's file, for the message.

    Raises:
        TrainingError: values are not of their parameter's shape: PyTorch's fused step would write beyond.
    """
    parameters = dict(network.named_parameters())
    now, then = (list(chain(*_optimised(network, names))) for names in (parameters, state.network))
    number, kept = {name: place for place, name in enumerate(then)}, state.optimiser["state"]
    values = {place: kept[number[name]] for place, name in enumerate(now) if number[name] in kept}
    for place, of_one in values.items():
        shape = parameters[now[place]].shape
        wrong = [str(tuple(each.shape)) for each in of_one.values() if each.dim() and each.shape != shape]
        if wrong:
            raise TrainingError(
                f"{path}: is not the state of a run of this version: the optimiser has {wrong[0]} for "
                f"'{now[place]}', which is {tuple(shape)}: begin the run again in a new folder"
            )
    return {**state.optimiser, "state": values}


@torch.no_grad()
def move_towards(averaged: nn.Module, network: nn.Module, share: float) -> None:
    """Moves weights and batch norms' statistics by a share of the way to those of the network in training."""
    pairs = zip(averaged.state_dict().values(), network.state_dict().values(), strict=True)
    for mean, value in pairs:
        if mean.is_floating_point():
            mean.lerp_(value, share)
        else:
            mean.copy_(value)  # batch norms' count of batches


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _held_out(data: ImageFolder) -> ImageFolder:
    """The splits that are not trained on."""
    return replace(data, splits={name: each for name, each in data.splits.items() if name != "train"})


def _check_same_data(data: ImageFolder, processes: Processes) -> None:
    """Waits until all processes have looked for images, and refuses where they found others.

    Raises:
        TrainingError: they did. Each would take its share of other batches.
    """
    if processes.count == 1:
        return
    found = processes.gather(data.digest)
    if others := [rank for rank, digest in enumerate(found) if digest != found[0]]:
        raise TrainingError(
            f"{data.root}: process {others[0]} of {processes.count} finds other images there than the first: "
            "give all of them the same, and nothing that still changes"
        )


def _without_what_was_left_out(data: ImageFolder, folder: RunFolder) -> ImageFolder:
    """The data without the images to train and validate with that a run in the folder was begun without.

    One that was mended since would make another run of it. What is tested on has no say in the weights.

    Raises:
        DataError: too little is left.
    """
    skipped = (folder.read_config() or {}).get("skipped")
    if not skipped:
        return data
    left_out = {
        name: {place: skipped[image] for place, image in enumerate(data.names(name)) if image in skipped}
        for name in ("train", "val")
    }
    names = [data.names(name)[place] for name, found in left_out.items() for place in found]
    if not names:
        return data
    note = f"{len(names)} images stay left out, as the run was begun without them: {some(names)}"
    data = without(data, {name: found for name, found in left_out.items() if found})
    check_trainable(data)
    return replace(data, notes=(*data.notes, note))


def _measured(
    data: ImageFolder, images: Images, size: int, asked: int | None
) -> tuple[int, Channels, Channels, tuple[str, ...]]:
    """The white level, the channels' mean and deviation, and what there is to say of the training images.

    What an import measured is taken, unless another white level is asked for. Else the images are read, and
    read again where they turn out to use fewer than 16 bits.
    """
    white = data.white_level if asked is None else asked
    if data.statistics and white is not None and white == data.white_level:
        images.take_white(white)
        return white, *data.statistics, ()
    images.take_white(white or FULL_WHITE)
    with noting() as tally:
        mean, std = channel_statistics(images, size)
    if white is not None:
        return white, mean, std, tally.lines()
    white = white_level_of(images.depths)
    if white == FULL_WHITE:
        return white, mean, std, tally.lines()
    images.take_white(white)
    with noting() as tally:
        mean, std = channel_statistics(images, size)
    return white, mean, std, (white_note(white), *tally.lines())


def _covered(data: ImageFolder, images: Images, mpp: float | None) -> Coverage | None:
    """What the training images cover: as an import says, or by their sizes; by these microns where given."""
    covers = data.covers
    if covers is None and (mpp is not None or len(images.sizes) == len(images)):
        for index in range(len(images)):
            if index not in images.sizes:
                images.read(index)
        covers = Coverage.of([images.sizes[index] for index in range(len(images))])
    return covers if covers is None or mpp is None else covers.at(mpp)


def _check_readable(data: ImageFolder, threads: int | None, white_level: int) -> None:
    """Reads the images to validate and test with: those to test with would be met after the last epoch only.

    Images in stacks are not decoded, and so not looked at.

    Raises:
        ImageError: some cannot be read; they are named.
    """
    if any(isinstance(samples, StackedSamples) for samples in data.splits.values()):
        return
    bad = unreadable_images(_held_out(data), threads=threads, white_level=white_level)
    reasons = [reason for found in bad.values() for reason in found.values()]
    if reasons:
        raise ImageError(
            f"{some(reasons)}: {len(reasons)} of the images to validate and test with cannot be read"
        )


def _described(data: ImageFolder) -> dict[str, Any]:
    """What a run's config says of its data: enough to know it again, whatever is left out of it."""
    whole = data.whole or data
    return {
        "labels": data.labels,
        "group_by": data.group_by,
        "dealing": data.dealing,
        "counts": data.counts(),
        "digests": {name: whole.digest_of(name) for name in whole.splits},
    }


def _known_by(data: ImageFolder, config: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in the data of a run that is resumed, as its config has it."""
    whole = data.whole or data
    same: dict[str, Any] = {"labels": data.labels, "group_by": data.group_by}
    if "digests" in config["data"]:
        # What is tested on has no say in the weights, so it may have changed.
        return {**same, "digests": {name: whole.digest_of(name) for name in ("train", "val")}}
    used = data if config.get("skipped") else whole  # a run of an earlier version
    return {**same, "counts": used.counts(), "digest": used.digest}


def _check_same_run(
    run: Path, config: dict[str, Any], identity: dict[str, Any], data: ImageFolder
) -> tuple[str, ...]:
    """Refuses to resume a run with other figures, and says where its test images are others."""
    identity = {**identity, "data": _plain(_known_by(data, config))}
    known = {name: config["data"].get(name) for name in identity["data"]}
    digests = dict(known.get("digests", {}))
    tested = digests.pop("test", None)
    known |= {"digests": digests} if digests else {}
    was, now = flat({**{key: config.get(key) for key in identity}, "data": known}), flat(identity)
    # Figures that a run of an earlier version does not name were what their defaults are.
    was = {**flat({"recipe": _plain(asdict(Recipe()))}), **was}
    was["network"] = was["network"] or now["network"]  # not named by an earlier version
    if differing := differences(was, now):
        raise TrainingError(
            f"{run}: cannot be resumed with other figures: {'; '.join(differing)}. "
            f"Give the same ones, or train in a new folder"
        )
    whole = data.whole or data
    if digests and tested != (whole.digest_of("test") if "test" in whole.splits else None):
        return ("the images of the test split are not those that the run was begun with",)
    return ()


def _same_weights(
    run: Path, recorded: Mapping[str, str] | None, given: Pretrained | None, *, needed: bool
) -> Pretrained | None:
    """The pretrained weights of a run that is resumed, read again if no epoch is finished.

    Raises:
        TrainingError: it was begun with others.
        CheckpointError: they are no longer where the run had them from.
    """
    if given is not None and (
        recorded is None or (given.sha256, given.weights_of) != (recorded["sha256"], recorded["weights_of"])
    ):
        begun = "without pretrained weights"
        if recorded is not None:
            begun = f"with {recorded['file']} ({recorded['weights_of']})"
        raise TrainingError(
            f"{run}: was begun {begun}, not with {given.path} ({given.weights_of}): leave --weights out"
        )
    if recorded is None or given is not None or not needed:
        return given
    read = Pretrained.read(recorded["file"], recorded["weights_of"])
    if read.sha256 != recorded["sha256"]:
        raise CheckpointError(
            f"{read.path}: is no longer the file that {run} was begun with: give that one, or begin a new run"
        )
    return read
