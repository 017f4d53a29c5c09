"""Where an artefact departs: every module's result beside the graph's, and the error that is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...model.networks.family import Network, View
from ...model.networks.registry import family_of
from ...runtime.onnxruntime_library import import_onnxruntime
from ..graph.quantise import LARGEST, WIDE
from .parity import Departure, Rise

Floats = npt.NDArray[np.floating[Any]]
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
FLOOR_EPSILONS = 32
"""The bar is never below this many of float32's epsilon, 2^-23, times the largest logit."""
_FLOOR = FLOOR_EPSILONS * float(np.finfo(np.float32).eps)


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


def rounded_to_half(network: Network) -> Network:
    """The network with every weight rounded to float16, stored in float32."""
    rounded = deepcopy(network)
    for tensor in (*rounded.parameters(), *rounded.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
    return rounded


def run_of(network: Network) -> Run:
    """The network as a function of NumPy images."""

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
        return logits

    return run


def half_errors_of(network: Network) -> Run:
    """The absolute errors (B, classes) that float16 makes on images: every operator's result rounded to it.

    Each is the larger of two: of the image as it is, and turned by half. One rounding of few images is a
    matter of luck, and an artefact rounds in other places.
    """
    rounded = rounded_to_half(network)

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        errors = []
        for batch in (torch.from_numpy(images), torch.from_numpy(images).rot90(2, (2, 3))):
            with torch.no_grad():
                plain = network(batch)
                with _RoundedToHalf():
                    errors.append((rounded(batch.half().float()) - plain).abs())
        larger: npt.NDArray[np.float32] = torch.maximum(*errors).numpy()
        return larger

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
    """The largest absolute error over the largest absolute value of the result, by module."""
    float32_modules: Mapping[str, float]
    """The same in float32."""

    @property
    def logit_bound(self) -> float:
        """What an artefact's logit may be off by: twice this error, plus that of what it is compared with."""
        return max(2 * self.logits + self.float32_logits, _FLOOR * self.largest_logit)

    def module_bound(self, name: str) -> float:
        """The same of a module's result, over the largest absolute value of that."""
        return max(2 * self.modules[name] + self.float32_modules[name], _FLOOR)

    def with_logits(self, error: float) -> OwnError:
        """These errors together with that of further logits; NaN where one of them is."""
        return replace(self, logits=float(np.max([self.logits, error])))

    def with_image(self, there: OwnError) -> OwnError:
        """These errors together with those on one more image."""
        larger = [
            {name: max(error, theirs[name]) for name, error in ours.items()}
            for ours, theirs in (
                (self.modules, there.modules),
                (self.float32_modules, there.float32_modules),
            )
        ]
        return replace(self, modules=larger[0], float32_modules=larger[1])

    @classmethod
    def of(cls, network: Network, images: npt.NDArray[np.float32], precision: str) -> OwnError:
        """Measures it on a few images, (B, 3, S, S) float32."""
        head = family_of(network).head
        exact = module_results(deepcopy(network).double(), torch.from_numpy(images).double())
        plain = module_results(network, torch.from_numpy(images))
        if precision == "fp16":
            own = module_results(
                rounded_to_half(network), torch.from_numpy(images).half().float(), _RoundedToHalf()
            )
        else:
            own = plain
        return cls(
            logits=float((own[head].double() - exact[head]).abs().max()),
            float32_logits=float((plain[head].double() - exact[head]).abs().max()),
            largest_logit=float(exact[head].abs().max()),
            modules={name: _relative_error(own[name].numpy(), exact[name].numpy()) for name in exact},
            float32_modules={
                name: _relative_error(plain[name].numpy(), exact[name].numpy()) for name in exact
            },
        )


def module_results(
    network: Network, images: Tensor, mode: AbstractContextManager[Any] | None = None
) -> dict[str, Tensor]:
    """What each module that the exported graph knows by name computes, in the order of computation.

    Args:
        network: in evaluation mode.
        images: (B, 3, S, S).
        mode: context to compute in.

    Returns:
        By module path, as the graph shows it (see `Family.probes`); last the head, with the logits.
    """
    results: dict[str, Tensor] = {}
    family = family_of(network)
    handles = [
        network.get_submodule(name).register_forward_hook(_keeper(results, name, view))
        for name, view in family.probes(network).items()
    ]
    try:
        with torch.no_grad(), mode or nullcontext():
            results[family.head] = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return results


def _keeper(results: dict[str, Tensor], name: str, view: View) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(module: nn.Module, inputs: Any, result: Tensor) -> None:
        results[name] = view(result)

    return keep


def first_departure(
    model_file: Path, network: Network, image: npt.NDArray[np.float32], own: OwnError
) -> Departure | None:
    """The first module whose result in the graph is off by more than the network's own error allows.

    Args:
        model_file: the ONNX file.
        network: what it was made from.
        image: (1, 3, S, S).
        own: the network's own error in the file's precision, this image's modules included.

    Returns:
        None where no module is: then what was missed was missed without a fault in any of them.
    """
    expected = module_results(network, torch.from_numpy(image))
    for name, found in _graph_values(model_file, expected, image):
        error = _relative_error(found, expected[name].numpy())
        allowed = own.module_bound(name)
        if name == family_of(network).head:  # whose bound was measured on more images than the modules' were
            allowed = max(allowed, own.logit_bound / _largest(expected[name].numpy()))
        if not error <= allowed:
            return Departure(module=name, error=error, expected_error=own.modules[name])
    return None


def steepest_rise(model_file: Path, network: Network, image: npt.NDArray[np.float32]) -> Rise:
    """The module at which an int8 artefact's error becomes the greatest multiple of that before it.

    Args:
        model_file: the ONNX file.
        network: what it was made from.
        image: (1, 3, S, S).
    """
    expected = module_results(network, torch.from_numpy(image))
    rises, before = [], 1 / LARGEST
    for name, found in _graph_values(model_file, expected, image):
        error = _relative_error(found, expected[name].numpy())
        rises.append(Rise(module=name, error=error, error_before=before))
        before = max(before, error)
    return max(rises, key=lambda rise: rise.error / rise.error_before)


def _graph_values(
    model_file: Path, expected: Mapping[str, Tensor], image: npt.NDArray[np.float32]
) -> Iterator[tuple[str, Floats]]:
    """The modules' results that the graph has, last the logits, as ONNX Runtime runs its functions."""
    *names, head = expected
    onnxruntime = import_onnxruntime()
    model = onnx.load(model_file)
    shown = {output for node in model.graph.node for output in node.output}
    result = model.graph.output[0].name
    # What is quantised at once stands there as it was before.
    values = {name: name if name in shown else f"{name}{WIDE}" for name in names}
    wanted = [name for name in names if values[name] in shown]
    del model.graph.output[1:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(values[name]) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [*(values[name] for name in wanted), result]
    found = session.run(outputs, {model.graph.input[0].name: image})
    for name, value in zip([*wanted, head], found, strict=True):
        # In files from before patch merging was one operator its name was that of the patches.
        if value.shape == expected[name].shape:
            yield name, value


def _relative_error(found: Floats, expected: Floats) -> float:
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max() / _largest(expected))


def _largest(values: Floats) -> float:
    """The largest absolute value, above zero so that one can divide by it."""
    return max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny))
