"""How long each exported network takes: measured side by side in one run, and kept as long as it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ... import machine
from ...files import as_utf8
from ...runtime.artefact import MODEL_NAME, open_bundle
from ...runtime.benchmark import BenchmarkOptions, benchmark
from ...runtime.benchmark_report import Result
from ...runtime.onnxruntime_library import import_onnxruntime
from ...schema import OBJECT, TEXT, as_json, by_name, maybe, number, parsed, record, whole
from ...version import __version__
from .folder import BENCH, ComparisonFolder
from .stages import Watch

_MILLISECONDS = number(0)
_BENCH = record(
    {
        "measured": OBJECT,
        "networks": by_name(
            record(
                {
                    "median_ms": _MILLISECONDS,
                    "p90_ms": _MILLISECONDS,
                    "min_ms": _MILLISECONDS,
                    "images_per_second": number(0),
                    "file_mb": number(0),
                    "executed_by": TEXT,
                }
            )
        ),
        "rounds": whole(1),
        "threads": whole(1),
        "processor": TEXT,
        "warning": maybe(TEXT),
    }
)


@dataclass(frozen=True)
class Latency:
    """What an exported network takes, an image at a time (see `runtime.benchmark_report`)."""

    median_ms: float
    p90_ms: float
    min_ms: float
    images_per_second: float
    file_mb: float
    """Size of the ONNX file, 10^6 bytes."""
    executed_by: str


@dataclass(frozen=True)
class Latencies:
    """The networks measured side by side."""

    networks: Mapping[str, Latency]
    rounds: int
    threads: int
    processor: str
    warning: str | None
    """Where the machine was too noisy to tell networks apart."""


def latencies(
    folder: ComparisonFolder, bundles: Mapping[str, Path], options: BenchmarkOptions, watch: Watch
) -> Latencies:
    """Measures the bundles in one run, unless just these were measured so on this machine before.

    Args:
        folder: keeps what was measured.
        bundles: by network, at least one.
        options: how to measure.
        watch: is told what is done.

    Raises:
        MsmambaError: whatever `benchmark` raises.
    """
    options = replace(options, memory=False)  # which would take a process for each network
    files = {name: open_bundle(bundle).manifest.files[MODEL_NAME] for name, bundle in bundles.items()}
    measured = {
        "files": files,
        "options": parsed(as_json(asdict(options))),
        "processor": machine.processor(),
        "versions": {"msmamba": __version__, "onnxruntime": import_onnxruntime().__version__},
    }
    before = folder.read(BENCH)
    if not _BENCH.problems(before) and before["measured"] == measured:
        return _latencies_from(before)
    watch.on_stage("", "latency")
    with watch.working() as report:
        found = benchmark(list(bundles.values()), options, report=report)
    by_path = {result.case.artefact: result for result in found.results}
    result = Latencies(
        networks={name: _latency(by_path[str(bundle)]) for name, bundle in bundles.items()},
        rounds=found.rounds,
        threads=found.results[0].case.threads,
        processor=found.machine["processor"],
        warning=found.warning,
    )
    everything = {"measured": measured, **asdict(result), "benchmark": parsed(found.to_json(), names=True)}
    folder.write({BENCH: as_utf8(as_json(everything, indent=2) + "\n")})
    return result


def _latency(result: Result) -> Latency:
    return Latency(
        median_ms=result.network_ms.median,
        p90_ms=result.network_ms.p90,
        min_ms=result.network_ms.min,
        images_per_second=result.images_per_second,
        file_mb=result.file_mb,
        executed_by=result.executed_by,
    )


def _latencies_from(values: Mapping[str, Any]) -> Latencies:
    known = {field.name: values[field.name] for field in fields(Latencies)}
    names = [field.name for field in fields(Latency)]
    networks = {
        network: Latency(**{name: found[name] for name in names})
        for network, found in values["networks"].items()
    }
    return Latencies(**{**known, "networks": networks})
