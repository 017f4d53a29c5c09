"""A comparison as one table: for a terminal, as csv and in Markdown."""

from __future__ import annotations

from typing import Any

from ...measures.uncertainty import Interval
from ...model.evaluation.paper import METRICS
from ...model.evaluation.table import MARK, NO_INTERVAL, UNKNOWN, Table, lacks_intervals
from ...text import share_as_text
from .results import Comparison, Entry
from .stages import Parity

ON_FRONT = "*"


def table_of(comparison: Comparison) -> Table:
    """The networks under each other, with what a reader has to know."""
    in_paper = any(entry.printed is not None and entry.printed.metrics for entry in comparison.entries)
    head = ["network", "accuracy %", "to the best", "AUC", "precision %", "params M", "GMACs"]
    head += ["ms", "MB", "parity", "front"]
    head += ["paper OA %", "paper AUC"] if in_paper else []
    front = {entry.network for entry in comparison.front}
    return Table(
        head=tuple(head),
        lines=[
            [
                entry.network,
                *scores_as_text(entry),
                f"{entry.parameters / 1e6:.2f}",
                f"{entry.macs / 1e9:.3g}",
                *artefact_as_text(entry),
                ON_FRONT if entry.network in front else "",
                *(printed_as_text(entry) if in_paper else ()),
            ]
            for entry in comparison.entries
        ],
        records=[_record(comparison, entry, entry.network in front) for entry in comparison.entries],
        notes=[comparison.sentence, *notes_on(comparison)],
        footnotes=[*failures_of(comparison), *doubts_of(comparison)],
        words=1,
    )


def scores_as_text(entry: Entry) -> tuple[str, str, str, str]:
    """Accuracy, its difference to the best, AUC and precision, with their intervals."""
    if entry.scores is None:
        return (UNKNOWN,) * 4
    accuracy, auc, precision = (
        _with_interval(entry.scores.metrics[name], entry.scores.intervals[name], scale, decimals)
        for name, scale, decimals in (("accuracy", 100, 1), ("auc", 1, 3), ("precision", 100, 1))
    )
    return accuracy, difference_as_text(entry), auc, precision


def difference_as_text(entry: Entry) -> str:
    """A network's accuracy less that of the best, in points, with its interval."""
    found = entry.difference
    if found is None:
        return "best" if entry.scores is not None else UNKNOWN
    return f"{100 * found.value:+.1f} [{100 * found.interval.low:+.1f}, {100 * found.interval.high:+.1f}]"


def artefact_as_text(entry: Entry) -> tuple[str, str, str]:
    """Latency in milliseconds, size of the file in megabytes, and whether parity is kept."""
    latency, parity = entry.latency, entry.parity
    took, size = (
        (UNKNOWN, UNKNOWN) if latency is None else (f"{latency.median_ms:.3g}", f"{latency.file_mb:.1f}")
    )
    return took, size, UNKNOWN if parity is None else parity_as_text(entry)


def parity_as_text(entry: Entry) -> str:
    """The verdict, and how many images get another label where some do."""
    assert entry.parity is not None
    flips = entry.parity.flips
    flipped = f", {flips} {'flip' if flips == 1 else 'flips'}" if flips else ""
    return f"{'kept' if entry.parity.kept else 'LOST'}{flipped}"


def undecided_as_text(parity: Parity) -> str:
    """How many images the network itself does not decide; empty where it decides all."""
    if not parity.undecided:
        return ""
    return f" (the network itself does not decide {parity.undecided} of {parity.images} images)"


def printed_as_text(entry: Entry) -> tuple[str, str]:
    """The accuracy and AUC that the paper prints for this data set, with the mark of a doubt."""
    cells = []
    for name, scale, decimals in (("accuracy", 100, 2), ("auc", 1, 4)):
        value = None if entry.printed is None else entry.printed.metrics.get(name)
        doubted = entry.printed is not None and entry.printed.doubt(name) is not None
        cells.append(UNKNOWN if value is None else f"{scale * value:.{decimals}f}{MARK if doubted else ''}")
    accuracy, auc = cells
    return accuracy, auc


def notes_on(comparison: Comparison) -> list[str]:
    """What a reader of the figures has to know."""
    size, images = comparison.recipe.image_size, comparison.counts[comparison.split]
    groups = ""
    if comparison.groups is not None:
        counted = "1 group" if comparison.groups == 1 else f"{comparison.groups} groups"
        groups = f" in {counted} (patients, slides, copies)"
    drawn = "images" if comparison.groups is None else "whole groups of images"
    notes = [
        f"{comparison.data}: {images} images{groups} of the {comparison.split} split, {size}x{size} pixels; "
        f"each network trained once, from scratch, by the same recipe.",
        f"[low, high]: 95 % interval over {drawn}, paired for differences (points); what another "
        "training run could give is not in it.",
        f"params and GMACs with this many classes at {size}x{size}, attention and scans included.",
    ]
    if comparison.measured is not None:
        measured = comparison.measured
        notes.append(
            f"ms: median of {measured.rounds} interleaved rounds, one image, {measured.threads} "
            f"{'thread' if measured.threads == 1 else 'threads'}, {comparison.precision}, "
            f"{measured.processor}. {ON_FRONT}: none is as accurate and faster, or as fast and more accurate."
        )
        if measured.warning:
            notes.append(
                f"Latencies are in doubt: {measured.warning}. The least are min_ms in results.csv; without "
                "bench.json they are measured again."
            )
    scored = [entry.scores for entry in comparison.entries if entry.scores is not None]
    if any(lacks_intervals(scores.metrics, scores.intervals) for scores in scored):
        notes.append(NO_INTERVAL)
    if any(entry.scores is None or entry.latency is None for entry in comparison.entries):
        notes.append(f"{UNKNOWN}: not known yet; the same command goes on.")
    return notes


def failures_of(comparison: Comparison) -> list[str]:
    """What went wrong, a line each."""
    lines = [
        f"{entry.network} failed in {entry.failure.stage}: {entry.failure.why}"
        for entry in comparison.entries
        if entry.failure is not None
    ]
    lines += [
        f"{entry.network}'s {comparison.precision} bundle does not answer like its network: "
        f"'{entry.network}/{comparison.precision}/parity.json' says where{undecided_as_text(entry.parity)}"
        for entry in comparison.entries
        if entry.parity is not None and not entry.parity.kept
    ]
    return lines


def doubts_of(comparison: Comparison) -> list[str]:
    """What a `MARK` stands for."""
    return [
        f"{MARK} {entry.network} in the paper, {doubt.figure} {doubt.printed:.2f}: {doubt.why}."
        for entry in comparison.entries
        if entry.printed is not None and entry.printed.metrics
        for doubt in entry.printed.doubts
        if doubt.figure in METRICS
    ]


def _with_interval(value: float | None, interval: Interval | None, scale: int, decimals: int) -> str:
    if value is None:
        return UNKNOWN
    text = share_as_text(value, decimals, scale)
    if interval is None:
        return text
    return f"{text} [{scale * interval.low:.{decimals}f}, {scale * interval.high:.{decimals}f}]"


def _record(comparison: Comparison, entry: Entry, on_front: bool) -> dict[str, Any]:
    """An entry's figures, unrounded."""
    scores, difference, latency, parity = entry.scores, entry.difference, entry.latency, entry.parity
    record: dict[str, Any] = {
        "network": entry.network,
        "data": comparison.data,
        "split": comparison.split,
        "images": comparison.counts[comparison.split],
        "image_size": comparison.recipe.image_size,
        "precision_asked": comparison.precision,
    }
    for name in METRICS:
        interval = None if scores is None else scores.intervals[name]
        record[name] = None if scores is None else scores.metrics[name]
        record[f"{name}_low"] = None if interval is None else interval.low
        record[f"{name}_high"] = None if interval is None else interval.high
    record |= {
        "to_best": None if difference is None else difference.value,
        "to_best_low": None if difference is None else difference.interval.low,
        "to_best_high": None if difference is None else difference.interval.high,
        "p": None if difference is None else difference.p,
        "parameters": entry.parameters,
        "macs": entry.macs,
        "median_ms": None if latency is None else latency.median_ms,
        "p90_ms": None if latency is None else latency.p90_ms,
        "min_ms": None if latency is None else latency.min_ms,
        "file_mb": None if latency is None else latency.file_mb,
        "parity_kept": None if parity is None else parity.kept,
        "flips": None if parity is None else parity.flips,
        "max_abs_error": None if parity is None else parity.max_abs_error,
        "on_front": on_front,
        "epochs": None if scores is None else scores.epochs,
        "best_epoch": None if scores is None else scores.best_epoch,
        "training_seconds": None if scores is None else scores.seconds,
    }
    printed = entry.printed
    record |= {
        "paper_parameters_m": None if printed is None else printed.parameters,
        "paper_gmacs": None if printed is None else printed.macs,
        **{f"paper_{name}": None if printed is None else printed.metrics.get(name) for name in METRICS},
        "failed_in": None if entry.failure is None else entry.failure.stage,
        "failure": None if entry.failure is None else entry.failure.why,
    }
    return record
