"""`benchmarks/device_check.py` without a GPU: steps say what they lack, and what breaks loses nothing."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import script_as_module

from msmamba.plugins.selective_scan import cpu

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device_check.py"


@pytest.fixture(scope="module")
def device_check() -> ModuleType:
    """The script as a module."""
    return script_as_module("device_check")


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


def test_a_step_that_is_stopped_takes_all_that_it_has_started_with_it(
    tmp_path: Path, device_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler or a test that ran on would hold up every step after."""
    script, started = tmp_path / "played.py", tmp_path / "started"
    script.write_text(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(started)!r}, 'w').write(str(child.pid))\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(device_check, "__file__", str(script))
    assert device_check.run("scan", tmp_path, 1.0, dict(os.environ))["outcome"] == "stopped"
    child = Path("/proc") / started.read_text() / "stat"
    for _ in range(100):  # until the system has taken it down; nobody waits for it
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("what the step had started runs on")


def test_what_a_failed_step_printed_is_kept(
    tmp_path: Path, device_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "played.py"
    script.write_text("print('before', flush=True)\nraise RuntimeError('CUDA error')\n")
    monkeypatch.setattr(device_check, "__file__", str(script))
    printed = device_check.run("scan", tmp_path, 10.0, dict(os.environ))["printed"]
    assert printed.startswith("before")
    assert "line 2, in <module>" in printed


PACKAGES_THERE = {
    "torch",
    "triton",
    "numpy",
    "pytest",
    "PIL",
    "click",
    "onnx",
    "safetensors",
    "filelock",
    "hypothesis",
}
"""What `device_check.py` asks of a machine for its tests, beside msmamba and the standard library."""


def _imported(path: Path) -> set[str]:
    """What a file imports when it is read, and the tests' own modules that it imports."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    for name in sorted(found):
        own = SCRIPT.parents[1] / "tests" / f"{name}.py"
        if own.is_file():
            found = (found - {name}) | _imported(own)
    return found


def test_gpu_tests_need_no_more_than_a_bare_machine_has(device_check: ModuleType) -> None:
    """One test file that does not import, marked or not, would keep pytest from running any."""
    files = device_check.files_with_gpu_tests()
    assert [path.name for path in files[:2]] == ["test_gpu_device.py", "test_operator.py"]
    assert Path(__file__) not in files
    tests = SCRIPT.parents[1] / "tests"
    shared = [conftest for path in files for conftest in path.parent.glob("conftest.py")]
    needed = {name for path in (*files, *shared, tests / "conftest.py") for name in _imported(path)}
    assert needed - set(sys.stdlib_module_names) - {"msmamba"} <= PACKAGES_THERE


def test_gradients_that_are_nothing_but_rounding_do_not_count(device_check: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    others = {"weight": torch.ones(100), "bias": torch.full((4,), 1e-9)}
    ours = {"weight": torch.ones(100) + 1e-6, "bias": -others["bias"]}
    total, worst, name = device_check.gradient_differences(ours, others)
    assert (total, worst, name) == (pytest.approx(1e-6, rel=0.1), pytest.approx(1e-6, rel=0.1), "weight")
    ours["weight"] = ours["weight"] * 2
    assert device_check.gradient_differences(ours, others)[1] == pytest.approx(1, rel=0.01)
    nothing = {"weight": torch.zeros(100)}
    assert device_check.gradient_differences(nothing, nothing) == (0, 0, "weight")


def test_a_bundles_parity_is_a_row(
    device_check: ModuleType, bundles: dict[str, Path], checkpoint: Path, micrographs: Path, tmp_path: Path
) -> None:
    """On the CPU what the step does on CUDA."""
    bundle = shutil.copytree(bundles["fp16"], tmp_path / "fp16")
    row = device_check.verified(bundle, str(checkpoint), str(micrographs), "cpu")
    assert row["path"].startswith("onnxruntime CPU")
    assert 0 < row["off_the_checkpoint"] <= row["bar"]
    assert (row["images"], row["flips"], row["passed"]) == (12, 0, True)
    assert 0 <= row["undecided"] <= 12
    assert json.loads(json.dumps(row)) == row


def test_why_a_test_failed_is_told_and_its_traceback_kept(
    tmp_path: Path,
    device_check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "test_" + "_".join(["of_a_long_name"] * 6)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_played.py").write_text(
        "import pytest\n\n"
        "def scanned():\n    raise RuntimeError('an illegal memory access')\n\n"
        # In two parts, or this file would be one of those that hold such tests.
        f"@pytest.mark.{'gpu'}\ndef {name}():\n    scanned()\n"
    )
    own = "import os\nos.environ['COLUMNS'] = '80'\n"  # our own tests keep to it wherever they run
    (tmp_path / "tests" / "conftest.py").write_text(own)
    monkeypatch.setattr(device_check, "ROOT", tmp_path)
    rows: list[dict[str, str]] = []
    with pytest.raises(RuntimeError, match=r"tests failed in tests/test_played\.py"):
        device_check.tests_step(tmp_path, lambda **row: rows.append(row))
    (because,) = (row["test"] for row in rows if row["outcome"] == "because")
    assert because == f"tests/test_played.py::{name} - RuntimeError: an illegal memory access"
    assert "test_played.py:4: in scanned" in capsys.readouterr().out


def test_what_cupy_cannot_do_costs_its_own_row_alone(device_check: ModuleType) -> None:
    assert "Error: " in device_check._same_from_cupy(None, None, None)


def test_bundles_and_a_library_that_were_made_elsewhere_are_taken(
    tmp_path: Path, device_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fp32", "fp16"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "model.onnx").touch()
    (tmp_path / "elsewhere" / "tiny.safetensors").touch()
    monkeypatch.setenv("DEVICE_CHECK_BUNDLES", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("DEVICE_CHECK_CHECKPOINT", raising=False)
    rows: list[dict[str, str]] = []
    (tmp_path / "out").mkdir()
    device_check.export_step(tmp_path / "out", lambda **row: rows.append(row))
    assert [(row["bundle"], row["seconds"]) for row in rows] == [
        ("fp32", "made elsewhere"),
        ("fp16", "made elsewhere"),
    ]
    assert device_check.bundle_of(tmp_path / "out", "fp16").joinpath("model.onnx").is_file()
    # Nothing of the exporter is asked for by then, but where a bundle is missing.
    monkeypatch.setattr(device_check, "_EXPORT", ("numpy", "no_such_package"))
    device_check.export_step(tmp_path / "out", lambda **row: rows.append(row))
    monkeypatch.setenv("DEVICE_CHECK_CHECKPOINT", str(tmp_path / "trained.safetensors"))
    with pytest.raises(device_check.Lacks, match="the packages no_such_package"):
        device_check.export_step(tmp_path / "out", lambda **row: rows.append(row))

    built = cpu.library_path()
    assert built is not None
    (tmp_path / "plugins" / "selective_scan").mkdir(parents=True)
    monkeypatch.setattr(device_check, "ROOT", tmp_path)
    monkeypatch.setenv("DEVICE_CHECK_LIBRARY", str(built))
    device_check.build_step(tmp_path / "out", lambda **row: rows.append(row))
    assert rows[-1]["seconds"] == "built elsewhere"
    assert (tmp_path / "plugins" / "selective_scan" / "_native.so").stat().st_size == built.stat().st_size


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    for arguments, message in (
        (["--steps", "scan,dance"], "unknown steps dance"),
        (["--wheels", str(tmp_path)], "holds no wheels"),
        (["--bundles", str(tmp_path / "none")], "there is no "),
    ):
        command = [sys.executable, SCRIPT, "-o", tmp_path / "out", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert message in done.stderr
