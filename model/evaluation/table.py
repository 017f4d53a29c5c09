"""The paper's tables for the runs at hand: a run's figures above those that the paper prints for its network.

Multiply-adds and parameters are counted as the paper counts (see `complexity`), at 224x224 and with its
number of classes, so that the columns can be compared. Intervals are of the images (see `uncertainty`), not
of training runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import DataError, TrainingError
from ...measures.predictions import PREDICTIONS, Predictions, read_predictions
from ...measures.uncertainty import RESAMPLES, Interval
from ...text import as_cell, as_row, share_as_text, shown, table_lines, wrapped
from ..networks.complexity import complexity
from ..networks.family import Architecture
from ..networks.registry import family_of
from ..training.run import METRICS as RUN_METRICS
from ..training.run import RunFolder
from .paper import (
    ABLATIONS,
    DOUBTS,
    METRICS,
    PEERS,
    PUBLISHED,
    Doubt,
    PaperRow,
    Peer,
    Results,
    printed_results,
    read_published,
)

PAPER_SIZE = 224
"""Side of the images that the paper counts multiply-adds for."""
UNKNOWN = "–"
PAPER = "paper"
NO_INTERVAL = (
    "A figure without [low, high] is of one image or patient only, or the same in every resample: nothing "
    "tells how far it may be off."
)
MARK = "†"
"""Behind a figure that others of the paper contradict."""

_COLUMNS = {
    "parameters": "params M",
    "macs": "GMACs",
    "accuracy": "OA %",
    "auc": "AUC",
    "precision": "precision %",
}


@dataclass(frozen=True)
class Row:
    """One line of a table: a run of ours, or what the paper prints."""

    network: str
    source: str
    """The run folder, or ``paper``."""
    table: str = UNKNOWN
    """The paper's table that has the network."""
    data: str | None = None
    split: str | None = None
    images: int | None = None
    """How many images the split has."""
    image_size: int | None = None
    """Side of the network's input, pixels."""
    parameters: float | None = None
    """Millions, with the paper's number of classes."""
    own_parameters: int | None = None
    """Parameters with the run's number of classes."""
    macs: float | None = None
    """10^9 at 224x224, the paper's count."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Shares, by the names in `METRICS`."""
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    epochs: int | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    """Wall time of training."""
    doubts: tuple[Doubt, ...] = ()
    """Those of the row's figures that others of the paper contradict."""

    def doubt(self, figure: str) -> Doubt | None:
        """Why one of the figures is doubted, if it is."""
        return next((doubt for doubt in self.doubts if doubt.figure == figure), None)


def run_rows(run: str | Path, published: Results | None = None, resamples: int = RESAMPLES) -> list[Row]:
    """A finished run's row, and the paper's below it where the network is in the paper.

    Args:
        run: the run folder.
        published: results in place of those that the paper prints.
        resamples: how many the bootstrap draws.

    Raises:
        TrainingError: not a run, or not a finished one.
        DataError: its predictions cannot be read.
    """
    folder = RunFolder(run)
    begun, config = folder.read_beginning(), folder.read_config()
    if begun is None or config is None:
        raise TrainingError(f"'{run}' is no run: expected a folder that 'mmdeploy train' wrote")
    results = folder.read_metrics()
    split = "test" if results["test"] else "val"
    found = results[split]
    metrics = {name: found[name] for name in METRICS}
    intervals: dict[str, Interval | None] = {}
    if (folder.path / PREDICTIONS).exists():
        predictions = read_predictions(folder.path / PREDICTIONS)
        if split not in predictions:
            raise DataError(f"{folder.path / PREDICTIONS}: has no images of the {split} split")
        if not _agree(found, predictions[split]):
            raise DataError(
                f"{folder.path / PREDICTIONS}: is not of the answers that {RUN_METRICS} measures: "
                "'mmdeploy train … --resume' writes both again"
            )
        intervals = predictions[split].intervals(resamples)
    row, peer = PaperRow.of(begun.arch), peer_of(begun.arch)
    data = config.get("dataset") or Path(config["root"]).name
    printed = printed_row(begun.arch, data, published)
    as_counted = begun.arch
    if row:
        as_counted = row.architecture(row.published.classes)
    elif peer:
        as_counted = replace(begun.arch, num_classes=peer.classes)
    count = complexity(as_counted, PAPER_SIZE)
    own = Row(
        network=row.name if row else peer.name if peer else family_of(begun.arch).describe(begun.arch),
        source=str(run),
        table=printed.table if printed else UNKNOWN,
        data=data,
        split=split,
        images=found["images"],
        image_size=begun.recipe.image_size,
        parameters=count.parameters / 1e6,
        own_parameters=complexity(begun.arch, PAPER_SIZE).parameters,
        macs=count.paper_macs / 1e9,
        metrics=metrics,
        intervals=intervals,
        epochs=results["epochs"],
        best_epoch=results["best_epoch"],
        seconds=results["seconds"],
    )
    return [own, printed] if printed else [own]


def _agree(measured: Mapping[str, Any], predictions: Predictions) -> bool:
    """Whether a split's metrics can be of these answers."""
    accuracy = float((predictions.logits.argmax(axis=1) == predictions.truth).mean())
    return measured["images"] == len(predictions.images) and math.isclose(measured["accuracy"], accuracy)


def paper_row(row: PaperRow, data: str | None = None, published: Results | None = None) -> Row:
    """What the paper prints of one of its networks, on a data set."""
    return _printed(
        row.name, row.key, row.table, data, row.published.parameters, row.published.macs, published
    )


def peer_rows(data: str | None = None, published: Results | None = None) -> list[Row]:
    """The other networks of Table I, on a data set."""
    return [peer_row(peer, data, published) for peer in PEERS]


def peer_row(peer: Peer, data: str | None = None, published: Results | None = None) -> Row:
    """What the paper prints of another network, on a data set."""
    return _printed(peer.name, peer.name, "I", data, peer.parameters, peer.macs, published)


def printed_row(arch: Architecture, data: str | None = None, published: Results | None = None) -> Row | None:
    """What the paper prints of a network, whatever its classes, on a data set; None where it has none."""
    row, peer = PaperRow.of(arch), peer_of(arch)
    if row is not None:
        return paper_row(row, data, published) if row.key in PUBLISHED else None
    return peer_row(peer, data, published) if peer else None


def peer_of(arch: Architecture) -> Peer | None:
    """The other network of Table I that an architecture is, whatever its classes."""
    name = family_of(arch).name_of(arch)
    return next((peer for peer in PEERS if peer.network == name), None)


def _printed(
    name: str,
    key: str,
    table: str,
    data: str | None,
    parameters: float | None,
    macs: float | None,
    published: Results | None,
) -> Row:
    """A row of the paper's; results by data set and key are those that it prints, unless others are given."""
    results = printed_results() if published is None else published
    folded = (data or "").lower()
    metrics = results.get((folded, key), {})
    figures = {**metrics, "parameters": parameters, "macs": macs}
    return Row(
        network=name,
        source=PAPER,
        table=table,
        data=data,
        image_size=PAPER_SIZE,
        parameters=parameters,
        macs=macs,
        metrics=dict(metrics),
        doubts=tuple(doubt for doubt in DOUBTS if doubt.concerns(key, folded, figures)),
    )


def compare(
    runs: Sequence[str | Path],
    *,
    published: str | Path | None = None,
    peers: bool = False,
    resamples: int = RESAMPLES,
) -> Table:
    """The table of some runs.

    Args:
        runs: finished run folders, at least one.
        published: a file of results in place of those that the paper prints (see `read_published`).
        peers: add the other networks of Table I, for each data set.
        resamples: how many the bootstrap draws.

    Raises:
        TrainingError: not a run, or not a finished one.
        DataError: a run's predictions cannot be read.
        InputError: the file of results makes no sense.
    """
    results = read_published(published) if published else None
    rows = [row for run in runs for row in run_rows(run, results, resamples)]
    if peers:
        sets = dict.fromkeys(row.data for row in rows)
        rows += [row for data in sets for row in peer_rows(data, results)]
    return runs_table(rows)


def runs_table(rows: Sequence[Row]) -> Table:
    """The rows under each other."""
    records = [
        {
            "network": row.network,
            "from": row.source,
            "table": row.table,
            "data": row.data,
            "split": row.split,
            "images": row.images,
            "image_size": row.image_size,
            "parameters_m": row.parameters,
            "own_parameters": row.own_parameters,
            "gmacs": row.macs,
            **{
                column: value
                for name in METRICS
                for column, value in zip(
                    (name, f"{name}_low", f"{name}_high"),
                    (row.metrics.get(name), *_ends(row.intervals.get(name))),
                    strict=True,
                )
            },
            "best_epoch": row.best_epoch,
            "epochs": row.epochs,
            "seconds": row.seconds,
            "doubted": "; ".join(f"{doubt.figure}: {doubt.why}" for doubt in row.doubts) or None,
        }
        for row in rows
    ]
    notes = [
        "params and GMACs as the paper counts: 1000 classes (base: 8), 224x224, no projections, no scan."
    ]
    if any(row.intervals for row in rows):
        notes.append(
            "[low, high]: 95 % bootstrap interval over the images, or their patients where known, copies "
            "once; exact where none or all are right."
        )
    if any(lacks_intervals(row.metrics, row.intervals) for row in rows):
        notes.append(NO_INTERVAL)
    if any(row.metrics and not row.intervals and row.source != PAPER for row in rows):
        notes.append(f"No interval: the run has no {PREDICTIONS}; 'mmdeploy train … --resume' writes it.")
    if any(row.source == PAPER and len(row.metrics) < len(METRICS) for row in rows):
        notes.append(f"{UNKNOWN}: the paper's tables, as they are known here, have no such figure.")
    return Table(
        head=("network", "from", "data", "px", *_COLUMNS.values()),
        lines=[
            [
                row.network,
                row.source,
                f"{row.data} ({row.split}, {row.images})" if row.images else row.data or UNKNOWN,
                str(row.image_size or UNKNOWN),
                *(_figure(row, name) for name in _COLUMNS),
            ]
            for row in rows
        ],
        records=records,
        notes=notes,
        footnotes=list(dict.fromkeys(_footnote(row, doubt) for row in rows for doubt in row.doubts)),
        words=3,
    )


def lacks_intervals(metrics: Mapping[str, float | None], intervals: Mapping[str, Interval | None]) -> bool:
    """Whether some metric has a value and no interval, though the images are known (see `NO_INTERVAL`)."""
    known = (name for name, value in metrics.items() if value is not None)
    return bool(intervals) and any(intervals.get(name) is None for name in known)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def ablations_table() -> Table:
    """The tiny network with every combination of switches, counted, beside the paper's counts."""
    lines, records = [], []
    for row in ABLATIONS:
        count, known = complexity(row.architecture(1000), PAPER_SIZE), row.published.parameters
        millions = round(count.parameters / 1e6, 2)
        reproduced = UNKNOWN if known is None else "yes" if millions == known else "no"
        lines.append(
            [
                row.name,
                f"{count.parameters:,}",
                f"{millions:.2f}",
                UNKNOWN if known is None else f"{known:.2f}",
                reproduced,
                f"{count.paper_macs / 1e9:.2f}",
                f"{count.macs / 1e9:.2f}",
            ]
        )
        records.append(
            {
                "network": row.name,
                "options": row.key,
                "parameters": count.parameters,
                "used_parameters": count.used_parameters,
                "paper_parameters_m": known,
                "reproduced": None if reproduced == UNKNOWN else reproduced,
                "gmacs": count.paper_macs / 1e9,
                "gmacs_in_full": count.macs / 1e9,
            }
        )
    return Table(
        head=("network", "parameters", "params M", "paper M", "reproduced", "GMACs", "GMACs in full"),
        lines=lines,
        records=records,
        notes=[
            "Reproduced: to two decimals. 1000 classes, 224x224; in full: with projections and scan.",
            "The paper's 4.89 M without PSFFN, and 4.86 M without MIFA as well, do not follow from the "
            "released code, where a linear layer, out_proj, takes the place of PSFFN.",
        ],
        words=1,
    )


@dataclass(frozen=True)
class Table:
    """Lines of text under a head, and what they are made of."""

    head: tuple[str, ...]
    lines: list[list[str]]
    records: list[dict[str, Any]]
    """The values of each line, unrounded."""
    notes: list[str]
    """What a reader has to know."""
    words: int
    """Columns that hold words, the first ones; the others hold figures."""
    footnotes: list[str] = field(default_factory=list)
    """What a `MARK` stands for."""

    def to_text(self, width: int | None = None) -> str:
        """The lines for a terminal of so many columns; as wide as they need to be where None."""
        rows = [[shown(cell) for cell in line] for line in self.lines]
        lines = table_lines(self.head, rows, range(self.words), width)
        notes = (wrapped(shown(note), width) for note in (*self.notes, *self.footnotes))
        return "\n".join([*lines, "", *notes, ""])

    def to_csv(self) -> str:
        """The records, unrounded; what is not known is empty."""
        names = list(self.records[0])
        rows = [names, *([record[name] for name in names] for record in self.records)]
        return "".join(
            as_row(as_cell(each) if isinstance(each, str) else each for each in row) for row in rows
        )

    def to_markdown(self) -> str:
        """A table for a page in Markdown, with the notes below."""
        rule = ["---"] * self.words + ["---:"] * (len(self.head) - self.words)
        rows = [[_markdown(cell) for cell in line] for line in (self.head, *self.lines)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
        return "\n".join([*lines, *(f"\n{_markdown(note)}" for note in (*self.notes, *self.footnotes)), ""])

    def to_latex(self) -> str:
        """A tabular with the rules of the package booktabs, the notes as comments, the footnotes below."""
        columns = "l" * self.words + "r" * (len(self.head) - self.words)
        body = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (self.head, *self.lines)]
        lines = [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            *(
                rf"\multicolumn{{{len(self.head)}}}{{p{{\linewidth}}}}{{\footnotesize {_latex(note)}}} \\"
                for note in self.footnotes
            ),
        ]
        return "\n".join([*(f"% {note}" for note in self.notes), *lines, r"\end{tabular}", ""])


def _figure(row: Row, name: str) -> str:
    """A cell: a figure as its column has it, with its interval or the mark of a doubt."""
    value = {"parameters": row.parameters, "macs": row.macs, **row.metrics}.get(name)
    if value is None:
        return UNKNOWN
    scale, decimals = {"parameters": (1, 2), "macs": (1, 2), "auc": (1, 4)}.get(name, (100, 2))
    figure = share_as_text(value, decimals, scale) if name in METRICS else f"{value:.{decimals}f}"
    text = f"{figure}{MARK if row.doubt(name) else ''}"
    interval = row.intervals.get(name)
    if interval is None:
        return text
    return f"{text} [{scale * interval.low:.{decimals}f}, {scale * interval.high:.{decimals}f}]"


def _footnote(row: Row, doubt: Doubt) -> str:
    where = row.network if doubt.data is None else f"{row.network} on {row.data}"
    return f"{MARK} {where}, {_COLUMNS[doubt.figure]} {doubt.printed:.2f} as printed: {doubt.why}."


_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    UNKNOWN: "--",
    MARK: r"\textsuperscript{\dag}",
}


def _markdown(text: str) -> str:
    """Text as it stands: names of data sets and folders are no markup, no links and no HTML."""
    return re.sub(r"([\\`*<>|]|(?<=\])\()", r"\\\1", shown(text))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in shown(text))
