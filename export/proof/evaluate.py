"""Metrics of a checkpoint or of anything exported from it, on a folder of labelled images.

It stands here because it needs both sides: `model` runs checkpoints, `runtime` runs artefacts. Whichever
runs, images are read and transformed by the same code, and the same lines count what is right.

Dims: B batch, S side of the square network input, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.folders import match_labels, read_evaluation_folder
from ...data.readable import telling_of_skip_bad, unreadable_images, without
from ...data.samples import classes_of, sources_of
from ...data.seen import Checksums, Overlap, Seen
from ...errors import ArtefactError, BackendError, InputError, TargetError
from ...files import (
    as_utf8,
    check_writable_folder,
    folder_turn,
    make_folder,
    write_atomically,
    written_together,
)
from ...images import Transform, noting
from ...measures.confusion import write_confusion_matrix
from ...measures.evaluation import BATCH_SIZE, Predictor, logits_of
from ...measures.metrics import ClassMetrics, Metrics, check_can_measure, metrics_of
from ...measures.trust import Trust, trust_of, write_risk_coverage
from ...model.networks.described import Described, described_by, notes_on, undescribed
from ...model.training.run import CONFIG
from ...runtime import open_session
from ...runtime.artefact import Kind, is_checkpoint, open_bundle, recognise
from ...runtime.guard import Guard
from ...runtime.quality import Quality
from ...schema import as_json
from ...text import share_as_text, shown

METRICS_FILE, CONFUSION_FILE, RISK_FILE = "metrics.json", "confusion.png", "risk.png"


@dataclass(frozen=True)
class Evaluation:
    """A model's metrics on a folder."""

    model: str
    data: str
    split: str
    """The folder's split that was measured; ``all`` for a flat one."""
    ran_on: str
    """Runtime and device, in words."""
    metrics: Metrics
    trust: Trust
    """What the model's certainty is worth, and its guard's decisions, where one was applied."""
    guard: Guard | None
    """The guard that was applied."""
    seconds: float
    """Wall time, reading included and loading the model not."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Images that were left out because they cannot be read, with the reason."""
    notes: tuple[str, ...] = ()
    """What there is to say of the model and the folder, a line each."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **vars(self),
            "metrics": self.metrics.to_dict(),
            "trust": self.trust.to_dict(),
            "guard": None if self.guard is None else self.guard.facts,
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        """JSON, one value a line."""
        return as_json(self.to_dict(), indent=2) + "\n"

    def to_text(self) -> str:
        """A table of the classes, and the figures of all."""
        metrics = self.metrics
        rows: list[tuple[str, int, ClassMetrics | Metrics]] = [
            (shown(result.label), result.images, result) for result in metrics.classes
        ]
        rows.append(("weighted", metrics.images, metrics))
        width = max(len(name) for name, _, _ in rows)
        lines = [
            f"{shown(self.model)} on {shown(self.data)}, split {shown(self.split)}: {metrics.images} images "
            f"in {self.seconds:.1f} s, {self.ran_on}",
            "",
            f"{'':{width}}  images  precision   recall       F1      AUC",
        ]
        for name, images, row in rows:
            auc = "-" if row.auc is None else share_as_text(row.auc, 4, 1)
            shares = "  ".join(
                f"{share_as_text(share, 4, 1):>{wide}}"
                for share, wide in ((row.precision, 9), (row.recall, 7), (row.f1, 7))
            )
            if not images:  # nothing is known of such, and it weighs nothing
                shares = f"{'-':>9}  {'-':>7}  {'-':>7}"
            lines.append(f"{name:{width}}  {images:6}  {shares}  {auc:>7}")
        right = sum(row[index] for index, row in enumerate(metrics.confusion))
        accuracy = share_as_text(metrics.accuracy, 4, 1)
        lines += ["", f"overall accuracy {accuracy} ({right} of {metrics.images})"]
        if self.guard is not None:
            lines.append(f"guard: {self.guard.promise}")
        lines += self.trust.to_text().splitlines()
        lines += [f"left out: {shown(reason)}" for reason in self.skipped.values()]
        lines.append("")
        return "\n".join(lines)

    def write(self, folder: str | Path) -> None:
        """Writes `metrics.json`, `confusion.png` and `risk.png` into a folder, which is made if need be.

        The three belong together: all are of this evaluation in the end, or none is, and who writes into the
        folder at the same time waits.

        Raises:
            TargetError: it cannot be written, or holds a run.
        """
        folder = Path(folder)
        title = f"{Path(self.model).name}, {self.split}"
        promised = None if self.guard is None else self.guard.max_error
        _refuse_run(folder)
        make_folder(folder, parents=True)
        with folder_turn(folder):
            _refuse_run(folder)  # which may have begun meanwhile
            with written_together():
                write_atomically(folder / METRICS_FILE, as_utf8(self.to_json()))
                write_confusion_matrix(folder / CONFUSION_FILE, self.metrics, title)
                write_risk_coverage(folder / RISK_FILE, self.trust, title, promised)


def check_report_folder(folder: str | Path) -> None:
    """Refuses, before the work, a folder that `Evaluation.write` cannot write into, or shall not.

    Raises:
        TargetError: it cannot be written, or holds a run.
    """
    _refuse_run(Path(folder))
    check_writable_folder(folder)


def _refuse_run(folder: Path) -> None:
    """The files of a run are called alike."""
    if (folder / CONFIG).exists():
        raise TargetError(
            f"'{folder}' holds a run, whose {METRICS_FILE} and {CONFUSION_FILE} would be replaced: name "
            "another folder"
        )


def evaluate_model(
    model: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    described: Described | None = None,
    device: str = "auto",
    threads: int | None = None,
    kernels: str = "auto",
    provider: str = "auto",
    trust_engine_code: bool = False,
    batch_size: int = BATCH_SIZE,
    skip_bad: bool = False,
    guard: bool = True,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> Evaluation:
    """Measures a model on labelled images; a class is found by its name, not by its place.

    Args:
        model: a checkpoint, a bundle or an ONNX file, recognised by content.
        data: an imported data set, ``{train,val,test}/<class>/*`` or ``<class>/*``.
        split: the one to measure on where there are splits, ``test`` by default; a flat folder is used whole.
        described: labels and preprocessing of a model that does not say.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: how many CPU threads to use.
        kernels: which kernels run an exported artefact (see `open_session`).
        provider: what executes an exported artefact (see `open_session`).
        trust_engine_code: lets an engine run the library that it carries (see `open_session`).
        batch_size: images at a time, fewer where the artefact takes fewer.
        skip_bad: read every image first, and leave out those that cannot be read.
        guard: whether an artefact's guard is applied, where it has one.
        advance: called after each batch with the images done and all images.

    Raises:
        DataError: no such split, or classes that the model does not know.
        ImageError: an image cannot be read; the message names it.
        CheckpointError: the checkpoint cannot be used.
        ArtefactError: the artefact cannot be used, or does not say its labels and preprocessing.
        BackendError: the device asked for is not there, or scikit-learn is missing.
        InputError: options of exported artefacts for a checkpoint.
    """
    check_can_measure()
    folder = read_evaluation_folder(data, split)
    if skip_bad:
        folder = without(folder, unreadable_images(folder, threads=threads, advance=advance))
        for name in folder.splits:
            folder.split(name)  # raises where none are left
    execution = {"kernels": kernels, "provider": provider, "trust_engine_code": trust_engine_code}
    with _opened(Path(model), described or Described(), device, threads, guard, **execution) as classifier:
        matched = match_labels(folder, classifier.labels)
        ((name, samples),) = matched.splits.items()
        done = 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            advance(done, len(samples))

        started = time.perf_counter()
        judging = classifier.guard if classifier.guard and classifier.guard.quality else None
        qualities = list[Quality]()
        with telling_of_skip_bad(), noting() as tally:
            logits = logits_of(
                classifier.predict,
                samples,
                classifier.transform,
                batch_size=min(batch_size, classifier.max_batch or batch_size),
                advance=count,
                look=lambda pixels: qualities.append(judging.quality_of(pixels)) if judging else None,
            )
        seconds = time.perf_counter() - started
    truth = classes_of(samples)
    applied = classifier.guard
    verdicts = None
    if applied is not None:
        features = np.concatenate(classifier.features) if classifier.features else None
        verdicts = applied.judge(logits, qualities or None, applied.distances(features))
    return Evaluation(
        model=str(model),
        data=str(data),
        split=name,
        ran_on=classifier.ran_on,
        metrics=metrics_of(logits, truth, classifier.labels),
        trust=trust_of(
            logits,
            truth,
            temperature=1 if applied is None else applied.temperature,
            decided=None if verdicts is None else np.array([not each.reasons for each in verdicts]),
            candidates=None if verdicts is None else [each.candidates for each in verdicts],
            groups=matched.drawn_together(name),
        ),
        guard=applied,
        seconds=seconds,
        skipped=dict(folder.skipped),
        notes=(
            *classifier.notes,
            *folder.notes,
            *Overlap.of(
                sources_of(samples), classifier.seen, classifier.calibrated_on, classifier.quantised_on
            ).notes(matched.names(name)),
            *tally.lines(),
        ),
    )


@dataclass(frozen=True)
class _Classifier:
    predict: Predictor
    labels: tuple[str, ...]
    transform: Transform
    ran_on: str
    max_batch: int | None = None
    notes: tuple[str, ...] = ()
    seen: Seen | None = None
    guard: Guard | None = None
    calibrated_on: Checksums | None = None
    """What that was fitted on, where it is known."""
    quantised_on: Checksums | None = None
    """What int8 was calibrated and judged on, where it is known."""
    features: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """The features of each batch that was predicted, where the guard compares them."""


@contextmanager
def _opened(
    model: Path, described: Described, device: str, threads: int | None, guard: bool, **execution: Any
) -> Iterator[_Classifier]:
    if model.is_file() and is_checkpoint(model):
        asked = [
            f"--{name.replace('_', '-')}" for name, value in execution.items() if value not in ("auto", False)
        ]
        if asked:
            raise InputError(f"{model} is a checkpoint, which PyTorch runs: leave {', '.join(asked)} out")
        yield _checkpoint_classifier(model, described, device, threads)
        return
    if described.weights_of is not None:
        raise ArtefactError(f"{model} is exported already, which settled its weights: leave --weights-of out")
    if described.network is not None:
        raise ArtefactError(f"{model} is exported already, and says its network: leave --network out")
    with open_session(
        model,
        device=device,
        threads=threads,
        guard=guard,
        **execution,
        labels=described.labels,
        mean=described.mean,
        std=described.std,
        white_level=described.white_level,
    ) as session:
        if session.labels is None or session.transform is None:
            raise undescribed(str(model), labels=session.labels, preprocessing=session.transform)
        if described.image_size not in (None, session.transform.size):
            raise ArtefactError(
                f"{model} takes {session.transform.size}x{session.transform.size} images, not "
                f"{described.image_size}: export it with --image-size {described.image_size}"
            )
        features: list[npt.NDArray[np.float32]] = []

        def with_features(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            logits, found = session.run_with_features(images)
            features.extend([] if found is None else [found])
            return logits

        bundle = open_bundle(model) if recognise(model) is Kind.BUNDLE else None
        compared = session.guard is not None and session.guard.needs_features
        yield _Classifier(
            with_features if compared else session.run,
            session.labels,
            session.transform,
            session.path,
            session.max_batch,
            session.notes,
            None if bundle is None else bundle.seen,
            session.guard,
            None if bundle is None or session.guard is None else bundle.calibrated_on,
            None if bundle is None else bundle.quantised_on,
            features,
        )


def _checkpoint_classifier(
    model: Path, described: Described, device: str, threads: int | None
) -> _Classifier:
    import torch

    from ...model.networks.checkpoint import load_checkpoint
    from ...model.training.threads import set_threads

    if threads is not None:
        set_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device 'cuda' was asked for, but PyTorch {torch.__version__} finds no CUDA")
    checkpoint = load_checkpoint(model, described.weights_of, described.network)
    labels, transform = described_by(checkpoint, described, str(model))
    network = checkpoint.network.to(device)

    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # Without TF32, in which convolutions on CUDA would differ from every exported file by 1e-3.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits: npt.NDArray[np.float32] = network(torch.from_numpy(images).to(device)).cpu().numpy()
        return logits

    return _Classifier(
        predict,
        labels,
        transform,
        f"PyTorch {torch.__version__} on {device}",
        notes=notes_on(checkpoint, described),
        seen=checkpoint.seen,
    )
