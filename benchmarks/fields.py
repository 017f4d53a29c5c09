"""Whole fields with every cell labelled: is the right class the likeliest on a cell's tile?

    python benchmarks/fields.py BUNDLE FIELDS OUT [--boxes FOLDER --names FILE | --points FOLDER --label NAME]
                                [--tile 120] [--overlap 0.75]

Runs `mmdeploy slide` over the fields in FIELDS, tiles of `--tile` pixels each, and looks at the tile whose
middle is nearest to a cell's. `--boxes` holds PASCAL VOC files (BCCD: `Annotations`; `--names
ImageSets/Main/test.txt` says which fields), `--points` text files with `x y type` a line (Chula RBC-12:
`Label`), all of the class `--label`.

Prints, for each class, cells and the share of them on whose tile it is the likeliest; the mean of these
shares, which one class everywhere makes one over their number; and how often each class is the likeliest
among all tiles.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from msmamba import open as open_artefact
from msmamba.microscope.slides.engine import TileResult
from msmamba.microscope.slides.results import read_rows

SMALLEST = 12  # pixels; boxes below are slips of the data set
Cell = tuple[str, float, float]


def boxes(path: Path) -> Iterator[Cell]:
    """Class and middle of each box."""
    for thing in ElementTree.parse(path).getroot().iter("object"):
        box = thing.find("bndbox")
        assert box is not None
        left, top, right, bottom = (int(box.findtext(key, "0")) for key in ("xmin", "ymin", "xmax", "ymax"))
        if min(right - left, bottom - top) >= SMALLEST:
            yield thing.findtext("name", ""), (left + right) / 2, (top + bottom) / 2


def points(path: Path, label: str) -> Iterator[Cell]:
    """The class of all and the place of each."""
    for line in path.read_text().splitlines():
        x, y, _ = map(float, line.split())
        yield label, x, y


def nearest(rows: list[TileResult], x: float, y: float) -> TileResult:
    """The tile whose middle is nearest."""

    def distance(row: TileResult) -> float:
        half = row.tile.side / 2
        return (row.tile.x + half - x) ** 2 + (row.tile.y + half - y) ** 2

    return min(rows, key=distance)


def main() -> None:
    """Classifies, scores, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "fields", "out"):
        parser.add_argument(name, type=Path)
    for name in ("--boxes", "--names", "--points"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--label", default="RBC")
    parser.add_argument("--tile", type=int, default=120)
    parser.add_argument("--overlap", type=float, default=0.75)
    options = parser.parse_args()

    with open_artefact(options.bundle, threads=1) as session:
        labels, size = session.labels or (), session.image_size or 0
    names = options.names.read_text().split() if options.names else None
    fields = [each for each in sorted(options.fields.iterdir()) if names is None or each.stem in names]
    shutil.rmtree(options.out, ignore_errors=True)
    # Of fields the microns are not known: a pixel counts as one, and a tile has as many as are asked for.
    scale = ["--assume-mpp", "1", "--mpp", str(options.tile / size), "--overlap", str(options.overlap)]
    command = ["slide", str(options.bundle), *map(str, fields), "-o", str(options.out), *scale, "--no-tissue"]
    subprocess.run([sys.executable, "-m", "msmamba", *command], check=True, stderr=subprocess.DEVNULL)

    right, found, called = Counter[str](), Counter[str](), Counter[str]()
    for field in fields:
        rows = list(read_rows(options.out / "model-outputs-csv" / f"{field.stem}.csv"))
        called.update(labels[row.likeliest] for row in rows)
        cells = (
            boxes(options.boxes / f"{field.stem}.xml")
            if options.boxes
            else points(options.points / f"{field.stem}.txt", options.label)
        )
        for label, x, y in cells:
            found[label] += 1
            right[label] += labels[nearest(rows, x, y).likeliest] == label
    shares = {label: right[label] / count for label, count in sorted(found.items())}
    for label, share in shares.items():
        print(f"{label:12} {found[label]:5} cells, {share:.3f} of them right")
    print(f"{'mean':12} {sum(shares.values()) / len(shares):.3f} over {len(fields)} fields")
    tiles = sum(called.values())
    print(
        "all tiles   ", ", ".join(f"{label} {called[label] / tiles:.3f}" for label in labels), f"of {tiles}"
    )


if __name__ == "__main__":
    main()
