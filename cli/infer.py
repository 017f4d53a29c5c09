"""`mmdeploy infer`: image files to predictions."""

from __future__ import annotations

from typing import Any

import click

from .options import device_options


@click.command()
@click.argument("artefact")
@click.argument("images", nargs=-1, required=True)
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table")
@click.option("-o", "--output", metavar="FILE", help="Write there, whole or not at all.")
@click.option("--top", type=click.IntRange(1), default=1, help="Classes to name for each image.")
@click.option("--batch-size", type=click.IntRange(1), help="Images that go through the network at once; 1.")
@device_options
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
    from ..runtime.infer import find_images
    from ..runtime.infer import infer as classify
    from ..runtime.session import open_session

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
