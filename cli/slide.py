"""`mmdeploy slide`: whole slides and fields to maps of classes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..text import shown
from .help import Command, option
from .options import device_options, drift_logged, drift_option, given, guard_option, tell, white_option
from .output import say

_RESULTS = "Results"
_SCALE = "Scale"
_TISSUE = "Tissue"
_RUNNING = "How it runs"
_SEGMENTATION = (
    *("thumbsize", "median_filter_size", "binary_threshold", "closing_kernel_size"),
    *("min_object_size_um2", "min_hole_size_um2", "min_tissue"),
)
_QUIET = 30.0  # seconds between two lines of a log


@click.command(cls=Command, example="mmdeploy slide tissue.fp16 slides -o results")
@click.argument("artefact")
@click.argument("slides", nargs=-1, required=True)
@option(
    "-o",
    "--output",
    group=_RESULTS,
    required=True,
    metavar="DIR",
    help="The folder for the results, new or of the same command.",
)
@option("--gzip", group=_RESULTS, is_flag=True, help="Compress the GeoJSON files.")
@option(
    "--mpp",
    group=_SCALE,
    type=float,
    metavar="MICRONS",
    show_default="the model's",
    help="Microns that a pixel of the network's input covers.",
)
@option(
    "--assume-mpp",
    group=_SCALE,
    type=float,
    metavar="MICRONS",
    help="Microns a pixel of the slides, in place of what they say.",
)
@option(
    "--pixel-for-pixel",
    group=_SCALE,
    is_flag=True,
    help="Take tiles of the training images' size in pixels, whatever the scale.",
)
@option(
    "--overlap",
    group=_SCALE,
    type=click.FloatRange(0, 0.9),
    default=0.0,
    metavar="SHARE",
    help="The share of a tile's side that the next one covers again.",
)
@option(
    "--roi",
    group=_TISSUE,
    metavar="GEOJSON|DIR",
    help="Classify the tiles in regions drawn in QuPath.",
)
@option("--no-tissue", group=_TISSUE, is_flag=True, help="Classify glass, too, as is right for fields.")
@option(
    "--seg-thumbsize",
    "thumbsize",
    group=_TISSUE,
    type=int,
    metavar="PIXELS",
    show_default="2048",
    help="Longest side of the thumbnail in which tissue is found.",
)
@option(
    "--seg-median-filter-size",
    "median_filter_size",
    group=_TISSUE,
    type=int,
    metavar="PIXELS",
    show_default="7",
    help="Side of the median filter's window, odd.",
)
@option(
    "--seg-binary-threshold",
    "binary_threshold",
    group=_TISSUE,
    type=int,
    metavar="N",
    show_default="7",
    help="Tissue is more saturated than this, 0 to 255.",
)
@option(
    "--seg-closing-kernel-size",
    "closing_kernel_size",
    group=_TISSUE,
    type=int,
    metavar="PIXELS",
    show_default="6",
    help="Side of the square that closes gaps in tissue.",
)
@option(
    "--seg-min-object-size-um2",
    "min_object_size_um2",
    group=_TISSUE,
    type=float,
    metavar="AREA",
    show_default="40000",
    help="Specks below so many square microns are no tissue.",
)
@option(
    "--seg-min-hole-size-um2",
    "min_hole_size_um2",
    group=_TISSUE,
    type=float,
    metavar="AREA",
    show_default="36100",
    help="Holes below so many square microns are tissue.",
)
@option(
    "--min-tissue",
    "min_tissue",
    group=_TISSUE,
    type=float,
    metavar="SHARE",
    show_default="0.1",
    help="Tiles with less tissue are left out.",
)
@option(
    "--batch-size",
    group=_RUNNING,
    type=click.IntRange(1),
    metavar="N",
    default=1,
    help="How many tiles go through the network at once.",
)
@option(
    "--ray-address",
    group=_RUNNING,
    metavar="ADDRESS",
    show_default="a cluster of this machine's cores",
    help="The Ray cluster to join.",
)
@option(
    "--executor",
    group=_RUNNING,
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Classify in this process, or by the workers of a Ray cluster.",
)
@white_option
@guard_option
@drift_option
@device_options
def slide(
    artefact: str,
    slides: tuple[str, ...],
    output: str,
    gzip: bool,
    mpp: float | None,
    assume_mpp: float | None,
    pixel_for_pixel: bool,
    overlap: float,
    roi: str | None,
    no_tissue: bool,
    batch_size: int,
    no_guard: bool,
    drift: str | None,
    executor: str,
    ray_address: str | None,
    **others: Any,
) -> None:
    """Classify whole slides and fields, tile by tile, for QuPath and for tables.

    SLIDES are files, folders (with all below them) or quoted patterns. The same command goes on where it was
    stopped. A slide that fails stops no other, and the exit status is 1 in the end.
    """
    if mpp is not None and pixel_for_pixel:
        raise click.UsageError("--pixel-for-pixel takes the slides' pixels as they are: leave --mpp out")
    if ray_address is not None and executor != "ray":
        raise click.UsageError("--ray-address goes with --executor ray")
    segmentation = given({name: others.pop(name) for name in _SEGMENTATION})
    if no_tissue and segmentation:
        raise click.UsageError("--no-tissue classifies everything, so no other option of tissue goes with it")

    # What tifffile logs of a damaged file is raised, too.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)

    from ..machine import threads_to_use
    from ..microscope.slides.engine import classify_tiles
    from ..microscope.slides.opening import SUFFIXES
    from ..microscope.slides.run import PAGE, Engine, SlideOptions, classify_slides
    from ..microscope.slides.tissue import TissueOptions
    from ..runtime.infer import find_images
    from ..runtime.session import open_session

    where = None if roi is None else Path(roi)
    tissue = None if no_tissue else TissueOptions(**segmentation)
    options = SlideOptions(mpp, assume_mpp, overlap, tissue, batch_size, gzip, pixel_for_pixel, where)
    found = find_images(slides, SUFFIXES)
    tell(found.notes)
    with ExitStack() as stack:
        # Lanes of one thread wait for nobody, and answer the same bits whatever their number.
        lanes = threads_to_use(others.pop("threads"))
        others["guard"] = not no_guard
        session = stack.enter_context(open_session(artefact, threads=1, **others))
        tell(session.notes)
        log = stack.enter_context(drift_logged(drift, artefact, session, "slide"))
        on_cpu = session.provider == "CPUExecutionProvider"
        engine: Engine = partial(classify_tiles, lanes=lanes if on_cpu else 1)
        if executor == "ray":
            from ..microscope.slides.ray_engine import RayEngine

            ray_engine = RayEngine(artefact, address=ray_address, cpus=lanes, **others)
            engine = stack.enter_context(ray_engine).classify
        progress = stack.enter_context(_tiles_shown())
        classify_slides(session, artefact, found.images, output, options, progress, log, engine)
    say(f"report: {Path(output, PAGE)}", err=True)


@contextmanager
def _tiles_shown() -> Iterator[Callable[[str, int, int], None]]:
    """Shows a slide's tiles on standard error: a bar with the time left, or a line now and then in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    began, last, at_first, current = time.monotonic(), 0.0, 0, ""

    def rate(name: str, done: int) -> str:
        nonlocal began, at_first, current
        if name != current:
            began, at_first, current = time.monotonic(), done, name
        seconds = time.monotonic() - began
        return f"{(done - at_first) / seconds:.1f} tiles/s" if done > at_first and seconds else ""

    if not console.is_terminal:

        def line(name: str, done: int, tiles: int) -> None:
            nonlocal last
            is_new, speed = name != current, rate(name, done)
            if is_new or done == tiles or time.monotonic() - last >= _QUIET:
                last = time.monotonic()
                say(f"{name}: {done} of {tiles} tiles{f', {speed}' if speed else ''}", err=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, speed="")

        def advance(name: str, done: int, tiles: int) -> None:
            if name != current:
                bar.reset(task, total=tiles)
            bar.update(task, description=shown(name), completed=done, total=tiles, speed=rate(name, done))

        yield advance
