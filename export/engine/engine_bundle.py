"""From a bundle to a bundle with an engine, on the machine that runs it: no PyTorch, Triton or checkpoint.

The ONNX file and the scan's compiled kernels are taken as they are, after their checksums; precision was
decided when they were exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
from onnx import ModelProto

from ...errors import ArtefactError
from ...files import atomic_folder, sha256_of
from ...plugins.selective_scan.gpu_package import KERNELS_SUFFIX
from ...plugins.selective_scan.tensorrt_plugin import PLUGIN_VERSION
from ...runtime.artefact import (
    ENGINE_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    PARITY_NAME,
    Kind,
    open_bundle,
    read_file,
    recognise,
)
from ...runtime.manifest import EngineFacts, Manifest
from ...version import __version__
from ..graph.inlining import inlined_model
from .build import Engine, EngineOptions, engine_from_onnx
from .kernels import compiler_from, has_triton

LOG_NAME = "build.log"

_SAID = 200  # characters of what ONNX says of a graph, which is pages


@dataclass(frozen=True)
class EngineExport:
    """What was written."""

    path: Path
    manifest: Manifest
    engine: Engine


def engine_bundle(
    source: str | Path,
    output: str | Path,
    options: EngineOptions,
    *,
    force: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> EngineExport:
    """Builds an engine from a bundle's ONNX file, and writes both as a new bundle.

    Args:
        source: a bundle, or an ONNX file by msmamba (which carries no kernels: they need Triton then).
        output: the new bundle's folder.
        options: what to build for.
        force: replace an existing bundle.
        report: is told each step as it begins.

    Raises:
        ArtefactError: the source is neither, was changed, or does not say what it is.
        ExportError: the engine cannot be built as asked.
        BackendError: a library or a GPU that it needs is missing, or the kernels are.
        TargetError: the bundle exists already, or cannot be written.
    """
    with atomic_folder(output, force) as folder:
        report("reading the bundle")
        manifest, files = _read(Path(source))
        model = _parsed(files[MODEL_NAME], Path(source))
        kernels = {name: content for name, content in files.items() if name.endswith(KERNELS_SUFFIX)}
        engine = engine_from_onnx(
            _inlined(model, Path(source)),
            options,
            building(report),
            compiler_from(kernels, f"'{source}'") if kernels or not has_triton() else None,
        )
        report("writing the bundle")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        manifest = write_engine(folder, engine, manifest)
        manifest = seal(folder, manifest)
    return EngineExport(Path(output), manifest, engine)


def building(report: Callable[[str], None]) -> Callable[[str, float], None]:
    """A build's progress as steps: the phases as they begin."""

    def begun(phase: str, done: float) -> None:
        if done == 0:
            report(f"building the engine: {phase}")

    return begun


def write_engine(folder: Path, engine: Engine, manifest: Manifest) -> Manifest:
    """Writes an engine and its log; returns the manifest with its facts and its proof."""
    (folder / ENGINE_NAME).write_bytes(engine.plan)
    (folder / LOG_NAME).write_text(engine.log + "\n", encoding="utf-8")
    options = engine.options
    facts = EngineFacts(
        library=options.library,
        version=engine.library_version,
        plugin_version=PLUGIN_VERSION if options.plugin else "",
        batches=options.batches,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
    )
    target = options.library.replace("_", "-")
    return replace(
        manifest,
        compute_capabilities=tuple(f"{sm / 10:.1f}" for sm in options.compute_capabilities),
        engine={**asdict(facts), "batches": list(facts.batches)},
        precision_proven={**manifest.precision_proven, "engine": engine.proof.to_dict()},
        versions={**manifest.versions, target: engine.library_version, "msmamba": __version__},
    )


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest of a folder whose other files are complete; returns it with their checksums."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    sealed = replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_text(sealed.to_json(), encoding="utf-8")
    return sealed


def _parsed(content: bytes, source: Path) -> ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ArtefactError(f"the model of '{source}' is damaged: copy or export it again") from error


def _inlined(model: ModelProto, source: Path) -> ModelProto:
    """`inlined_model`, of a file that may be anybody's.

    Raises:
        ArtefactError: its graph does not fit together.
    """
    try:
        return inlined_model(model)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ArtefactError(
            f"the model of '{source}' does not fit together ({said[:_SAID]}…): copy or export it again"
        ) from error


def _read(source: Path) -> tuple[Manifest, Mapping[str, bytes]]:
    """The manifest without an earlier engine's facts, and the files that do not come from that engine."""
    kind = recognise(source)
    if kind is Kind.ENGINE:
        raise ArtefactError(f"'{source}' is an engine already: build another from the bundle it came from")
    if kind is Kind.ONNX:
        content = read_file(str(source))
        model = _parsed(content, source)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        manifest, files = Manifest.from_metadata(metadata, f"'{source}'"), {MODEL_NAME: content}
    else:
        bundle = open_bundle(source)
        manifest = bundle.manifest
        replaced = (ENGINE_NAME, LOG_NAME, PARITY_NAME)
        files = {name: bundle.read(name) for name in (MODEL_NAME, *manifest.files) if name not in replaced}
    proven: dict[str, Any] = {
        key: value for key, value in manifest.precision_proven.items() if key not in ("engine", "parity")
    }
    return replace(manifest, engine={}, compute_capabilities=(), precision_proven=proven), files
