"""Latency, throughput and memory of artefacts, measured side by side: what `mmdeploy bench` does.

Cases are interleaved: every round runs each case once, in an order shuffled anew, so that whatever slows
the machine for a while slows all of them. Ratios are taken within rounds for the same reason, and beside
them stand ratios of minima, which other work spoils last. The report names each case whose median lies
far above its minimum. A fixed loop is timed in every round, too, and its spread is the machine's own
noise.
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from .. import machine
from ..errors import BackendError, InputError
from ..files import read_file
from ..images import read_image
from ..version import __version__
from .artefact import ENGINE_MAGICS, ENGINE_NAME, MODEL_NAME, model_bytes
from .benchmark_report import STEPS, Benchmark, Case, Result, Spread
from .onnxruntime_library import import_onnxruntime
from .session import Session, open_session

_LOOP = 40_000  # additions of the fixed loop: about a millisecond
_PROBE_SECONDS = 600
_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
        batch_sizes: images a batch.
        threads: CPU threads of a session; None for every usable core, shared out among the sessions.
        sessions: how many batches run side by side, each on threads of its own.
        kernels: the kernels to run, as `open_session` takes them.
        providers: what executes, as `open_session` takes it.
        device: the device to run on, as `open_session` takes it.
        rounds: measured rounds, at most.
        warmup: rounds before those, not counted.
        seconds: time after which no further round begins (five are measured at least).
        image: file to preprocess; None for a picture made up of 640x480 pixels.
        memory: whether each case is run in a process of its own, too, to measure its memory.
    """

    batch_sizes: Sequence[int] = (1,)
    threads: Sequence[int | None] = (None,)
    sessions: Sequence[int] = (1,)
    kernels: Sequence[str] = ("auto",)
    providers: Sequence[str] = ("auto",)
    device: str = "auto"
    rounds: int = 50
    warmup: int = 5
    seconds: float = 120
    image: str | os.PathLike[str] | None = None
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "threads", "sessions", "kernels", "providers"):
            if not getattr(self, name):
                raise InputError(f"no {name} to measure: give at least one")
        for name in ("batch_sizes", "threads", "sessions"):
            below = [number for number in getattr(self, name) if number is not None and number < 1]
            if below:
                raise InputError(f"{below[0]} among the {name}: expected at least 1")
        if self.rounds < 1 or self.warmup < 0:
            raise InputError(f"{self.rounds} rounds after {self.warmup}: expected at least 1 after 0 or more")


def benchmark(
    artefacts: Sequence[str | os.PathLike[str]],
    options: BenchmarkOptions | None = None,
    *,
    report: Callable[[str], None] = lambda step: None,
) -> Benchmark:
    """Measures artefacts side by side.

    Args:
        artefacts: bundles or ONNX files; ratios are to the first.
        options: what to measure.
        report: is told each step as it begins.

    Raises:
        ArtefactError, BackendError: an artefact cannot be opened or run as asked.
        ImageError: the image cannot be used.
        InputError: there is nothing to measure, or a number of threads is none.
    """
    options = options or BenchmarkOptions()
    if not artefacts:
        raise InputError("no artefact to measure: give at least one")
    wanted = product(
        map(str, artefacts),
        options.providers,
        options.kernels,
        options.threads,
        options.sessions,
        options.batch_sizes,
    )
    cases = list(
        dict.fromkeys(
            Case(name, batch_size, _threads_of_each(threads, sessions), kernels, provider, sessions)
            for name, provider, kernels, threads, sessions, batch_size in wanted
        )
    )
    state = _state()
    encoded = _made_up_image() if options.image is None else _image_file(options.image)
    with ExitStack() as stack:
        report("opening")
        opened = {
            key: stack.enter_context(_opened(*key, options.device))
            for key in dict.fromkeys(map(_session_key, cases))
        }
        runs = [stack.enter_context(_Run(case, opened[_session_key(case)], encoded)) for case in cases]
        notes = dict.fromkeys(
            f"{name}: {note}" for (name, *_), session in opened.items() for note in session.notes
        )
        loop_ms = _measure(runs, options, report)
        memory: list[float | None] = [None] * len(cases)
        if options.memory:
            report("measuring memory")
            memory = [_peak_memory_mb(case, options.device) for case in cases]
        results = tuple(
            run.result(_first_alike(runs, run), peak) for run, peak in zip(runs, memory, strict=True)
        )
    noise = float(np.quantile(loop_ms, 0.9) / np.median(loop_ms) - 1)
    state["load_average_after"] = machine.load_average()
    return Benchmark(results, len(loop_ms), noise, state, _versions(), tuple(notes))


class _Run:
    """One case being measured: its session, its input and its samples.

    What runs side by side runs in one `Session`, which many threads may call: it differs from as many of them
    in its memory alone.
    """

    def __init__(self, case: Case, session: Session, encoded: bytes) -> None:
        self.case, self._session, self._encoded = case, session, encoded
        self._lanes = ThreadPoolExecutor(case.sessions - 1) if case.sessions > 1 else None
        if session.image_size is None:
            raise InputError(f"'{case.artefact}' leaves its image size open: export it with one")
        if session.max_batch is not None and case.batch_size > session.max_batch:
            raise InputError(
                f"'{case.artefact}' takes batches of at most {session.max_batch}, not {case.batch_size}"
            )
        self._size = session.image_size
        self._classifies = session.labels is not None and session.transform is not None
        shape = (case.batch_size, 3, self._size, self._size)
        self._images = np.random.default_rng(0).standard_normal(shape, np.float32)
        self._samples: dict[str, list[float]] = {step: [] for step in STEPS}

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *reason: object) -> None:
        if self._lanes is not None:
            self._lanes.shutdown()

    def _answered(self) -> NDArray[np.float32]:
        """The logits of a batch, when as many as run side by side have theirs."""
        if self._lanes is None:
            return self._session.run(self._images)
        others = [self._lanes.submit(self._session.run, self._images) for _ in range(self.case.sessions - 1)]
        logits = self._session.run(self._images)
        for other in others:
            other.result()
        return logits

    def once(self, counted: bool) -> None:
        """Runs the case once, and keeps its times unless it is a warm-up."""
        moments = [time.perf_counter()]
        if self._classifies:
            for _ in range(self.case.batch_size):
                self._session.prepare(self._encoded)
        moments.append(time.perf_counter())
        logits = self._answered()
        moments.append(time.perf_counter())
        if self._classifies:
            self._session.predictions(logits)
        moments.append(time.perf_counter())
        if counted:
            for step, seconds in zip(STEPS, np.diff(moments), strict=True):
                self._samples[step].append(seconds * 1e3)

    def result(self, first: _Run, peak_memory_mb: float | None) -> Result:
        """What was measured, beside the case that the ratio is to."""
        samples = {step: np.array(values) for step, values in self._samples.items()}
        network = Spread.of(samples["network_ms"])
        of_first = np.array(first._samples["network_ms"])
        return Result(
            case=self.case,
            executed_by=self._session.path,
            image_size=self._size,
            file_mb=model_bytes(_model_file(self.case.artefact, self._session.provider)) / 1e6,
            network_ms=network,
            preprocessing_ms=Spread.of(samples["preprocessing_ms"]) if self._classifies else None,
            postprocessing_ms=Spread.of(samples["postprocessing_ms"]) if self._classifies else None,
            images_per_second=self.case.sessions * self.case.batch_size / network.median * 1e3,
            ratio=float(np.median(samples["network_ms"] / of_first)),
            ratio_of_minima=network.min / float(of_first.min()),
            peak_memory_mb=peak_memory_mb,
        )


def _measure(runs: list[_Run], options: BenchmarkOptions, report: Callable[[str], None]) -> list[float]:
    """Runs the rounds; returns the fixed loop's milliseconds, one a round."""
    order, shuffle = list(runs), random.Random(0).shuffle
    report("warming up")
    for _ in range(options.warmup):
        for run in runs:
            run.once(counted=False)
        _fixed_loop_ms()
    report("measuring")
    deadline = time.perf_counter() + options.seconds
    loop_ms: list[float] = []
    while len(loop_ms) < options.rounds and (len(loop_ms) < _LEAST_ROUNDS or time.perf_counter() < deadline):
        shuffle(order)
        for run in order:
            run.once(counted=True)
        loop_ms.append(_fixed_loop_ms())
    return loop_ms


def _fixed_loop_ms() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(_LOOP):
        total += number
    return (time.perf_counter() - started) * 1e3


def _threads_of_each(threads: int | None, sessions: int) -> int:
    """Those asked for, or as many as each session has of the usable cores."""
    return max(1, machine.threads_to_use(None) // sessions) if threads is None else threads


def _session_key(case: Case) -> tuple[str, int, str, str]:
    return case.artefact, case.threads, case.kernels, case.provider


def _opened(artefact: str, threads: int, kernels: str, provider: str, device: str) -> Session:
    # The guard judges pictures, and here there are none but noise.
    return open_session(
        artefact, device=device, threads=threads, kernels=kernels, provider=provider, guard=False
    )


def _first_alike(runs: list[_Run], run: _Run) -> _Run:
    """The run of the first artefact and provider with the same batch size, threads, sessions and kernels."""

    def conditions(case: Case) -> Case:
        return replace(case, artefact="", provider="")

    return next(other for other in runs if conditions(other.case) == conditions(run.case))


def _model_file(artefact: str, provider: str) -> Path:
    """The file that runs: of a bundle the engine where a TensorRT library executes it."""
    path = Path(artefact)
    name = ENGINE_NAME if provider in ENGINE_MAGICS.values() else MODEL_NAME
    return path / name if path.is_dir() else path


def _peak_memory_mb(case: Case, device: str) -> float | None:
    """Runs `memory_probe` on a case."""
    request = {**asdict(case), "device": device, "guard": False}
    code = f"from {__package__}.memory_probe import main; main()"
    probe = machine.python_command(code, json.dumps(request))
    try:
        answer = subprocess.run(probe, check=True, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or [f"status {error.returncode}"]
        raise BackendError(f"measuring the memory of '{case.artefact}' failed: {reason[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"measuring the memory of '{case.artefact}' took over {_PROBE_SECONDS} s: use smaller batches"
        ) from error
    peak = json.loads(answer.stdout)
    return None if peak is None else peak / 1e6


def _image_file(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file that can be used."""
    read_image(path)
    return read_file(path)


def _made_up_image() -> bytes:
    """A picture of soft blobs, as a JPEG file of 640x480 pixels: what a microscope's camera might save."""
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _state() -> dict[str, Any]:
    """The machine before the measurement."""
    return {
        "processor": machine.processor(),
        "instruction_sets": machine.processor_features(),
        "usable_cores": machine.usable_cores(),
        "memory_bytes": machine.memory_bytes(),
        "platform": platform.platform(),
        "clock": machine.clock_state(),
        "load_average_before": machine.load_average(),
    }


def _versions() -> dict[str, str]:
    """Those of what ran, as the modules say them: ONNX Runtime comes in packages of several names."""
    return {
        "msmamba": __version__,
        "python": platform.python_version(),
        "onnxruntime": import_onnxruntime().__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
