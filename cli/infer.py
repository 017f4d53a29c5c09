"""`mmdeploy infer`: image files to predictions."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import (
    check_replaces_none,
    device_options,
    drift_logged,
    drift_option,
    file_format_option,
    guard_option,
    tell,
    white_option,
)

_RESULTS = "Results"


@click.command(
    cls=Command, example="mmdeploy infer cells.fp16 'cells/*/*.png' --format csv -o predictions.csv"
)
@click.argument("artefact")
@click.argument("images", nargs=-1, required=True)
@option(
    "-o",
    "--output",
    group=_RESULTS,
    metavar="FILE",
    help="Write to FILE, whole or not at all, instead of printing.",
)
@file_format_option(
    {"table": (), "json": (".json", ".jsonl"), "csv": (".csv",)}, "How the predictions are written."
)
@option(
    "--top",
    group=_RESULTS,
    type=click.IntRange(1),
    metavar="N",
    default=1,
    help="How many classes to name, the likeliest first.",
)
@guard_option
@drift_option
@option(
    "--batch-size",
    group="How it runs",
    type=click.IntRange(1),
    metavar="N",
    show_default="1",
    help="How many images go through the network at once.",
)
@white_option
@device_options
def infer(
    artefact: str,
    images: tuple[str, ...],
    output_format: str,
    output: str | None,
    top: int,
    no_guard: bool,
    drift: str | None,
    batch_size: int | None,
    **device: Any,
) -> None:
    """Classify images: a label and its probability for each file.

    ARTEFACT is a bundle, an ONNX file or an engine. IMAGES are files, folders (with all below them) or quoted
    patterns. An image that cannot be used gets a row with the reason, and the exit status is 1 in the end.

    Where ARTEFACT carries a guard ('mmdeploy calibrate'), the label of an image that it does not decide is
    marked as none, with the reason and the classes that the image may belong to.
    """
    from ..runtime.infer import find_images
    from ..runtime.infer import infer as classify
    from ..runtime.session import open_session

    found = find_images(images)
    check_replaces_none("-o", output, (artefact, drift, *found.images))
    tell(found.notes)
    with (
        open_session(artefact, guard=not no_guard, **device) as session,
        drift_logged(drift, artefact, session, "infer") as log,
    ):
        tell(session.notes)
        classify(
            session,
            found.images,
            output_format=output_format,
            output=output,
            top=top,
            batch_size=batch_size,
            log=log,
        )
