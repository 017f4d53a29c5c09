"""The frame of pages: text is escaped, what is missing is an error, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path

import jinja2
import numpy as np
import pytest

from msmamba.pages.page import COMPARE, data_url, page_from_template, thumbnail

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


def policy_of(page: str) -> dict[str, str]:
    (content,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    return dict(rule.strip().split(" ", 1) for rule in html.unescape(content).split(";"))


def test_a_page_without_a_script_lets_none_run(template: Path) -> None:
    policy = policy_of(page_from_template(template, name="a", picture=""))
    assert policy["default-src"] == "'none'"
    assert "script-src" not in policy


def test_no_script_runs_but_the_one_whose_hash_the_policy_has(template: Path) -> None:
    page = page_from_template(template, COMPARE, name="<script>alert(1)</script>", picture="")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == COMPARE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy_of(page)["script-src"] == f"'sha256-{digest}'"
    assert not re.search(r"\son\w+=", page)  # a handler in the text would not run, and would be missed


def test_a_name_that_is_not_given_is_an_error(template: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="picture"):
        page_from_template(template, name="a")


def test_a_file_becomes_a_url_that_holds_it() -> None:
    assert data_url(b"abc", "text/plain") == "data:text/plain;base64,YWJj"
