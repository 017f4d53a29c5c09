"""`mmdeploy drift`: has the microscope changed since the calibration."""

from __future__ import annotations

import click

from .help import Command, option
from .options import format_option, tell
from .output import say_lines


@click.command(cls=Command, example="mmdeploy drift microscope.jsonl")
@click.argument("log")
@option(
    "--against",
    group="What is compared",
    metavar="BUNDLE",
    show_default="the log's own",
    help="A calibrated bundle whose images to compare with.",
)
@format_option("table", "json")
def drift(log: str, against: str | None, output_format: str) -> None:
    """Tell whether the microscope has changed since the calibration.

    LOG is what --drift of 'infer', 'slide' and 'live' wrote with a bundle of 'mmdeploy calibrate'. Its
    pictures' focus, brightness and colours, and how certain the answers were, are compared with those of the
    images that the bundle was calibrated on.

    The exit status is 1 when something has changed.
    """
    from ..calib.drift import drift_of
    from ..errors import DriftError
    from ..schema import as_json

    found = drift_of(log, against)
    tell(found.notes)
    say_lines(as_json(found.to_dict(), indent=2) + "\n" if output_format == "json" else found.to_text())
    if found.changed:
        raise DriftError(f"'{log}' is not as the images of the calibration were")
