"""ONNX to a TensorRT engine, with the selective scan as a plugin, and the proof of its precision.

``tensorrt_rtx`` builds without a GPU, for every compute capability it is told. ``tensorrt`` builds on the
machine that the engine is for, and for that machine only. Either way the network is strongly typed: it has
the types that the file states, `precision` put them there, and here they are read off the parsed network,
layer by layer, before anything is built.

Nothing here imports PyTorch; Triton is needed only where no compiled kernels are handed in.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx.inliner
from onnx import ModelProto, TensorProto

from ...errors import ExportError
from ...files import write_atomically
from ...plugins import cuda_driver
from ...plugins.selective_scan import tensorrt_plugin
from ...plugins.selective_scan.gpu_launch import BLOCK_SHAPES, dotted
from ...plugins.selective_scan.onnx_function import DOMAIN, OP_TYPE
from ...plugins.tensorrt_library import collecting_logger, import_tensorrt
from ..graph.inlining import INPUT
from ..graph.precision import KEPT_IN_FLOAT32
from ..graph.quantise import int8_nodes
from .kernels import scan_kinds
from .program import product_types

Progress = Callable[[str, float], None]
"""Called with the phase (``parse``, or TensorRT's own name) and how much of it is done, 0 to 1."""

PROVEN_OPERATORS = ("Conv", "MatMul", "Gemm", "LayerNormalization", OP_TYPE)
"""ONNX operators whose layers TensorRT names after their nodes; they are all the arithmetic that counts."""

HARDWARE_COMPATIBILITIES = ("none", "ampere-plus", "same-compute-capability")
"""NVIDIA's levels: the GPU that the engine was built on, every one from compute capability 8.0 on, or every
one of the same compute capability."""

_AMPERE = 80
_WITHOUT_FLOAT32_PRODUCTS = frozenset({75})
"""For these TensorRT-RTX 1.7 compiles no float32 matrix product, and every network's head is one."""
_TYPE_NAMES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF"}


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built for."""

    compute_capabilities: tuple[int, ...] = ()
    """``10 * major + minor``; ``tensorrt`` takes this machine's GPU, and may be left without."""
    library: str = "tensorrt_rtx"
    batches: tuple[int, int, int] = (1, 1, 16)
    """Least, most usual and largest batch."""
    plugin: bool = True
    """False: the scan as standard operators, slow to build and slow to run."""
    version_compatible: bool = False
    """Lets later versions of ``tensorrt`` run the engine, which then carries a runtime of its own."""
    hardware_compatibility: str = "none"
    """Which other GPUs run a ``tensorrt`` engine, one of `HARDWARE_COMPATIBILITIES`."""
    timing_cache: Path | None = None
    """File with what earlier builds of ``tensorrt`` measured on this GPU; made or extended by this one."""

    @classmethod
    def of(cls, target: str, compute_capabilities: Iterable[str], **chosen: Any) -> EngineOptions:
        """Makes options of what a user writes: ``tensorrt-rtx`` and ``8.9``.

        Raises:
            ExportError: a compute capability is not of that form.
        """
        parsed = tuple(dict.fromkeys(map(_compute_capability, compute_capabilities)))  # each once
        return cls(parsed, target.replace("-", "_"), **chosen)

    @property
    def kernel_targets(self) -> tuple[int, ...]:
        """The compute capabilities that the scan's kernels are needed for."""
        if self.hardware_compatibility == "ampere-plus":
            return tuple(sm for sm in BLOCK_SHAPES if sm >= _AMPERE)
        return self.compute_capabilities


@dataclass(frozen=True)
class PluginTypes:
    """The types of one scan layer, by TensorRT's names."""

    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class EngineProof:
    """What the types in the parsed network say."""

    layers: Mapping[str, int]
    """Layers by the type of their first output, such as ``{"HALF": 980, "FLOAT": 48, "INT64": 240}``."""
    float32_layers: tuple[str, ...]
    """Names of the layers that compute in float32: in a float16 engine those that were meant to."""
    plugins: tuple[PluginTypes, ...]
    int8_layers: tuple[str, ...] = ()
    """Names of the layers that multiply int8: TensorRT merges them with the dequantising in front of them."""
    compiled_products: Mapping[str, int] = field(default_factory=dict)
    """Products of the finished engine by the types they multiply, such as ``{"int8": 55, "half": 60}``; empty
    where the library keeps its program unreadable (`engine_program`)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "layers": dict(self.layers),
            "float32_layers": list(self.float32_layers),
            "int8_layers": list(self.int8_layers),
            "compiled_products": dict(self.compiled_products),
            "plugins": [
                {"layer": found.layer, "inputs": list(found.inputs), "outputs": list(found.outputs)}
                for found in self.plugins
            ],
        }


@dataclass(frozen=True)
class Engine:
    """A serialised engine and how it came about."""

    plan: bytes
    options: EngineOptions
    library_version: str
    proof: EngineProof
    log: str
    """What TensorRT said, a message a line."""
    build_s: float
    """Parsing and building, kernels compiled included."""

    @property
    def summary(self) -> str:
        """What was built, in one line."""
        layers = ", ".join(f"{count} {kind}" for kind, count in self.proof.layers.items())
        text = (
            f"engine for {dotted(self.options.compute_capabilities)}: {len(self.plan) / 1e6:.1f} MB "
            f"in {self.build_s:.1f} s, {len(self.proof.plugins)} plugin layers, layers by type: {layers}"
        )
        asked, compiled = len(self.proof.int8_layers), self.proof.compiled_products
        if not asked or not compiled:
            return text
        # Those that TensorRT takes apart and puts together anew have names of its own there, and are counted.
        return f"{text}; {compiled.get('int8', 0)} of {asked} int8 products are compiled as such"


def engine_from_onnx(
    model: ModelProto,
    options: EngineOptions,
    progress: Progress | None = None,
    compiler: tensorrt_plugin.Compiler | None = None,
) -> Engine:
    """Builds an engine.

    Args:
        model: without other functions than the scan's and with inferred types, as `inlined_model`,
            `onnx_model.flat_model` and `precision.fp16_from_fp32` return it; it is left as it is.
        options: what to build for.
        progress: told what is going on.
        compiler: gives the scan's kernels; by default Triton makes them.

    Raises:
        ExportError: the library cannot build for a GPU asked for, does not understand the model, gives a
            layer another type than the file, or fails to build; the message has its reason.
        BackendError: the library is missing or would abort the process, Triton is missing, or ``tensorrt``
            finds no GPU.
    """
    started = time.perf_counter()
    report = progress or (lambda phase, done: None)
    options = buildable(options)
    trt = import_tensorrt(options.library)
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)

    report("parse", 0.0)
    tensorrt_plugin.take_refusals()
    if options.plugin:
        tensorrt_plugin.register(trt, options.kernel_targets, _compiled(model, options, compiler))
    if not parser.parse(_prepared(model, options.plugin).SerializeToString()):
        problems = tensorrt_plugin.take_refusals() or [
            parser.get_error(i).desc() for i in range(parser.num_errors)
        ]
        raise ExportError(f"{options.library} {trt.__version__} refused the model: {_one_line(problems)}")
    proof = _proof(trt, network)
    _check_types(model, network, options.plugin)
    _check_int8(model, proof)
    report("parse", 1.0)

    config = builder.create_builder_config()
    _configure(trt, builder, network, config, options, report)
    cache = _attach_timing_cache(config, options.timing_cache) if options.timing_cache else None
    # It runs the plugin's kernels for timing where it builds on the GPU: they load into the current context.
    with _gpu_of(options):
        plan = builder.build_serialized_network(network, config)
    refusals = tensorrt_plugin.take_refusals()
    if plan is None or refusals:
        problems = refusals or logger.errors[-3:]
        raise ExportError(f"{options.library} {trt.__version__} built no engine: {_one_line(problems)}")
    if options.timing_cache and cache is not None:
        write_atomically(options.timing_cache, bytes(cache.serialize()), through_links=True)
    return Engine(
        plan=bytes(plan),
        options=options,
        library_version=trt.__version__,
        proof=replace(proof, compiled_products=_compiled_products(bytes(plan), proof)),
        log="\n".join(logger.lines),
        build_s=time.perf_counter() - started,
    )


def buildable(options: EngineOptions) -> EngineOptions:
    """The options as this machine builds them, for ``tensorrt`` with its GPU: to be asked before work starts.

    Raises:
        ExportError: they do not fit together or not this machine; every mismatch is named.
        BackendError: the library is missing or would abort the process, or ``tensorrt`` finds no GPU.
    """
    _check_options(import_tensorrt(options.library), options)
    return _for_this_gpu(options)


def _check_options(trt: Any, options: EngineOptions) -> None:
    """Refuses what cannot be built; collects every mismatch."""
    wrong = []
    least, usual, largest = options.batches
    if not 1 <= least <= usual <= largest:
        wrong.append(f"batches {options.batches}, expected 1 <= least <= usual <= largest")
    if options.hardware_compatibility not in HARDWARE_COMPATIBILITIES:
        wrong.append(
            f"hardware compatibility {options.hardware_compatibility!r} is unknown: "
            f"choose one of {', '.join(HARDWARE_COMPATIBILITIES)}"
        )
    cache = options.timing_cache
    if cache is not None and not os.access(cache.resolve().parent, os.W_OK):
        wrong.append(f"the timing cache '{cache}' cannot be written: name a file in a folder that can")
    if options.library == "tensorrt" and len(options.compute_capabilities) > 1:
        wrong.append("tensorrt builds for the GPU of this machine only: give one compute capability")
    if options.library == "tensorrt_rtx":
        if not options.compute_capabilities:
            wrong.append("no compute capability to build for: give one with --sm, such as --sm 8.9")
        if options.version_compatible:
            wrong.append("TensorRT-RTX runs engines of its own version only: leave --version-compatible out")
        if options.hardware_compatibility != "none":
            wrong.append("TensorRT-RTX builds for the GPUs named: give more with --sm, such as --sm 8.6,8.9")
        if options.timing_cache is not None:
            wrong.append("TensorRT-RTX times nothing while it builds: leave --timing-cache out")
        named = [int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM")]
        known = sorted(set(named) - _WITHOUT_FLOAT32_PRODUCTS)
        unknown = [sm for sm in options.compute_capabilities if sm not in known]
        if unknown:
            wrong.append(
                f"compute capability {dotted(unknown)} is not among those that TensorRT-RTX "
                f"{trt.__version__} builds these networks for: {dotted(known)}"
            )
    if wrong:
        raise ExportError("; ".join(wrong))


def _compiled(
    model: ModelProto, options: EngineOptions, compiler: tensorrt_plugin.Compiler | None
) -> tensorrt_plugin.Compiler:
    """The compiler with all kernels of the model made: where that fails, it fails before TensorRT starts."""
    made = functools.cache(compiler or tensorrt_plugin.compile_with_triton)
    for element_type, states in scan_kinds(model):
        made(element_type, states, options.kernel_targets)
    return made


def _for_this_gpu(options: EngineOptions) -> EngineOptions:
    """The options with this machine's GPU, where ``tensorrt`` builds for no other.

    Raises:
        ExportError: another one was asked for.
        BackendError: there is no GPU.
    """
    if options.library != "tensorrt":
        return options
    found = cuda_driver.device()
    if options.compute_capabilities not in ((), (found.compute_capability,)):
        raise ExportError(
            f"tensorrt builds for the GPU of this machine, {found.name} with compute capability "
            f"{dotted([found.compute_capability])}, not for {dotted(options.compute_capabilities)}: "
            "export there, or leave --sm out"
        )
    return replace(options, compute_capabilities=(found.compute_capability,))


@contextmanager
def _gpu_of(options: EngineOptions) -> Iterator[None]:
    """A context of this machine's GPU made current, for ``tensorrt``, which builds on it."""
    if options.library != "tensorrt":
        yield
        return
    with closing(cuda_driver.Context()) as context, context.entered():
        yield


def _compute_capability(text: str) -> int:
    """``8.9`` as 89."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal() and len(minor) == 1):
        raise ExportError(f"compute capability {text!r} is not of the form 8.9")
    return 10 * int(major) + int(minor)


def _one_line(problems: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(" ".join(problem.split()) for problem in problems)) or "no reason given"


def _strongly_typed(trt: Any) -> int:
    """The creation flags of a strongly typed network; TensorRT 11 knows no other and may drop the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _prepared(model: ModelProto, plugin: bool) -> ModelProto:
    """The model with the scan either a bare node, which older parsers need, or standard operators."""
    if not plugin:
        inlined: ModelProto = onnx.inliner.inline_selected_functions(model, [(DOMAIN, OP_TYPE)])
        return inlined
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.functions[:]
    return bare


def _layers(network: Any) -> list[Any]:
    """The layers that make a tensor; the limits of loops make none."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [layer for layer in layers if layer.num_outputs and layer.get_output(0) is not None]


def _proof(trt: Any, network: Any) -> EngineProof:
    """The types of every layer and of every plugin's inputs and outputs."""
    counts: Counter[str] = Counter()
    float32_layers, plugins = [], []
    for layer in _layers(network):
        kind = layer.get_output(0).dtype.name
        counts[kind] += 1
        if kind == "FLOAT" and layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.CAST):
            float32_layers.append(layer.name)
        if layer.type == trt.LayerType.PLUGIN_V3:
            inputs = tuple(layer.get_input(i).dtype.name for i in range(layer.num_inputs))
            outputs = tuple(layer.get_output(i).dtype.name for i in range(layer.num_outputs))
            plugins.append(PluginTypes(layer.name, inputs, outputs))
    return EngineProof(dict(counts), tuple(float32_layers), tuple(plugins), _int8_layers(trt, network))


def _int8_layers(trt: Any, network: Any) -> tuple[str, ...]:
    """Layers both of whose operands come out of int8, reshaped on the way at most."""
    layers = _layers(network)
    made_by = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def is_int8(tensor: Any) -> bool:
        layer = made_by.get(tensor.name)
        while layer is not None and layer.type == trt.LayerType.SHUFFLE:
            layer = made_by.get(layer.get_input(0).name)
        if layer is None or layer.type != trt.LayerType.DEQUANTIZE:
            return False
        return bool(layer.get_input(0).dtype == trt.DataType.INT8)

    multiplying = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    return tuple(
        layer.name
        for layer in layers
        if layer.type in multiplying
        and layer.num_inputs > 1  # a weight that is no tensor is in floating point
        and all(is_int8(layer.get_input(i)) for i in range(2))
    )


def _check_types(model: ModelProto, network: Any, plugin: bool) -> None:
    """Compares the arithmetic layers' types with the file's, and a float16 file's with what was asked.

    Raises:
        ExportError: a layer is missing or of another type; all are named.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type in PROVEN_OPERATORS and (plugin or node.op_type != OP_TYPE)
    ]
    wanted = {node.name: _TYPE_NAMES.get(types.get(node.output[0], 0), "a known type") for node in nodes}
    found = {layer.name: layer.get_output(0).dtype.name for layer in _layers(network)}
    wrong = [
        f"{name} is {found.get(name, 'missing')}, expected {kind}"
        for name, kind in wanted.items()
        if found.get(name) != kind
    ]
    if "HALF" in wanted.values():
        wrong += [
            f"{node.name} stayed in float32"
            for node in nodes
            if wanted[node.name] == "FLOAT" and node.op_type not in KEPT_IN_FLOAT32
        ]
    if wrong:
        raise ExportError(f"the parsed network is not in the precision asked for: {'; '.join(wrong)}")


def _check_int8(model: ModelProto, proof: EngineProof) -> None:
    """Compares the layers that multiply int8 with the file's.

    Raises:
        ExportError: some are not int8; all are named.
    """
    missing = sorted({node.name for node in int8_nodes(model)} - set(proof.int8_layers))
    if missing:
        raise ExportError(
            f"{len(missing)} layers are int8 in the file and not in the parsed network: {', '.join(missing)}"
        )


def _compiled_products(plan: bytes, proof: EngineProof) -> dict[str, int]:
    """How many products of the finished engine multiply in which type, where it can be read.

    Raises:
        ExportError: some were to be int8, and the engine multiplies them in another type; all are named.
    """
    types = product_types(plan)
    wrong = sorted(name for name in proof.int8_layers if name in types and set(types[name]) != {"int8"})
    if wrong:
        raise ExportError(f"TensorRT does not multiply int8 in {', '.join(wrong)}: keep them out with --plan")
    return dict(Counter("x".join(dict.fromkeys(operands)) for operands in types.values()))


def _configure(
    trt: Any, builder: Any, network: Any, config: Any, options: EngineOptions, report: Progress
) -> None:
    """Targets, batches and reporting."""
    if options.library == "tensorrt_rtx":
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, sm in enumerate(options.compute_capabilities):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i):
                raise ExportError(f"TensorRT-RTX {trt.__version__} does not build for {dotted([sm])}")
        # What NVIDIA asks for where the application captures the engine in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    # On by default: float32 products would round their inputs to 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.replace("-", "_").upper()
        levels = trt.HardwareCompatibilityLevel
        if not hasattr(levels, level):
            raise ExportError(
                f"TensorRT {trt.__version__} has no hardware compatibility "
                f"'{options.hardware_compatibility}': take 'none' or 'ampere-plus', or a newer TensorRT"
            )
        config.hardware_compatibility_level = getattr(levels, level)
    (image,) = (network.get_input(i) for i in range(network.num_inputs))
    if image.name != INPUT:
        raise ExportError(f"the model's input is {image.name!r}, expected {INPUT!r}: export it with mmdeploy")
    dims = tuple(image.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, *dims) for batch in options.batches))
    config.add_optimization_profile(profile)
    config.progress_monitor = _monitor(trt, report)


def _attach_timing_cache(config: Any, path: Path) -> Any:
    """Gives a build what earlier ones measured, and keeps what it measures.

    Raises:
        ExportError: the file is no timing cache, or one of another GPU or version.
    """
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise ExportError(
            f"'{path}' is no timing cache of this GPU and this version of TensorRT: name another file"
        )
    return cache


def _monitor(trt: Any, report: Progress) -> Any:
    """TensorRT's progress as calls of ``report``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT's classes carry no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            report(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            report(phase, (step + 1) / max(1, self.steps[phase]))
            return True

        def phase_finish(self, phase: str) -> None:
            report(phase, 1.0)

    return Monitor()
