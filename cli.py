"""The command `mmdeploy`: each command parses, calls one function of the library and prints.

Exit status: 0 done; 1 failed, with one line ``error: …`` on standard error; 2 wrong usage; 130 interrupted.
The library is imported inside the commands, so that ``--help`` and ``--version`` load nothing.
"""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import MsmambaError, ParityError

# As `runtime.onnxruntime_backend` has them; a test keeps the two alike.
_PROVIDERS = ("auto", "engine", "cpu", "cuda", "tensorrt", "nv-tensorrt-rtx")
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# `model.datasets.KINDS`, which a test compares; importing it here would load numpy.
_DATA_SETS = ("malaria", "mhist", "tissuemnist", "medfm-colon", "rpe", "folder")


class _Commands(click.Group):
    """The one place where errors become lines and exit statuses."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            raise  # whoever read the output has seen enough; click ends quietly
        except (MsmambaError, OSError) as error:  # OSError: standard output on a full disk, say
            if context.params["debug"]:
                raise
            click.echo(f"error: {error}", err=True)
            context.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(_INTERRUPTED)


def _device_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of `open_session` that every command which runs an artefact takes."""
    for option in (
        click.option("--kernels", type=click.Choice(["auto", "native", "functions"]), default="auto"),
        click.option("--threads", type=click.IntRange(1), help="Default: every core this process may use."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
        click.option(
            "--provider",
            type=click.Choice(_PROVIDERS),
            default="auto",
            help="Insist on the engine, or on one of ONNX Runtime's execution providers.",
        ),
        click.option(
            "--trust-engine-code", is_flag=True, help="Run what a --version-compatible engine carries."
        ),
    ):
        command = option(command)
    return command


def _ablation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The switches of `Architecture`."""
    for name, meaning in (
        ("psffn", "End the scan's block in a linear layer."),
        ("parallel", "One scan's block on all channels in place of four groups."),
        ("mifa", "Concatenate the two branches."),
    ):
        option = click.option(f"--{name}/--no-{name}", default=None, help=f"Ablation: --no-{name}: {meaning}")
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="msmamba")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def mmdeploy(debug: bool) -> None:
    """Takes Microscopic-Mamba to the machine beside the microscope: train, export, verify, infer."""


@mmdeploy.command()
@click.argument("artefact")
@click.argument("images", nargs=-1, required=True)
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table")
@click.option("-o", "--output", metavar="FILE", help="Write there, whole or not at all.")
@click.option("--top", type=click.IntRange(1), default=1, help="Classes to name for each image.")
@click.option("--batch-size", type=click.IntRange(1), help="Images that go through the network at once; 1.")
@_device_options
def infer(
    artefact: str,
    images: tuple[str, ...],
    output_format: str,
    output: str | None,
    top: int,
    batch_size: int | None,
    **device: Any,
) -> None:
    """Classify IMAGES: files, folders (with all below them) or quoted patterns.

    ARTEFACT is a bundle, an ONNX file or an engine. An image that cannot be used gets a row with the reason,
    and the exit status is 1 in the end.
    """
    from .runtime.infer import find_images
    from .runtime.infer import infer as classify
    from .runtime.session import open_session

    found = find_images(images)
    with open_session(artefact, **device) as session:
        classify(
            session,
            found,
            output_format=output_format,
            output=output,
            top=top,
            batch_size=batch_size,
        )


@mmdeploy.command()
@click.argument("data")
@click.option("-o", "--output", "run", required=True, metavar="RUN", help="The run folder to write.")
@click.option("--size", type=click.Choice(["t", "s", "b"]), help="Tiny (the default), small or base.")
@_ablation_options
@click.option(
    "--preset",
    type=click.Choice(["paper", "micrographs"]),
    help="The recipe that options change: the paper's, whose figures are given here (the default), "
    "or one for some hundred micrographs.",
)
@click.option("--epochs", type=int, help="At most. [paper: 200]")
@click.option("--batch-size", type=int, help="[paper: 16]")
@click.option("--lr", "learning_rate", type=float, help="At its highest. [paper: 1e-4]")
@click.option("--weight-decay", type=float, help="[paper: 1e-4]")
@click.option("--warm-up", "warmup_epochs", type=int, metavar="EPOCHS", help="[paper: 10]")
@click.option("--patience", type=int, metavar="EPOCHS", help="Without a lower loss. [paper: 30]")
@click.option("--image-size", type=int, help="Side of the square input, in pixels. [paper: 224]")
@click.option("--crop-scale", type=float, nargs=2, metavar="LOW HIGH", help="Area of crops. [paper: 0.08 1]")
@click.option(
    "--horizontal-flip/--no-horizontal-flip", default=None, help="Mirror half of the training images."
)
@click.option("--vertical-flip/--no-vertical-flip", default=None, help="Likewise, top to bottom.")
@click.option(
    "--accumulate",
    type=int,
    metavar="PARTS",
    help="That a batch goes through in, to save memory. [default: 1]",
)
@click.option("--seed", type=int, help="Of all that is random, a flat folder's split included. [default: 0]")
@click.option("--group-by", metavar="PATTERN", help="Finds a patient or slide in a file name; none is split.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:INDEX.")
@click.option("--amp/--no-amp", default=None, help="Mixed precision. [default: on with CUDA]")
@click.option("--deterministic", is_flag=True, help="The same bits every time on CUDA too, or an error.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU, for each process.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that decode images.")
@click.option("--skip-bad", is_flag=True, help="Read all images first; leave out what cannot be read.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's curves too.")
@click.option("--resume", is_flag=True, help="Continue the run in RUN; its recipe is read from there.")
def train(
    data: str,
    run: str,
    size: str | None,
    mifa: bool | None,
    parallel: bool | None,
    psffn: bool | None,
    preset: str | None,
    group_by: str | None,
    device: str,
    amp: bool | None,
    deterministic: bool,
    threads: int | None,
    workers: int,
    skip_bad: bool,
    tensorboard: bool,
    resume: bool,
    **figures: Any,
) -> None:
    """Train a network from scratch on DATA.

    DATA was imported (see data import), or holds {train,val,test}/<class>/* or <class>/*; the last is split
    6:2:2. Without options this is
    the paper's recipe. On N GPUs, or N processes of a CPU: torchrun --nproc-per-node N -m msmamba train …
    """
    _let_idle_threads_sleep()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS picks its algorithms freely

    from rich.console import Console

    from .model.parallel import joined
    from .model.progress import shown_on
    from .model.training import Hardware, train_folder

    with (
        joined(device) as (processes, own),
        shown_on(Console(), tensorboard, processes.is_first) as listeners,
    ):
        hardware = Hardware(
            own, own != "cpu" if amp is None else amp, threads, workers, deterministic=deterministic
        )
        result = train_folder(
            data,
            run,
            size=size,
            switches=_given({"mifa": mifa, "parallel": parallel, "psffn": psffn}),
            preset=preset,
            figures=_given(figures),
            group_by=group_by,
            hardware=hardware,
            processes=processes,
            resume=resume,
            skip_bad=skip_bad,
            listeners=listeners,
        )
    if processes.is_first:
        click.echo(result.to_text())


@mmdeploy.command("eval")
@click.argument("model")
@click.argument("data")
@click.option("--split", help="Of DATA, where it has splits. [default: test]")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
@click.option("-o", "--output", metavar="DIR", help="Write metrics.json and confusion.png there.")
@click.option("--batch-size", type=click.IntRange(1), default=16, help="Images a batch.")
@click.option("--skip-bad", is_flag=True, help="Read all images first; leave out what cannot be read.")
@click.option("--size", "image_size", type=click.IntRange(32), help="Side of the square input, in pixels.")
@click.option("--labels", metavar="NAMES|FILE", help="Class names, by commas, or a file with one a line.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Channel means, of values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Channel standard deviations.")
@_device_options
def evaluate(
    model: str,
    data: str,
    output_format: str,
    output: str | None,
    labels: str | None,
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    **options: Any,
) -> None:
    """Measure MODEL, a checkpoint, a bundle or an ONNX file, on the labelled images in DATA.

    DATA was imported, or holds {train,val,test}/<class>/* or <class>/*. Labels and preprocessing come from
    the model; give them where it does not say.
    """
    _let_idle_threads_sleep()

    from .export.evaluate import evaluate_model
    from .model.described import Described

    described = Described(_names(labels) if labels else None, mean, std, image_size)
    with _bar() as advance:
        evaluation = evaluate_model(model, data, described=described, advance=advance, **options)
    if output:
        evaluation.write(output)
    click.echo(evaluation.to_json() if output_format == "json" else evaluation.to_text(), nl=False)


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
_OF_CHECKPOINTS = ("image_size", "opset", "labels", "mean", "std")


@mmdeploy.command()
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="BUNDLE", help="The folder to write.")
@click.option("--fp16", is_flag=True, help="Compute in float16 wherever accuracy allows.")
@click.option(
    "--int8", is_flag=True, help="Multiply in int8; with --fp16, or for an engine, float16 around it."
)
@click.option("--calib", metavar="DATA", help="Labelled images to measure int8 ranges on.")
@click.option(
    "--method",
    type=click.Choice(["entropy", "percentile", "minmax"]),
    help="Of finding ranges. [default: percentile]",
)
@click.option("--calib-images", type=click.IntRange(1), help="To calibrate on. [default: 128]")
@click.option("--calib-seed", type=click.IntRange(0), help="Of their choice. [default: 0]")
@click.option("--calib-cache", metavar="FILE", help="Of measured ranges. [default: BUNDLE.calib]")
@click.option("--plan", metavar="FILE", help="Quantise what it says, such as another bundle's plan.json.")
@click.option("--max-flips", metavar="COUNT|PER%", help="Labels that int8 may flip. [default: 0.5%]")
@click.option(
    "--max-accuracy-drop", type=click.FloatRange(0), help="Points that int8 may cost. [default: 0.3]"
)
@click.option(
    "--sensitivity",
    is_flag=True,
    default=None,
    help="Rank the blocks by the harm that int8 does, with a plot.",
)
@click.option("--size", "image_size", type=click.IntRange(32), help="Side of the square input, in pixels.")
@click.option("--opset", type=int, help="Version of the standard ONNX operators.")
@click.option("--labels", metavar="NAMES|FILE", help="Class names, by commas, or a file with one a line.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Channel means, of values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Channel standard deviations.")
@click.option("--target", type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]), default="onnx")
@click.option("--sm", metavar="8.6,8.9", default="", help="Compute capabilities that an engine is for.")
@click.option(
    "--batches", type=int, nargs=3, metavar="LEAST USUAL MOST", help="Of an engine. [default: 1 1 16]"
)
@click.option("--plugin/--no-plugin", default=True, help="The scan as a plugin in engines, or as a loop.")
@click.option("--version-compatible", is_flag=True, help="Let later versions of tensorrt run the engine.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere-plus", "same-compute-capability"]),
    default="none",
    help="Let other GPUs run a tensorrt engine.",
)
@click.option(
    "--timing-cache", type=click.Path(path_type=Path, dir_okay=False), help="Of tensorrt; made or extended."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
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
    """Export SOURCE as a bundle: a checkpoint (safetensors, or the authors' .pth), or a bundle.

    Labels, channel statistics and image size come from the checkpoint; give them where it does not say. An
    engine for another --target is built beside the ONNX file; no GPU is needed for tensorrt-rtx. From a
    bundle, the engine is built without PyTorch, in the precision that the bundle has.
    """
    given = _given(chosen)
    compute_capabilities = [text.strip() for text in sm.split(",") if text.strip()]
    if _is_artefact(source):
        said = _given({"fp16": fp16 or None, "int8": int8 or None, "labels": labels})
        _add_engine(source, output, compute_capabilities, force, {**said, **given})
        return
    from .export.bundle import ExportOptions, export_bundle
    from .export.int8 import Int8Options
    from .export.sensitivity import limits_of

    quantising = {name: given.pop(option) for option, name in _INT8_OPTIONS.items() if option in given}
    limits = {name: given.pop(name) for name in _INT8_LIMITS if name in given}
    if limits:
        quantising["limits"] = limits_of(**limits)
    if int8 != ("data" in quantising) or (quantising and not int8):
        raise click.UsageError("--int8 needs --calib DATA, and both --calib and its options go with --int8")
    options = ExportOptions(
        precision="int8" if int8 else "fp16" if fp16 else "fp32",
        int8=Int8Options(**quantising, half=fp16) if int8 else None,
        labels=_names(labels) if labels else None,
        compute_capabilities=compute_capabilities,
        **given,
    )
    with _steps() as report:
        result = export_bundle(source, output, options, force=force, report=report)
    nodes = ", ".join(f"{count} {kind}" for kind, count in result.proof.nodes.items())
    click.echo(
        f"{result.path}: {result.bytes / 1e6:.1f} MB, {result.nodes} nodes ({nodes}), {result.scans} scans"
    )
    if result.int8 is not None:
        click.echo(f"  {result.int8.summary}")
    if result.engine is not None:
        click.echo(f"  {result.engine.summary}")
    for reason in sorted(set(result.proof.float32_nodes.values())):
        count = sum(reason == other for other in result.proof.float32_nodes.values())
        click.echo(f"  {count} nodes: {reason}")
    if result.kernels_bytes:
        click.echo(f"  {result.kernels_bytes / 1e3:.0f} kB of kernels, to build engines from without Triton")
    else:
        click.echo("  no kernels to build engines from: triton is not installed here")


def _is_artefact(source: str) -> bool:
    """Whether a path holds something exported; all else is for the checkpoint's reader to judge."""
    from .errors import ArtefactError
    from .runtime.artefact import recognise

    try:
        recognise(source)
    except ArtefactError:
        return False
    return True


def _add_engine(
    source: str, output: str, compute_capabilities: list[str], force: bool, chosen: dict[str, Any]
) -> None:
    """Builds an engine beside a bundle's ONNX file; refuses options that the export has settled."""
    from .export.engine import EngineOptions
    from .export.engine_bundle import engine_bundle

    of_the_export = ("fp16", "int8", *_INT8_OPTIONS, *_INT8_LIMITS, *_OF_CHECKPOINTS)
    settled = [name for name in of_the_export if name in chosen]
    if settled:
        named = ", ".join(f"--{name.removeprefix('image_').replace('_', '-')}" for name in settled)
        raise click.UsageError(f"'{source}' is exported already, which settled {named}: leave it out")
    target = chosen.pop("target")
    if target == "onnx":
        raise click.UsageError(f"'{source}' is exported already: say which engine to build with --target")
    with _steps() as report:
        options = EngineOptions.of(target, compute_capabilities, **chosen)
        result = engine_bundle(source, output, options, force=force, report=report)
    click.echo(f"{result.path}: {result.engine.summary}")


@mmdeploy.command()
@click.argument("artefact")
@click.option("--against", "reference", required=True, metavar="REFERENCE", help="What it was made from.")
@click.option("--data", required=True, multiple=True, metavar="DATA", help="Files, folders or patterns.")
@click.option("--split", help="Of labelled DATA, where it has splits. [default: test]")
@click.option("--max-error", type=float, help="Bound on the error of a logit; measured by default.")
@click.option("--max-flips", metavar="COUNT|PER%", help="Images that may change their label. [default: 0]")
@click.option("--max-accuracy-drop", type=click.FloatRange(0), metavar="POINTS", help="Percentage points.")
@click.option("--max-auc-drop", type=click.FloatRange(0), metavar="AREA", help="Of the area under the curve.")
@click.option("--report", "page", metavar="FILE.html", help="Write there what it means for decisions.")
@click.option("--limit", type=click.IntRange(1), help="Compare at most this many images.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
def verify(artefact: str, output_format: str, max_flips: str | None, **options: Any) -> None:
    """Compare ARTEFACT (a bundle or an ONNX file) with REFERENCE, its checkpoint or another artefact of it.

    On labelled DATA, one folder <class>/* or {train,val,test}/<class>/*, accuracy, AUC, sensitivity,
    calibration and every flipped image are compared too. An int8 artefact is judged by those alone: by
    default it may lose 0.5 points of accuracy and 0.002 of AUC, and flip 1 % of the images.

    The result goes into the bundle as parity.json. The exit status is 1 when the bar is missed.
    """
    _let_idle_threads_sleep()

    from .export.decision import FlipLimit
    from .export.verify import verify as compare

    flips = None if max_flips is None else FlipLimit.parse(max_flips)
    with _steps() as report:
        parity = compare(
            artefact, options.pop("reference"), options.pop("data"), max_flips=flips, report=report, **options
        )
    click.echo(parity.to_json() if output_format == "json" else parity.to_text(), nl=False)
    if not parity.passed:
        raise ParityError(f"{artefact} does not answer like its reference: {parity.failure}")


@mmdeploy.command()
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder for the pictures.")
@click.option("--method", type=click.Choice(["gradcam", "occlusion"]), default="gradcam", show_default=True)
@click.option(
    "--layer", metavar="NAME", help="Of gradcam: stage1 … or layers.I.blocks.J. [default: the last]"
)
@click.option("--class", "label", metavar="NAME", help="Whose evidence to show. [default: the likeliest]")
@click.option("--size", "image_size", type=click.IntRange(32), help="Side of the square input, in pixels.")
@click.option("--labels", metavar="NAMES|FILE", help="Class names, by commas, or a file with one a line.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Channel means, of values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Channel standard deviations.")
def explain(
    checkpoint: str,
    images: tuple[str, ...],
    output: str,
    labels: str | None,
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    **chosen: Any,
) -> None:
    """Show where in IMAGES the network of CHECKPOINT finds the evidence for a class, as heat maps.

    IMAGES are files, folders (with all below them) or quoted patterns. An image that cannot be used gets a
    line with the reason, and the exit status is 1 in the end.
    """
    _let_idle_threads_sleep()

    from .errors import ImageError
    from .model.described import Described
    from .model.explanation import explain_images
    from .runtime.infer import find_images

    described = Described(_names(labels) if labels else None, mean, std, image_size)
    found = find_images(images)
    failures = 0
    with _bar() as advance:
        results = explain_images(checkpoint, found, output, described=described, **chosen)
        for done, result in enumerate(results, start=1):
            said = f"{result.label} {result.probability:.4f}  {result.picture}"
            click.echo(f"{result.image}  {f'error: {result.error}' if result.error else said}")
            failures += bool(result.error)
            advance(done, len(found))
    if failures:
        raise ImageError(f"{failures} of {len(found)} images could not be explained: their lines say why")


@mmdeploy.group()
def data() -> None:
    """Import published data sets, with no patient or slide in two splits, and check them.

    \b
    mmdeploy data import malaria cell_images -o malaria
    mmdeploy train malaria -o run
    """


@data.command("import", short_help="Read a data set as it was published into a folder to train on.")
@click.argument("kind", type=click.Choice(_DATA_SETS), metavar="KIND")
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="DATA", help="The folder to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split.")
@click.option("--official-split", is_flag=True, help="Keep the published split instead of dealing 6:2:2.")
@click.option("--group-by", metavar="PATTERN", help="Of a folder: finds a patient or slide in a file name.")
@click.option("--strict", is_flag=True, help="Refuse a copy that differs from what was published.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and name them.")
@click.option("--copy", is_flag=True, help="Copy the images instead of linking them.")
@click.option("--threads", type=click.IntRange(1), help="That read images. [default: every usable core]")
@click.option("--force", is_flag=True, help="Replace an imported data set.")
def import_data(kind: str, source: str, output: str, **chosen: Any) -> None:
    """Read the data set SOURCE of KIND, as published, into a folder that train, eval and verify take.

    \b
    KIND         SOURCE holds                                     kept together
    malaria      cell_images/{Parasitized,Uninfected}/*.png       patient
    mhist        annotations.csv, images/*.png                    (none published)
    tissuemnist  tissuemnist.npz, or _64, _128, _224              (none published)
    medfm-colon  images, csv files with slide_id,img_id,tumor     patient or slide
    rpe          Subwindows/*.tif                                 image
    folder       <class>/* or {train,val,test}/<class>/*          --group-by

    Images are dealt 6:2:2 by the seed, stratified by class, whole groups. Each is read once, for its
    checksum and the channels' mean and deviation, and linked where the file system allows. Killed, the same
    command goes on from there.
    """
    from .model.datasets import ImportOptions, import_data_set

    with _bar() as advance:
        manifest = import_data_set(kind, source, output, ImportOptions(**chosen), advance=advance)
    click.echo(f"{output}: {kind}\n\n{manifest.to_text()}", nl=False)
    for name, reason in manifest.skipped.items():
        click.echo(f"skipped: {reason if name in reason else f'{name}: {reason}'}", err=True)
    for difference in manifest.differences:
        click.echo(f"warning: differs from what was published: {difference}", err=True)
    if manifest.differences:
        click.echo("imported all the same; --strict refuses such a copy", err=True)


@data.command("check", short_help="Compare every file with its checksum.")
@click.argument("folder", metavar="DATA")
def check_data(folder: str) -> None:
    """Compare every file of the imported data set DATA with its checksum."""
    from .errors import DataError, some
    from .model.imported import check_contents

    with _bar() as advance:
        manifest, wrong = check_contents(Path(folder), advance)
    click.echo(f"{folder}: {manifest.kind}\n\n{manifest.to_text()}", nl=False)
    if wrong:
        found = some([f"{name} {what}" for name, what in wrong.items()])
        raise DataError(f"{folder}: {len(wrong)} files are not what was imported: {found}: import it again")


@mmdeploy.command()
@click.argument("model", metavar="CHECKPOINT|t|s|b")
@click.option("--image-size", type=click.IntRange(32), default=224, show_default=True)
@_ablation_options
def info(model: str, image_size: int, **switches: bool | None) -> None:
    """Count parameters and multiply-adds, the paper's way and in full.

    A checkpoint says itself which ablation it is; the switches are for sizes.
    """
    from .model.checkpoint import load_checkpoint
    from .model.complexity import complexity
    from .model.network import SIZES, Architecture

    if model in SIZES:
        arch = Architecture.of_size(model, **_given(switches))
    elif _given(switches):
        raise click.UsageError(
            f"{model} is a checkpoint, which says itself what it is: leave the switches out"
        )
    else:
        arch = load_checkpoint(model).network.arch
    count = complexity(arch, image_size)
    click.echo(f"depths {arch.depths}, dims {arch.dims}, {arch.num_classes} classes, {image_size} pixels")
    click.echo(f"parameters      {count.parameters:>13,}  in a checkpoint (the paper's count)")
    click.echo(f"                {count.used_parameters:>13,}  used by the forward pass")
    click.echo(f"multiply-adds   {count.paper_macs:>13,}  the paper's count (ptflops)")
    click.echo(f"                {count.macs:>13,}  in full, with projections and the scan")
    click.echo(f"state updates   {count.state_updates:>13,}  of the scan")


@mmdeploy.command()
@click.argument("runs", nargs=-1, metavar="RUN…")
@click.option("--format", "output_format", type=click.Choice(["text", "csv", "latex"]), default="text")
@click.option("--ablations", is_flag=True, help="Count the ablations beside the paper's figures; no RUN.")
@click.option("--peers", is_flag=True, help="Add the other networks of the paper's Table I.")
@click.option("--published", metavar="FILE", help="The paper's results, copied into a csv file.")
@click.option("--resamples", type=click.IntRange(100), default=2000, help="Of the bootstrap; 2000.")
@click.option("-o", "--output", metavar="FILE", help="Write there, whole or not at all.")
def table(
    runs: tuple[str, ...], output_format: str, ablations: bool, output: str | None, **options: Any
) -> None:
    """Print the paper's tables for the RUNs at hand, beside the paper's own figures.

    Each RUN is a finished run folder of train. Accuracy, AUC and precision come with 95 % bootstrap
    intervals. --published wants the columns dataset, network (t, s, b, "t --no-mifa", …), accuracy, auc and
    precision.
    """
    from .files import write_atomically
    from .model.table import ablations_table, compare

    if ablations == bool(runs):
        raise click.UsageError("give either run folders or --ablations")
    result = ablations_table() if ablations else compare(runs, **options)
    text = {"text": result.to_text, "csv": result.to_csv, "latex": result.to_latex}[output_format]()
    if output is not None:
        write_atomically(output, text.encode())
    else:
        click.echo(text, nl=False)


def _let_idle_threads_sleep() -> None:
    """Idle OpenMP threads spin by default: beside other busy processes PyTorch is six to eight times as slow.

    To be called before PyTorch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: the library has the defaults."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Shows on standard error what is being done and for how long: one changing line, or plain lines."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        started, last = time.monotonic(), ""

        def say(step: str) -> None:
            nonlocal last
            if step != last:
                click.echo(f"{time.monotonic() - started:6.1f} s  {step}", err=True)
            last = step

        yield say
        return
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, description=step)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Shows how many images of all are done, on standard error and only where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        yield lambda done, images: progress.update(task, completed=done, total=images)


def _names(text: str) -> list[str]:
    """Class names from a comma-separated list, or from a file with one a line."""
    file = Path(text)
    if file.is_file():
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [name.strip() for name in text.split(",")]


@mmdeploy.command()
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def doctor(context: click.Context, output_format: str) -> None:
    """Tell what this machine can run, and what the rest would need.

    The exit status is 1 when not even classification on the CPU works.
    """
    from .runtime.doctor import examine

    report = examine()
    click.echo(report.to_json() if output_format == "json" else report.to_text())
    context.exit(0 if report.can_infer else 1)


@mmdeploy.command()
@click.argument("artefacts", nargs=-1, required=True)
@click.option("--batch-size", "batch_sizes", type=click.IntRange(1), multiple=True, help="Repeatable; 1.")
@click.option("--threads", type=click.IntRange(1), multiple=True, help="Repeatable; every usable core.")
@click.option("--kernels", type=click.Choice(["auto", "native", "functions"]), multiple=True)
@click.option(
    "--provider", "providers", type=click.Choice(_PROVIDERS), multiple=True, help="Repeatable; what executes."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--rounds", type=click.IntRange(1), help="Measured rounds.")
@click.option("--warmup", type=click.IntRange(0), help="Rounds before those, not counted.")
@click.option("--seconds", type=float, help="Begin no further round after that time.")
@click.option("--image", metavar="FILE", help="Image to preprocess; by default one made up of 640x480.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
@click.option("-o", "--output", metavar="FILE", help="Write all figures there as JSON.")
@click.option("--plot", metavar="FILE", help="Write a chart there as PNG.")
def bench(
    artefacts: tuple[str, ...], output_format: str, output: str | None, plot: str | None, **chosen: Any
) -> None:
    """Measure ARTEFACTS side by side: latency, throughput, memory, and where the time goes.

    Ratios are to the first. With several --batch-size, --threads, --kernels or --provider every
    combination is measured.
    """
    from .files import write_atomically
    from .runtime.benchmark import BenchmarkOptions, benchmark

    options = BenchmarkOptions(**{name: value for name, value in chosen.items() if value not in (None, ())})
    with _steps() as report:
        result = benchmark(artefacts, options, report=report)
    if output is not None:
        write_atomically(output, result.to_json().encode())
    if plot is not None:
        write_atomically(plot, result.to_png())
    click.echo(result.to_json() if output_format == "json" else result.to_text(), nl=False)
    if result.warning:
        click.echo(f"warning: {result.warning}", err=True)


def main() -> None:
    """Runs the command and ends the process; what `mmdeploy` and ``python -m msmamba`` call."""
    # Pillow warns of oddities in files that it reads all the same, and raises for the others.
    warnings.filterwarnings("ignore", module="PIL")
    for stream in (sys.stdout, sys.stderr):  # file names that are not UTF-8 go out as they came in
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    mmdeploy(prog_name="mmdeploy")
