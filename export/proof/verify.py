"""Parity: does an artefact answer like the PyTorch model it was made from, and if not, from where on?

Three questions, on real images. How far are the logits apart? Which images change their label, of those that
the reference decides? And when the bar is missed, which is the first module whose result departs?

On labelled images there is a fourth, which `decision` answers: what does it mean for whoever acts on them?
An int8 artefact is judged by that alone, because its tensors are off by design.

The bar on tensors is measured, not chosen. Against float64, an artefact may err twice as much as the network
itself does in the artefact's precision: PyTorch's own error for float32, that of the same network with the
result of every operator rounded to float16 for float16, on every image as it is and turned by half. What it
is compared with is the float32 network, so that one's error is added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.samples import Source
from ...data.seen import Overlap, Seen
from ...errors import ArtefactError, DataError, ImageError, InputError
from ...files import as_utf8, check_writable, folder_turn, write_atomically
from ...images import Transform, noting
from ...measures.decision import INT8_BAR, DecisionBar, ImageLimit, decide
from ...measures.margins import undecided_images
from ...measures.metrics import check_can_measure
from ...model.networks.checkpoint import load_checkpoint
from ...model.networks.family import Network
from ...pages.page import check_can_write_pages
from ...runtime import Manifest, open_session
from ...runtime.artefact import MANIFEST_NAME, MODEL_NAME, PARITY_NAME, Bundle, is_checkpoint, open_bundle
from ...schema import parsed
from ...text import as_word
from .compared_images import ComparedImages, images_to_compare, spread
from .decision_page import write_page
from .departure import FLOOR_EPSILONS, OwnError, Run, first_departure, half_errors_of, run_of, steepest_rise
from .guarded import compare_guarded
from .parity import PROOF, Bar, Parity, compare

NAMED = 5
"""Unreadable images named in a message."""
PROBED_IMAGES = 6
"""Images on which the network's error against float64 is measured (float64 is slow)."""


def verify(
    artefact: str | Path,
    reference: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    max_error: float | None = None,
    max_flips: ImageLimit | None = None,
    max_undecided: ImageLimit | None = None,
    max_accuracy_drop: float | None = None,
    max_auc_drop: float | None = None,
    split: str | None = None,
    page: str | Path | None = None,
    limit: int | None = None,
    weights_of: str | None = None,
    guard: bool = True,
    force: bool = False,
    device: str = "auto",
    provider: str = "auto",
    threads: int | None = None,
    kernels: str = "auto",
    trust_engine_code: bool = False,
    batch_size: int = 8,
    report: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Compares an artefact with what it was made from, and writes ``parity.json`` into a bundle.

    A bundle that has a fuller proof already keeps it, and a note of what is returned says so: one of more
    images, or of labels, a bound on a logit's error or a guard where this one has none.

    Args:
        artefact: a bundle or an ONNX file.
        reference: the checkpoint it was made from, or another artefact of that checkpoint.
        data: an image file or a folder, or several; folders are searched for images. One folder of the layout
            ``{train,val,test}/<class>/*`` or ``<class>/*`` is labelled data: what becomes of the decisions is
            measured too, on the test split or all of a flat folder.
        max_error: bound on the error of any logit; None: measured for float32 and float16 against a
            checkpoint, not judged otherwise.
        max_flips: how many of the images that the reference decides may change their label; None: none, or
            1 % for int8.
        max_undecided: how many images the reference may leave undecided, by the bound on the error of a
            logit; None: 2 %. Without such a bound (int8, or another artefact as the reference) every image is
            decided.
        max_accuracy_drop: percentage points; None: not judged, or 0.5 for int8 on labelled data.
        max_auc_drop: area under the curve; None: not judged, or 0.002 for int8 on labelled data.
        split: the split of labelled data to take in place of ``test``.
        page: an HTML file to write the decision to.
        limit: compare at most this many images, spread evenly over those found.
        weights_of: which weights of a checkpoint, as `load_checkpoint` takes it; None: those that the
            artefact has.
        guard: whether both answers are put through the artefact's guard, where it has one.
        force: write the proof into the bundle in place of a fuller one, too.
        device: where the artefact runs; this and the next four as `open_session` takes them. What ran is in
            the proof. An artefact as the reference runs as it does by itself.
        provider: what executes it.
        threads: how many CPU threads it uses.
        kernels: which kernels run it.
        trust_engine_code: lets an engine run the library that it carries.
        batch_size: images at once, fewer where the artefact or the reference takes fewer.
        report: is told each step as it begins.

    Raises:
        ArtefactError: the artefact or the reference cannot be used, or they do not belong together, or the
            bundle was changed meanwhile.
        BackendError: the machine cannot run the artefact as asked, or scikit-learn is missing for labelled
            images, Matplotlib or Jinja for the page.
        CheckpointError: the checkpoint cannot be used.
        InputError: `max_error` is negative or not finite, or a number of images is below 1.
        DataError: there are no images, classes are unknown to the model, or labels are needed (for a bar on
            accuracy or AUC, a split, a page) and there are none, or one class only for a bar on AUC.
        ImageError: images cannot be read; they are named.
        TargetError: ``parity.json`` or the page cannot be written.
    """
    if max_error is not None and not 0 <= max_error < np.inf:
        raise InputError(f"--max-error is {max_error:g}: expected a finite bound of 0 or more")
    for name, number in (("batch size", batch_size), ("limit on the images", limit)):
        if number is not None and number < 1:
            raise InputError(f"the {name} is {number}: expected at least 1")
    if page is not None:
        check_writable(page, through_links=True)
        check_can_write_pages()
    if Path(artefact).is_dir():
        check_writable(Path(artefact) / PARITY_NAME)
    paths = [data] if isinstance(data, str | Path) else [*data]
    with open_session(
        artefact,
        guard=guard,
        device=device,
        provider=provider,
        threads=threads,
        kernels=kernels,
        trust_engine_code=trust_engine_code,
    ) as session:
        manifest = session.manifest
        if manifest is None:
            raise ArtefactError(f"{artefact} has no manifest: verify a bundle or an ONNX file by msmamba")
        needs_labels = {
            "--max-accuracy-drop": max_accuracy_drop,
            "--max-auc-drop": max_auc_drop,
            "--split": split,
            "--report": page,
        }
        images = images_to_compare(
            paths,
            manifest.labels,
            split,
            limit,
            [name for name, value in needs_labels.items() if value is not None],
        )
        if images.truth is not None:
            check_can_measure()
        if max_auc_drop is not None and images.truth is not None and len(set(images.truth.tolist())) == 1:
            raise DataError(
                f"all images of {paths[0]} are of class '{manifest.labels[images.truth[0]]}', so AUC is not "
                "defined: leave --max-auc-drop out, or add images of another class"
            )
        precision = manifest.precision_asked
        default = INT8_BAR if precision == "int8" else DecisionBar()
        decision_bar = DecisionBar(
            default.max_accuracy_drop if max_accuracy_drop is None else max_accuracy_drop,
            default.max_auc_drop if max_auc_drop is None else max_auc_drop,
            default.max_flips if max_flips is None else max_flips,
            default.max_undecided if max_undecided is None else max_undecided,
        )
        report("opening the reference")
        with _opened_reference(reference, manifest, str(artefact), weights_of) as opened:
            network = opened.network
            bundle = open_bundle(artefact) if Path(artefact).is_dir() else None
            seen = opened.seen if bundle is None else bundle.seen
            overlap = Overlap.of(images.sources, seen, int8=None if bundle is None else bundle.quantised_on)
            report(f"comparing {len(images.sources)} images")
            runs: list[Run] = [opened.run, session.run]
            if network is not None and precision == "fp16":
                runs.append(half_errors_of(network))
            notes = dict.fromkeys((*session.notes, *opened.notes))
            together = min(filter(None, (batch_size, session.max_batch, opened.max_batch)))
            with noting() as tally:
                expected, found, *half_errors = _answers(
                    runs, images.sources, manifest.transform, together, report
                )
        own = None
        if network is not None and precision != "int8":
            report("measuring the network's own error")
            probed = [images.sources[i] for i in spread(len(images.sources), PROBED_IMAGES)]
            own = OwnError.of(network, _inputs(probed, manifest.transform), precision)
            if half_errors:  # on every image, not only those that float64 was computed for
                own = own.with_logits(float(half_errors[0].max()))
        bound, reason = _error_bound(own, max_error, precision)
        undecided = undecided_images(expected, found, bound)
        parity = replace(
            compare(
                expected,
                found,
                images=[str(source) for source in images.sources],
                labels=manifest.labels,
                bar=Bar(
                    bound,
                    decision_bar.max_flips.allowed(int((~undecided).sum())),
                    reason,
                    decision_bar.max_undecided.allowed(len(undecided)),
                    is_missing=own is not None and bound is None,
                ),
                precision=precision,
                executed_by=session.path,
                checkpoint_sha256=opened.checkpoint_sha256,
                undecided=undecided,
            ),
            artefact=str(artefact),
            reference=str(reference),
            split=images.split,
            no_decision=images.unlabelled,
            guard=None
            if session.guard is None
            else compare_guarded(
                session.guard, expected, found, [str(each) for each in images.sources], bound
            ),
            notes=(
                *notes,
                *images.notes,
                *overlap.notes([str(source) for source in images.sources]),
                *tally.lines(),
            ),
        )
    if images.truth is not None:
        parity = _with_decision(parity, expected, found, undecided, images, manifest.labels, decision_bar)
    if not parity.passed and network is not None and not parity.bar.is_missing:
        report("looking for the module that departs")
        worst = next(source for source in images.sources if str(source) == parity.worst_image)
        model_file = Path(artefact) / MODEL_NAME if Path(artefact).is_dir() else Path(artefact)
        image = _inputs([worst], manifest.transform)
        parity = _with_departure(parity, model_file, network, image, own)
    if Path(artefact).is_dir():
        parity = _write_into_bundle(Path(artefact), parity, manifest, force)
    if page is not None:
        if parity.decision is None:  # which has missed the bar: what is told of it goes before
            note = f"{page}: no page was written, because {parity.no_decision}"
            return replace(parity, notes=(*parity.notes, note))
        report("writing the page")
        write_page(page, parity, images.sources, manifest.transform.white_level)
    return parity


def _with_departure(
    parity: Parity,
    model_file: Path,
    network: Network,
    image: npt.NDArray[np.float32],
    own: OwnError | None,
) -> Parity:
    """Adds where the error on the worst image begins; in int8, which has no such bar, where it grows most."""
    if own is None:
        return replace(parity, departure=steepest_rise(model_file, network, image))
    own = own.with_image(OwnError.of(network, image, parity.precision))
    if departure := first_departure(model_file, network, image, own):
        return replace(parity, departure=departure)
    nowhere = (
        f"on the worst image each module is within twice its own {parity.precision} error and its float32 "
        "one, by the file's functions on the CPU; if something else ran it, that departs"
    )
    return replace(parity, no_departure=nowhere)


@dataclass(frozen=True)
class _Reference:
    """What an artefact is compared with."""

    run: Run
    checkpoint_sha256: str
    network: Network | None = None
    """None when the reference is an artefact itself."""
    max_batch: int | None = None
    """Largest batch that it takes; None for any."""
    notes: tuple[str, ...] = ()
    """What there is to say of the two, a line each."""
    seen: Seen | None = None
    """What training saw, where a checkpoint says it."""


@contextmanager
def _opened_reference(
    reference: str | Path, manifest: Manifest, artefact: str, weights_of: str | None
) -> Iterator[_Reference]:
    """A checkpoint, or an artefact, that fits the artefact whose manifest this is."""
    path = Path(reference)
    if not path.is_dir() and (not path.is_file() or is_checkpoint(path)):
        if weights_of is not None and manifest.weights_of not in ("", weights_of):
            raise ArtefactError(
                f"{artefact} has its checkpoint's weights of '{manifest.weights_of}', not of '{weights_of}': "
                "leave --weights-of out"
            )
        loaded = load_checkpoint(path, weights_of or manifest.weights_of or None)
        _check_pair(manifest, loaded.sha256, loaded.network, artefact, str(reference))
        yield _Reference(run_of(loaded.network), loaded.sha256, loaded.network, seen=loaded.seen)
        return
    with open_session(path, guard=False) as session:
        said = session.manifest
        if said is None:
            raise ArtefactError(f"{reference} has no manifest: give a bundle or an ONNX file by msmamba")
        if said.checkpoint_sha256 and manifest.checkpoint_sha256:
            _check_same_checkpoint(manifest, said.checkpoint_sha256, artefact, str(reference))
        differing = [
            name
            for name in ("labels", "image_size", "mean", "std", "white_level")
            if getattr(said, name) != getattr(manifest, name)
        ]
        if len({said.weights_of, manifest.weights_of} - {""}) > 1:  # earlier versions do not say
            differing.append("weights_of")
        if differing:
            raise ArtefactError(
                f"{artefact} and {reference} differ in {', '.join(differing)}: compare artefacts that take "
                "the same images to the same classes"
            )
        notes = tuple(f"{reference}: {note}" for note in session.notes)
        if said.guard and not manifest.guard:
            notes = (
                *notes,
                f"{reference} has a guard and {artefact} none: a guard is of one precision, so "
                f"calibrate again: mmdeploy calibrate {as_word(artefact)} DATA",
            )
        yield _Reference(session.run, said.checkpoint_sha256, max_batch=session.max_batch, notes=notes)


def _with_decision(
    parity: Parity,
    expected: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    undecided: npt.NDArray[np.bool_],
    images: ComparedImages,
    labels: Sequence[str],
    bar: DecisionBar,
) -> Parity:
    assert images.truth is not None
    broken = int((~np.isfinite(expected + found).all(axis=1)).sum())
    if broken:
        of = "an image" if broken == 1 else f"{broken} images"
        return replace(parity, no_decision=f"the logits of {of} are not finite")
    names = [str(source) for source in images.sources]
    decision = decide(
        expected,
        found,
        images.truth,
        labels=labels,
        images=names,
        bar=bar,
        undecided=None if parity.bar.max_abs_error is None else undecided,
        groups=images.groups,
    )
    return replace(parity, decision=decision)


def _error_bound(own: OwnError | None, max_error: float | None, precision: str) -> tuple[float | None, str]:
    """The bound on the error of any logit, and where it comes from."""
    if max_error is not None:
        return max_error, "as asked"
    if own is None:
        reason = (
            "int8 moves every tensor by design; what counts is what it decides"
            if precision == "int8"
            else "the network's own error cannot be measured without the checkpoint"
        )
        return None, reason
    if not np.isfinite(own.logit_bound):
        first = next((name for name, error in own.modules.items() if not np.isfinite(error)), "")
        where = f" from {first} on" if first else ""
        return None, (
            f"with every operator's result in {precision} the network itself is not finite{where}, so its "
            "own error sets none: give one with --max-error"
        )
    return (
        own.logit_bound,
        f"twice the network's own {precision} error against float64 ({own.logits:.3g}) plus its float32 "
        f"error ({own.float32_logits:.3g}), at least {FLOOR_EPSILONS}/2^23 of the largest logit "
        f"({own.largest_logit:.3g})",
    )


def _check_pair(
    manifest: Manifest, checkpoint_sha256: str, network: Network, artefact: str, checkpoint: str
) -> None:
    _check_same_checkpoint(manifest, checkpoint_sha256, artefact, checkpoint)
    if len(manifest.labels) != network.arch.num_classes:
        raise ArtefactError(
            f"{artefact} has {len(manifest.labels)} classes, {checkpoint} {network.arch.num_classes}"
        )


def _check_same_checkpoint(manifest: Manifest, sha256: str, artefact: str, reference: str) -> None:
    if manifest.checkpoint_sha256 and manifest.checkpoint_sha256 != sha256:
        raise ArtefactError(
            f"{artefact} was made from another checkpoint (sha256 {manifest.checkpoint_sha256[:12]}…) than "
            f"{reference} (sha256 {sha256[:12]}…): verify against the one it was made from"
        )


def _inputs(sources: Sequence[Source], transform: Transform) -> npt.NDArray[np.float32]:
    """(B, 3, S, S)."""
    return np.stack([transform.of(source) for source in sources])


def _answers(
    runs: Sequence[Run],
    sources: Sequence[Source],
    transform: Transform,
    batch_size: int,
    report: Callable[[str], None],
) -> list[npt.NDArray[np.float32]]:
    """The logits of each run, (images, classes).

    Raises:
        ImageError: images cannot be read; all of them are looked at, so that all are counted.
    """
    logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in runs]
    unreadable: list[ImageError] = []
    for start in range(0, len(sources), batch_size):
        batch = []
        for source in sources[start : start + batch_size]:
            try:
                batch.append(transform.of(source))
            except ImageError as error:
                unreadable.append(error)
        if unreadable:
            continue
        images = np.stack(batch)
        for run, answers in zip(runs, logits, strict=True):
            answers.append(run(images))
        report(f"compared {min(start + batch_size, len(sources))} of {len(sources)} images")
    if len(unreadable) == 1:
        raise unreadable[0]
    if unreadable:
        more = f"; and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        raise ImageError(
            f"{len(unreadable)} of {len(sources)} images cannot be used: "
            f"{'; '.join(map(str, unreadable[:NAMED]))}{more}"
        )
    return [np.concatenate(answers) for answers in logits]


def _write_into_bundle(bundle: Path, parity: Parity, verified: Manifest, force: bool) -> Parity:
    """Writes the proof into a bundle, beside which others may work: those that replace it wait meanwhile.

    A kill in between leaves a bundle without a proof, never one whose proof is not the one it lists. The
    proof comes back, with a note where the bundle keeps a fuller one.

    Raises:
        ArtefactError: it is not the bundle any more whose manifest was ``verified``.
        TargetError: it cannot be written.
    """
    with folder_turn(bundle):
        opened = open_bundle(bundle)
        manifest = opened.manifest
        if {**manifest.files, PARITY_NAME: ""} != {**verified.files, PARITY_NAME: ""}:
            raise ArtefactError(
                f"'{bundle}' was changed while it was verified, so the proof is not of what it holds now: "
                "verify it again"
            )
        if not force and (lacking := parity.falls_short_of(_proof_in(opened))):
            kept = (
                f"{bundle} keeps its fuller proof; this one ({', '.join(lacking)}) was not written: "
                "--force replaces it, --format json prints this one"
            )
            return replace(parity, notes=(*parity.notes, kept))
        files = {name: checksum for name, checksum in manifest.files.items() if name != PARITY_NAME}
        types = {name: value for name, value in manifest.precision_proven.items() if name != "parity"}
        if files != manifest.files:
            unproven = replace(manifest, files=files, precision_proven=types)
            write_atomically(bundle / MANIFEST_NAME, unproven.to_json().encode())
        content = as_utf8(parity.to_json())
        write_atomically(bundle / PARITY_NAME, content)
        proven = replace(
            manifest,
            files={**files, PARITY_NAME: hashlib.sha256(content).hexdigest()},
            precision_proven={**types, "parity": parity.summary},
        )
        write_atomically(bundle / MANIFEST_NAME, proven.to_json().encode())
    return parity


def _proof_in(bundle: Bundle) -> Mapping[str, Any]:
    """What a bundle's proof says; of no images where it has none, or one that cannot be used."""
    with suppress(ArtefactError, ValueError):
        if PARITY_NAME in bundle.manifest.files:
            found: Mapping[str, Any] = parsed(bundle.read(PARITY_NAME), names=True)
            if not PROOF.problems(found):
                return found
    return {"images": 0}
