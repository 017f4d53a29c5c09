"""Debian's Chromium, headless and driven by its own driver, and the command as a process that it looks at."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_QUIET = (  # what Chromium would ask the network for, and what a machine without a display cannot do
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1280,800"),
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser for all tests; each opens what it wants."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (*_QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


class Live:
    """`mmdeploy live` as a process, with its page."""

    def __init__(self, *arguments: str | Path, port: int = 0, host: str | None = None) -> None:
        command = [sys.executable, "-m", "msmamba", "live", *map(str, arguments), "--port", str(port)]
        self.process = subprocess.Popen(
            command + (["--host", host] if host else []), stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().removeprefix("the page: ").strip()
        self.port = int(self.url.split("/")[2].rpartition(":")[2])

    def kill(self) -> None:
        """As power that goes."""
        self.process.send_signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """As Ctrl-C, for a process that may ignore it."""
        self.process.send_signal(signal.SIGTERM)
        self._wait()

    def _wait(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture
def start() -> Iterator[Callable[..., Live]]:
    """Starts the command, and ends it after the test."""
    started: list[Live] = []

    def begin(*arguments: Any, **more: Any) -> Live:
        started.append(Live(*arguments, **more))
        return started[-1]

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.stop()


def until(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What it gives, once that is something."""
    ends = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)
    return found
