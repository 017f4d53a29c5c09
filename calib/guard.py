"""Fits a bundle's guard on labelled images: when its answer is to be trusted, and which classes it may be.

    pictures ── quality ──► the range of each measure: what is outside is withheld, whatever the network says
    images ── logits ──► temperature, threshold and bound of the candidates (`measures.selective`)
    bundle ──► the same bundle with the guard in its manifest, and in the one inside ``model.onnx``

Dims: N images, C classes.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.folders import WHOLE, ImageFolder, match_labels, read_evaluation_folder
from ..data.samples import Sample, classes_of, sources_of
from ..data.seen import Overlap, Seen, calibrated, checksums_of
from ..errors import ArtefactError, BackendError, DataError, InputError, reason_of, some
from ..files import all_below, as_utf8, atomic_folder, check_writable, folder_turn, open_file, sha256_of
from ..measures.evaluation import BATCH_SIZE, logits_of
from ..measures.metrics import log_softmax
from ..measures.paired import members_of, share_interval
from ..measures.selective import (
    candidate_bound,
    certainty,
    images_needed,
    limits,
    masses_above,
    select,
    temperature,
)
from ..measures.uncertainty import Interval, calibration_error
from ..runtime import Manifest, open_session
from ..runtime.artefact import (
    CALIBRATED_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    PARITY_NAME,
    SCORES_NAME,
    Bundle,
    Kind,
    open_bundle,
    recognise,
)
from ..runtime.drift import CalibratedScores, answer_scores, picture_scores, unlikeness
from ..runtime.guard import LIMITED, REASONS, Guard, Verdict, metadata, network_sha256
from ..runtime.likeness import METADATA_KEY, Likeness
from ..runtime.protobuf import encoded, fields
from ..runtime.quality import Quality, quality_of
from ..schema import as_json, parsed
from ..text import share_as_text, shown
from .guard_page import Evidence, write_page

_METADATA, _KEY, _VALUE = 14, 1, 2  # of ModelProto and of StringStringEntryProto, onnx.proto3

UNLIKE_SHARE = 0.02
"""The share of images like those of calibration that is let count as unlike them."""
FOLDS = 10
"""Parts of the images, each of which is compared with the others."""
OUTSIDE = 0.0025
"""The share of pictures like those of calibration that is let fall outside of each limit."""

_FLATTERS = (
    "chose the training's epoch, so they flatter the model a little: images that training never saw are "
    "better"
)
_NOT_KNOWN = (
    "the bundle does not say which images training saw (its checkpoint is somebody else's or of an earlier "
    "version), so nothing checks that it did not see these"
)
_TESTED = (
    "the 'test' images fit the guard from now on, so what 'eval' and 'verify' say of it on them flatters it: "
    "keep other images for that"
)
_VERIFY_AGAIN = (
    "what the bundle's proof said of its guard was of the guard before, and went with it: 'mmdeploy verify' "
    "proves this one"
)
_OF_GUARD = "guard_decides_otherwise"
"""What the manifest says of the guard in the bundle's proof."""

_NO_FEATURES = (
    "the bundle tells no features (it is of an earlier version), so the guard does not see whether an image "
    "is unlike the calibration's: export it again"
)


@dataclass(frozen=True)
class CalibrationErrors:
    """Expected calibration error of some images, before and at the temperature, which was fitted on them."""

    images: int
    before: float
    before_interval: Interval
    after: float
    after_interval: Interval

    def to_text(self) -> str:
        """Both, in per cent, with their intervals."""
        before, after = (
            _interval(self.before, self.before_interval),
            _interval(self.after, self.after_interval),
        )
        return f"{before} before, {after} after"


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what the images it was fitted on say of it."""

    guard: Guard
    data: str
    split: str
    errors: CalibrationErrors
    errors_by_class: Mapping[str, CalibrationErrors]
    """The same, by the class that was given; a class that none was given has none."""
    wrong_interval: Interval
    """The 95 % interval of the share of wrong answers among those that are given."""
    mean_candidates: float
    """Candidates an image."""
    withheld: Mapping[str, int]
    """How many of the images are withheld, by the reason; some have more than one."""
    groups: int | None = None
    """How many patients, slides or the like the images are of; None where nothing is known of such."""
    notes: tuple[str, ...] = ()
    """What there is to say of the images, a line each."""

    def to_text(self) -> str:
        """For a terminal, with a line end."""
        guard = self.guard
        withheld = ", ".join(f"{reason} {count}" for reason, count in self.withheld.items())
        by_class = "".join(
            f"  {shown(label)} ({errors.images} images): {errors.to_text()}\n"
            for label, errors in self.errors_by_class.items()
        )
        return (
            f"{guard.images} images of '{shown(self.data)}' ({shown(self.split)})\n"
            f"temperature        {guard.temperature:.3f}\n"
            f"calibration error  {self.errors.to_text()}\n"
            f"{by_class}"
            f"promise            {guard.promise}\n"
            f"answered           {guard.answered} of {guard.images} "
            f"({share_as_text(guard.answered / guard.images)} %), wrong {guard.errors} of them "
            f"({_interval(guard.errors / guard.answered, self.wrong_interval)})\n"
            f"withheld           {withheld or 'none'}\n"
            f"candidates         {self.mean_candidates:.2f} classes an image hold the true one in at least "
            f"{100 - 100 * guard.max_error:g} %\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(replace(self, guard=replace(self.guard, likeness=None))),
            "guard": self.guard.facts,
            "notes": list(self.notes),
        }


def calibrate(
    bundle: str | Path,
    data: str | Path,
    *,
    max_error: float = 0.05,
    confidence: float = 0.95,
    split: str | None = None,
    page: str | Path | None = None,
    advance: Callable[[int, int], None] = lambda done, images: None,
    **device: Any,
) -> Calibration:
    """Fits a guard and puts it into a bundle, which is as before until all is done.

    Args:
        bundle: a bundle's folder; a guard that it has is replaced.
        data: labelled images that training did not see (see `read_evaluation_folder`), by content where the
            bundle says what it saw.
        max_error: how many of the answers that are given may be wrong, and how many images may have their
            true class outside of the candidates: a share in (0, 1).
        confidence: how surely the former is kept, in (0, 1).
        split: the split to use where the data has splits, ``val`` by default.
        page: an HTML file to write: reliability, risk over coverage, and the images that are withheld.
        advance: is told how many images of how many are through.
        device: options of `open_session`.

    Raises:
        InputError: a share is none, or the page would lie in the bundle.
        DataError: the images do not do: too few, a class missing, all alike, unknown labels, or training saw
            some of them.
        ImageError: an image cannot be read.
        ArtefactError: it is no bundle, a file of it was changed, before or meanwhile, or it answers with NaN.
        TargetError: the bundle, or the page, cannot be written.
        BackendError: SciPy is missing, or what the page needs, or as `open_session`.
    """
    _require(("scipy",) if page is None else ("scipy", "jinja2", "matplotlib"))
    if page is not None:
        check_writable(page, through_links=True)
    for name, value in (("error", max_error), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"the {name} promised is {value:g}: expected more than 0 % and less than 100 %")
    if (kind := recognise(bundle)) is not Kind.BUNDLE:
        raise ArtefactError(f"'{bundle}' is {kind.value}: a guard is put into a bundle, of 'mmdeploy export'")
    if page is not None and Path(page).resolve().is_relative_to(Path(bundle).resolve()):
        raise InputError(f"the page '{page}' would go with the old '{bundle}': name a file outside of it")
    # The folder before the work: it says whether there can be a new one. The turn lasts until it is in place.
    with ExitStack() as turn, atomic_folder(bundle, force=True) as folder:
        opened = open_bundle(bundle)
        manifest = opened.manifest
        model = opened.read(MODEL_NAME)
        _check_files(opened)  # a changed one is not sealed again
        found = match_labels(read_evaluation_folder(data, split, default="val"), manifest.labels)
        ((chosen, samples),) = found.splits.items()
        truth = classes_of(samples)
        _check_classes(found, chosen, truth)
        of_int8 = Overlap.of(sources_of(samples), None, int8=opened.quantised_on).notes(found.names(chosen))
        notes = (*found.notes, *_on_what_training_saw(opened.seen, found, chosen, samples), *of_int8)
        known = found.groups_of(chosen) or [""] * len(samples)
        group_of = {
            (sample.source, sample.label): group for sample, group in zip(samples, known, strict=True)
        }
        samples, on_copies = _without_copies(samples)
        patients = [group_of[sample.source, sample.label] for sample in samples]
        groups = len(set(patients)) if any(patients) else None
        if groups is not None and groups < len(samples):
            on_copies = (*on_copies, _of_groups(groups))
        truth, notes = classes_of(samples), (*notes, *on_copies)
        done = 0
        qualities: list[Quality] = []
        pictures: list[dict[str, float | None]] = []

        def look(pixels: npt.NDArray[np.uint8]) -> None:
            qualities.append(quality_of(pixels))
            pictures.append(picture_scores(pixels, qualities[-1]))

        def count(images: int) -> None:
            nonlocal done
            done += images
            advance(done, len(samples))

        taken: list[npt.NDArray[np.float32]] = []

        with open_session(bundle, guard=False, **device) as session:
            of_the_artefact = session.notes

            def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
                logits, features = session.run_with_features(images)
                if features is not None:
                    taken.append(features)
                return logits

            logits = logits_of(
                run,
                samples,
                manifest.transform,
                batch_size=min(BATCH_SIZE, session.max_batch or BATCH_SIZE),
                advance=count,
                look=look,
            )
        features = np.concatenate(taken) if taken else None
        members = None if groups is None else members_of(patients, len(truth))
        guard, verdicts, distances = fit_guard(
            logits,
            features,
            qualities,
            truth,
            max_error,
            confidence,
            network_sha256(model),
            str(data),
            members=members,
        )
        given, decided = logits.argmax(axis=1), np.array([not each.reasons for each in verdicts])
        everything = np.ones(len(truth), np.bool_)
        calibration = Calibration(
            guard=guard,
            data=str(data),
            split=chosen,
            errors=_errors(logits, truth, guard.temperature, everything, members),
            errors_by_class={
                label: _errors(logits, truth, guard.temperature, given == index, members)
                for index, label in enumerate(manifest.labels)
                if (given == index).any()
            },
            wrong_interval=share_interval(
                decided & (given != truth), members_of(members, len(truth)), decided
            ),
            mean_candidates=float(np.mean([len(each.candidates) for each in verdicts])),
            withheld=_counts(verdicts),
            groups=groups,
            notes=(*of_the_artefact, *notes, *((_NO_FEATURES,) if features is None else ())),
        )
        turn.enter_context(folder_turn(bundle))  # a proof that is written meanwhile would be lost
        _copy(Path(bundle), folder)
        manifest = _check_copy(folder, manifest, str(bundle))
        if _proves_another(manifest, guard):
            calibration = replace(calibration, notes=(*calibration.notes, _VERIFY_AGAIN))
        answers = answer_scores(logits, guard.temperature)
        unlike = (
            [{}] * len(answers) if distances is None else [unlikeness(each) for each in distances.tolist()]
        )
        scores = CalibratedScores.of(
            [{**one, **two, **three} for one, two, three in zip(pictures, answers, unlike, strict=True)]
        )
        _write(folder, manifest, guard, model, scores, calibrated(sources_of(samples)))
        if page is not None:
            write_page(
                page,
                Evidence(
                    guard=guard,
                    labels=manifest.labels,
                    sources=[sample.source for sample in samples],
                    logits=logits,
                    truth=truth,
                    verdicts=verdicts,
                    white_level=manifest.white_level,
                    groups=groups,
                ),
                {label: errors.to_text() for label, errors in calibration.errors_by_class.items()},
                bundle=Path(bundle).name,
                data=str(data),
                split=chosen,
                errors=calibration.errors.to_text(),
            )
    return calibration


def _require(packages: Sequence[str]) -> None:
    """Says what is missing before anything is computed.

    Raises:
        BackendError: a package is not installed.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise BackendError(
                f"to calibrate needs {package}, which is not installed: pip install 'msmamba[calibrate]'"
            ) from error


def _errors(
    logits: npt.NDArray[Any],
    truth: npt.NDArray[np.integer[Any]],
    temperature: float,
    chosen: npt.NDArray[np.bool_],
    members: npt.NDArray[np.intp] | None,
) -> CalibrationErrors:
    """The calibration errors of the images that are chosen, by (N, C) logits, (N,) classes and patients."""
    rows = np.asarray(logits[chosen], np.float64)
    right = rows.argmax(axis=1) == truth[chosen]
    confidences = (np.exp(log_softmax(rows / scale)).max(axis=1) for scale in (1, temperature))
    drawn = None if members is None else members_of(members[chosen], len(rows))
    before, after = (calibration_error(each, right, drawn) for each in confidences)
    return CalibrationErrors(len(rows), *before, *after)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many images are withheld for each reason that there is."""
    counts = {reason: sum(reason in each.reasons for each in verdicts) for reason in REASONS}
    return {reason: count for reason, count in counts.items() if count}


def _on_what_training_saw(
    seen: Seen | None, data: ImageFolder, split: str, samples: Sequence[Sample]
) -> list[str]:
    """What there is to say of images that are to promise something of others.

    Raises:
        DataError: training saw some of them.
    """
    notes = [_TESTED] if split == "test" else []
    if seen is None:
        return [_NOT_KNOWN, *([f"the 'val' images {_FLATTERS}"] if split == "val" else []), *notes]
    overlap, names = Overlap.of(sources_of(samples), seen), data.names(split)
    if overlap.trained_on:
        raise DataError(
            f"'{data.root}': {overlap.trained_on_note(names)}, so they promise nothing of others: take them "
            "out, or give images that it did not see"
        )
    if overlap.chose_the_epoch:
        notes.append(f"{len(overlap.chose_the_epoch)} of the {len(names)} images {_FLATTERS}")
    return notes


def _of_groups(groups: int) -> str:
    """What there is to say of a promise that counts images which come in so many groups."""
    if groups == 1:
        return (
            "the images are of a single patient or slide, and so is what is promised: of others it says "
            "nothing"
        )
    return (
        f"the images are of {groups:,} patients, slides or the like, and the promise allows for patients who "
        "differ in how often the model is wrong by as much as these may"
    )


def _without_copies(samples: Sequence[Sample]) -> tuple[Sequence[Sample], tuple[str, ...]]:
    """The samples without copies of one in its class, and a note of how many there were.

    The promise and the limits count images that were drawn independently of each other, and a copy was not.
    One that was given several classes stays in each: not all of them can be right, which has to count.
    """
    known: set[tuple[int, int]] = set()
    kept = []
    for sample, checksum in zip(samples, checksums_of(sources_of(samples)), strict=True):
        if (checksum, sample.label) not in known:
            known.add((checksum, sample.label))
            kept.append(sample)
    left = len(samples) - len(kept)
    if not left:
        return samples, ()
    return kept, (
        f"{left:,} of {len(samples):,} images are copies of others and count once, with these: "
        "only different images promise something of others",
    )


def _check_classes(data: ImageFolder, split: str, truth: npt.NDArray[np.integer[Any]]) -> None:
    """Refuses images of which no promise can be made for all classes."""
    missing = [label for index, label in enumerate(data.labels) if index not in truth]
    if missing:
        where = f"'{data.root}'" if split == WHOLE else f"the '{split}' images of '{data.root}'"
        raise DataError(
            f"{where}: there are none of {some([repr(label) for label in missing])}, so nothing can be "
            "promised of such: add some"
        )


def fit_guard(
    logits: npt.NDArray[Any],
    features: npt.NDArray[Any] | None,
    qualities: Sequence[Quality],
    truth: npt.NDArray[np.integer[Any]],
    max_error: float,
    confidence: float,
    network: str,
    data: str,
    *,
    members: npt.NDArray[np.intp] | None = None,
) -> tuple[Guard, list[Verdict], npt.NDArray[np.float64] | None]:
    """The guard of labelled images, what it says of each, and how far (N,) each is from the others.

    Args:
        logits: (N, C).
        features: (N, F); None where the artefact tells none.
        qualities: what the N pictures are worth.
        truth: (N,), class indices.
        max_error: as `calibrate` takes it.
        confidence: as `calibrate` takes it.
        network: the network's SHA-256.
        data: what messages call the images.
        members: (N,), the patient or slide of each, from 0 on; None: each image is its own.

    Raises:
        DataError: these images can promise nothing; it says how many would.
    """
    if np.ptp(logits, axis=0).max() <= 1e-5 * np.abs(logits).max():  # batches differ in their last bits
        raise DataError(
            f"{data}: all {len(logits)} images have the same logits: expected pictures that differ"
        )
    logits = np.asarray(logits, np.float64)
    likeness, distances = (None, None) if features is None else _likeness(features, truth)
    bound = candidate_bound(masses_above(logits)[np.arange(len(truth)), truth], max_error)
    guard = Guard(
        network_sha256=network,
        max_error=max_error,
        confidence=confidence,
        temperature=temperature(logits, truth),
        threshold=None,
        candidate_bound=1.0 if bound is None else bound,
        images=len(truth),
        answered=len(truth),
        errors=0,
        quality=_ranges(qualities),
        largest=max(each.side for each in qualities) or None,
        unlike_from=None if distances is None else limits(distances, UNLIKE_SHARE)[1],
        likeness=likeness,
    )
    # The promise is of the images that no other gate withholds: to withhold more may well leave worse ones.
    passing = np.array([not each.reasons for each in guard.judge(logits, qualities, distances)])
    scores, right = certainty(logits)[passing], logits.argmax(axis=1)[passing] == truth[passing]
    among = None if members is None else members_of(members[passing], len(scores))
    if among is not None and not among.any():
        among = None  # of a single one it is promised, and more of its images would do
    selection = select(scores, right, max_error, confidence, among)
    if selection is None:
        needed = images_needed(scores, right, max_error, confidence, among)
        more = "such images" if among is None else "images of as many more such patients"
        advice = (
            "and no number would, as the most certain answers are wrong too often: train a better model, or "
            "allow more with --max-error"
            if needed is None
            else f"about {needed} {more} would: add some, or allow more with --max-error"
        )
        raise DataError(
            f"{data}: {len(truth)} images cannot promise an error of at most {100 * max_error:g} % at "
            f"{100 * confidence:g} % confidence; {advice}"
        )
    guard = replace(
        guard, threshold=selection.threshold, answered=selection.answered, errors=selection.errors
    )
    return guard, guard.judge(logits, qualities, distances), distances


def _likeness(
    features: npt.NDArray[Any], truth: npt.NDArray[np.integer[Any]]
) -> tuple[Likeness | None, npt.NDArray[np.float64] | None]:
    """What (N, F) images are like, and how far each (N,) is from others; None where that cannot be told.

    No image is compared with what it made itself: there are more features than images, and none is far then.
    """
    place = np.zeros(len(truth), np.int64)  # of each image among those of its class
    for index in np.unique(truth):
        place[truth == index] = np.arange((truth == index).sum())
    distances = np.zeros(len(truth))
    for fold in range(FOLDS):
        others = place % FOLDS != fold
        if others.all():  # no class has so many
            continue
        if not others.any():
            return None, None
        classes = np.unique(truth[others], return_inverse=True)[1]
        likeness = Likeness.of(features[others], classes)
        if likeness is None:
            return None, None
        distances[~others] = likeness.distances(features[~others])
    likeness = Likeness.of(features, truth)
    return likeness, distances if likeness else None


def _ranges(qualities: Sequence[Quality]) -> dict[str, list[float | None]]:
    """The least and the largest value of each measure that pictures are withheld beyond."""
    measured = [each.measures for each in qualities]
    ranges: dict[str, list[float | None]] = {}
    for name, (has_least, has_most) in LIMITED.items():
        values = [value for each in measured if (value := each[name]) is not None]
        if values:
            least, most = limits(np.array(values), OUTSIDE)
            ranges[name] = [least if has_least else None, most if has_most else None]
    return ranges


def _copy(bundle: Path, folder: Path) -> None:
    """Copies a bundle's files beside it.

    Raises:
        ArtefactError: it holds something that is no file, such as a pipe, or that cannot be read.
        OSError: they cannot be written.
    """
    reasons = []
    try:
        for path in all_below(bundle):
            # Content alone: sticks and shares may refuse to have rights and times changed.
            copied = folder / path.relative_to(bundle)
            if path.is_symlink():
                copied.symlink_to(path.readlink())
            elif path.is_dir():
                copied.mkdir()
            else:
                reasons += [f"{path.name}: {why}"] if (why := _why_not_copied(path, copied)) else []
    except OSError as error:
        if not _is_in(bundle, error):
            raise
        reasons.append(reason_of(error))
    if reasons:
        raise ArtefactError(
            f"{bundle}: cannot be copied ({some(reasons)}): expected the files of an export and nothing else"
        )


def _why_not_copied(path: Path, copied: Path) -> str:
    """Copies a file, or says why it cannot be read."""
    try:
        with open_file(path) as content, copied.open("xb") as file:
            shutil.copyfileobj(content, file)
    except OSError as error:
        if not _is_in(path, error):
            raise
        return reason_of(error)
    return ""


def _is_in(path: Path, error: OSError) -> bool:
    """Whether an error is about what is at or below a path."""
    return error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(path)


def _check_files(bundle: Bundle) -> None:
    """Reads every file of a bundle.

    Raises:
        ArtefactError: one is missing, or was changed.
    """
    for name in bundle.manifest.files:
        bundle.read(name)


def _check_copy(folder: Path, calibrated: Manifest, bundle: str) -> Manifest:
    """The manifest of the copy, which a 'verify' may have put its proof into meanwhile.

    Raises:
        ArtefactError: another model stands there than the one that was calibrated.
    """
    copied = open_bundle(folder)
    if copied.manifest.files.get(MODEL_NAME) != calibrated.files[MODEL_NAME]:
        raise ArtefactError(
            f"'{bundle}' was changed while it was calibrated, so the guard is not of what it holds now: "
            "calibrate it again"
        )
    _check_files(copied)
    return copied.manifest


def _proves_another(manifest: Manifest, guard: Guard) -> bool:
    """Whether a bundle's proof says something of another guard."""
    parity = manifest.precision_proven.get("parity")
    return isinstance(parity, Mapping) and _OF_GUARD in parity and manifest.guard != guard.facts


def _write(
    folder: Path,
    manifest: Manifest,
    guard: Guard,
    model: bytes,
    scores: CalibratedScores,
    images: Mapping[str, str],
) -> None:
    """Puts the guard into a copied bundle's manifest and the one inside its model, and the rest beside.

    What a proof says of another guard is taken out.
    """
    facts = guard.facts
    likeness = {METADATA_KEY: guard.likeness.to_text() if guard.likeness else None}
    inner = Manifest.from_metadata(metadata(model), f"'{MODEL_NAME}'")
    contents = {
        MODEL_NAME: _with_metadata(model, {**replace(inner, guard=facts).to_metadata(), **likeness}),
        SCORES_NAME: json.dumps(scores.to_dict()).encode("ascii"),
        CALIBRATED_NAME: json.dumps(images).encode("ascii"),
    }
    proven = dict(manifest.precision_proven)
    if _proves_another(manifest, guard):
        proven["parity"] = {name: value for name, value in proven["parity"].items() if name != _OF_GUARD}
        if PARITY_NAME in manifest.files:
            contents[PARITY_NAME] = _without_guard((folder / PARITY_NAME).read_bytes())
    for name, content in contents.items():
        (folder / name).unlink(missing_ok=True)  # it may be a link
        (folder / name).write_bytes(content)
    changed = {name: sha256_of(folder / name) for name in contents}
    sealed = replace(manifest, guard=facts, files={**manifest.files, **changed}, precision_proven=proven)
    (folder / MANIFEST_NAME).unlink()
    (folder / MANIFEST_NAME).write_text(sealed.to_json(), encoding="utf-8")


def _without_guard(proof: bytes) -> bytes:
    """A proof less what it says of a guard; what is no proof stays as it is."""
    with suppress(ValueError):
        found = parsed(proof, names=True)
        if isinstance(found, dict) and found.get("guard") is not None:
            return as_utf8(as_json({**found, "guard": None}, indent=2) + "\n")
    return proof


def _with_metadata(model: bytes, changes: Mapping[str, str | None]) -> bytes:
    """An ONNX file with other ``metadata_props``, None for none; the rest is the same, byte for byte."""
    network, position = bytearray(), 0
    for item in fields(model):
        if item.number != _METADATA:
            network += model[position : item.end]  # with its key and length
        position = item.end
    entries = {key: value for key, value in {**metadata(model), **changes}.items() if value is not None}
    return bytes(network) + b"".join(
        encoded(_METADATA, encoded(_KEY, key.encode()) + encoded(_VALUE, value.encode()))
        for key, value in entries.items()
    )


def _interval(value: float, interval: Interval) -> str:
    return f"{share_as_text(value, 2)} % ({100 * interval.low:.2f} to {100 * interval.high:.2f})"
