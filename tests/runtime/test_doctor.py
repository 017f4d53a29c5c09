"""`mmdeploy doctor` tells what works, what does not, and what to do about it, on any machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.plugins import tensorrt_library
from msmamba.plugins.selective_scan import cpu
from msmamba.runtime import doctor


def test_this_machine_can_classify() -> None:
    report = doctor.examine()
    assert report.can_infer
    assert "ONNX Runtime" in report.abilities[0].found


def test_whatever_does_not_work_has_a_fix() -> None:
    for ability in doctor.examine().abilities:
        assert ability.found
        assert ability.works == (not ability.fix), ability


def test_text_and_json_say_the_same() -> None:
    text = CliRunner().invoke(mmdeploy, ["doctor"])
    data = CliRunner().invoke(mmdeploy, ["doctor", "--format", "json"])
    assert text.exit_code == data.exit_code == 0
    report = json.loads(data.stdout)
    for value in report["machine"].values():
        assert value in text.stdout
    for ability in report["abilities"]:
        assert ability["found"] in text.stdout
        assert ability["fix"] in text.stdout


def test_missing_native_kernels_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "why_unavailable", lambda: "no compiler was there: install one")
    ability = next(item for item in doctor.examine().abilities if item.name.startswith("native"))
    assert not ability.works
    assert ability.found == "no compiler was there: install one"


@pytest.mark.parametrize(
    ("features", "works"), [(("avx2", "avx512_vnni"), True), (("avx2", "fma"), False)], ids=["vnni", "avx2"]
)
def test_int8_is_told_from_the_instruction_sets(
    features: tuple[str, ...], works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.machine, "processor_features", lambda: features)
    ability = next(item for item in doctor.examine().abilities if item.name.startswith("int8"))
    assert ability.works == works
    assert "float32 file" in ability.found + ability.fix


def test_without_onnxruntime_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(mmdeploy, ["doctor"])
    assert result.exit_code == 1
    assert "fix: pip install onnxruntime" in result.stdout


def test_the_missing_link_of_tensorrt_rtx_is_found_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "libtensorrt_rtx.so"
    monkeypatch.setattr(doctor, "_version", lambda package: "1.7.1")
    monkeypatch.setattr(tensorrt_library, "missing_parser_link", lambda: link)
    monkeypatch.setattr(doctor, "_why_not_importable", lambda module: pytest.fail("it must not be imported"))
    ability = doctor._tensorrt_rtx()
    assert not ability.works
    assert ability.fix == f"ln -s libtensorrt_rtx.so.1 {link}"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libnvinfer.so.10 is missing')", "ImportError: libnvinfer.so.10 is missing"),
        ("import os; os.abort()", "died of signal 6"),
    ],
    ids=["import-error", "abort"],
)
def test_a_library_that_breaks_on_import_does_not_take_us_along(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaking.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert reason in (doctor._why_not_importable("breaking") or "")
    assert doctor._why_not_importable("json") is None
