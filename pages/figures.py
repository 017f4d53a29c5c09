"""The colours of every picture, and how a figure becomes a PNG file.

Figures are drawn without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Note
from ..files import write_atomically
from ..machine import check_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN_COLOUR, VAL_COLOUR = "#8c6bb1", "#1b7837"
INK, FAINT = "#333333", "#d9d9d9"
DOTS_PER_INCH = 130

_LACKING = re.compile(r"Glyph (\d+) \(.*missing from font")


def check_can_draw() -> None:
    """Says what pictures lack: to be asked before the work that they are to show.

    Raises:
        BackendError: Matplotlib is not installed.
    """
    check_installed("matplotlib", "pictures need Matplotlib", "matplotlib")


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG, which appears whole or not at all, and notes which characters its font lacks.

    Raises:
        TargetError: the file cannot be written.
    """
    write_atomically(path, png_of(figure, path.name, dpi=DOTS_PER_INCH))


def png_of(figure: Figure, name: str, **how: Any) -> bytes:
    """A figure as a PNG; which characters its font lacks is told in one note.

    Args:
        figure: is drawn.
        name: what the note calls it.
        how: options of Matplotlib's `savefig`.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", **how)
    lacking = []
    for each in told:
        if found := _LACKING.match(str(each.message)):
            lacking.append(chr(int(found[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lacking:
        characters = "".join(dict.fromkeys(lacking))
        warnings.warn(f"{name}: the font of pictures has no {characters}, drawn as boxes", Note, stacklevel=2)
    return buffer.getvalue()
