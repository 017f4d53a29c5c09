"""The colours of every picture, and how a figure becomes a PNG file.

Figures are drawn without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Note
from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN_COLOUR, VAL_COLOUR = "#8c6bb1", "#1b7837"
INK, FAINT = "#333333", "#d9d9d9"
DOTS_PER_INCH = 130

_LACKING = re.compile(r"Glyph (\d+) \(.*missing from font")


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG, which appears whole or not at all, and notes which characters its font lacks.

    Raises:
        TargetError: the file cannot be written.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, buffer.getvalue())
    lacking = []
    for each in told:
        if found := _LACKING.match(str(each.message)):
            lacking.append(chr(int(found[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lacking:
        characters = "".join(dict.fromkeys(lacking))
        warnings.warn(
            f"{path.name}: the font of pictures has no {characters}, drawn as boxes", Note, stacklevel=2
        )
