"""`mmdeploy calibrate`: a bundle learns when not to answer."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import bar, check_replaces_none, device_options, format_option, tell, told
from .output import say_lines

_PROMISE = "The promise"


def _share(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """A share, as 5% or 0.05."""
    digits, per_cent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(digits) / (100 if per_cent else 1)
    except ValueError:
        share = -1
    if not 0 < share < 1:
        raise click.BadParameter(f"'{text}' is no share: expected one such as 5% or 0.05", context, parameter)
    return share


@click.command(
    cls=Command, example="mmdeploy calibrate cells.fp16 held_out --max-error 5% --report guard.html"
)
@click.argument("bundle")
@click.argument("data")
@option(
    "--max-error",
    group=_PROMISE,
    callback=_share,
    metavar="SHARE",
    default="5%",
    help="How many of the answers that are given may be wrong.",
)
@option(
    "--confidence",
    group=_PROMISE,
    callback=_share,
    metavar="SHARE",
    default="95%",
    help="How surely that is kept.",
)
@option(
    "--split",
    group="The images",
    metavar="NAME",
    show_default="val",
    help="Which split to take, where DATA has splits.",
)
@format_option("table", "json")
@option(
    "--report",
    "page",
    group="Results",
    metavar="FILE",
    help="Write a page with the withheld images, for a browser.",
)
@device_options
def calibrate(bundle: str, data: str, output_format: str, **options: Any) -> None:
    """Fit a bundle's guard: when it shall not answer.

    DATA holds labelled images that training did not see: {train,val,test}/<class>/* or <class>/*, or it was
    imported. From then on 'infer' marks the images of BUNDLE that it does not decide, with the classes that
    they may belong to. BUNDLE is changed whole or not at all.
    """
    check_replaces_none("--report", options["page"], (bundle, data))

    from ..calib.guard import calibrate as fit
    from ..schema import as_json

    with told(), bar() as advance:
        calibration = fit(bundle, data, advance=advance, **options)
    tell(calibration.notes)
    if output_format == "json":
        say_lines(as_json(calibration.to_dict(), indent=2) + "\n")
    else:
        say_lines(calibration.to_text())
