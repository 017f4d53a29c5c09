"""The colours of every picture, and how a figure becomes a PNG file.

Figures are drawn without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN_COLOUR, VAL_COLOUR = "#8c6bb1", "#1b7837"
INK, FAINT = "#333333", "#d9d9d9"
DOTS_PER_INCH = 130


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG, which appears whole or not at all.

    Raises:
        TargetError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, buffer.getvalue())
