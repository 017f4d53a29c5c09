"""A benchmark measures what it says, side by side, and records what is needed to judge it."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from full_disk import no_file_larger_than
from PIL import Image

from msmamba import machine
from msmamba.cli import mmdeploy
from msmamba.errors import ArtefactError, BackendError, ImageError, InputError, Note
from msmamba.runtime import Session
from msmamba.runtime import benchmark as module
from msmamba.runtime.benchmark import BenchmarkOptions, benchmark
from msmamba.runtime.benchmark_report import Benchmark, Spread

from .conftest import classifier

measure_peak_memory = module._peak_memory_mb
QUICK = BenchmarkOptions(rounds=3, warmup=1, threads=(1,))


@pytest.fixture(autouse=True)
def no_memory_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the processes that would measure the memory; one test asks for them."""
    monkeypatch.setattr(module, "_peak_memory_mb", lambda case, device: 123.0)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An ONNX file that does not say how its images are prepared."""
    (tmp_path / "bare.onnx").write_bytes(classifier(size=32).SerializeToString())
    return tmp_path / "bare.onnx"


@pytest.fixture
def found(bundle: Path, bare: Path) -> Benchmark:
    return benchmark([bundle, bare], QUICK)


def test_every_artefact_has_its_figures(found: Benchmark, bundle: Path, bare: Path) -> None:
    one, other = found.results
    assert (one.case.artefact, other.case.artefact) == (str(bundle), str(bare))
    assert (one.image_size, other.image_size) == (9, 32)
    assert found.rounds == 3
    for result in found.results:
        spread = result.network_ms
        assert 0 < spread.min <= spread.median <= spread.p90 <= spread.p99 <= spread.max
        assert result.images_per_second == pytest.approx(1000 / spread.median)
        assert result.executed_by.startswith("onnxruntime CPU")
    assert one.ratio == 1
    assert one.file_mb == pytest.approx((bundle / "model.onnx").stat().st_size / 1e6)


@pytest.mark.parametrize("in_one", [True, False], ids=["in-one-file", "in-a-file-each"])
def test_the_size_has_the_weights_beside_the_file(in_one: bool, tmp_path: Path) -> None:
    onnx.save_model(
        classifier(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=in_one,
        location="weights" if in_one else None,
        size_threshold=60,
    )
    written = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(written) > 1
    (tmp_path / "other").write_bytes(b"of something else")
    (found,) = benchmark([tmp_path / "m.onnx"], QUICK).results
    assert found.file_mb == pytest.approx(sum(written) / 1e6)


def test_only_what_classifies_is_split_into_steps(found: Benchmark) -> None:
    one, other = found.results
    assert one.preprocessing_ms is not None
    assert one.postprocessing_ms is not None
    assert other.preprocessing_ms is None
    assert other.postprocessing_ms is None


def give_a_guard(bundle: Path) -> None:
    """One of another network, with which the bundle does not open unless the guard is left out."""
    written = json.loads((bundle / "manifest.json").read_text())
    written["guard"] = {
        "network_sha256": "ab" * 32,
        **dict.fromkeys(("max_error", "confidence", "temperature", "threshold", "candidate_bound"), 0.5),
        **dict.fromkeys(("images", "answered", "errors"), 1),
    }
    (bundle / "manifest.json").write_text(json.dumps(written))


@pytest.mark.skipif(machine.peak_memory_bytes() is None, reason="this system does not tell")
def test_the_peak_memory_is_a_processes_own(
    found: Benchmark, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What came with an artefact is not taken for a library, as Python itself takes what is in the folder.
    for name in ("json", "runpy", "numpy", "typing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this was executed')")
    monkeypatch.chdir(tmp_path)
    give_a_guard(bundle)
    held = np.ones(300_000_000, np.uint8)  # by this process: the probe must not count it
    for result in found.results:
        peak = measure_peak_memory(result.case, "auto")
        assert peak is not None
        assert 20 < peak < held.nbytes / 1e6
    assert found.results[0].peak_memory_mb == 123


def test_every_combination_is_measured_and_compared_with_its_like(bundle: Path, bare: Path) -> None:
    options = dataclasses.replace(QUICK, batch_sizes=(1, 3), threads=(1, 2), kernels=("auto", "functions"))
    found = benchmark([bundle, bare, bundle], options)
    cases = [result.case for result in found.results]
    assert len(set(cases)) == len(cases) == 16
    assert {case.batch_size for case in cases} == {1, 3}
    assert {case.threads for case in cases} == {1, 2}
    for result in found.results:
        if result.case.artefact == str(bundle):
            assert result.ratio == 1
        assert result.images_per_second == pytest.approx(
            result.case.batch_size * 1e3 / result.network_ms.median
        )


def test_batches_side_by_side_are_run_at_once_on_threads_of_their_own(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)
    run = Session.run

    def meeting(session: Session, images: Any) -> Any:
        together.wait(timeout=10)  # none goes on before all three have come
        return run(session, images)

    monkeypatch.setattr(Session, "run", meeting)
    monkeypatch.setattr(machine, "usable_cores", lambda: 7)
    found = benchmark([bundle], dataclasses.replace(QUICK, sessions=(3,), threads=(None,), batch_sizes=(2,)))
    (result,) = found.results
    assert (result.case.sessions, result.case.threads) == (3, 2)
    assert result.images_per_second == pytest.approx(6e3 / result.network_ms.median)


def test_the_case_of_most_images_a_second_is_named(bundle: Path) -> None:
    found = benchmark([bundle], dataclasses.replace(QUICK, sessions=(1, 2), threads=(1,)))
    beside = found.results[1]
    best = max(found.results, key=lambda result: result.images_per_second)
    assert f"most images a second, {best.images_per_second:.1f}: {best.case}\n" in found.to_text()
    assert str(beside.case) == f"{bundle}, batch 1, 1 thread in each of 2 sessions"
    assert "most images" not in benchmark([bundle], QUICK).to_text()


def test_rounds_are_interleaved(bundle: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, bool]] = []
    once = module._Run.once
    monkeypatch.setattr(
        module._Run,
        "once",
        lambda self, counted: (ran.append((self.case.artefact, counted)), once(self, counted)),
    )
    benchmark([bundle, bare], dataclasses.replace(QUICK, rounds=6))
    rounds = [tuple(name for name, _ in ran[start : start + 2]) for start in range(0, len(ran), 2)]
    assert [set(each) for each in rounds] == [{str(bundle), str(bare)}] * 7
    assert len(set(rounds[1:])) == 2  # in an order shuffled anew
    assert [counted for _, counted in ran] == [False] * 2 + [True] * 12


def test_sessions_run_as_asked(bundles: dict[str, Path]) -> None:
    options = dataclasses.replace(QUICK, rounds=1, warmup=0, kernels=("functions", "native"))
    plain, native = benchmark([bundles["fp32"]], options).results
    assert plain.executed_by == "onnxruntime CPU, ONNX functions (asked for)"
    assert native.executed_by.startswith("onnxruntime CPU, native kernels ")


def test_a_guard_that_nothing_asks_is_left_out(bundle: Path) -> None:
    give_a_guard(bundle)
    assert benchmark([bundle], dataclasses.replace(QUICK, rounds=1, warmup=0)).rounds == 1


def test_time_ends_the_rounds_but_five_are_measured(bundle: Path) -> None:
    found = benchmark([bundle], dataclasses.replace(QUICK, rounds=1000, seconds=0))
    assert found.rounds == 5


def test_the_batch_goes_through_all_steps(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[object] = []
    shapes: list[tuple[int, ...]] = []
    prepare, run = Session.prepare, Session.run
    monkeypatch.setattr(
        Session, "prepare", lambda self, image: (prepared.append(image), prepare(self, image))[1]
    )
    monkeypatch.setattr(
        Session, "run", lambda self, images: (shapes.append(images.shape), run(self, images))[1]
    )
    benchmark([bundle], dataclasses.replace(QUICK, batch_sizes=(3,)))
    assert len(prepared) == 4 * 3
    assert shapes == [(3, 3, 9, 9)] * 4


def test_spreads_are_the_quantiles() -> None:
    spread = Spread.of(np.arange(101.0))
    assert spread == Spread(median=50, p90=90, p99=99, min=0, max=100)


def test_noise_is_a_case_s_own(found: Benchmark) -> None:
    quiet, noisy = found.results
    quiet = dataclasses.replace(quiet, network_ms=Spread(median=10.9, p90=30, p99=30, min=10, max=30))
    noisy = dataclasses.replace(noisy, network_ms=Spread(median=15, p90=16, p99=16, min=10, max=16))
    assert dataclasses.replace(found, results=(quiet, quiet)).warning is None
    warning = dataclasses.replace(found, results=(quiet, noisy)).warning
    assert warning is not None
    assert f"({noisy.case.artefact}, batch 1, 1 thread: 50%)" in warning


def test_the_machine_s_noise_is_the_fixed_loop_s(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0] * 4 + [5.0])
    monkeypatch.setattr(module, "_fixed_loop_ms", lambda: next(times))
    found = benchmark([bundle], dataclasses.replace(QUICK, warmup=0, rounds=5))
    assert found.noise == pytest.approx(0.6 * 4)


def test_minima_are_compared_with_minima(found: Benchmark) -> None:
    one, other = found.results
    assert one.ratio_of_minima == 1
    assert other.ratio_of_minima == pytest.approx(other.network_ms.min / one.network_ms.min)


def test_the_record_says_what_was_measured_on_what(found: Benchmark) -> None:
    record = json.loads(found.to_json())
    assert {"network_ms", "ratio", "peak_memory_mb", "noise"} <= set(record["definitions"])
    assert {"processor", "usable_cores", "clock", "load_average_before"} <= set(record["machine"])
    assert {"msmamba", "python", "onnxruntime", "numpy"} <= set(record["versions"])
    assert record["results"][1]["preprocessing_ms"] is None
    assert record["results"][0]["case"]["threads"] == 1


def test_the_table_has_a_line_a_case(found: Benchmark) -> None:
    header, rule, first, second, footer = found.to_text().splitlines()
    assert set(rule) == {"─"}
    assert header.startswith("artefact")
    assert first.split()[0].endswith("colours.bundle")
    assert " - " in second
    assert "3 rounds" in footer


def test_the_chart_is_a_picture(found: Benchmark) -> None:
    picture = np.asarray(Image.open(io.BytesIO(found.to_png())).convert("RGB"))
    assert min(picture.shape[:2]) > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    first = found.results[0]
    named = replace(first, case=replace(first.case, artefact=r"$\foo$.onnx"))
    assert replace(found, results=(named,)).to_png().startswith(b"\x89PNG")  # a name is no formula
    named = replace(first, case=replace(first.case, artefact="細胞.onnx"))
    with pytest.warns(Note) as told:
        replace(found, results=(named, named)).to_png()
    (note,) = told
    assert str(note.message) == "the chart: the font of pictures has no 細胞, drawn as boxes"


def test_json_has_no_number_that_its_standard_does_not_know(found: Benchmark) -> None:
    first, *others = found.results
    odd = dataclasses.replace(first, ratio=float("inf"), images_per_second=float("nan"))
    written = dataclasses.replace(found, results=(odd, *others), noise=float("nan")).to_json()
    read = json.loads(written, parse_constant=pytest.fail)
    assert (read["noise"], read["results"][0]["ratio"]) == (None, None)


def test_the_command_writes_its_files(bundle: Path, tmp_path: Path) -> None:
    arguments = ["bench", str(bundle), "--rounds", "2", "--warmup", "0", "--threads", "1"]
    record, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    result = CliRunner().invoke(mmdeploy, [*arguments, "-o", str(record), "--plot", str(plot)])
    assert result.exit_code == 0
    assert result.stdout.startswith("artefact")
    assert json.loads(record.read_text())["rounds"] == 2
    before = plot.read_bytes()
    assert before.startswith(b"\x89PNG")
    record.write_bytes(b"of the chart")
    with no_file_larger_than(len(before) // 2):
        result = CliRunner().invoke(mmdeploy, [*arguments, "-o", str(record), "--plot", str(plot)])
    assert (result.exit_code, record.read_bytes(), plot.read_bytes()) == (1, b"of the chart", before)


def test_what_a_chart_lacks_is_said_before_anything_is_measured(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(
        module, "_measure", lambda runs, options, report: pytest.fail("nothing is to be lost")
    )
    result = CliRunner().invoke(mmdeploy, ["bench", str(bundle), "--plot", str(tmp_path / "bench.png")])
    assert result.exit_code == 1
    assert result.stderr == "error: pictures need Matplotlib: pip install matplotlib\n"


def test_what_cannot_be_measured_is_refused(bundle: Path, bare: Path, tmp_path: Path) -> None:
    bare.write_bytes(classifier(size="side").SerializeToString())
    for artefacts, options, error, message in [
        ([], QUICK, InputError, "no artefact"),
        ([tmp_path / "missing"], QUICK, ArtefactError, "does not exist"),
        ([bare], QUICK, InputError, "leaves its image size open"),
        ([bundle], dataclasses.replace(QUICK, image="missing.png"), ImageError, "does not exist"),
        ([bundle], dataclasses.replace(QUICK, device="tpu"), BackendError, "unknown"),
    ]:
        with pytest.raises(error, match=message):
            benchmark(artefacts, options)
    bare.write_bytes(classifier(batch=1).SerializeToString())
    with pytest.raises(InputError, match="at most 1, not 2"):
        benchmark([bare], dataclasses.replace(QUICK, batch_sizes=(2,)))
    assert benchmark([bare], QUICK).results[0].case.batch_size == 1
    with pytest.raises(InputError, match="no threads"):
        BenchmarkOptions(threads=())
    with pytest.raises(InputError, match="0 rounds"):
        BenchmarkOptions(rounds=0)
    for name in ("batch_sizes", "threads", "sessions"):
        with pytest.raises(InputError, match=f"0 among the {name}"):
            BenchmarkOptions(**{name: (1, 0)})


def test_usable_cores_heed_a_containers_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "_CGROUP_QUOTA", quota)
    whole = machine.usable_cores()
    for text, expected in [("max 100000", whole), ("50000 100000", 1), ("150000 100000", min(2, whole))]:
        quota.write_text(text + "\n")
        assert machine.usable_cores() == expected


@pytest.mark.parametrize("columns", [60, 80])
def test_the_command_prints_tables_that_a_terminal_does_not_wrap(columns: int, bundle: Path) -> None:
    few = ["--rounds", "5", "--seconds", "0.1"]
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(mmdeploy, ["bench", str(bundle), *few])
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "run by" in done.stdout
    whole = CliRunner(env={"COLUMNS": None}).invoke(mmdeploy, ["bench", str(bundle), *few])
    assert whole.stdout.splitlines()[0].endswith("run by")
