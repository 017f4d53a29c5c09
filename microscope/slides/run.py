"""Slides through a session into a folder of results, which goes on where it was after a kill.

The folder while it runs:

    run.json                      what was asked, and what became of each slide
    partial/<slide>.csv           the rows of a slide at work, flushed after every batch
    thumbnails/<slide>.png        the slide
    masks/<slide>.png             where tissue was found
    heat-maps/<slide>/…           a map of each class, as OME-TIFF and as a picture
    model-outputs-geojson/…       whole, once a slide's last row is known
    model-outputs-csv/…           whole, and the last that is written: it marks the slide as done
    summary.csv, report.html      one row a slide, and a page, in the end
"""

from __future__ import annotations

import errno
import io
import os
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ...data.scale import check_microns
from ...errors import ImageError, InputError, Note, TargetError, reason_of, some
from ...files import (
    LONGEST_LINE,
    as_path,
    as_utf8,
    cause_of,
    check_writable,
    flush_to_device,
    folder_lock,
    make_folder,
    open_file,
    open_to_extend,
    read_file,
    remove_leftovers,
    sha256_of,
    write_atomically,
)
from ...runtime.artefact import artefact_sha256
from ...runtime.drift import DriftLog
from ...runtime.session import BATCH_SIZE, Session
from ...schema import OBJECT, TEXT, Kind, as_json, is_whole, listed, maybe, number, parsed, record, whole
from ...schema import by_name as object_of
from ...text import as_cell, as_row
from ...version import __version__
from .engine import TileResult, Wanted, classify_tiles, scale_notes, transform_of, wanted_of
from .maps import MapGrid, class_maps, in_turns, overlay, picture_of, undecided_map, write_map
from .opening import by_name, open_slide, require_libraries
from .regions import Within, check_annotations, file_of, read_regions
from .report import Pictures, certain_tiles, has_room, is_done, write_report
from .results import header, read_rows, row, write_geojson
from .slide import Slide
from .tiling import Keeps, Tile, grid, side_of, stride_of
from .tissue import Thumbnail, TissueOptions, mask_of, thumbnail

_RUN, PAGE = "run.json", "report.html"
_SHARED = ("format_version", "artefact_sha256", "labels", "white_level")
_FORMAT = 1
_KEPT = record(
    {
        "format_version": whole(),
        "options": OBJECT,
        "slides": object_of(
            record(
                {"path": TEXT},
                optional={
                    "error": TEXT,
                    "content": listed(
                        Kind("a number or a text", lambda value: is_whole(value) or TEXT.holds(value))
                    ),
                    "size": listed(whole(1), 2, 2),
                    "microns_a_pixel": maybe(number(0)),
                    "tile": whole(1),
                    "reader": TEXT,
                    "tissue": maybe(number(0, 1)),
                    "tiles": whole(),
                    "unreadable": whole(),
                    "undecided": whole(),
                    "shares": object_of(number(0, 1)),
                    "seconds": number(0),
                    "notes": listed(TEXT),
                },
            )
        ),
    }
)
"""What ``run.json`` holds of an earlier call, so far as it is read again."""
_CHANGED = "was changed"
_FEW = 50
"""Slides of which each is told by ``run.json`` at once."""
_NO_NAME = re.compile(r"[^\w.-]+")  # what of a class's name does not go into a file's


@dataclass(frozen=True)
class SlideOptions:
    """How slides are cut and classified.

    Attributes:
        mpp: microns that a pixel of the network's input covers; what the artefact says where None.
        assume_mpp: the slides' microns a pixel, in place of what the files say.
        overlap: the share of a tile's side that the next one covers again, 0 to 0.9.
        tissue: how tissue is told from glass; None classifies everything.
        batch_size: tiles that go through the network at once.
        gzip: compress the GeoJSON.
        roi: GeoJSON of the regions whose tiles are classified, or a folder of ``<slide>.geojson``.
        pixel_for_pixel: take tiles of the training images' size as they are, whatever the slides' scale.

    Raises:
        InputError: a number is not what it can be.
    """

    mpp: float | None = None
    assume_mpp: float | None = None
    overlap: float = 0.0
    tissue: TissueOptions | None = field(default_factory=TissueOptions)
    batch_size: int = BATCH_SIZE
    gzip: bool = False
    pixel_for_pixel: bool = False
    roi: Path | None = None

    def __post_init__(self) -> None:
        check_microns(self.mpp, self.assume_mpp)
        stride_of(1, self.overlap)
        if not is_whole(self.batch_size, 1):
            raise InputError(f"the batch size is {self.batch_size!r}: expected a whole number of at least 1")


Progress = Callable[[str, int, int], None]
"""Is told a slide's name, how many of its tiles are done, and how many there are."""

Engine = Callable[[Session, Slide, Iterable[Tile], int, DriftLog | None], Generator[TileResult]]
"""Classifies tiles in their order, in batches of a size: `classify_tiles`, or `RayEngine.classify`."""


def classify_slides(
    session: Session,
    artefact: str | os.PathLike[str],
    slides: Sequence[Path],
    output: str | os.PathLike[str],
    options: SlideOptions,
    progress: Progress = lambda name, done, tiles: None,
    log: DriftLog | None = None,
    engine: Engine = classify_tiles,
) -> None:
    """Classifies slides and writes what is found, slide by slide, into a folder.

    Called again with the same model and options it goes on with what is missing, and ends with the same bytes
    of CSV, GeoJSON and maps. A slide that fails stops no other.

    Args:
        session: an opened artefact that knows its labels, mean and std.
        artefact: its path: results of another one are never added to.
        slides: paths of distinct names.
        output: the folder of results, new, empty or of an earlier call.
        options: how slides are cut and classified.
        progress: is called before the first tile and after every batch.
        log: gets scores of tiles.
        engine: what classifies the tiles; a `RayEngine`'s for those of a cluster.

    Raises:
        ImageError: slides or tiles could not be classified; all others were.
        InputError: two slides have the same name, or nobody says the model's scale.
        TargetError: the folder is something else, is of another model or other options, is at work already,
            or cannot be written.
        ArtefactError: the artefact does not say its labels, mean or std, or answers with NaN.
        BackendError: as `Session.run`, or the extra ``slides`` is not installed.
    """
    require_libraries()
    wanted = wanted_of(session, options.mpp, options.pixel_for_pixel)
    given: object = slides
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise InputError(f"expected a list of slides, found {type(given).__name__}")
    slides = [as_path(slide) for slide in given]
    folder = as_path(output)
    _tell(wanted.notes)
    named = by_name(slides)
    if options.roi is not None:
        check_annotations(options.roi, slides)
    _make_folder(folder)
    with folder_lock(folder, f"'{folder}' is at work already: wait for it, or choose another folder"):
        run = _Run(
            session,
            folder,
            _identity(session, artefact, options),
            options,
            progress,
            wanted,
            log,
            engine,
        )
        run.classify(named)


class _Run:
    def __init__(
        self,
        session: Session,
        folder: Path,
        identity: dict[str, Any],
        options: SlideOptions,
        progress: Progress,
        wanted: Wanted,
        log: DriftLog | None,
        engine: Engine,
    ) -> None:
        self._wanted = wanted
        self._log = log
        self._engine = engine
        self._guarded = session.guard is not None
        self._session = session
        self._labels = session.labels or ()
        self._folder = folder
        self._identity = identity
        self._options = options
        self._progress = progress
        self._slides: dict[str, dict[str, Any]] = _earlier(folder, identity)
        self._certain: dict[str, list[dict[str, Any]]] = {}  # of slides that were open anyhow
        self._is_saved = False  # whether run.json says what there is to say
        self._tiles = 0  # classified since it was written
        self._whole: dict[Path, Path] = {}  # files of rows that are whole, and where they go once it says so

    def classify(self, named: dict[str, Path]) -> None:
        """Every slide that is not done, then the summary.

        Raises:
            ImageError: slides or tiles could not be classified.
        """
        self._save(interrupted=True)  # first: what follows makes the folder one of something else without it
        for below in (
            "partial",
            "thumbnails",
            "masks",
            "heat-maps",
            "model-outputs-csv",
            "model-outputs-geojson",
        ):
            _make_folder(self._folder / below, by_us=True)
            remove_leftovers(self._folder / below)
        remove_leftovers(self._folder)
        try:
            for name, path in named.items():
                try:
                    self._classify_one(name, path)
                except InputError as error:
                    facts = self._slides.get(name, {})
                    self._note(name, {**facts, "path": os.fspath(path), "error": str(error)})
        except BaseException:
            with suppress(TargetError, OSError):  # what is told is what happened first
                self._save(interrupted=True)
            raise
        self._save(interrupted=False)
        told = [*named, *self._done_before(named)]
        self._summarise(told)
        self._report(told, named)
        failed = [name for name in named if self._slides[name].get("error")]
        torn = [name for name in named if self._slides[name].get("unreadable")]
        if failed:
            (first, *_) = failed
            raise ImageError(
                f"{len(failed)} of {len(named)} slides could not be classified ({some(failed)}): "
                f"{self._slides[first]['error']}"
            )
        if torn:
            raise ImageError(
                f"tiles of {len(torn)} of {len(named)} slides could not be read ({some(torn)}): "
                "their rows say why; to have a slide read again, delete its CSV"
            )

    def _done_before(self, named: dict[str, Path]) -> list[str]:
        """The slides of earlier calls whose results are there, in the order of their names."""
        return sorted(
            name
            for name, facts in self._slides.items()
            if name not in named and is_done(facts, self._labels) and self._csv_of(name).exists()
        )

    def _csv_of(self, name: str) -> Path:
        return self._folder / "model-outputs-csv" / f"{name}.csv"

    def _classify_one(self, name: str, path: Path) -> None:
        before, options = self._slides.get(name, {}), self._options
        done = self._csv_of(name)
        partial = self._folder / "partial" / f"{name}.csv"
        geojson = self._folder / "model-outputs-geojson" / f"{name}.geojson{'.gz' if options.gzip else ''}"
        _check_name(geojson, path)
        roi = _roi_of(path, options.roi)
        content = _content_of(path, roi)
        if before.get("content") != content:
            if before.get("content") and done.exists():
                changed = f"'{path}' is not the file{' with the regions' if roi else ''}"
                raise InputError(f"{changed} that '{done}' is of: delete that to replace it")
            partial.unlink(missing_ok=True)
        if done.exists():
            self._check_done(done, before)
            before.pop("error", None)
            before["path"] = os.fspath(path)  # where it lies now
            return
        started = time.monotonic()
        white = transform_of(self._session).white_level
        with closing(open_slide(path, white_level=white, scratch=self._folder)) as slide:
            side = side_of(slide, self._wanted.size, self._wanted.mpp, options.assume_mpp)
            notes = scale_notes(slide, self._wanted, options.assume_mpp)
            _tell(notes)
            small = thumbnail(slide, (options.tissue or TissueOptions()).thumbsize)
            read = [f"'{path}': {note}" for note in slide.notes]  # now that all of it has been seen
            _tell(read)
            _write_png(self._folder / "thumbnails" / f"{name}.png", picture_of(small))
            mask, regions, bounds = None, None, slide.bounds
            if roi is not None:
                regions = read_regions(roi, bounds.width, bounds.height, bounds.left, bounds.top)
            _tell(regions.notes if regions else ())
            if options.tissue is not None:
                mask = mask_of(slide, small, options.tissue, options.assume_mpp)
                _write_png(self._folder / "masks" / f"{name}.png", Image.fromarray(mask.tissue))
            facts = {
                "path": os.fspath(path),
                "content": content,
                "reader": slide.reader,
                "size": [slide.levels[0].width, slide.levels[0].height],
                "microns_a_pixel": options.assume_mpp or slide.scale.microns,
                "tile": side,
                "tissue": None if mask is None else round(mask.share, 6),
                "notes": [*self._wanted.notes, *notes, *read, *(regions.notes if regions else ())],
            }
            self._note(name, facts)
            wanted = mask if regions is None else Within(regions, mask)
            self._write_rows(name, slide, partial, side, wanted)
            counts = _Counts(len(self._labels))
            write_geojson(
                geojson,
                counts.counted(read_rows(partial)),
                name=name,
                artefact=self._identity["artefact_sha256"],
                labels=self._labels,
                bounds=bounds,
                compressed=options.gzip,
            )
            happened = _happened_to(path, roi, content)
            if happened == _CHANGED or (happened and counts.unreadable):
                geojson.unlink()
                if happened == _CHANGED:
                    partial.unlink()  # its rows may be of the one file or the other
                what = f"'{path}' or its regions" if roi else f"'{path}'"
                raise ImageError(
                    f"{what} {happened} while it was read: run slide again once it is there and whole"
                )
            if counts.unreadable == counts.tiles:
                partial.unlink()  # which the next call is to try anew: a disk may be back, or a decoder there
                geojson.unlink()
                raise ImageError(f"'{path}': none of its {counts.tiles} tiles can be read: {counts.error}")
            self._write_maps(name, slide, partial, side, small)
            if has_room(self._certain):
                self._certain[name] = certain_tiles(slide, partial, self._labels)
            shares = {label: counts.share(index) for index, label in enumerate(self._labels)}
            found = {
                **facts,
                "tiles": counts.tiles,
                "unreadable": counts.unreadable,
                **({"undecided": counts.undecided} if self._guarded else {}),
                "shares": shares,
                "seconds": round(time.monotonic() - started, 3),
            }
        self._whole[partial] = done
        self._note(name, found)

    def _check_done(self, done: Path, facts: dict[str, Any]) -> None:
        """Looks at what an earlier call, or somebody else, has left of a slide.

        Raises:
            InputError: it is not what is written in the end.
        """
        with suppress(OSError), open_file(done) as file:
            first = header(self._labels, self._guarded)
            if file.read(len(first)) == first and is_done(facts, self._labels):
                return
        raise InputError(
            f"'{done}' is not what slide has written, or '{self._folder / _RUN}' does not say what was found "
            "there: delete the former to classify the slide again"
        )

    def _write_rows(self, name: str, slide: Slide, partial: Path, side: int, wanted: Keeps | None) -> None:
        """Writes the rows that are missing.

        Batches begin at multiples of the batch size, as in one go: the last bits of an answer may depend on
        what goes through the network beside it.
        """
        options, batch = self._options, min(self._options.batch_size, self._session.max_batch or 1 << 30)

        def tiles() -> Iterator[Tile]:
            return grid(slide, side, options.overlap, wanted)

        total = sum(1 for _ in tiles())
        if not total:
            wanted_of_it = (
                ("its middle in a region", "draw larger ones, let tiles --overlap", options.roi),
                ("enough tissue", "lower --min-tissue, give --no-tissue", options.tissue),
            )
            lacking, ways = zip(*((what, way) for what, way, asked in wanted_of_it if asked), strict=True)
            raise InputError(f"'{slide.path}': no tile has {' and '.join(lacking)}: {', or '.join(ways)}")
        first = header(self._labels, self._guarded)
        try:
            told = there = _kept_rows(partial, first, tiles(), batch)
            self._progress(name, there, total)
            with open_to_extend(partial) as file:
                file.seek(0, os.SEEK_END)
                if not there:
                    file.write(first)
                if self._log is not None:
                    self._log.begin(total - there)
                results = self._engine(self._session, slide, islice(tiles(), there, None), batch, self._log)
                with closing(results):
                    for done, result in enumerate(results, start=there + 1):
                        file.write(row(result, len(self._labels), self._guarded))
                        if done % batch == 0 or done == total:
                            file.flush()
                            self._progress(name, done, total)
                            self._tiles, told = self._tiles + done - told, done
                            self._save_in_time()
                flush_to_device(file)
        except OSError as error:
            raise TargetError(f"cannot write '{partial}': {cause_of(error)}") from error

    def _write_maps(self, name: str, slide: Slide, partial: Path, side: int, small: Thumbnail) -> None:
        folder = self._folder / "heat-maps" / name
        _make_folder(folder, by_us=True)
        remove_leftovers(folder)
        level = slide.levels[0]
        pixels = MapGrid(level.width, level.height, side, stride_of(side, self._options.overlap))
        hatched = undecided_map(read_rows(partial), pixels) if self._guarded else None
        microns = self._options.assume_mpp or slide.scale.microns
        size = None if microns is None else microns * pixels.pixel
        for classes in in_turns(len(self._labels), pixels):
            maps = class_maps(read_rows(partial), classes, pixels)
            for index, found in zip(classes, maps, strict=True):
                file = self._map_of(name, index)
                write_map(Path(f"{file}.ome.tif"), found, size, f"{name}: {self._labels[index]}")
                _write_png(Path(f"{file}.png"), overlay(found, index, pixels, small, hatched))

    def _map_of(self, name: str, index: int) -> Path:
        """The path of a class's map, without its suffix."""
        return self._folder / "heat-maps" / name / f"{index}-{_NO_NAME.sub('_', self._labels[index])}"

    def _note(self, name: str, facts: dict[str, Any]) -> None:
        """Keeps what there is to say of a slide."""
        self._slides[name], self._is_saved = facts, False
        self._save_in_time()

    def _save_in_time(self) -> None:
        """Writes ``run.json`` if it lacks something, of few slides at once, of many after some tiles.

        It grows with them: written twice for each of ten thousand fields, it would be 100 GB.
        """
        if not self._is_saved and 2 * self._tiles + _FEW >= len(self._slides):
            self._save(interrupted=True)

    def _save(self, *, interrupted: bool) -> None:
        """Writes ``run.json``, and puts into place what is whole."""
        content = {**self._identity, "interrupted": interrupted, "slides": self._slides}
        text = as_json(content, indent=1)
        write_atomically(self._folder / _RUN, as_utf8(text + "\n"))
        self._is_saved, self._tiles = True, 0
        while self._whole:
            partial, done = self._whole.popitem()
            partial.replace(done)

    def _summarise(self, told: list[str]) -> None:
        undecided = ("undecided",) if self._guarded else ()
        columns = ("tiles", "unreadable", *undecided, "tissue", "seconds")
        rows = [as_row(["slide", *columns, *(f"share_{label}" for label in self._labels), "error"])]
        for name in told:
            facts = self._slides[name]
            shares = facts.get("shares", {})
            values = [
                *(facts.get(column) for column in columns),
                *(shares.get(each) for each in self._labels),
            ]
            rows.append(as_row([as_cell(name), *values, as_cell(facts.get("error", ""))]))
        write_atomically(self._folder / "summary.csv", as_utf8("".join(rows)))

    def _report(self, told: list[str], named: dict[str, Path]) -> None:
        rows = {name: path for name in told if (path := self._csv_of(name)).exists()}
        for name in rows.keys() - named.keys():
            facts = self._slides[name]
            with suppress(ImageError):
                if _content_of(Path(facts["path"]), None) == facts.get("content", [])[:2]:
                    continue
            self._certain[name] = []  # what lies there, seen from this working folder, may be another slide
        pictures = {}
        for name in rows:
            pictures[name] = Pictures(
                slide=self._folder / "thumbnails" / f"{name}.png",
                mask=self._folder / "masks" / f"{name}.png" if self._options.tissue else None,
                maps=tuple(Path(f"{self._map_of(name, index)}.png") for index in range(len(self._labels))),
            )
        write_report(
            self._folder / PAGE,
            artefact=self._identity["artefact"],
            sha256=self._identity["artefact_sha256"],
            labels=self._labels,
            slides=[(name, self._slides[name]) for name in told],
            pictures=pictures,
            rows=rows,
            certain=self._certain,
            white_level=transform_of(self._session).white_level,
            scratch=self._folder,
        )


class _Counts:
    """Counts tiles by their likeliest class while they pass, and those that the guard does not decide."""

    def __init__(self, classes: int) -> None:
        self.tiles = self.unreadable = self.undecided = 0
        self.error = ""  # of the last tile that could not be read
        self._of_class = [0] * classes

    def counted(self, results: Iterator[TileResult]) -> Iterator[TileResult]:
        for result in results:
            self.tiles += 1
            if result.error:
                self.unreadable += 1
                self.error = result.error
            elif not result.decided:
                self.undecided += 1
            else:
                self._of_class[result.likeliest] += 1
            yield result

    def share(self, index: int) -> float:
        return round(self._of_class[index] / max(self.tiles - self.unreadable, 1), 6)


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        warnings.warn(note, Note, stacklevel=3)


def _identity(session: Session, artefact: str | os.PathLike[str], options: SlideOptions) -> dict[str, Any]:
    """What all results in a folder have in common."""
    return {
        "format_version": _FORMAT,
        "artefact": Path(artefact).name,
        "artefact_sha256": artefact_sha256(artefact),
        "labels": list(session.labels or ()),
        "white_level": transform_of(session).white_level,
        "options": {
            **asdict(options),
            "roi": options.roi is not None,
            "guard": session.guard is not None,
        },
        "versions": {
            "msmamba": __version__,
            **{name: version(name) for name in ("openslide-python", "tifffile", "numpy", "pillow")},
        },
    }


def _earlier(folder: Path, identity: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an earlier call has written of its slides.

    Raises:
        TargetError: the folder is something else, or of another model or other options.
    """
    path = folder / _RUN
    if not path.exists():
        if any(each for each in folder.iterdir() if not each.name.startswith(".")):
            raise TargetError(f"'{folder}' holds something else and no '{_RUN}': choose another folder")
        return {}
    try:
        found = parsed(read_file(path))
        if problems := _KEPT.problems(found):
            raise ValueError("; ".join(problems))
        slides = found["slides"]
        before = {name: found.get(name) for name in _SHARED}
        before |= {"guard": False, **found["options"]}  # earlier versions had none
    except (ValueError, OSError) as error:
        raise TargetError(f"'{path}' is damaged ({reason_of(error)}): choose another folder") from error
    now = {name: identity[name] for name in _SHARED}
    now.update(identity["options"])
    differing = [
        f"{name} is {before.get(name)!r} there and {value!r} here"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if differing:
        raise TargetError(f"'{folder}' holds other results: {'; '.join(differing)}: choose another folder")
    return slides


def _kept_rows(partial: Path, first: bytes, tiles: Iterator[Tile], batch: int) -> int:
    """How many rows of whole batches are there of these tiles; what follows them is cut off.

    So is what follows a tile that could not be read: the drive may have been away, and be back.
    """
    kept = kept_bytes = 0
    with open_to_extend(partial) as file:
        if file.read(len(first)) == first:
            size = len(first)
            for count, (found, tile) in enumerate(zip(_whole_rows(file), tiles, strict=False), start=1):
                place = f"{tile.x},{tile.y},{tile.side},{tile.side},".encode()
                if not found.startswith(place) or found.startswith(b",", len(place)):
                    break
                size += len(found)
                if count % batch == 0:
                    kept, kept_bytes = count, size
        file.truncate(kept_bytes)
    return kept


def _whole_rows(file: BinaryIO) -> Iterator[bytes]:
    """The rows up to one without its end; names of classes may have ends of lines in them, in quotes."""
    found, quotes = b"", 0
    while (line := file.readline(LONGEST_LINE)).endswith(b"\n") and len(found) < LONGEST_LINE:
        found += line
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            yield found
            found = b""


def _content_of(path: Path, roi: Path | None) -> list[int | str]:
    """What tells whether a slide was replaced: its size and last change, and the SHA-256 of its regions.

    Raises:
        ImageError: it does not exist, or the regions cannot be read.
    """
    try:
        regions = [] if roi is None else [sha256_of(roi)]
        status = path.stat()
    except OSError as error:
        name, why = error.filename or path, reason_of(error)
        raise ImageError(f"'{name}' cannot be read: {why}") from error
    return [status.st_size, status.st_mtime_ns, *regions]


def _happened_to(path: Path, roi: Path | None, content: list[int | str]) -> str:
    """What became of a slide since it had this content; empty where it is as it was."""
    try:
        return "" if _content_of(path, roi) == content else _CHANGED
    except ImageError:
        return "went away"


def _roi_of(slide: Path, roi: Path | None) -> Path | None:
    """The file of a slide's regions; None where none are asked for.

    Raises:
        InputError: there is none for this slide.
    """
    if roi is None:
        return None
    if (found := file_of(roi, slide)) is None:
        raise InputError(f"'{roi}' holds no regions of '{slide}': expected '{slide.stem}.geojson'")
    return found


def _check_name(longest: Path, slide: Path) -> None:
    """Refuses a slide before work whose results could not be called as it is.

    Raises:
        InputError: the file system knows no names of that length, or with such characters.
        TargetError: nothing can be written there.
    """
    why = f"'{slide}': '{longest.name}' cannot be a file of results"
    try:
        longest.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{why}: {reason_of(error)}: rename it") from error
    try:
        check_writable(longest)
    except TargetError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.EINVAL, errno.EILSEQ):
            raise InputError(f"{why}: {cause_of(cause)}") from error
        raise


def _make_folder(folder: Path, *, by_us: bool = False) -> None:
    """Makes a folder, or takes the one that is there; one of ours is no link, which may lead anywhere.

    Raises:
        TargetError: it cannot be made.
    """
    if by_us and folder.is_symlink():
        raise TargetError(
            f"'{folder}' is a link: expected a folder of results: delete it, and run slide again"
        )
    make_folder(folder)


def _write_png(path: Path, picture: Image.Image) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_atomically(path, content.getvalue())
