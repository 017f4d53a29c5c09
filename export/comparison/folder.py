"""The folder of a comparison: what a command that was killed at any moment goes on from.

It holds::

    comparison.json    what it was begun with, written before anything else
    NAME/run/          a network's run folder (see `model.training.run`)
    NAME/fp32/         its bundle, verified; fp16/ in that precision
    bench.json         latencies, measured side by side
    results.json, results.csv, results.md, report.html
                       what has come out, written again whenever a network is done

What is done is read off the runs and bundles themselves, which are whole or absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...data.folders import ImageFolder
from ...data.splitting import DEALING
from ...errors import TargetError, TrainingError
from ...files import (
    folder_lock,
    make_folder,
    read_file,
    remove_leftovers,
    write_atomically,
    written_together,
)
from ...model.training.recipe import Recipe
from ...model.training.run import RECIPE, RunFolder, differences, flat
from ...schema import LABELS, TEXT, by_name, listed, maybe, number, parsed, record, whole
from ...version import __version__

BEGUN, BENCH = "comparison.json", "bench.json"
RESULTS, ROWS, MARKDOWN, PAGE = "results.json", "results.csv", "results.md", "report.html"

_BEGUN = record(
    {
        "data": record({"labels": LABELS, "group_by": maybe(TEXT), "digests": by_name(TEXT)}),
        "recipe": RECIPE,
        "skipped": listed(TEXT),
        "white_level": maybe(whole(1)),
        "mpp": maybe(number()),
    },
    optional={"dealing": whole(0, DEALING)},  # what comparisons of earlier versions lack
)


@dataclass(frozen=True)
class Begun:
    """What a comparison was begun with."""

    recipe: Recipe
    group_by: str | None
    """Pattern of the groups in file names."""
    skipped: bool
    """Whether images were left out that could not be read."""
    white_level: int | None
    """The value of white in 16-bit images, where somebody gave one."""
    mpp: float | None
    """Microns a pixel, where somebody gave them."""
    dealing: int
    """How a flat folder was dealt (see `splitting.DEALING`)."""


class ComparisonFolder:
    """The files of one comparison."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def run(self, network: str) -> RunFolder:
        """A network's training run."""
        return RunFolder(self.path / network / "run")

    def bundle(self, network: str, precision: str) -> Path:
        """A network's bundle."""
        return self.path / network / precision

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder, which is made if it is not there.

        Raises:
            TargetError: another process works there, or the folder cannot be made.
        """
        is_new = not self.path.exists()
        make_folder(self.path, parents=True)
        try:
            busy = f"another process compares in '{self.path}': wait for it, or choose another folder"
            with folder_lock(self.path, busy):
                yield
        finally:
            if is_new:
                with suppress(OSError):
                    self.path.rmdir()  # where nothing was begun

    def begun(self) -> Begun | None:
        """What it was begun with; None where nothing was begun.

        Raises:
            TrainingError: that cannot be read.
        """
        begun = self._read()
        if begun is None:
            return None
        try:
            return Begun(
                Recipe.from_dict(begun["recipe"]),
                begun["data"]["group_by"],
                bool(begun["skipped"]),
                begun["white_level"],
                begun["mpp"],
                begun.get("dealing", 1),
            )
        except (TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def begin(self, data: ImageFolder, recipe: Recipe, white_level: int | None, mpp: float | None) -> None:
        """Begins the comparison, or goes on with one that was begun with the same.

        Raises:
            TrainingError: it was begun with something else; all that differs is named.
            TargetError: the folder holds something else, or cannot be written.
        """
        everything = data.whole or data
        identity = {
            "data": {
                "labels": data.labels,
                "group_by": data.group_by,
                "digests": {name: everything.digest_of(name) for name in everything.splits},
            },
            "recipe": asdict(recipe),
            "skipped": sorted(data.skipped),
            "white_level": white_level,
            "mpp": mpp,
        }
        begun = self._read()
        if begun is None:
            self._refuse_other_content()
            facts = {
                **identity,
                "dealing": data.dealing,
                "root": str(data.root),
                "versions": {"msmamba": __version__},
            }
            self._write(BEGUN, json.dumps(facts, indent=2) + "\n")
        else:
            now = json.loads(json.dumps(identity))
            if differing := differences(flat({name: begun[name] for name in now}), flat(now)):
                raise TrainingError(
                    f"{self.path}: was begun with something else: {'; '.join(differing)}. Give the same, or "
                    f"compare in a new folder"
                )
        remove_leftovers(self.path)

    def read(self, name: str) -> Any:
        """The value of a JSON file; None where there is none that can be read."""
        try:
            return parsed(read_file(self.path / name), names=True)
        except (OSError, ValueError):
            return None

    def write(self, texts: Mapping[str, bytes]) -> None:
        """Writes files by name that belong together, whole or not at all.

        Raises:
            TargetError: one cannot be written.
        """
        with written_together():
            for name, content in texts.items():
                write_atomically(self.path / name, content)

    def _write(self, name: str, text: str) -> None:
        self.write({name: text.encode()})

    def _read(self) -> dict[str, Any] | None:
        try:
            begun: dict[str, Any] = parsed(read_file(self.path / BEGUN), names=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if problems := _BEGUN.problems(begun):
            raise self._unreadable("; ".join(problems))
        return begun

    def _unreadable(self, why: object) -> TrainingError:
        return TrainingError(
            f"{self.path / BEGUN}: does not say what was begun there: {why}: compare in a new folder"
        )

    def _refuse_other_content(self) -> None:
        taken = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        if taken:
            raise TargetError(f"'{self.path}' holds {taken[0]!r} and is no comparison: choose a new folder")
