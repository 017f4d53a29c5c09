"""Parity: does an artefact answer like the PyTorch model it was made from, and if not, from where on?

Three questions, on real images. How far are the logits apart? Which images change their label? And when
the bar is missed, which is the first module whose result departs?

On labelled images there is a fourth, which `decision` answers: what does it mean for whoever acts on them?
An int8 artefact is judged by that alone, because its tensors are off by design.

The bar on tensors is measured, not chosen. Against float64, an artefact may err twice as much as the network
itself does in the artefact's precision: PyTorch's own error for float32, that of the same network with the
result of every operator rounded to float16 for float16. What it is compared with is the float32 network,
so that one's error is added.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ArtefactError, DataError, ImageError
from ..files import as_utf8, sha256_of, write_atomically
from ..images import Transform, read_image
from ..model.checkpoint import load_checkpoint
from ..model.network import HybridBlock, MicroscopicMamba, channel_shuffle, channels_last
from ..model.samples import Source
from ..runtime import Manifest, open_session
from ..runtime.artefact import is_checkpoint
from .bundle import MANIFEST_FILE, MODEL_FILE, PARITY_FILE
from .compared_images import ComparedImages, images_to_compare, spread
from .decision import INT8_BAR, Decision, DecisionBar, FlipLimit, decide
from .decision_report import FLIPS_SHOWN, decision_text, write_page

Floats = npt.NDArray[np.floating[Any]]
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

FLOOR_ULPS = 32
"""The bar is never below this many float32 units in the last place of the largest logit."""
NAMED = 5
"""Unreadable images named in a message."""
PROBED_IMAGES = 6
"""Images on which the network's error against float64 is measured (float64 is slow)."""


@dataclass(frozen=True)
class Bar:
    """What an artefact must meet."""

    max_abs_error: float | None
    """Of any logit; None: reported, not judged."""
    max_flips: int
    """Images that may change their label."""
    reason: str
    """Where the error bound comes from."""


@dataclass(frozen=True)
class Departure:
    """The first module, in the order of computation, whose result departs."""

    module: str
    """Its path in the PyTorch network, such as ``layers.1.blocks.0.pvm_layer``."""
    error: float
    """Largest absolute difference over the largest absolute value of the module's result."""
    expected_error: float
    """The same of the network itself in this precision, against float64."""


@dataclass(frozen=True)
class Parity:
    """How an artefact compares with its checkpoint."""

    images: int
    max_abs_error: float
    mean_abs_error: float
    lowest_cosine: float
    """Between the logits of one image."""
    flips: int
    flips_by_class: Mapping[str, int]
    """Flipped images by the label that PyTorch gives them."""
    flipped_images: tuple[str, ...]
    worst_image: str
    """The image of `max_abs_error`."""
    precision: str
    executed_by: str
    """What computed the artefact's answers."""
    bar: Bar
    checkpoint_sha256: str
    artefact: str = ""
    reference: str = ""
    split: str = ""
    """Of labelled data, from which the images are; ``all`` of a flat folder."""
    departure: Departure | None = None
    """Where it begins, when the bar is missed and the artefact can be looked into."""
    decision: Decision | None = None
    """What it means on labelled images."""
    no_decision: str = ""
    """Why there is none."""

    @property
    def passed(self) -> bool:
        """Whether the bar is met."""
        return not self.failure

    @property
    def failure(self) -> str:
        """What was missed, in words; empty when nothing was."""
        missed = []
        allowed = self.bar.max_abs_error
        if not math.isfinite(self.max_abs_error):
            missed.append("a logit is not finite")
        elif allowed is not None and self.max_abs_error > allowed:
            missed.append(f"a logit is off by {self.max_abs_error:.3g}, allowed {allowed:.3g}")
        if self.flips > self.bar.max_flips:
            missed.append(f"{self.flips} of {self.images} labels flip, allowed {self.bar.max_flips}")
        for criterion in self.decision.criteria if self.decision is not None else ():
            if not criterion.met and criterion.name != "flips":  # those are counted above
                missed.append(
                    f"{criterion.name} of {criterion.found:.3g} {criterion.unit}".rstrip()
                    + f", allowed {criterion.allowed:g}"
                )
        if missed and self.departure is not None:
            missed.append(f"first departing module {self.departure.module}")
        return "; ".join(missed)

    def to_text(self) -> str:
        """The comparison as lines for a terminal."""
        judged = self.bar.max_abs_error is not None
        allowed = f"allowed {self.bar.max_abs_error:.3g}" if judged else "reported, not judged"
        lines = {
            "images": f"{self.images}, split {self.split}" if self.split else str(self.images),
            "largest error": f"{self.max_abs_error:.3g} ({allowed})",
            "  allowed" if judged else "  because": self.bar.reason,
            "mean error": f"{self.mean_abs_error:.3g}",
            "lowest cosine": f"{self.lowest_cosine:.9f}",
            "label flips": f"{self.flips} (allowed {self.bar.max_flips})",
            **({} if self.decision else self._flip_lines()),
            "worst image": self.worst_image,
            "executed by": self.executed_by,
        }
        if self.departure is not None:
            lines["departs at"] = (
                f"{self.departure.module}, relative error {self.departure.error:.3g} "
                f"(expected {self.departure.expected_error:.3g})"
            )
        if self.no_decision:
            lines["decision"] = f"not judged: {self.no_decision}"
        lines["parity"] = "kept" if self.passed else "LOST"
        width = max(map(len, lines))
        text = "".join(f"{name:<{width}}  {value}\n" for name, value in lines.items())
        return text if self.decision is None else f"{decision_text(self.decision)}\n{text}"

    def _flip_lines(self) -> dict[str, str]:
        return {
            **{f"  {label}": str(count) for label, count in self.flips_by_class.items()},
            **{f"  {image}": "flipped" for image in self.flipped_images[:FLIPS_SHOWN]},
        }

    def to_json(self) -> str:
        """The comparison as JSON, for ``parity.json``."""
        values = {"passed": self.passed, **asdict(self)}
        if self.decision is None:
            del values["decision"]
        else:
            del values["no_decision"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def verify(
    artefact: str | Path,
    reference: str | Path,
    data: Sequence[str | Path],
    *,
    max_error: float | None = None,
    max_flips: FlipLimit | None = None,
    max_accuracy_drop: float | None = None,
    max_auc_drop: float | None = None,
    split: str | None = None,
    page: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    report: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Compares an artefact with what it was made from, and writes ``parity.json`` into a bundle.

    Args:
        artefact: a bundle or an ONNX file.
        reference: the checkpoint it was made from, or another artefact of that checkpoint.
        data: image files, and folders that are searched for them. One folder of the layout
            ``{train,val,test}/<class>/*`` or ``<class>/*`` is labelled data: what becomes of the decisions is
            measured too, on the test split or all of a flat folder.
        max_error: bound on the error of any logit; None: measured for float32 and float16 against a
            checkpoint, not judged otherwise.
        max_flips: how many images may change their label; None: none, or 1 % for int8.
        max_accuracy_drop: percentage points; None: not judged, or 0.5 for int8 on labelled data.
        max_auc_drop: likewise, 0.002.
        split: of labelled data, in place of ``test``.
        page: an HTML file to write the decision to.
        limit: compare at most this many images, spread evenly over those found.
        batch_size: images at once.
        report: is told each step as it begins.

    Raises:
        ArtefactError: the artefact or the reference cannot be used, or they do not belong together.
        CheckpointError: the checkpoint cannot be used.
        DataError: there are no images, classes are unknown to the model, or labels are needed (for a bar on
            accuracy or AUC, a split, a page) and there are none, or one class only for a bar on AUC.
        ImageError: images cannot be read; they are named.
        TargetError: ``parity.json`` or the page cannot be written.
    """
    with open_session(artefact) as session:
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
            data,
            manifest.labels,
            split,
            limit,
            [name for name, value in needs_labels.items() if value is not None],
        )
        if max_auc_drop is not None and images.truth is not None and len(set(images.truth.tolist())) == 1:
            raise DataError(
                f"all images of {data[0]} are of class '{manifest.labels[images.truth[0]]}', so AUC is not "
                "defined: leave --max-auc-drop out, or add images of another class"
            )
        precision = manifest.precision_asked
        default = INT8_BAR if precision == "int8" else DecisionBar()
        decision_bar = DecisionBar(
            default.max_accuracy_drop if max_accuracy_drop is None else max_accuracy_drop,
            default.max_auc_drop if max_auc_drop is None else max_auc_drop,
            default.max_flips if max_flips is None else max_flips,
        )
        allowed_flips = decision_bar.max_flips.allowed(len(images.sources))
        report("opening the reference")
        with _opened_reference(reference, manifest, str(artefact)) as opened:
            network = opened.network
            report(f"comparing {len(images.sources)} images")
            runs: list[Run] = [opened.run, session.run]
            if network is not None and precision == "fp16":
                runs.append(_run_of(_rounded_to_half(network), half=True))
            expected, found, *rounded = _answers(runs, images.sources, manifest.transform, batch_size, report)
        own = None
        if network is not None and precision != "int8":
            report("measuring the network's own error")
            probed = [images.sources[i] for i in spread(len(images.sources), PROBED_IMAGES)]
            own = OwnError.of(network, _inputs(probed, manifest.transform), precision)
            if rounded:  # on every image, not only those that float64 was computed for
                own = replace(own, logits=max(own.logits, float(np.abs(rounded[0] - expected).max())))
        parity = replace(
            compare(
                expected,
                found,
                images=[str(source) for source in images.sources],
                labels=manifest.labels,
                bar=_bar(own, max_error, allowed_flips, precision),
                precision=precision,
                executed_by=session.path,
                checkpoint_sha256=opened.checkpoint_sha256,
            ),
            artefact=str(artefact),
            reference=str(reference),
            split=images.split,
            no_decision=images.unlabelled,
        )
    if images.truth is not None:
        report("resampling")
        parity = _with_decision(parity, expected, found, images, manifest.labels, decision_bar)
    if not parity.passed and network is not None and own is not None:
        report("looking for the first module that departs")
        worst = next(source for source in images.sources if str(source) == parity.worst_image)
        model_file = Path(artefact) / MODEL_FILE if Path(artefact).is_dir() else Path(artefact)
        departure = first_departure(model_file, network, _inputs([worst], manifest.transform), own)
        parity = replace(parity, departure=departure)
    if Path(artefact).is_dir():
        _write_into_bundle(Path(artefact), parity)
    if page is not None:
        if parity.decision is None:
            raise ArtefactError(f"{artefact}: no page was written, because {parity.no_decision}")
        report("writing the page")
        write_page(page, parity, images.sources)
    return parity


@dataclass(frozen=True)
class _Reference:
    """What an artefact is compared with."""

    run: Run
    checkpoint_sha256: str
    network: MicroscopicMamba | None = None
    """None when the reference is an artefact itself."""


@contextmanager
def _opened_reference(reference: str | Path, manifest: Manifest, artefact: str) -> Iterator[_Reference]:
    """A checkpoint, or an artefact, that fits the artefact whose manifest this is."""
    path = Path(reference)
    if not path.is_dir() and (not path.is_file() or is_checkpoint(path)):
        loaded = load_checkpoint(path)
        _check_pair(manifest, loaded.sha256, loaded.network, artefact, str(reference))
        yield _Reference(_run_of(loaded.network), loaded.sha256, loaded.network)
        return
    with open_session(path) as session:
        said = session.manifest
        if said is None:
            raise ArtefactError(f"{reference} has no manifest: give a bundle or an ONNX file by msmamba")
        if said.checkpoint_sha256 and manifest.checkpoint_sha256:
            _check_same_checkpoint(manifest, said.checkpoint_sha256, artefact, str(reference))
        differing = [
            name
            for name in ("labels", "image_size", "mean", "std")
            if getattr(said, name) != getattr(manifest, name)
        ]
        if differing:
            raise ArtefactError(
                f"{artefact} and {reference} differ in {', '.join(differing)}: compare artefacts that take "
                "the same images to the same classes"
            )
        yield _Reference(session.run, said.checkpoint_sha256)


def _with_decision(
    parity: Parity,
    expected: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    images: ComparedImages,
    labels: Sequence[str],
    bar: DecisionBar,
) -> Parity:
    assert images.truth is not None
    broken = int((~np.isfinite(expected + found).all(axis=1)).sum())
    if broken:
        return replace(parity, no_decision=f"the logits of {broken} images are not finite")
    names = [str(source) for source in images.sources]
    return replace(
        parity, decision=decide(expected, found, images.truth, labels=labels, images=names, bar=bar)
    )


def compare(
    expected: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    *,
    images: Sequence[str],
    labels: Sequence[str],
    bar: Bar,
    precision: str,
    executed_by: str,
    checkpoint_sha256: str = "",
) -> Parity:
    """Compares two sets of logits, (images, classes) each.

    A value that is not finite counts as infinitely wrong.
    """
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    errors = np.abs(wide - other)
    errors[~np.isfinite(other)] = np.inf
    before, after = wide.argmax(1), np.where(np.isfinite(other), other, -np.inf).argmax(1)
    flipped = np.flatnonzero((before != after) | ~np.isfinite(other).all(1))
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.where(norms > 0, (wide * other).sum(1) / np.where(norms > 0, norms, 1), 1.0)
    counts = Counter(labels[int(before[i])] for i in flipped)
    return Parity(
        images=len(images),
        max_abs_error=float(errors.max()),
        mean_abs_error=float(errors.mean()),
        lowest_cosine=float(np.nan_to_num(cosines, nan=-1.0).min()),
        flips=len(flipped),
        flips_by_class=dict(counts),
        flipped_images=tuple(images[int(i)] for i in flipped),
        worst_image=images[int(errors.max(1).argmax())],
        precision=precision,
        executed_by=executed_by,
        bar=bar,
        checkpoint_sha256=checkpoint_sha256,
    )


class _RoundedToHalf(TorchDispatchMode):
    """Rounds the result of every operator to float16: float16 storage with float32 arithmetic."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            return result.half().float()
        return result


def _rounded_to_half(network: MicroscopicMamba) -> MicroscopicMamba:
    """The network with every weight rounded to float16, stored in float32."""
    rounded = deepcopy(network)
    for tensor in (*rounded.parameters(), *rounded.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
    return rounded


def _run_of(network: MicroscopicMamba, half: bool = False) -> Run:
    """The network as a function of NumPy images; with ``half``, every operator's result in float16."""

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        batch = torch.from_numpy(images)
        with torch.no_grad(), _RoundedToHalf() if half else nullcontext():
            logits: npt.NDArray[np.float32] = network(batch.half().float() if half else batch).numpy()
        return logits

    return run


@dataclass(frozen=True)
class OwnError:
    """The error that the network itself makes in a precision, against float64."""

    logits: float
    """Largest absolute error of a logit."""
    float32_logits: float
    """The same in float32."""
    largest_logit: float
    modules: Mapping[str, float]
    """By module: largest absolute error over the largest absolute value of its result."""

    @classmethod
    def of(cls, network: MicroscopicMamba, images: npt.NDArray[np.float32], precision: str) -> OwnError:
        """Measures it on a few images, (B, 3, S, S) float32."""
        exact = module_results(deepcopy(network).double(), torch.from_numpy(images).double())
        plain = module_results(network, torch.from_numpy(images))
        if precision == "fp16":
            own = module_results(
                _rounded_to_half(network), torch.from_numpy(images).half().float(), _RoundedToHalf()
            )
        else:
            own = plain
        return cls(
            logits=float((own["head"].double() - exact["head"]).abs().max()),
            float32_logits=float((plain["head"].double() - exact["head"]).abs().max()),
            largest_logit=float(exact["head"].abs().max()),
            modules={name: _relative_error(own[name].numpy(), exact[name].numpy()) for name in exact},
        )


def module_results(
    network: MicroscopicMamba, images: Tensor, mode: AbstractContextManager[Any] | None = None
) -> dict[str, Tensor]:
    """What each module that the exported graph knows by name computes, in the order of computation.

    Args:
        network: in evaluation mode.
        images: (B, 3, S, S).
        mode: context to compute in.

    Returns:
        By module path, as the graph has it: the scan branch after its shuffle, the local branch channels
        last, ``head`` the logits.
    """
    results: dict[str, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        if view := _graph_view(name, network):
            handles.append(module.register_forward_hook(_keeper(results, name, view)))
    try:
        with torch.no_grad(), mode or nullcontext():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return results


def _graph_view(name: str, network: MicroscopicMamba) -> Callable[[Tensor], Tensor] | None:
    """How the graph shows a module's result; None for modules that it does not show."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "Conv_branch":
        return channels_last
    if leaf == "pvm_layer":
        block = network.get_submodule(owner)
        assert isinstance(block, HybridBlock)
        groups = block.shuffle_groups
        return lambda result: channel_shuffle(result, groups)
    if leaf == "MIFA" or name in ("patch_embed.0", "patch_embed.2", "head") or leaf == "reduction":
        return lambda result: result
    return None


def _keeper(
    results: dict[str, Tensor], name: str, view: Callable[[Tensor], Tensor]
) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(module: nn.Module, inputs: Any, result: Tensor) -> None:
        results[name] = view(result)

    return keep


def first_departure(
    model_file: Path, network: MicroscopicMamba, image: npt.NDArray[np.float32], own: OwnError
) -> Departure | None:
    """The first module whose result in the graph is off by more than twice the network's own error.

    Args:
        model_file: the ONNX file.
        network: what it was made from.
        image: (1, 3, S, S).
        own: the network's own error in the file's precision.
    """
    expected = module_results(network, torch.from_numpy(image))
    for name, found in _graph_values(model_file, list(expected), image):
        error = _relative_error(found, expected[name].numpy())
        floor = FLOOR_ULPS * float(np.finfo(np.float32).eps)
        if not error <= max(2 * own.modules[name], floor):
            return Departure(module=name, error=error, expected_error=own.modules[name])
    return None


def _graph_values(
    model_file: Path, names: Sequence[str], image: npt.NDArray[np.float32]
) -> Iterator[tuple[str, Floats]]:
    """The values of these names that the graph has, as ONNX Runtime computes the file's own functions."""
    import onnxruntime

    model = onnx.load(model_file)
    shown = {output for node in model.graph.node for output in node.output}
    result = model.graph.output[0].name
    wanted = [name for name in names if name in shown]
    del model.graph.output[1:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run([*wanted, result], {model.graph.input[0].name: image})
    yield from zip([*wanted, "head"], values, strict=True)


def _relative_error(found: Floats, expected: Floats) -> float:
    if not np.isfinite(found).all():
        return float("inf")
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    return float(difference / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))


def _bar(own: OwnError | None, max_error: float | None, max_flips: int, precision: str) -> Bar:
    if max_error is not None:
        return Bar(max_error, max_flips, "as asked")
    if own is None:
        reason = (
            "int8 moves every tensor by design; what counts is what it decides"
            if precision == "int8"
            else "the network's own error cannot be measured without the checkpoint"
        )
        return Bar(None, max_flips, reason)
    floor = FLOOR_ULPS * float(np.finfo(np.float32).eps) * own.largest_logit
    return Bar(
        max(2 * own.logits + own.float32_logits, floor),
        max_flips,
        f"twice the network's own {precision} error against float64 ({own.logits:.3g}) plus its float32 "
        f"error ({own.float32_logits:.3g}), at least {FLOOR_ULPS} float32 ulp of the largest logit",
    )


def _check_pair(
    manifest: Manifest, checkpoint_sha256: str, network: MicroscopicMamba, artefact: str, checkpoint: str
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
    return np.stack([transform(read_image(source)) for source in sources])


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
                batch.append(transform(read_image(source)))
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


def _write_into_bundle(bundle: Path, parity: Parity) -> None:
    write_atomically(bundle / PARITY_FILE, as_utf8(parity.to_json()))
    manifest_file = bundle / MANIFEST_FILE
    manifest = Manifest.from_json(manifest_file.read_bytes(), str(manifest_file))
    files = {**manifest.files, PARITY_FILE: sha256_of(bundle / PARITY_FILE)}
    write_atomically(manifest_file, replace(manifest, files=files).to_json().encode())
