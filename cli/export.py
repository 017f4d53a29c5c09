"""`mmdeploy export`: a checkpoint to a bundle, a bundle to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .help import Command, option
from .options import described_options, given, names, steps, tell, typed, weights_option
from .output import say

_OUTPUT = "Output"
_PRECISION = "Precision"
_INT8 = "Quantisation to int8"
_ENGINES = "TensorRT engines"

_INT8_OPTIONS = {
    "calib": "data",
    "method": "method",
    "calib_images": "images",
    "calib_seed": "seed",
    "calib_cache": "cache",
    "plan": "plan",
    "sensitivity": "sensitivity",
}


_INT8_LIMITS = ("max_flips", "max_accuracy_drop")


_OF_CHECKPOINTS = ("network", "image_size", "opset", "labels", "mean", "std", "white_level", "weights_of")


_OF_ENGINES = ("sm", "batches", "plugin", "version_compatible", "hardware_compatibility", "timing_cache")


@click.command(
    cls=Command,
    example="""\
mmdeploy export run/best.safetensors --fp16 -o cells.fp16
mmdeploy export run/best.safetensors --int8 --calib cells -o cells.int8
mmdeploy export cells.fp16 --target tensorrt-rtx --sm 8.6,8.9 -o cells.rtx""",
)
@click.argument("source")
@option("-o", "--output", group=_OUTPUT, required=True, metavar="BUNDLE", help="The folder to write.")
@option("--force", group=_OUTPUT, is_flag=True, help="Replace an existing bundle.")
@option(
    "--opset",
    group=_OUTPUT,
    type=int,
    metavar="VERSION",
    show_default="20",
    help="Version of the standard ONNX operators.",
)
@option("--fp16", group=_PRECISION, is_flag=True, help="Compute in float16 wherever accuracy allows.")
@option(
    "--int8",
    group=_PRECISION,
    is_flag=True,
    help="Multiply in int8; float16 around it for engines or by --fp16.",
)
@option("--calib", group=_INT8, metavar="DATA", help="Labelled images to measure the ranges of values on.")
@option(
    "--calib-images",
    group=_INT8,
    type=click.IntRange(1),
    metavar="N",
    show_default="128",
    help="How many images to calibrate on.",
)
@option(
    "--calib-seed",
    group=_INT8,
    type=click.IntRange(0),
    metavar="N",
    show_default="0",
    help="Seed of the choice of those images.",
)
@option(
    "--calib-cache",
    group=_INT8,
    metavar="FILE",
    show_default="BUNDLE.calib",
    help="Keep the measured ranges here.",
)
@option(
    "--method",
    group=_INT8,
    type=click.Choice(["entropy", "percentile", "minmax"]),
    show_default="percentile",
    help="How to find the ranges.",
)
@option(
    "--plan",
    group=_INT8,
    metavar="FILE",
    help="Quantise as a plan says, such as another bundle's plan.json.",
)
@option(
    "--sensitivity",
    group=_INT8,
    is_flag=True,
    default=None,
    help="Rank the blocks by the harm that int8 does, with a plot.",
)
@option(
    "--max-flips",
    group=_INT8,
    metavar="COUNT|PER%",
    show_default="0.5%",
    help="How many labels int8 may flip.",
)
@option(
    "--max-accuracy-drop",
    group=_INT8,
    type=click.FloatRange(0),
    metavar="POINTS",
    show_default="0.3",
    help="How many points of accuracy int8 may cost.",
)
@described_options
@option(
    "--target",
    group=_ENGINES,
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]),
    default="onnx",
    help="Add an engine to the ONNX file; onnx adds none.",
)
@option(
    "--sm",
    group=_ENGINES,
    metavar="8.6,8.9",
    default="",
    show_default=False,
    help="Compute capabilities of the GPUs that the engine is for.",
)
@option(
    "--batches",
    group=_ENGINES,
    type=int,
    nargs=3,
    metavar="LEAST USUAL MOST",
    show_default="1 1 16",
    help="How many images go through at once.",
)
@option(
    "--plugin/--no-plugin",
    group=_ENGINES,
    default=True,
    help="Build the scan as a plugin or a loop.",
)
@option(
    "--version-compatible",
    group=_ENGINES,
    is_flag=True,
    help="Let later versions of tensorrt run the engine.",
)
@option(
    "--hardware-compatibility",
    group=_ENGINES,
    type=click.Choice(["none", "ampere-plus", "same-compute-capability"]),
    default="none",
    help="Let other GPUs run a tensorrt engine.",
)
@option(
    "--timing-cache",
    group=_ENGINES,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what tensorrt measured, to build faster next time.",
)
@weights_option
def export(
    source: str,
    output: str,
    fp16: bool,
    int8: bool,
    labels: str | None,
    sm: str,
    force: bool,
    **chosen: Any,
) -> None:
    """Make a bundle of a checkpoint, or build an engine from a bundle.

    SOURCE is a checkpoint (safetensors, or the authors' .pth) or a bundle. Labels, channel statistics and
    image size come from the checkpoint; give them where it does not say.

    An engine for another --target is built beside the ONNX file; no GPU is needed for tensorrt-rtx. From a
    bundle, the engine is built without PyTorch, in the precision that the bundle has.
    """
    chosen_options = given(chosen)
    compute_capabilities = [text.strip() for text in sm.split(",") if text.strip()]
    if _is_artefact(source):
        _add_engine(source, output, compute_capabilities, force, chosen_options)
        return
    if chosen["target"] == "onnx" and (of_engines := typed(*_OF_ENGINES)):
        raise click.UsageError(f"without --target no engine is built: give one, or leave {of_engines} out")
    from ..export.bundle import ExportOptions, export_bundle
    from ..export.graph.int8_options import Int8Options
    from ..export.graph.judging import limits_of

    quantising = {
        name: chosen_options.pop(option) for option, name in _INT8_OPTIONS.items() if option in chosen_options
    }
    limits = {name: chosen_options.pop(name) for name in _INT8_LIMITS if name in chosen_options}
    if limits:
        quantising["limits"] = limits_of(**limits)
    if int8 != ("data" in quantising) or (quantising and not int8):
        raise click.UsageError("--int8 needs --calib DATA, and both --calib and its options go with --int8")
    options = ExportOptions(
        precision="int8" if int8 else "fp16" if fp16 else "fp32",
        int8=Int8Options(**quantising, half=fp16) if int8 else None,
        labels=names(labels) if labels else None,
        compute_capabilities=compute_capabilities,
        **chosen_options,
    )
    with steps() as report:
        result = export_bundle(source, output, options, force=force, report=report)
    nodes = ", ".join(f"{count} {kind}" for kind, count in result.proof.nodes.items())
    say(f"{result.path}: {result.bytes / 1e6:.1f} MB, {result.nodes} nodes ({nodes}), {result.scans} scans")
    tell(dict.fromkeys((*result.manifest.notes, *result.notes)))  # both tell of an older resize
    if result.int8 is not None:
        tell(result.int8.prepared.notes)
        for line in result.int8.summary:
            say(f"  {line}")
    if result.engine is not None:
        say(f"  {result.engine.summary}")
    for reason in sorted(set(result.proof.float32_nodes.values())):
        count = sum(reason == other for other in result.proof.float32_nodes.values())
        say(f"  {count} nodes: {reason}")
    if result.kernels_bytes:
        say(f"  {result.kernels_bytes / 1e3:.0f} kB of kernels for GPUs, which need no Triton then")
    elif result.scans:
        say("  no kernels to build engines from: triton is not installed here")


def _is_artefact(source: str) -> bool:
    """Whether a path holds something exported; all else is for the checkpoint's reader to judge."""
    from ..errors import ArtefactError
    from ..runtime.artefact import recognise

    try:
        recognise(source)
    except ArtefactError:
        return False
    return True


def _add_engine(
    source: str, output: str, compute_capabilities: list[str], force: bool, chosen: dict[str, Any]
) -> None:
    """Builds an engine beside a bundle's ONNX file; refuses options that the export has settled."""
    from ..export.engine.build import EngineOptions
    from ..export.engine.engine_bundle import engine_bundle

    if settled := typed("fp16", "int8", *_INT8_OPTIONS, *_INT8_LIMITS, *_OF_CHECKPOINTS):
        raise click.UsageError(f"'{source}' is exported already, which settled {settled}: leave it out")
    target = chosen.pop("target")
    if target == "onnx":
        raise click.UsageError(f"'{source}' is exported already: say which engine to build with --target")
    with steps() as report:
        options = EngineOptions.of(target, compute_capabilities, **chosen)
        result = engine_bundle(source, output, options, force=force, report=report)
    say(f"{result.path}: {result.engine.summary}")
    if result.manifest.guard:
        say("  its guard came along")
