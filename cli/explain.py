"""`mmdeploy explain`: heat maps of the evidence for a class."""

from __future__ import annotations

from typing import Any

import click

from ..text import share_as_text
from .help import Command, option
from .options import bar, described_options, let_idle_threads_sleep, names, tell, told, weights_option
from .output import say

_MAPS = "The heat maps"


@click.command(cls=Command, example="mmdeploy explain run/best.safetensors cells/lymphocyte -o heat-maps")
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True)
@option("-o", "--output", group=_MAPS, required=True, metavar="DIR", help="The folder for the pictures.")
@option(
    "--method",
    group=_MAPS,
    type=click.Choice(["gradcam", "occlusion"]),
    default="gradcam",
    help="Use gradients, or cover parts of the image.",
)
@option(
    "--layer",
    group=_MAPS,
    metavar="NAME",
    show_default="by image size",
    help="Where gradcam looks, such as stage3.",
)
@option(
    "--class",
    "label",
    group=_MAPS,
    metavar="NAME",
    show_default="the likeliest",
    help="Show the evidence for this class.",
)
@described_options
@weights_option
def explain(
    checkpoint: str,
    images: tuple[str, ...],
    output: str,
    labels: str | None,
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    white_level: int | None,
    network: str | None,
    weights_of: str | None,
    **chosen: Any,
) -> None:
    """Show where in images the network finds its evidence, as heat maps.

    IMAGES are files, folders (with all below them) or quoted patterns. An image that cannot be used gets a
    line with the reason, and the exit status is 1 in the end.

    Layers are stage1 to stage4, and layers.I.blocks.J for block J of stage I, both counted from 0. Without
    --layer it is the last stage whose map still has 7x7 positions.
    """
    let_idle_threads_sleep()

    from ..errors import ImageError
    from ..model.evaluation.explanation import explain_images
    from ..model.networks.described import Described
    from ..runtime.infer import find_images

    described = Described(
        names(labels) if labels else None, mean, std, image_size, weights_of, white_level, network
    )
    found, notes = find_images(images)
    tell(notes)
    failures = 0
    with told(), bar() as advance:
        results = explain_images(checkpoint, found, output, described=described, **chosen)
        for done, result in enumerate(results, start=1):
            said = f"{result.label} {share_as_text(result.probability, 4, 1)}  {result.picture}"
            say(f"{result.image}  {f'error: {result.error}' if result.error else said}")
            failures += bool(result.error)
            advance(done, len(found))
    if failures:
        raise ImageError(f"{failures} of {len(found)} images could not be explained: their lines say why")
