"""`mmdeploy explain`: heat maps of the evidence for a class."""

from __future__ import annotations

from typing import Any

import click

from .options import bar, let_idle_threads_sleep, names


@click.command()
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
    let_idle_threads_sleep()

    from ..errors import ImageError
    from ..model.evaluation.explanation import explain_images
    from ..model.networks.described import Described
    from ..runtime.infer import find_images

    described = Described(names(labels) if labels else None, mean, std, image_size)
    found = find_images(images)
    failures = 0
    with bar() as advance:
        results = explain_images(checkpoint, found, output, described=described, **chosen)
        for done, result in enumerate(results, start=1):
            said = f"{result.label} {result.probability:.4f}  {result.picture}"
            click.echo(f"{result.image}  {f'error: {result.error}' if result.error else said}")
            failures += bool(result.error)
            advance(done, len(found))
    if failures:
        raise ImageError(f"{failures} of {len(found)} images could not be explained: their lines say why")
