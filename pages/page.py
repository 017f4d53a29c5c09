"""Pages that can be mailed: one HTML file with its pictures inside, and nothing to load from elsewhere.

A page extends ``frame.html.jinja``, which has the colours, tables and galleries that all pages share. Its
policy (Content-Security-Policy) lets a browser load nothing and run nothing, but for one script of ours by
its hash: whatever text gets into a page, it is never executed.
"""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..images import FULL_WHITE, ImageSource, read_image
from ..machine import check_installed
from ..text import share_as_text
from .figures import check_can_draw

COMPARE = Path(__file__).with_name("compare.js")
"""The script that gives each ``.compare`` of the frame a handle; without it the upper picture shows."""


def check_can_write_pages() -> None:
    """Says what pages lack: to be asked before the work that they are to show.

    Raises:
        BackendError: Matplotlib or Jinja is not installed.
    """
    check_can_draw()
    check_installed("jinja2", "pages need Jinja", "jinja2")


def page_from_template(template: Path, script: Path | None = None, /, **values: Any) -> str:
    """Fills a Jinja template; text is escaped, and a name that it uses but is not given is an error.

    The filter ``share`` is `share_as_text`.

    Args:
        template: the page; its folder may hold what it includes.
        script: the one script that may run in the page, such as `COMPARE`; None for a page without.
        values: the template's names.

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
    environment.filters["share"] = share_as_text
    code = script.read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return environment.get_template(template.name).render(script=code, script_sha256=digest, **values)


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


def photograph(picture: Image.Image, longest: int) -> str:
    """A picture as a data URL of a JPEG, no side longer than so many pixels."""
    small = picture.convert("RGB")
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return data_url(buffer.getvalue(), "image/jpeg")
