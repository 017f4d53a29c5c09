"""Image files in, rows out: what `mmdeploy infer` does.

Results are written as they are made, and nothing is kept of an image once its row is out, so ten thousand
images take the memory of a few batches.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, TextIO

from ..data.finding import Passed, images_below, matching
from ..errors import ImageError, InputError, TargetError
from ..files import as_utf8, atomic_file, standard_output
from ..images import SUFFIXES
from ..schema import as_json
from ..text import as_cell, share_as_text, shown
from .drift import DriftLog
from .session import BATCH_SIZE, Prediction, Session

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "json", "csv")


@dataclass(frozen=True)
class Row:
    """The outcome of one image: a prediction, or why there is none.

    Attributes:
        image: path, as it was given or found.
        ranked: labels with their probabilities, likeliest first; empty after an error.
        notes: what reading the image had to decide.
        error: one line, empty when there is a prediction.
        reasons: why the likeliest class is no answer, empty where it is one.
        candidates: the classes that the image may belong to, likeliest first; empty without a guard.
    """

    image: str
    ranked: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    reasons: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()

    def shown(self) -> Row:
        """The row without control characters, for a terminal."""
        ranked = tuple((shown(label), value) for label, value in self.ranked)
        return replace(
            self,
            image=shown(self.image),
            ranked=ranked,
            notes=tuple(map(shown, self.notes)),
            error=shown(self.error),
            candidates=tuple(map(shown, self.candidates)),
        )


class Writer(Protocol):
    """Writes rows in one format."""

    def header(self) -> str:
        """What stands before the first row."""

    def row(self, row: Row) -> str:
        """One row with its line end."""


class Found(NamedTuple):
    """The images that a command line means."""

    images: list[Path]
    notes: tuple[str, ...]
    """What was passed over, a line each."""


def find_images(arguments: Iterable[str | os.PathLike[str]], suffixes: Collection[str] = SUFFIXES) -> Found:
    """The image files meant by a command line, sorted, each once.

    A folder stands for the images below it (see `data.finding`); a pattern such as ``slides/**/*.tif`` for
    what it matches; anything else is taken as a file, whatever its suffix, whether it exists or not (reading
    it tells).

    Args:
        arguments: what was typed.
        suffixes: in lower case, of the files that a folder stands for.

    Raises:
        InputError: a folder holds no image or cannot be read, or a pattern matches nothing.
    """
    found: list[Path] = []
    passed = Passed(suffixes)
    for argument in (os.fspath(each) for each in arguments):
        if not os.path.lexists(argument) and glob.has_magic(argument):
            matches = matching(argument, passed)
            if not matches:
                raise InputError("; ".join((f"the pattern '{argument}' matches nothing", *passed.notes())))
        else:
            matches = [Path(argument)]
        for match in matches:
            # Unlike Path.is_dir it raises nothing for a name that is too long or in a locked folder.
            is_folder = os.path.isdir(match)  # noqa: PTH112  # as above
            found.extend(_images_below(match, passed) if is_folder else [match])
    unique = {os.path.realpath(path): path for path in sorted(found, reverse=True)}
    return Found(sorted(unique.values()), passed.notes())


def infer(
    session: Session,
    images: Sequence[Path],
    *,
    output_format: str = "table",
    output: str | os.PathLike[str] | None = None,
    top: int = 1,
    batch_size: int | None = None,
    log: DriftLog | None = None,
) -> None:
    """Classifies images and writes one row each, in order, as soon as it is known.

    Args:
        session: an opened artefact that knows its labels.
        images: paths; see `find_images`.
        output_format: ``table``, ``json`` (JSON lines) or ``csv`` (RFC 4180).
        output: a file, written whole or not at all; None for standard output.
        top: how many of the likeliest classes a row names.
        batch_size: images that go through the network at once; None for the session's default.
        log: gets the scores of each image.

    Raises:
        ImageError: some images could not be classified; every row is written all the same.
        ArtefactError: the artefact does not say its labels, mean or std.
        TargetError: the output cannot be written.
    """
    results = session.classify_stream(images, batch_size or BATCH_SIZE, log=log)
    labels = session.labels or ()
    writer = _writer(output_format, images, labels, min(top, len(labels)), session.guard is not None)
    failures = 0
    with _opened(output) as file, _shown(file, len(images)) as show:
        for_eyes = output_format == "table" or (output_format == "csv" and file.isatty())
        show(writer.header(), images=0)
        for source, result in results:
            row = _row(str(source), result, labels, top)
            show(writer.row(row.shown() if for_eyes else row), failed=bool(row.error))
            failures += bool(row.error)
    if failures:
        raise ImageError(f"{failures} of {len(images)} images could not be classified: their rows say why")


def _images_below(folder: Path, passed: Passed) -> list[Path]:
    found = [*images_below(folder, passed)]
    if not found:
        raise InputError(
            f"the folder '{folder}' holds no image: expected {', '.join(sorted(passed.read))}"
            + "".join(f"; {note}" for note in passed.notes())
        )
    return found


def _row(image: str, result: Prediction | ImageError, labels: Sequence[str], top: int) -> Row:
    name = as_utf8(image).decode()
    if isinstance(result, ImageError):
        return Row(name, error=as_utf8(str(result)).decode())
    ranked = sorted(zip(labels, result.probabilities, strict=True), key=lambda pair: -pair[1])
    return Row(name, tuple(ranked[:top]), result.notes, reasons=result.reasons, candidates=result.candidates)


def _writer(
    output_format: str, images: Sequence[Path], labels: Sequence[str], top: int, guarded: bool
) -> Writer:
    if output_format not in FORMATS:
        raise InputError(f"format '{output_format}' is unknown: choose one of {', '.join(FORMATS)}")
    if top < 1:
        raise InputError("at least one class must be shown: choose --top 1 or more")
    if output_format == "json":
        return _JsonLines()
    if output_format == "csv":
        return _Csv(top, guarded)
    image_width = max((len(shown(str(image))) for image in images), default=0)
    return _Table(image_width, max(len(shown(label)) for label in labels), top)


class _Table:
    """Aligned columns: the image, its classes with probabilities, why they are no answer, notes."""

    def __init__(self, image_width: int, label_width: int, top: int) -> None:
        self._image_width = max(image_width, len("image"))
        self._label_width = max(label_width, len("class"))
        self._top = top

    def header(self) -> str:
        classes = f"{'class':<{self._label_width}}  {'prob.':<7}  " * self._top
        return f"{'image':<{self._image_width}}  {classes}".rstrip() + "\n"

    def row(self, row: Row) -> str:
        if row.error:
            return f"{row.image:<{self._image_width}}  error: {row.error}\n"
        classes = "  ".join(
            f"{label:<{self._label_width}}  {share_as_text(value, 4, 1):<7}" for label, value in row.ranked
        )
        notes = row.notes
        if row.reasons:
            notes = (f"undecided ({', '.join(row.reasons)}): {' or '.join(row.candidates)}", *notes)
        return f"{row.image:<{self._image_width}}  {classes}  {'; '.join(notes)}".rstrip() + "\n"


class _JsonLines:
    """One JSON object a line: ``image`` and either ``error`` or the prediction, with what the guard says.

    Control characters are escaped as JSON has it, so that it is the same text wherever it is shown.
    """

    def header(self) -> str:
        return ""

    def row(self, row: Row) -> str:
        if row.error:
            return shown(as_json({"image": row.image, "error": row.error})) + "\n"
        (label, probability), *_ = row.ranked
        values = {
            "image": row.image,
            "label": label,
            "probability": probability,
            "top": [{"label": label, "probability": value} for label, value in row.ranked],
            "notes": list(row.notes),
        }
        if row.candidates:
            values |= {
                "decided": not row.reasons,
                "reasons": list(row.reasons),
                "candidates": list(row.candidates),
            }
        return shown(as_json(values)) + "\n"


class _Csv:
    """Comma-separated values with a header, as RFC 4180 has them; no text is a formula to a spreadsheet."""

    def __init__(self, top: int, guarded: bool) -> None:
        self._top = top
        self._guarded = guarded

    def header(self) -> str:
        ranks = ["", *(f"_{rank}" for rank in range(2, self._top + 1))]
        pairs = (f"{column}{rank}" for rank in ranks for column in ("label", "probability"))
        guard = ["decided", "reasons", "candidates"] if self._guarded else []
        return self._line(["image", *pairs, *guard, "notes", "error"])

    def row(self, row: Row) -> str:
        pairs = [field for label, value in row.ranked for field in (as_cell(label), repr(value))]
        pairs += [""] * (2 * self._top - len(pairs))
        guard = ["", "", ""] if self._guarded else []
        if row.candidates:
            decided = "no" if row.reasons else "yes"
            guard = [decided, "; ".join(row.reasons), as_cell("; ".join(row.candidates))]
        texts = (as_cell("; ".join(row.notes)), as_cell(row.error))
        return self._line([as_cell(row.image), *pairs, *guard, *texts])

    @staticmethod
    def _line(fields: Sequence[str]) -> str:
        text = io.StringIO()
        csv.writer(text).writerow(fields)
        return text.getvalue()


@contextlib.contextmanager
def _opened(output: str | os.PathLike[str] | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears when the block ends well.

    Raises:
        TargetError: there is no standard output, or the file cannot be written.
    """
    if output is None:
        if sys.stdout is None:
            raise TargetError("standard output is closed: write the results to a file, with -o")
        with standard_output():
            yield sys.stdout
        return
    with atomic_file(output, through_links=True) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()  # the file is flushed to the device before it is closed


class _Show(Protocol):
    def __call__(self, text: str, *, images: int = 1, failed: bool = False) -> None: ...


@contextlib.contextmanager
def _shown(file: TextIO, total: int) -> Iterator[_Show]:
    """A function that writes a row at once, with a bar of progress where somebody is watching."""
    watched = _terminal(file) or _terminal(sys.stderr)
    if watched is None or total == 1:

        def plain(text: str, *, images: int = 1, failed: bool = False) -> None:
            file.write(text)
            file.flush()

        yield plain
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=watched, transient=True
    ) as bar:
        task = bar.add_task("", total=total)

        def above_the_bar(text: str, *, images: int = 1, failed: bool = False) -> None:
            if watched.file is file:
                watched.out(text, end="", highlight=False, style="red" if failed else None)
            else:
                file.write(text)
                file.flush()
            bar.advance(task, images)

        yield above_the_bar


def _terminal(file: IO[str] | None) -> Console | None:
    if file is None or file.closed or not file.isatty():  # None: a windowed program's, say
        return None
    from rich.console import Console

    return Console(file=file)
