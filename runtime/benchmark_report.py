"""What a benchmark found: its figures, what they mean, and how they are shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pages.figures import check_can_draw, png_of
from ..schema import as_json
from ..text import shown, table_lines, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NOISE_BOUND = 0.10
"""How far a case's median may lie above its minimum, as a fraction, before it counts as noisy."""

DEFINITIONS = {
    "network_ms": "one Session.run of a batch that lies ready in memory, copies to a device included; of "
    "several side by side ('sessions'), until the last has ended",
    "preprocessing_ms": "decoding and transforming the images of a batch, one after the other",
    "postprocessing_ms": "softmax and predictions of a batch",
    "median, p90, p99, min, max": "over the rounds after the warm-up, in milliseconds a batch",
    "images_per_second": "images of the batches that run side by side over the median of network_ms",
    "ratio": "median over the rounds of network_ms over that of the first artefact and provider in the same "
    "round, batch size, threads, sessions and kernels alike",
    "ratio_of_minima": "the least network_ms over the least of that case; other work on the machine only "
    "ever adds to a time, and spoils this last",
    "case noise": "median over minimum, less one, of a case's network_ms",
    "peak_memory_mb": "resident high-water mark of a process that only opens the artefact and runs batches "
    "three times, in 10^6 bytes",
    "noise": "90th percentile over median, less one, of a fixed single-threaded loop timed in every round",
}

STEPS = {"preprocessing_ms": "#9ecae1", "network_ms": "#3182bd", "postprocessing_ms": "#e6550d"}
"""The steps of a batch, in order, with their colours in a chart."""


@dataclass(frozen=True)
class Case:
    """One thing measured: an artefact at a batch size, with threads, kernels and provider.

    Of ``sessions`` batches that run side by side each has so many threads.
    """

    artefact: str
    batch_size: int
    threads: int
    kernels: str
    provider: str = "auto"
    sessions: int = 1

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        beside = f" in each of {self.sessions} sessions" if self.sessions > 1 else ""
        return f"{shown(self.artefact)}, batch {self.batch_size}, {threads}{beside}"


@dataclass(frozen=True)
class Spread:
    """Milliseconds of one step over the rounds."""

    median: float
    p90: float
    p99: float
    min: float
    max: float

    @classmethod
    def of(cls, milliseconds: NDArray[np.float64]) -> Spread:
        """The spread of samples."""
        return cls(*(float(np.quantile(milliseconds, point)) for point in (0.5, 0.9, 0.99, 0, 1)))


@dataclass(frozen=True)
class Result:
    """What was measured of one case; `DEFINITIONS` says how.

    Attributes:
        case: what was measured.
        executed_by: `Session.path`.
        image_size: side of the input, pixels.
        file_mb: size of the ONNX file or engine that ran, files of weights beside it included, 10^6 bytes.
        network_ms: the network alone.
        preprocessing_ms: None for a file that does not say its mean, std and labels.
        postprocessing_ms: None for a file that does not say its labels.
        images_per_second: how many images the network takes a second.
        ratio: median over the rounds of its latency over that of the first artefact in the same round.
        ratio_of_minima: its least latency over the first artefact's.
        peak_memory_mb: None where the system does not tell, or was not asked.
    """

    case: Case
    executed_by: str
    image_size: int
    file_mb: float
    network_ms: Spread
    preprocessing_ms: Spread | None
    postprocessing_ms: Spread | None
    images_per_second: float
    ratio: float
    ratio_of_minima: float
    peak_memory_mb: float | None

    @property
    def noise(self) -> float:
        """How far the median lies above the minimum, a fraction."""
        return self.network_ms.median / self.network_ms.min - 1


@dataclass(frozen=True)
class Benchmark:
    """All that was measured, with what is needed to judge it.

    Attributes:
        results: one a case, in the order asked for.
        rounds: rounds measured.
        noise: spread of the fixed loop, a fraction.
        machine: facts of the machine and of its state while measuring.
        versions: the versions of everything that ran.
        notes: what there is to say of the artefacts, a line each.
    """

    results: tuple[Result, ...]
    rounds: int
    noise: float
    machine: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """One line that names the cases whose median is not to be relied on."""
        noisy = [result for result in self.results if result.noise > NOISE_BOUND]
        if not noisy:
            return None
        named = "; ".join(f"{result.case}: {result.noise:.0%}" for result in noisy)
        return (
            f"medians lie more than {NOISE_BOUND:.0%} above the minimum ({named}): "
            "compare minima ('least'), or close other programs and measure again"
        )

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        everything = {**asdict(self), "warning": self.warning, "definitions": DEFINITIONS}
        return as_json(everything, indent=2) + "\n"

    def to_text(self, width: int | None = None) -> str:
        """A table for a reader, milliseconds a batch.

        Args:
            width: columns of the terminal, into which the table is cut; None: as wide as need be.
        """
        lines = table_lines(_HEAD, [_cells(result) for result in self.results], (0, len(_HEAD) - 1), width)
        said = [""] if "" in lines else []  # where the table is cut, its end is to be seen
        if len({replace(result.case, artefact="") for result in self.results}) > 1:
            best = max(self.results, key=lambda result: result.images_per_second)
            said.append(f"most images a second, {best.images_per_second:.1f}: {best.case}")
        said.append(
            f"{self.rounds} rounds, milliseconds a batch; ratio: median of the rounds' own, "
            f"least: of minima; noise {self.noise:.1%}"
        )
        return "\n".join([*lines, *(wrapped(line, width) for line in said)]) + "\n"

    def to_png(self) -> bytes:
        """A chart of the medians by step, with the network's minimum and 90th percentile.

        Raises:
            BackendError: Matplotlib is not installed.
        """
        check_can_draw()
        return png_of(self._figure(), "the chart", dpi=150, bbox_inches="tight")

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 1.2 + 0.5 * len(self.results)))
        axes = figure.add_subplot()
        rows = np.arange(len(self.results))
        left = np.zeros(len(rows))
        for name, colour in STEPS.items():
            spreads = [getattr(result, name) for result in self.results]
            medians = np.array([spread.median if spread else 0 for spread in spreads])
            axes.barh(rows, medians, 0.6, left=left, color=colour, label=name.removesuffix("_ms"))
            if name == "network_ms":
                early = medians - [spread.min for spread in spreads]
                late = np.array([spread.p90 for spread in spreads]) - medians
                axes.errorbar(
                    left + medians, rows, xerr=np.array([early, late]), fmt="none", color="black", capsize=3
                )
            left += medians
        # Names of files may hold dollar signs.
        axes.set_yticks(rows, [_caption(result.case) for result in self.results], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds a batch: medians; whiskers: the network's minimum and 90th percentile")
        about = f"{self.machine['processor']}, {self.rounds} rounds, noise {self.noise:.1%}"
        axes.set_title(about, fontsize=10)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        return figure


_HEAD = (
    *("artefact", "size", "batch", "thr", "ses", "median", "p90", "p99", "min", "max", "img/s"),
    *("pre", "post", "MB", "ratio", "least", "run by"),
)


def _ms(value: float) -> str:
    """Milliseconds to a tenth, below one of them to a hundredth: 0.14 is 0.1 no more than 0.05 is."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _cells(result: Result) -> list[str]:
    case, network = result.case, result.network_ms
    steps = (result.preprocessing_ms, result.postprocessing_ms)
    return [
        shown(case.artefact),
        *map(str, (result.image_size, case.batch_size, case.threads, case.sessions)),
        *(_ms(value) for value in (network.median, network.p90, network.p99, network.min, network.max)),
        f"{result.images_per_second:.1f}",
        *("-" if step is None else _ms(step.median) for step in steps),
        f"{result.peak_memory_mb:.0f}" if result.peak_memory_mb else "-",
        *(f"{value:.2f}" for value in (result.ratio, result.ratio_of_minima)),
        result.executed_by,
    ]


def _caption(case: Case) -> str:
    provider = "" if case.provider == "auto" else f", {case.provider}"
    threads = f"{case.threads} threads" if case.sessions == 1 else f"{case.sessions} x {case.threads} threads"
    return f"{case.artefact}\nbatch {case.batch_size}, {threads}, {case.kernels} kernels{provider}"
