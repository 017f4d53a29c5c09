"""The handle on a slide's page in a real browser, under the page's own policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from msmamba.pages.page import COMPARE, page_from_template, photograph

pytestmark = pytest.mark.browser

TEMPLATE = """{% extends "frame.html.jinja" %}
{% block title %}a{% endblock %}
{% block style %}.below { width: 400px; background-image: url("{{ below }}"); }{% endblock %}
{% block content %}
<div class="compare below"><img alt="map" src="{{ above }}">
<input type="range" step="any" value="0" hidden></div>
{{ smuggled | safe }}
{% endblock %}
"""


def clipped(browser: WebDriver) -> str:
    return browser.execute_script("return getComputedStyle(document.querySelector('.compare img')).clipPath")


def test_the_handle_uncovers_the_slide_and_no_other_script_runs(browser: WebDriver, tmp_path: Path) -> None:
    (tmp_path / "a.html.jinja").write_text(TEMPLATE)
    page = page_from_template(
        tmp_path / "a.html.jinja",
        COMPARE,
        below=photograph(Image.new("RGB", (40, 30), "red"), 40),
        above=photograph(Image.new("RGB", (40, 30), "blue"), 40),
        smuggled="<script>window.ran = true</script><img src='data:,' onerror='window.ran = true'>",
    )
    (tmp_path / "a.html").write_text(page)
    browser.get((tmp_path / "a.html").as_uri())
    handle = browser.find_element(By.TAG_NAME, "input")
    assert handle.is_displayed()
    assert clipped(browser) == "inset(0px 0px 0px 0%)"
    ActionChains(browser).move_to_element(handle).click().perform()
    assert clipped(browser) == "inset(0px 0px 0px 50%)"
    handle.send_keys(Keys.END)
    assert clipped(browser) == "inset(0px 0px 0px 100%)"
    assert browser.execute_script("return window.ran === undefined")
    refused = [
        each["message"] for each in browser.get_log("browser") if "Content Security" in each["message"]
    ]
    assert len(refused) == 2
    browser.get("about:blank")
