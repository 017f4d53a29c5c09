"""The 2D selective scan as a plugin of ``tensorrt`` 10 and 11 and of ``tensorrt_rtx``, from one source.

The plugin is named `SelectiveScan2D`, version 1, in namespace ``msmamba``: what the ONNX node says. At
build time it compiles its kernels (`triton_scan`) for the compute capabilities it was registered for, and the
engine carries them; at run time it takes them from the engine and launches them (`gpu_driver`) on
TensorRT's stream. A machine that only runs engines needs neither Triton nor a compiler.

No module of this folder imports TensorRT: whoever has it hands it to `register`. Inputs and their dims are
the package's contract; only the batch may be dynamic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from . import DIRECTIONS, ScanShape
from .gpu_driver import LoadedKernels
from .gpu_launch import MAX_CHUNKS, LaunchPlan, block_shape, chosen_chunks, launch_plan
from .gpu_package import KernelPackage
from .onnx_function import OP_TYPE, PLUGIN_ATTRIBUTES

PLUGIN_NAMESPACE = PLUGIN_ATTRIBUTES["plugin_namespace"]
PLUGIN_VERSION = PLUGIN_ATTRIBUTES["plugin_version"]
KERNEL_FIELD = "kernels"
"""The one field of a serialised plugin: a `KernelPackage` as bytes."""

INPUTS = ("x", "delta", "A", "B", "C", "D", "delta_bias")
_RANKS = dict(zip(INPUTS, (4, 5, 3, 5, 5, 2, 2), strict=True))
_FLOAT32_INPUTS = ("A", "D", "delta_bias")

_refusals: list[str] = []


def take_refusals() -> list[str]:
    """Why the plugin refused its node since the last call.

    TensorRT itself reports only that it did, and not always: an engine that was built while there were
    refusals holds scans without kernels.
    """
    taken = _refusals.copy()
    _refusals.clear()
    return taken


@contextmanager
def _refusing() -> Iterator[None]:
    """Keeps the message of an error that TensorRT is about to swallow."""
    try:
        yield
    except BackendError as error:
        _refusals.append(str(error))
        raise


Compiler = Callable[[str, int, tuple[int, ...]], KernelPackage]
"""Element type, states and compute capabilities to kernels: `triton_scan.compile_package`."""


def compile_with_triton(
    element_type: str, states: int, compute_capabilities: tuple[int, ...]
) -> KernelPackage:
    """The `Compiler` of machines that have Triton.

    Raises:
        BackendError: Triton is missing, or has no kernels for what is asked.
    """
    try:
        from .triton_scan import compile_package
    except ImportError as error:
        raise BackendError(
            "building an engine compiles the scan with Triton, which does not import "
            f"({error}): pip install triton"
        ) from error
    return compile_package(element_type, states, compute_capabilities)


def register(
    trt: ModuleType, compute_capabilities: Sequence[int] = (), compiler: Compiler | None = None
) -> None:
    """Makes the plugin known to a TensorRT library; again with other targets replaces them.

    Args:
        trt: The module ``tensorrt`` or ``tensorrt_rtx``.
        compute_capabilities: The devices that engines are built for, ``10 * major + minor``; empty
            where engines are only run.
        compiler: Makes the kernels; by default Triton.

    Raises:
        BackendError: A compute capability without kernels, or a registry that refuses the plugin.
    """
    for compute_capability in compute_capabilities:
        block_shape(compute_capability)  # refuses what has no kernels, before a build starts
    creator = _creator(trt)
    creator.targets = tuple(compute_capabilities)
    creator.compiler = functools.cache(compiler or compile_with_triton)


@functools.cache
def _creator(trt: ModuleType) -> Any:
    """The plugin's creator, registered once with ``trt`` and kept alive for as long as the process."""
    creator = _plugin_classes(trt)()
    if not trt.get_plugin_registry().register_creator(creator, PLUGIN_NAMESPACE):
        raise BackendError(
            f"{trt.__name__} refused the plugin {PLUGIN_NAMESPACE}::{OP_TYPE} version {PLUGIN_VERSION}: "
            "another plugin of that name is registered in this process"
        )
    return creator


def element_type(types: Sequence[Any], trt: ModuleType) -> str:
    """The scan's type, ``float16`` or ``float32``, from the types of its seven inputs.

    Raises:
        BackendError: The types do not fit together; the message names every input that is wrong.
    """
    if len(types) != len(INPUTS):
        raise BackendError(f"{OP_TYPE} has {len(types)} inputs, expected {len(INPUTS)}: {', '.join(INPUTS)}")
    known = {trt.DataType.HALF: "float16", trt.DataType.FLOAT: "float32"}
    if types[0] not in known:
        raise BackendError(f"{OP_TYPE}: x is {types[0].name}, expected HALF or FLOAT")
    expected = {name: trt.DataType.FLOAT if name in _FLOAT32_INPUTS else types[0] for name in INPUTS}
    wrong = [
        f"{name} is {found.name}, expected {expected[name].name}"
        for name, found in zip(INPUTS, types, strict=True)
        if found != expected[name]
    ]
    if wrong:
        raise BackendError(f"{OP_TYPE}: {'; '.join(wrong)}")
    return known[types[0]]


def scan_shape(dims: Sequence[Sequence[int]]) -> ScanShape:
    """The scan's dims from the dims of its inputs; -1 stands for a dynamic batch.

    Raises:
        BackendError: The dims do not fit together; the message names every input that is wrong.
    """
    if len(dims) != len(INPUTS):
        raise BackendError(f"{OP_TYPE} has {len(dims)} inputs, expected {len(INPUTS)}: {', '.join(INPUTS)}")
    found = {name: tuple(shape) for name, shape in zip(INPUTS, dims, strict=True)}
    ranks = [
        f"{name} has {len(shape)} dimensions, expected {_RANKS[name]}"
        for name, shape in found.items()
        if len(shape) != _RANKS[name]
    ]
    if ranks:
        raise BackendError(f"{OP_TYPE}: {'; '.join(ranks)}")
    batch, height, width, channels = found["x"]
    states = found["A"][2]
    positions = (batch, height, width, DIRECTIONS)
    expected = {
        "x": found["x"],
        "delta": (*positions, channels),
        "A": (DIRECTIONS, channels, states),
        "B": (*positions, states),
        "C": (*positions, states),
        "D": (DIRECTIONS, channels),
        "delta_bias": (DIRECTIONS, channels),
    }
    wrong = [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in INPUTS
        if found[name] != expected[name]
    ]
    if min(height, width, channels, states) < 1:
        wrong.append(f"x is {found['x']} and A {found['A']}; only the batch may be dynamic")
    if wrong:
        raise BackendError(f"{OP_TYPE}: {'; '.join(wrong)}")
    return ScanShape(batch, height, width, channels, states)


def workspace_bytes(shape: ScanShape, targets: Sequence[int]) -> int:
    """Workspace that is enough for any split of a scan of at most this batch on any of the targets."""
    return max(launch_plan(shape, block_shape(target), MAX_CHUNKS).workspace_bytes for target in targets)


@functools.cache
def _plugin_classes(trt: Any) -> Any:
    """The creator's class; TensorRT's base classes exist only once the library is imported."""

    class SelectiveScan2D(
        trt.IPluginV3,  # type: ignore[misc]  # TensorRT's classes carry no types
        trt.IPluginV3OneCore,  # type: ignore[misc]  # as above
        trt.IPluginV3OneBuild,  # type: ignore[misc]  # as above
        trt.IPluginV3OneRuntime,  # type: ignore[misc]  # as above
    ):
        """One scan layer. Built: knows its targets; running: holds kernels and a plan for its shapes."""

        def __init__(
            self, targets: tuple[int, ...], compiler: Compiler | None, package: KernelPackage | None
        ) -> None:
            for base in SelectiveScan2D.__bases__:
                base.__init__(self)  # each of pybind11's classes wants its own call
            self.plugin_name = OP_TYPE
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.num_outputs = 1
            self.timing_cache_id = ""
            self.targets = targets
            self.compiler = compiler
            self.package = package
            self.kernels: LoadedKernels | None = None
            self.plan: LaunchPlan | None = None
            self.serialised: tuple[Any, list[Any], NDArray[np.int8]] | None = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            copy = SelectiveScan2D(self.targets, self.compiler, self.package)
            copy.__dict__.update(self.__dict__)
            return copy

        # Build

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            with _refusing():
                element_type(input_types, trt)
            return [input_types[0]]

        def get_output_shapes(
            self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
        ) -> list[Any]:
            sizes = [[value[axis] for axis in range(len(value))] for value in inputs]
            with _refusing():
                scan_shape(
                    [[s.get_constant_value() if s.is_constant() else -1 for s in dims] for dims in sizes]
                )
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, position: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            found = in_out[position].desc
            if found.format != trt.TensorFormat.LINEAR:
                return False
            if position == 0:
                return found.type in (trt.DataType.HALF, trt.DataType.FLOAT)
            float32 = position < num_inputs and INPUTS[position] in _FLOAT32_INPUTS
            expected = trt.DataType.FLOAT if float32 else in_out[0].desc.type
            return bool(found.type == expected)

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            # Raises nothing: a failure here in a network of many layers corrupts the memory of TensorRT-RTX
            # 1.7.1 and aborts the process. The refusal is kept, and whoever builds must ask for it.
            with suppress(BackendError), _refusing():
                own_type = element_type([value.desc.type for value in inputs], trt)
                shape = scan_shape([value.desc.dims for value in inputs])
                if self.compiler is not None:
                    self.package = self.compiler(own_type, shape.states, self.targets)

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            targets = self.package.compute_capabilities if self.package else self.targets
            return workspace_bytes(scan_shape([value.max for value in inputs]), targets)

        # Run

        def get_fields_to_serialize(self) -> Any:
            if self.package is None:  # refused when it was configured
                self.serialised = (trt.PluginFieldCollection([]), [], np.empty(0, np.int8))
                return self.serialised[0]
            # A PluginField points at its data without owning it, and TensorRT at the collection, after this
            # call: the plugin keeps all of them.
            data = np.frombuffer(self.package.to_bytes(), dtype=np.int8)
            fields = [trt.PluginField(KERNEL_FIELD, data, trt.PluginFieldType.CHAR)]
            self.serialised = (trt.PluginFieldCollection(fields), fields, data)
            return self.serialised[0]

        def loaded(self) -> LoadedKernels:
            """The kernels on the current device; a builder that times the layer may not have attached it."""
            with _refusing():
                if self.package is None:
                    raise BackendError(f"{OP_TYPE} holds no kernels: the engine is damaged; rebuild it")
                if self.kernels is None:
                    self.kernels = LoadedKernels.of(self.package)
                return self.kernels

        def attach_to_context(self, context: Any) -> Any:
            attached = self.clone()
            attached.loaded()
            return attached

        def set_tactic(self, tactic: int) -> None:
            """There is one way to run."""

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            kernels = self.loaded()
            shape = scan_shape([value.dims for value in inputs])
            block = block_shape(kernels.compute_capability)
            self.plan = launch_plan(shape, block, chosen_chunks(shape, block, kernels.multiprocessors))

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if self.kernels is None or self.plan is None:
                raise BackendError(f"{OP_TYPE} was run before it was given shapes")
            addresses = {**dict(zip(INPUTS, inputs, strict=True)), "y": outputs[0]}
            self.kernels.launch(self.plan, addresses, workspace, stream)

    class SelectiveScan2DCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]  # as above
        """Makes the plugin from an ONNX node (build) or from an engine (run)."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = OP_TYPE
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.field_names = trt.PluginFieldCollection([])
            self.targets: tuple[int, ...] = ()
            self.compiler: Compiler | None = None

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            with _refusing():
                found = {field.name: field for field in fields}
                expected = set() if phase == trt.TensorRTPhase.BUILD else {KERNEL_FIELD}
                if set(found) != expected:
                    raise BackendError(
                        f"{OP_TYPE} {name!r} has the fields {sorted(found)}, expected {sorted(expected)}: "
                        "the ONNX file or engine comes from another version of msmamba; export again"
                    )
                if phase == trt.TensorRTPhase.BUILD:
                    if not self.targets:
                        raise BackendError(
                            f"{OP_TYPE} {name!r}: no compute capability to build for was registered"
                        )
                    return SelectiveScan2D(self.targets, self.compiler, None)
                data = np.asarray(found[KERNEL_FIELD].data).tobytes()
                return SelectiveScan2D((), None, KernelPackage.from_bytes(data))

    return SelectiveScan2DCreator
