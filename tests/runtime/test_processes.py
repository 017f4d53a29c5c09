"""A session in a fork of the process that opened it says so, and the fork ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# What a child does, and what it says. Each ends as Python does, destructors and all, but the one that leaves.
CHILDREN = {
    "works": ("session.classify([image])", "BackendError: '{name}' was opened in process {parent}, and"),
    "runs": ("session.run(np.zeros((1, 3, 9, 9), np.float32))", "BackendError"),
    "goes on with a stream": ("next(stream)", "BackendError"),
    "closes": ("session.close(); gc.collect()", "fine"),
    "closes and leaves at once": ("session.close(); del session; gc.collect(); os._exit(0)", ""),
    "opens its own": ("print(msmamba.open(name, threads=2).classify([image])[0].label)", "green"),
    "does nothing": ("pass", "fine"),
}
PROGRAM = """
import gc, os, sys, time
import numpy as np
import msmamba
from msmamba.errors import BackendError
name, *children = sys.argv[1:]
image = np.zeros((5, 5, 3), np.uint8)
image[..., 1] = 200
session = msmamba.open(name, threads=2)
stream = session.classify_stream([image] * 9)
next(stream)
for child in children:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            exec(child)
        except BackendError as error:
            print(f"BackendError: {error}")
        else:
            print("fine")
        sys.exit(0)
    deadline = time.monotonic() + 20
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            sys.exit(f"hangs: {child}")
        time.sleep(0.01)
    print("---")
print(os.getpid(), session.classify([image])[0].label, len(list(stream)))
"""


def test_forks_say_so_and_end(bundle: Path) -> None:
    commands = [command for command, _ in CHILDREN.values()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle), *commands],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *answers, last = done.stdout.split("---\n")
    parent, label, left = last.split()
    assert (label, left) == ("green", "8")  # the parent works as before
    for (what, (_, expected)), answer in zip(CHILDREN.items(), answers, strict=True):
        assert answer.startswith(expected.format(name=bundle, parent=parent)), what


def test_onnx_runtime_reports_to_nobody() -> None:
    program = (
        "import os; from msmamba.runtime.onnxruntime_library import import_onnxruntime; "
        "import_onnxruntime(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for said, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**environment, **said},
            check=True,
        )
        assert done.stdout.split() == [expected]
