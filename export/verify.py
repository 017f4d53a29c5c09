"""Parity: does an artefact answer like the PyTorch model it was made from, and if not, from where on?

Three questions, on real images. How far are the logits apart? Which images change their label? And when
the bar is missed, which is the first module whose result departs?

The bar is measured, not chosen. Against float64, an artefact may err twice as much as the network itself
does in the artefact's precision: PyTorch's own error for float32, that of the same network with the
result of every operator rounded to float16 for float16. What it is compared with is the float32 network,
so that one's error is added.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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

from ..errors import ArtefactError, DataError
from ..files import sha256_of, write_atomically
from ..images import Transform, read_image
from ..model.checkpoint import load_checkpoint
from ..model.network import HybridBlock, MicroscopicMamba, channel_shuffle, channels_last
from ..runtime import Manifest, open_session
from ..runtime.infer import find_images
from .bundle import MANIFEST_FILE, MODEL_FILE, PARITY_FILE

Floats = npt.NDArray[np.floating[Any]]
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

FLOOR_ULPS = 32
"""The bar is never below this many float32 units in the last place of the largest logit."""
FLIPS_SHOWN = 10
"""Flipped images named on a terminal; ``parity.json`` has all."""
PROBED_IMAGES = 6
"""Images on which the network's error against float64 is measured (float64 is slow)."""


@dataclass(frozen=True)
class Bar:
    """What an artefact must meet."""

    max_abs_error: float
    """Of any logit."""
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
    departure: Departure | None = None
    """Where it begins, when the bar is missed and the artefact can be looked into."""

    @property
    def passed(self) -> bool:
        """Whether the bar is met."""
        return self.max_abs_error <= self.bar.max_abs_error and self.flips <= self.bar.max_flips

    @property
    def failure(self) -> str:
        """What was missed, in words; empty when nothing was."""
        missed = []
        if self.max_abs_error > self.bar.max_abs_error:
            missed.append(f"a logit is off by {self.max_abs_error:.3g}, allowed {self.bar.max_abs_error:.3g}")
        if self.flips > self.bar.max_flips:
            missed.append(f"{self.flips} of {self.images} labels flip, allowed {self.bar.max_flips}")
        if missed and self.departure is not None:
            missed.append(f"first departing module {self.departure.module}")
        return "; ".join(missed)

    def to_text(self) -> str:
        """The comparison as lines for a terminal."""
        lines = {
            "images": str(self.images),
            "largest error": f"{self.max_abs_error:.3g} (allowed {self.bar.max_abs_error:.3g})",
            "  allowed": self.bar.reason,
            "mean error": f"{self.mean_abs_error:.3g}",
            "lowest cosine": f"{self.lowest_cosine:.9f}",
            "label flips": f"{self.flips} (allowed {self.bar.max_flips})",
            **{f"  {label}": str(count) for label, count in self.flips_by_class.items()},
            **{f"  {image}": "flipped" for image in self.flipped_images[:FLIPS_SHOWN]},
            "worst image": self.worst_image,
            "executed by": self.executed_by,
        }
        if self.departure is not None:
            lines["departs at"] = (
                f"{self.departure.module}, relative error {self.departure.error:.3g} "
                f"(expected {self.departure.expected_error:.3g})"
            )
        lines["parity"] = "kept" if self.passed else "LOST"
        width = max(map(len, lines))
        return "".join(f"{name:<{width}}  {value}\n" for name, value in lines.items())

    def to_json(self) -> str:
        """The comparison as JSON, for ``parity.json``."""
        return json.dumps({"passed": self.passed, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def verify(
    artefact: str | Path,
    checkpoint: str | Path,
    data: Sequence[str | Path],
    *,
    max_error: float | None = None,
    max_flips: int = 0,
    limit: int | None = None,
    batch_size: int = 8,
    report: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Compares an artefact with the checkpoint it was made from, and writes ``parity.json`` into a bundle.

    Args:
        artefact: a bundle or an ONNX file.
        checkpoint: the checkpoint.
        data: image files, and folders that are searched for them.
        max_error: bound on the error of any logit; measured when None.
        max_flips: how many images may change their label.
        limit: compare at most this many images, spread evenly over those found.
        batch_size: images at once.
        report: is told each step as it begins.

    Raises:
        ArtefactError: the artefact cannot be used, or was made from another checkpoint.
        CheckpointError: the checkpoint cannot be used.
        DataError: there are no images.
        ImageError: an image cannot be read.
    """
    paths = find_images(data)
    if not paths:
        raise DataError(f"no images in {', '.join(str(item) for item in data)}")
    if limit is not None and len(paths) > limit:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]

    report("reading the checkpoint")
    loaded = load_checkpoint(checkpoint)
    network = loaded.network
    with open_session(artefact) as session:
        manifest = session.manifest
        if manifest is None:
            raise ArtefactError(f"{artefact} has no manifest: verify a bundle or an ONNX file by msmamba")
        _check_pair(manifest, loaded.sha256, network, str(artefact), str(checkpoint))
        transform = manifest.transform
        report("measuring the network's own error")
        precision = manifest.precision_asked
        probed = [
            paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), PROBED_IMAGES)).astype(int)
        ]
        sample = np.stack([transform(read_image(path)) for path in probed])
        own = OwnError.of(network, sample, precision)
        report(f"comparing {len(paths)} images")
        runs: list[Run] = [_run_of(network), session.run]
        if precision == "fp16":
            runs.append(_run_of(_rounded_to_half(network), half=True))
        expected, found, *rounded = _answers(runs, paths, transform, batch_size, report)
        if rounded:  # on every image, not only those that float64 was computed for
            own = replace(own, logits=max(own.logits, float(np.abs(rounded[0] - expected).max())))
        bar = _bar(own, max_error, max_flips, precision)
        parity = compare(
            expected,
            found,
            images=[str(path) for path in paths],
            labels=manifest.labels,
            bar=bar,
            precision=precision,
            executed_by=session.path,
            checkpoint_sha256=loaded.sha256,
        )
    if not parity.passed:
        report("looking for the first module that departs")
        worst = next(path for path in paths if str(path) == parity.worst_image)
        image = transform(read_image(worst))[None]
        model_file = Path(artefact) / MODEL_FILE if Path(artefact).is_dir() else Path(artefact)
        parity = replace(parity, departure=first_departure(model_file, network, image, own))
    if Path(artefact).is_dir():
        _write_into_bundle(Path(artefact), parity)
    return parity


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


def _bar(own: OwnError, max_error: float | None, max_flips: int, precision: str) -> Bar:
    if max_error is not None:
        return Bar(max_error, max_flips, "as asked")
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
    if manifest.checkpoint_sha256 and manifest.checkpoint_sha256 != checkpoint_sha256:
        raise ArtefactError(
            f"{artefact} was made from another checkpoint (sha256 {manifest.checkpoint_sha256[:12]}…) than "
            f"{checkpoint} (sha256 {checkpoint_sha256[:12]}…): verify against the one it was made from"
        )
    if len(manifest.labels) != network.arch.num_classes:
        raise ArtefactError(
            f"{artefact} has {len(manifest.labels)} classes, {checkpoint} {network.arch.num_classes}"
        )


def _answers(
    runs: Sequence[Run],
    paths: Sequence[Path],
    transform: Transform,
    batch_size: int,
    report: Callable[[str], None],
) -> list[npt.NDArray[np.float32]]:
    """The logits of each run, (images, classes)."""
    logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in runs]
    for start in range(0, len(paths), batch_size):
        images = np.stack([transform(read_image(path)) for path in paths[start : start + batch_size]])
        for run, answers in zip(runs, logits, strict=True):
            answers.append(run(images))
        report(f"compared {min(start + batch_size, len(paths))} of {len(paths)} images")
    return [np.concatenate(answers) for answers in logits]


def _write_into_bundle(bundle: Path, parity: Parity) -> None:
    write_atomically(bundle / PARITY_FILE, parity.to_json().encode())
    manifest_file = bundle / MANIFEST_FILE
    manifest = Manifest.from_json(manifest_file.read_bytes(), str(manifest_file))
    files = {**manifest.files, PARITY_FILE: sha256_of(bundle / PARITY_FILE)}
    write_atomically(manifest_file, replace(manifest, files=files).to_json().encode())
