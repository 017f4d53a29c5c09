"""The page of `mmdeploy live` in a real browser, as somebody at the microscope uses it."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_pages import LABELS, served
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.keys import Keys

from msmamba.microscope.live.page.access import Address
from msmamba.microscope.live.report import write_session_report

from .conftest import Live, until

pytestmark = pytest.mark.browser


@pytest.fixture
def page(
    browser: WebDriver, start: Callable[..., Live], bundles: dict[str, Path], tmp_path: Path
) -> Iterator[Live]:
    """The page over the demo, open, with a first picture."""
    live = start(bundles["fp32"], "demo", "-o", tmp_path / "session", "--threads", "1")
    browser.get(live.url)
    until(lambda: number(browser) is not None)
    yield live
    browser.get("about:blank")


def text(browser: WebDriver, name: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def number(browser: WebDriver) -> int | None:
    """The number of the picture that is shown."""
    label = browser.execute_script("return document.getElementById('picture').getAttribute('aria-label')")
    return int(label.rpartition(" ")[2]) if label.startswith("Picture number") else None


def pixels(browser: WebDriver) -> np.ndarray:
    """What the canvas shows, (H, W, 3)."""
    script = """
        const canvas = document.getElementById("picture");
        const shown = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.height, canvas.width, btoa(String.fromCharCode(
            ...Array.from({length: canvas.height}, (_, y) => shown.data[4 * (y * canvas.width + y)])))]"""
    height, width, diagonal = browser.execute_script(script)
    assert height == width
    return np.frombuffer(base64.b64decode(diagonal), np.uint8)


def press(browser: WebDriver, key: str) -> None:
    ActionChains(browser).send_keys(key).perform()


def pressed(browser: WebDriver, name: str) -> str:
    return browser.execute_script(
        "return document.getElementById(arguments[0]).getAttribute('aria-pressed')", name
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "session.jsonl").read_text(encoding="utf-8").splitlines()]


def test_it_shows_picture_label_and_figures_and_loads_nothing_from_elsewhere(
    browser: WebDriver, page: Live, bundles: dict[str, Path]
) -> None:
    first = number(browser)
    until(lambda: number(browser) > first)
    assert text(browser, "label") in ("basophil", "eosinophil", "lymphocyte")
    assert text(browser, "probability").endswith("%")
    assert text(browser, "lamp-words") == "in focus, well lit"
    assert text(browser, "model") == "fp32"
    assert len(text(browser, "sha256")) == 17
    until(lambda: "/s" in text(browser, "rate"))
    until(lambda: text(browser, "age").endswith("ms"))
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.name)"
    )
    assert all(name.startswith(page.url) for name in loaded)
    assert browser.get_log("browser") == []


def test_frozen_it_stays_as_it_is_and_goes_on_with_the_newest(browser: WebDriver, page: Live) -> None:
    press(browser, Keys.SPACE)
    assert pressed(browser, "freeze") == "true"
    frozen = number(browser), text(browser, "label"), text(browser, "probability")
    before = pixels(browser)
    time.sleep(1)
    assert (number(browser), text(browser, "label"), text(browser, "probability")) == frozen
    assert (pixels(browser) == before).all()
    until(lambda: re.match(r"Frozen, taken [1-9]\.", text(browser, "banner")))
    browser.find_element("id", "freeze").click()
    until(lambda: number(browser) > frozen[0] + 20)
    assert pressed(browser, "freeze") == "false"
    press(browser, Keys.SPACE)  # after a click the key still freezes, once
    assert pressed(browser, "freeze") == "true"


def test_frozen_it_shows_nothing_that_was_still_being_decoded(browser: WebDriver, page: Live) -> None:
    browser.execute_script("""
        const decode = window.createImageBitmap;
        window.decoding = 0;
        window.createImageBitmap = async (blob) => {
            window.decoding += 1;
            const bitmap = await decode(blob);
            await new Promise((then) => setTimeout(then, 300));
            window.decoding -= 1;
            return bitmap;
        };""")
    until(lambda: browser.execute_script("return window.decoding"))
    frozen = browser.execute_script("""
        document.getElementById("freeze").click();
        return [window.decoding, document.getElementById("picture").getAttribute("aria-label")]""")
    assert frozen[0] == 1
    until(lambda: not browser.execute_script("return window.decoding"))
    assert f"Picture number {number(browser)}" == frozen[1]
    browser.find_element("id", "freeze").click()
    until(lambda: f"Picture number {number(browser)}" != frozen[1])


def test_a_snapshot_is_of_the_picture_that_is_shown(browser: WebDriver, page: Live, tmp_path: Path) -> None:
    press(browser, Keys.SPACE)
    frozen, shown = number(browser), pixels(browser)
    time.sleep(0.5)
    press(browser, "s")
    until(lambda: text(browser, "toast").startswith("Kept: session/snapshots/"))
    (path,) = (tmp_path / "session" / "snapshots").glob("*.png")
    line = json.loads(path.with_suffix(".json").read_bytes())
    assert (path.name, line["number"]) == (f"{frozen:07}.png", frozen)
    assert line["label"] == text(browser, "label")
    kept = np.asarray(Image.open(path))[..., 0].diagonal()
    assert abs(kept.astype(int) - shown).mean() < 4  # the page's has been through JPEG


def test_below_the_threshold_it_says_nothing_sure(browser: WebDriver, page: Live) -> None:
    slider = browser.find_element("id", "threshold")
    slider.send_keys(Keys.END)
    until(lambda: text(browser, "label") == "not sure")
    assert text(browser, "nearest").startswith("nearest: ")
    slider.send_keys(Keys.HOME)
    until(lambda: text(browser, "label") != "not sure")


def colours(browser: WebDriver) -> set[tuple[int, ...]]:
    """The pixels of the frozen canvas, coarsely."""
    script = """
        const canvas = document.getElementById("picture");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [...new Set(Array.from({length: 256}, (_, at) =>
            [0, 1, 2].map((channel) => data[4 * (at * 999 % (data.length / 4)) + channel] >> 4).join()))]"""
    return {tuple(map(int, each.split(","))) for each in browser.execute_script(script)}


def test_the_map_is_switched_by_a_key_and_shows_a_class(
    browser: WebDriver, start: Callable[..., Live], bundles: dict[str, Path], tmp_path: Path
) -> None:
    live = start(bundles["fp32"], "demo", "--tiles", "3", "-o", tmp_path / "session", "--threads", "1")
    browser.get(live.url)
    until(lambda: number(browser) is not None)
    press(browser, Keys.SPACE)
    assert pressed(browser, "map") == "true"
    with_map = colours(browser)
    press(browser, "h")
    assert pressed(browser, "map") == "false"
    without = colours(browser)
    assert with_map != without
    press(browser, "h")
    assert colours(browser) == with_map
    bars = browser.find_elements("css selector", ".bars button")
    bars[2].click()
    assert [bar.get_attribute("aria-pressed") for bar in bars] == ["false", "false", "true"]
    assert colours(browser) not in (with_map, without)
    bars[2].click()
    assert colours(browser) == with_map


def test_without_tiles_there_is_no_map(browser: WebDriver, page: Live) -> None:
    assert not browser.find_element("id", "map").is_enabled()
    press(browser, "h")
    assert pressed(browser, "map") == "false"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ["basophil", "75.0\u00a0%", "", "empty"]),
        (
            {"decided": True, "reasons": [], "candidates": ["basophil"]},
            ["basophil", "75.0\u00a0%", "", "empty"],
        ),
        (
            {"decided": False, "reasons": ["uncertain", "empty"], "candidates": LABELS},
            ["not sure", "", "may be: basophil, eosinophil", "empty, uncertain"],
        ),
        (
            {"decided": False, "reasons": ["uncertain"], "candidates": LABELS[:1]},
            ["not sure", "", "nearest: basophil, 75.0\u00a0%", "empty, uncertain"],
        ),
    ],
    ids=["no-guard", "decided", "two-candidates", "one-candidate"],
)
def test_what_a_guard_withholds_is_not_shown_as_an_answer(
    browser: WebDriver, said: dict[str, Any], expected: list[str]
) -> None:
    with served(Address(0)) as page:
        browser.get(f"http://{page.host}/")
        page.show(40, **said)  # grey, in which nothing is to be seen
        until(lambda: number(browser) == 40)
        assert [text(browser, name) for name in ("label", "probability", "nearest", "lamp-words")] == expected
        browser.get("about:blank")


def test_full_screen_and_back_by_a_key(browser: WebDriver, page: Live) -> None:
    press(browser, "f")
    until(lambda: browser.execute_script("return Boolean(document.fullscreenElement)"))
    until(lambda: pressed(browser, "full") == "true")
    press(browser, "f")
    until(lambda: not browser.execute_script("return Boolean(document.fullscreenElement)"))


def test_keys_can_be_turned_off(browser: WebDriver, page: Live) -> None:
    browser.find_element("id", "keys").click()
    press(browser, "s")
    browser.execute_script("document.activeElement.blur()")
    press(browser, Keys.SPACE)
    assert pressed(browser, "freeze") == "false"
    browser.find_element("id", "keys").click()


def test_a_stream_of_a_minute_stays_new_and_small(browser: WebDriver, page: Live, tmp_path: Path) -> None:
    """Costs the minute that it is about."""
    until(lambda: (number(browser) or 0) > 60)
    heap = "return performance.memory.usedJSHeapSize"
    numbers, heaps = [number(browser)], []
    for _ in range(12):
        time.sleep(5)
        numbers.append(number(browser))
        heaps.append(browser.execute_script(f"window.gc?.(); {heap}"))
        assert text(browser, "age").endswith("ms")
        assert text(browser, "connection") == "live"
    assert all(after > before for before, after in pairwise(numbers))
    assert max(heaps[6:]) < max(heaps[:6]) + 20e6
    page.stop()
    painted = [line for line in lines(tmp_path / "session") if line["painted_age_ms"] is not None]
    assert len(painted) > 120
    assert all(line["painted_age_ms"] >= line["frame_age_ms"] for line in painted)
    assert (tmp_path / "session" / "report.html").is_file()


STAND_STILL = (
    "setTimeout(() => { const ends = performance.now() + 4000; while (performance.now() < ends); }, 0)"
)


def test_two_look_and_one_that_stands_still_holds_up_nobody(browser: WebDriver, page: Live) -> None:
    host = page.url.split("/")[2]
    first = browser.current_window_handle
    with socket.create_connection(("127.0.0.1", page.port)) as deaf:  # which asks, and never reads
        deaf.sendall(
            f"GET /stream HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: c3RhbmRzIHN0aWxsISE=\r\n\r\n".encode()
        )
        browser.switch_to.new_window("window")
        try:
            browser.get(page.url)
            until(lambda: number(browser) is not None)
            browser.execute_script(STAND_STILL)
            second = browser.current_window_handle
            browser.switch_to.window(first)
            before = number(browser)
            until(lambda: number(browser) > before + 30)
            browser.switch_to.window(second)
            before = number(browser)
            until(lambda: number(browser) > before)
            until(lambda: text(browser, "age").endswith("ms"))  # no old pictures are made up for
        finally:
            browser.close()
            browser.switch_to.window(first)


def test_it_comes_back_after_a_restart(
    browser: WebDriver, page: Live, start: Callable[..., Live], bundles: dict[str, Path], tmp_path: Path
) -> None:
    page.kill()
    until(lambda: text(browser, "connection") == "no connection")
    until(lambda: text(browser, "banner").startswith("No new picture for"))
    assert "stale" in browser.find_element("id", "answer").get_attribute("class").split()
    again = start(
        bundles["fp32"], "demo", "-o", tmp_path / "again", "--threads", "1", "--seconds", "8", port=page.port
    )
    until(lambda: text(browser, "connection") == "live")
    before = number(browser)
    until(lambda: number(browser) != before)
    assert text(browser, "folder") == "again"
    again.process.communicate(timeout=60)  # whose seconds are over
    until(lambda: text(browser, "banner") == "the session has ended")
    assert text(browser, "connection") == "ended"


def test_nothing_is_shown_of_a_session_that_is_over(
    browser: WebDriver, page: Live, start: Callable[..., Live], bundles: dict[str, Path], tmp_path: Path
) -> None:
    press(browser, " ")
    page.kill()
    folder = tmp_path / "to-watch"
    folder.mkdir()
    start(bundles["fp16"], f"watch:{folder}", "-o", tmp_path / "again", "--threads", "1", port=page.port)
    until(lambda: text(browser, "model") == bundles["fp16"].name)
    assert (number(browser), text(browser, "label"), text(browser, "age")) == (None, "—", "—")
    assert not pixels(browser).any()
    shown = {name: browser.find_element("id", name).is_displayed() for name in ("waiting", "banner", "scale")}
    assert shown == {"waiting": True, "banner": False, "scale": False}
    assert not browser.find_element("id", "snapshot").is_enabled()
    Image.fromarray(np.full((90, 90, 3), 200, np.uint8)).save(folder / "a.png")
    until(lambda: number(browser) == 0)
    assert text(browser, "label") != "—"
    assert pixels(browser).all()


def test_the_address_with_a_token_opens_it_and_an_old_one_says_so(
    browser: WebDriver, start: Callable[..., Live], bundles: dict[str, Path], tmp_path: Path
) -> None:
    arguments = (bundles["fp32"], "demo", "--threads", "1", "-o")
    live = start(*arguments, tmp_path / "one", host="127.0.0.1")
    browser.get(live.url)
    until(lambda: number(browser) is not None)
    assert "token" not in browser.current_url
    live.stop()
    start(*arguments, tmp_path / "two", port=live.port, host="127.0.0.1")
    until(lambda: text(browser, "connection") == "open the address that mmdeploy printed")


LEAST_CONTRAST = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
    .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
        const found = channels(getComputedStyle(each).backgroundColor);
        if (found.length < 4 || found[3] > 0.5) return found;
    }
    return [255, 255, 255];
};
const hasText = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
return [...document.querySelectorAll("body *")]
    .filter((each) => each.offsetParent && !each.closest(":disabled") && hasText(each))
    .map((each) => {
        const [above, below] = [light(channels(getComputedStyle(each).color)), light(behind(each))];
        const contrast = (Math.max(above, below) + 0.05) / (Math.min(above, below) + 0.05);
        return [contrast, each.id || each.className || each.tagName];
    })
    .sort((a, b) => a[0] - b[0])[0];
"""


def test_it_fits_and_can_be_read_on_every_screen_in_both_themes(browser: WebDriver, page: Live) -> None:
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    low = (
        "return Math.min(...[...document.querySelectorAll('.tools button')].map((each) => each.offsetHeight))"
    )
    label = "return parseFloat(getComputedStyle(document.getElementById('label')).fontSize)"
    below = "return document.getElementById('lamp').getBoundingClientRect().bottom - innerHeight"
    screens = (1440, 900), (820, 1180), (360, 740), (844, 390), (640, 360)
    try:
        for theme, (width, height) in product(("dark", "light"), screens):
            scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 1000}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            case = f"{theme}, {width} x {height}"
            assert browser.execute_script(wide) == 0, case
            contrast, where = browser.execute_script(LEAST_CONTRAST)
            assert contrast >= 4.5, f"{case}: {where}"
            assert browser.execute_script(low) >= 44, case
            assert browser.execute_script(label) >= 32, case
            assert browser.execute_script(below) <= 0, case
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_sessions_report_fits_a_phone(browser: WebDriver, page: Live, tmp_path: Path) -> None:
    page.stop()
    session = tmp_path / "session"
    event = {"at": "2026-11-28T12:00:00+00:00", "text": "'http://" + "microscope." * 40 + "' went away"}
    (session / "events.jsonl").write_text(json.dumps(event) + "\n")
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(write_session_report(session).as_uri())
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wide) == 0
        assert "microscope.microscope" in browser.page_source
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
