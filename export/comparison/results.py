"""What a comparison comes to: each network's figures, its difference to the best, and the front.

All networks answer the same images, so their differences are taken image by image. Intervals are of the
images (or of their patients, where these are known), not of training runs: each network was trained once.

Dims: N images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from ...measures.paired import mcnemar_p, members_of, share_change
from ...measures.predictions import Predictions
from ...measures.uncertainty import LEVEL, RESAMPLES, Interval
from ...model.evaluation.paper import METRICS
from ...model.evaluation.table import Row
from ...model.training.recipe import Recipe
from ...text import share_as_text
from .latency import Latencies, Latency
from .stages import Parity, Trained


@dataclass(frozen=True)
class Scores:
    """What a trained network has right on the images that are tested on."""

    metrics: Mapping[str, float | None]
    """Shares, by the names in `METRICS`."""
    intervals: Mapping[str, Interval | None]
    """95 %, of the same; None where a metric has none."""
    epochs: int
    best_epoch: int
    seconds: float
    """Wall time of training."""

    @classmethod
    def of(cls, trained: Trained, resamples: int = RESAMPLES) -> Scores:
        """The figures of a network's answers."""
        metrics, intervals = trained.predictions.metrics(), trained.predictions.intervals(resamples)
        return cls(
            {name: getattr(metrics, name) for name in METRICS},
            {name: intervals[name] for name in METRICS},
            trained.epochs,
            trained.best_epoch,
            trained.seconds,
        )

    @property
    def accuracy(self) -> float:
        """Overall accuracy, a share."""
        accuracy = self.metrics["accuracy"]
        assert accuracy is not None  # of images, which there are
        return accuracy


@dataclass(frozen=True)
class Difference:
    """A network's accuracy less that of the best, on the same images."""

    value: float
    """A share, not above 0."""
    interval: Interval
    """95 %, of paired images, or of whole groups of them; all that can be where there is one only. It reaches
    0 where the test's p is above 5 %."""
    gained: int
    """Images that it has right and the best has not."""
    lost: int
    """Images that the best has right and it has not."""
    p: float
    """McNemar's exact test; where images come in groups, of whole ones."""

    @property
    def is_told(self) -> bool:
        """Whether these images tell the network from the best."""
        return self.interval.high < 0

    @classmethod
    def of(cls, own: Predictions, best: Predictions) -> Difference | None:
        """The difference of two networks; None where they answered other images."""
        if own.images != best.images:
            return None
        right, best_right = (each.logits.argmax(axis=1) == each.truth for each in (own, best))  # (N,) each
        gained, lost = right & ~best_right, best_right & ~right
        members = members_of(own.groups, len(right))
        more, less = int(gained.sum()), int(lost.sum())
        interval, p = share_change(lost, gained, members), mcnemar_p(lost, gained, members)
        if p > 1 - LEVEL:
            interval = replace(interval, high=max(interval.high, 0.0))
        return cls((more - less) / len(right), interval, more, less, p)


@dataclass(frozen=True)
class Failure:
    """Why a network came no further."""

    stage: str
    """``training``, ``export``, ``parity``, ``results`` or ``latency``."""
    why: str


@dataclass(frozen=True)
class Entry:
    """One network of a comparison; what is not known yet, or failed, is None."""

    network: str
    """The registry's name."""
    parameters: int
    macs: int
    """Multiply-adds of an image of this size, attention and the scan included."""
    printed: Row | None = None
    """What the paper prints of it, on this data set where it has it."""
    scores: Scores | None = None
    difference: Difference | None = None
    """Its accuracy less that of the best; None of the best itself."""
    parity: Parity | None = None
    latency: Latency | None = None
    failure: Failure | None = None

    @property
    def point(self) -> tuple[float, float] | None:
        """Milliseconds and accuracy of an artefact that answers like its network; None without."""
        if self.scores is None or self.latency is None or self.parity is None or not self.parity.kept:
            return None
        return self.latency.median_ms, self.scores.accuracy


@dataclass(frozen=True)
class Comparison:
    """All networks of a comparison, in the order in which they were asked for."""

    data: str
    """What the data set is called."""
    root: str
    """Its folder."""
    split: str
    """The split that is tested on."""
    counts: Mapping[str, int]
    """Images by split."""
    groups: int | None
    """How many patients or slides the images that are tested on come from, copies counted once; None where
    each image counts."""
    recipe: Recipe
    precision: str
    entries: tuple[Entry, ...]
    measured: Latencies | None = None
    """How latencies were measured; None where they were not yet."""

    @cached_property
    def best(self) -> Entry | None:
        """The most accurate entry, among equals that of the highest AUC; None where none is trained."""
        trained = [entry for entry in self.entries if entry.scores is not None]
        return max(trained, key=_rank, default=None)

    @cached_property
    def front(self) -> tuple[Entry, ...]:
        """The entries that none beats in both accuracy and latency, the fastest first."""
        points = {entry.network: entry.point for entry in self.entries if entry.point is not None}
        on_it = front_of(points)
        return tuple(
            sorted(
                (entry for entry in self.entries if entry.network in on_it),
                key=lambda entry: points[entry.network],
            )
        )

    @property
    def advised(self) -> Entry | None:
        """The fastest of those that these images do not tell from the best; None without latencies."""
        return min(self._alike, key=lambda pair: pair[0][0], default=(None, None))[1]

    @cached_property
    def _alike(self) -> list[tuple[tuple[float, float], Entry]]:
        """The best and those that these images do not tell from it, each with its point; none without one."""
        return [
            (entry.point, entry)
            for entry in self.entries
            if entry.point is not None
            and (entry is self.best or (entry.difference is not None and not entry.difference.is_told))
        ]

    @property
    def failed(self) -> tuple[Entry, ...]:
        """The entries that came to no end, or do not answer like their network."""
        return tuple(
            entry
            for entry in self.entries
            if entry.failure is not None or (entry.parity is not None and not entry.parity.kept)
        )

    @property
    def sentence(self) -> str:
        """What it came to, for people."""
        if self.best is None or self.best.scores is None:
            return "No network is trained yet."
        images = self.counts[self.split]
        accuracy = f"{share_as_text(self.best.scores.accuracy)} %"
        said = f"{self.best.network} is the most accurate on these {images} images, {accuracy}."
        if self.advised is None or self.advised.latency is None:
            return said
        took = f"{self.advised.latency.median_ms:.3g} ms"
        if self.advised is not self.best:
            return (
                f"{said} {self.advised.network} is the fastest ({took}) of those that these images cannot "
                "tell apart from it."
            )
        slower = [entry.network for _, entry in self._alike if entry is not self.best]
        untold = f" They do not tell {' or '.join(slower)} from it." if slower else ""
        if self.front == (self.best,):
            return f"{said}{untold} None is faster than its {took}."
        return f"{said}{untold} It takes {took}, and these images suffice to tell every faster one from it."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        front = {entry.network for entry in self.front}
        return {
            "sentence": self.sentence,
            "best": None if self.best is None else self.best.network,
            "front": [entry.network for entry in self.front],
            "advised": None if self.advised is None else self.advised.network,
            "data": self.data,
            "root": self.root,
            "split": self.split,
            "counts": dict(self.counts),
            "groups": self.groups,
            "precision": self.precision,
            "image_size": self.recipe.image_size,
            "recipe": asdict(self.recipe),
            "latency": None
            if self.measured is None
            else {name: value for name, value in asdict(self.measured).items() if name != "networks"},
            "networks": [{**asdict(entry), "on_front": entry.network in front} for entry in self.entries],
        }


def front_of(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names that no other beats: none is as fast and as accurate, and better in one of the two.

    Args:
        points: milliseconds and accuracy by name.
    """
    return {
        name
        for name, (took, accuracy) in points.items()
        if not any(
            other_took <= took and other >= accuracy and (other_took < took or other > accuracy)
            for other_took, other in points.values()
        )
    }


def _rank(entry: Entry) -> tuple[float, float]:
    assert entry.scores is not None
    return entry.scores.accuracy, entry.scores.metrics["auc"] or 0.0
