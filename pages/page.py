"""Pages that can be mailed: one HTML file with its pictures inside, and nothing to load from elsewhere.

A page extends ``frame.html.jinja``, which has the colours, tables and galleries that all pages share.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..images import FULL_WHITE, ImageSource, read_image


def page_from_template(template: Path, **values: Any) -> str:
    """Fills a Jinja template; text is escaped, and a name that it uses but is not given is an error.

    Raises:
        jinja2.TemplateError: the template and the values do not fit together.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def data_url(content: bytes, kind: str = "image/png") -> str:
    """A file's content as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(source: ImageSource, side: int, white_level: int = FULL_WHITE) -> str:
    """An image as a small square data URL, its proportions kept, on white.

    Args:
        source: an image, read as the network's input is (see `read_image`).
        side: side of the square, pixels.
        white_level: the value of white in 16-bit images.

    Raises:
        ImageError: it cannot be read.
    """
    pixels = read_image(source, white_level=white_level)
    small = ImageOps.contain(Image.fromarray(pixels), (side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    buffer = io.BytesIO()
    square.save(buffer, "PNG")
    return data_url(buffer.getvalue())
