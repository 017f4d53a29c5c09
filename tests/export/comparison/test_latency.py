"""What networks take is measured side by side, on any machine that runs them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import onnxruntime
import pytest
from full_disk import no_file_larger_than

from msmamba.errors import TargetError
from msmamba.export.comparison.folder import ComparisonFolder
from msmamba.export.comparison.latency import latencies
from msmamba.export.comparison.stages import Watch
from msmamba.runtime.benchmark import BenchmarkOptions


def test_it_is_measured_where_only_the_package_for_gpus_is_installed(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.metadata.distribution

    def as_with_onnxruntime_gpu(name: str) -> importlib.metadata.Distribution:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "distribution", as_with_onnxruntime_gpu)
    folder = ComparisonFolder(tmp_path)
    found = latencies(folder, {"small": bundles["fp32"]}, BenchmarkOptions(rounds=1, warmup=0), Watch())
    assert found.networks["small"].median_ms > 0
    kept = folder.read("bench.json")
    assert kept["measured"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert kept["benchmark"]["versions"]["onnxruntime"] == onnxruntime.__version__


def test_what_a_comparison_came_to_is_written_together(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    folder.write({"results.json": b"{}", "report.html": b"of before"})
    with no_file_larger_than(10), pytest.raises(TargetError, match=r"report\.html"):
        folder.write({"results.json": b"[]", "report.html": b"of what comes after"})
    assert (folder.read("results.json"), (tmp_path / "report.html").read_bytes()) == ({}, b"of before")
