"""From a checkpoint to a bundle: the folder that a machine beside a microscope is given.

A bundle is written under a temporary name and renamed, so it is whole or absent. It holds ``manifest.json``,
``model.onnx`` and the scan's kernels for GPUs (`kernels`), and in ``seen.json`` which images training saw
(`data.seen`), where the checkpoint says; an engine comes as ``model.engine`` with
TensorRT's ``build.log``; `verify` adds ``parity.json``. With int8 come ``calibration.json``, its images and
ranges, and ``plan.json``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..errors import ArtefactError, ExportError, InputError
from ..files import as_utf8, atomic_folder
from ..model.networks.checkpoint import Checkpoint, load_checkpoint
from ..model.networks.described import Described, described_by, notes_on
from ..model.networks.registry import family_of
from ..runtime.artefact import CALIBRATION_NAME, MODEL_NAME, PARITY_NAME, SEEN_NAME, open_bundle
from ..runtime.manifest import Manifest
from ..runtime.probe import checksums
from ..version import __version__
from .engine.build import Engine, EngineOptions, buildable, engine_from_onnx
from .engine.engine_bundle import building, seal, write_engine
from .engine.kernels import compiler_from, kernels_for
from .graph.int8 import Int8, int8_network
from .graph.int8_options import Int8Options, Prepared, prepare
from .graph.onnx_model import DEFAULT_OPSET, flat_model, onnx_from_network, scan_nodes
from .graph.precision import PrecisionProof, fp16_from_fp32, precision_proof

PLAN_FILE = "plan.json"
SENSITIVITY_FILE, SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.png"
PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("onnx", "tensorrt", "tensorrt-rtx")

_CALIBRATE_AGAIN = (
    "the bundle that was replaced had a guard, which was of that network in that precision: calibrate again, "
    "with 'mmdeploy calibrate'"
)
_VERIFY_AGAIN = (
    "the bundle that was replaced had a proof (parity.json), which was of what it held: prove this one with "
    "'mmdeploy verify'"
)
_VERSIONS_NOTED = ("torch", "onnx", "onnxscript", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True)
class ExportOptions:
    """What the user may choose; None means: as the checkpoint says."""

    precision: str = "fp32"
    int8: Int8Options | None = None
    """How to quantise, for the precision ``int8``."""
    image_size: int | None = None
    """Side of the square input, pixels."""
    opset: int = DEFAULT_OPSET
    labels: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    white_level: int | None = None
    """The value of white in 16-bit images."""
    weights_of: str | None = None
    """As `load_checkpoint` takes it."""
    network: str | None = None
    """As `load_checkpoint` takes it."""
    target: str = "onnx"
    """What to build beside ``model.onnx``."""
    compute_capabilities: Sequence[str] = ()
    """GPUs that an engine is for, such as ``8.9``."""
    batches: tuple[int, int, int] = (1, 1, 16)
    """Least, most usual and largest batch of an engine."""
    plugin: bool = True
    """False: the scan as standard operators inside the engine, slow to build and to run."""
    version_compatible: bool = False
    """As in `EngineOptions`, like what follows."""
    hardware_compatibility: str = "none"
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    manifest: Manifest
    proof: PrecisionProof
    nodes: int
    scans: int
    bytes: int
    """Size of ``model.onnx``."""
    kernels_bytes: int
    """Size of the scan's kernels for GPUs; 0 where Triton is not installed, or compiles none."""
    engine: Engine | None = None
    """None for the target ``onnx``."""
    int8: Int8 | None = None
    """None for other precisions."""
    notes: tuple[str, ...] = ()
    """What there is to say of it, a line each."""


def export_bundle(
    checkpoint: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> Export:
    """Exports a checkpoint as a bundle.

    Args:
        checkpoint: safetensors or the authors' ``.pth``.
        output: the bundle's folder.
        options: precision, size, opset, and what the checkpoint does not say.
        force: replace an existing bundle.
        report: is told each step as it begins.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ArtefactError: labels or channel statistics are missing, or the labels are not as many as the classes.
        ExportError: the model cannot be exported as asked.
        DataError: the images for int8 do not do: none, of unknown classes, or of one colour.
        ImageError: one of them cannot be read.
        InputError: the white level or the statistics are none, the network takes no images of that size, or
            what is read lies in the bundle that is to be replaced.
        BackendError: an engine is asked for, and TensorRT is missing or would abort the process.
        TargetError: the bundle exists already, or cannot be written.
    """
    options = options or ExportOptions()
    for path in (checkpoint, *([options.int8.data] if options.int8 else [])):
        if Path(path).resolve().is_relative_to(Path(output).resolve()):
            raise InputError(f"'{path}' would go with the old '{output}': name a bundle beside it")
    notes = _lost_with(Path(output))
    with atomic_folder(output, force) as folder:
        report("reading the checkpoint")
        loaded = load_checkpoint(checkpoint, options.weights_of, options.network)
        manifest = _manifest(loaded, options, str(checkpoint))
        notes += notes_on(loaded, _described(options))
        engine_options = _engine_options(options)
        int8_how = _int8_prepared(manifest, options, report)
        report("tracing PyTorch to ONNX")
        model = onnx_from_network(loaded.network, manifest.image_size, opset=options.opset)
        if options.precision == "fp16":
            report("converting to float16")
            model = fp16_from_fp32(model)
        int8 = None
        if int8_how is not None:
            target = Path(output).resolve()  # "." has a name too
            cache = target.with_name(f"{target.name}.calib")
            units = family_of(loaded.network).units(loaded.network)
            int8 = int8_network(model, units, manifest.transform, int8_how, cache, report)
            model = int8.model
        # What an engine is built from, and where the types inside of block operators can be read.
        needs_flat = options.precision == "fp16" or engine_options is not None
        flat = flat_model(model) if int8 is None and needs_flat else model
        proof = _proven(flat, options.precision)
        report("compiling kernels for GPUs")
        kernels = kernels_for(model, notes.append)
        engine = None
        if engine_options is not None:
            compiler = compiler_from(kernels, "the export") if kernels else None
            engine = engine_from_onnx(flat, engine_options, building(report), compiler)
        report("writing the bundle")
        types = proof.to_dict()
        if int8 is not None:
            types["int8"] = int8.to_dict()
        manifest = replace(manifest, precision_proven=types)
        for key, value in manifest.to_metadata().items():
            model.metadata_props.add(key=key, value=value)
        (folder / MODEL_NAME).write_bytes(model.SerializeToString(deterministic=True))
        for name, content in kernels.items():
            (folder / name).write_bytes(content)
        if engine is not None:
            manifest = write_engine(folder, engine, manifest)
        if loaded.seen is not None:
            (folder / SEEN_NAME).write_text(json.dumps(loaded.seen.to_dict()), encoding="ascii")
        if int8 is not None:
            _write_int8(folder, int8)
        manifest = seal(folder, manifest)
        size = (folder / MODEL_NAME).stat().st_size
    return Export(
        path=Path(output),
        manifest=manifest,
        proof=proof,
        nodes=len(model.graph.node),
        scans=len(scan_nodes(model)),
        bytes=size,
        kernels_bytes=sum(map(len, kernels.values())),
        engine=engine,
        int8=int8,
        notes=tuple(notes),
    )


def _lost_with(path: Path) -> list[str]:
    """What has to be made again where a bundle stood there that is replaced, a line each."""
    try:
        manifest = open_bundle(path).manifest
    except ArtefactError:
        return []
    notes = {_CALIBRATE_AGAIN: manifest.guard, _VERIFY_AGAIN: PARITY_NAME in manifest.files}
    return [note for note, is_lost in notes.items() if is_lost]


def _write_int8(folder: Path, int8: Int8) -> None:
    """How the network was quantised, as files beside the model."""
    (folder / CALIBRATION_NAME).write_bytes(as_utf8(int8.calibration_json()))
    (folder / PLAN_FILE).write_text(int8.plan.to_json(), encoding="utf-8")
    if int8.sensitivity is not None:
        (folder / SENSITIVITY_FILE).write_text(int8.sensitivity.to_json(int8.plan), encoding="utf-8")
        (folder / SENSITIVITY_PLOT).write_bytes(int8.sensitivity.plot(int8.plan, SENSITIVITY_PLOT))


def _int8_prepared(
    manifest: Manifest, options: ExportOptions, report: Callable[[str], None]
) -> Prepared | None:
    """How to quantise and on which images, where int8 is asked for; engines get float16 around it."""
    if options.precision != "int8":
        return None
    if options.int8 is None:
        raise ExportError("int8 needs images to calibrate on: give a folder with --calib")
    how = replace(options.int8, half=options.int8.half or options.target != "onnx")
    return prepare(how, manifest.labels, manifest.white_level, report)


def _engine_options(options: ExportOptions) -> EngineOptions | None:
    """What to build an engine for, None for the target ``onnx``.

    Raises:
        ExportError: the options do not fit together, or not this machine.
        BackendError: TensorRT is missing or would abort the process.
    """
    if options.target == "onnx":
        return None
    return buildable(
        EngineOptions.of(
            options.target,
            options.compute_capabilities,
            batches=options.batches,
            plugin=options.plugin,
            version_compatible=options.version_compatible,
            hardware_compatibility=options.hardware_compatibility,
            timing_cache=options.timing_cache,
        )
    )


def _proven(model: ModelProto, precision: str) -> PrecisionProof:
    """The types that stand in the graph, refused unless they are what was asked for."""
    proof = precision_proof(model)
    if precision == "fp16" and not proof.nodes.get("float16"):
        raise ExportError("fp16 was asked for, but no node of the exported graph computes in float16")
    return proof


def _described(options: ExportOptions) -> Described:
    return Described(
        options.labels,
        options.mean,
        options.std,
        options.image_size,
        options.weights_of,
        options.white_level,
        options.network,
    )


def _manifest(loaded: Checkpoint, options: ExportOptions, source: str) -> Manifest:
    for name, value, known in (
        ("precision", options.precision, PRECISIONS),
        ("target", options.target, TARGETS),
    ):
        if value not in known:
            raise ExportError(f"{name} {value!r} is unknown: choose one of {', '.join(known)}")
    labels, transform = described_by(loaded, _described(options), source)
    said = loaded.preprocessing
    manifest = Manifest(
        labels=labels,
        image_size=transform.size,
        mean=transform.mean,
        std=transform.std,
        white_level=transform.white_level,
        covers=said.covers.to_dict() if said and said.covers else {},
        network=family_of(loaded.network).name_of(loaded.network.arch),
        architecture=_plain(loaded.network.arch.to_dict()),
        precision_asked=options.precision,
        checkpoint_sha256=loaded.sha256,
        weights_of=loaded.weights_of,
        versions={
            "msmamba": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _VERSIONS_NOTED},
        },
        resize=loaded.resize,
    )
    return replace(manifest, probe=checksums(transform))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
