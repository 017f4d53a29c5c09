"""`benchmarks/device_check.py` without a GPU: steps say what they lack, and what breaks loses nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device_check.py"


@pytest.fixture(scope="module")
def device_check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("device_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_each_step_says_what_it_lacks(tmp_path: Path, device_check: ModuleType) -> None:
    """The command itself, and those of its steps that take no time here."""
    try:
        device_check.gpu()
    except device_check.Lacks:
        pass
    else:
        pytest.skip("there is a GPU on this machine")
    command = [sys.executable, SCRIPT, "-o", tmp_path / "out", "--steps", "machine,scan,launch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "The scan, forward and backward: lacks an NVIDIA" in done.stdout
    results = json.loads((tmp_path / "out" / "device.json").read_text())
    assert [result["outcome"] for result in results] == ["lacks", "lacks", "lacks"]
    assert all("NVIDIA" in result["said"] for result in results)
    facts = {row["what"]: row["found"] for row in results[0]["rows"]}  # found before the driver was asked
    assert facts["cores"] == os.cpu_count()
    page = (tmp_path / "out" / "device.md").read_text()
    assert "| The scan, forward and backward | lacks: an NVIDIA driver" in page


@pytest.mark.parametrize(
    ("then", "outcome", "said"),
    [
        ("raise RuntimeError('CUDA error: an illegal memory access')", "failed", "RuntimeError: CUDA error"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed", "died of signal 9"),
        ("import time; time.sleep(60)", "stopped", "longer than 1 s"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_a_step_that_breaks_keeps_what_it_found(
    tmp_path: Path,
    device_check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    outcome: str,
    said: str,
) -> None:
    script = tmp_path / "played.py"
    row = json.dumps({"scan": "stage 1", "forward_us": 12.5})
    rows = tmp_path / "scan.jsonl"
    script.write_text(f"with open({str(rows)!r}, 'w') as file:\n    print({row!r}, file=file)\n{then}\n")
    monkeypatch.setattr(device_check, "__file__", str(script))
    result = device_check.run("scan", tmp_path, 1.0, dict(os.environ))
    assert (result["outcome"], result["rows"]) == (outcome, [json.loads(row)])
    assert said in result["said"]
    assert "| stage 1 | 12.5 |" in device_check.as_markdown([result])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    for arguments, message in (
        (["--steps", "scan,dance"], "unknown steps dance"),
        (["--wheels", str(tmp_path)], "holds no wheels"),
    ):
        command = [sys.executable, SCRIPT, "-o", tmp_path / "out", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert message in done.stderr
