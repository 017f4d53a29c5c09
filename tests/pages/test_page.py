"""The frame of pages: text is escaped, what is missing is an error, and nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
import pytest

from msmamba.pages.page import data_url, page_from_template, thumbnail

TEMPLATE = """{% extends "frame.html.jinja" %}
{% block title %}{{ name }}{% endblock %}
{% block content %}<p>{{ name }}</p><img src="{{ picture }}" alt="">{% endblock %}
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "page.html.jinja").write_text(TEMPLATE)
    return tmp_path / "page.html.jinja"


def test_a_page_has_the_frame_and_its_own_text_escaped(template: Path) -> None:
    picture = thumbnail(np.zeros((9, 30, 3), np.uint8), 16)
    page = page_from_template(template, name="<script>a</script>", picture=picture)
    assert page.startswith("<!doctype html>")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;a&lt;/script&gt;") == 2
    assert "default-src 'none'" in page
    assert "http:" not in page
    assert "https:" not in page
    assert f'src="{picture}"' in page


def test_a_name_that_is_not_given_is_an_error(template: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="picture"):
        page_from_template(template, name="a")


def test_a_file_becomes_a_url_that_holds_it() -> None:
    assert data_url(b"abc", "text/plain") == "data:text/plain;base64,YWJj"
