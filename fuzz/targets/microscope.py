"""What stands beside a microscope: fields too large for memory, drawn regions, sessions, logs."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import numpy as np
from mutation import mutated, mutated_json
from seeds import LABELS, Seeds, json_of

from .target import written

_SIDE = 200  # pixels of the field that regions lie on


class LargeFields:
    """PNG and JPEG as pictures that are decoded row by row into a file, whatever their size."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        from msmamba.microscope.slides import large_field

        patch.object(large_field, "MAX_PIXELS", 100).start()  # every picture is larger, and so takes this way
        self._good = [path for path in seeds.pictures if path.suffix in (".png", ".jpg")]

    def make(self, generator: random.Random, folder: Path) -> Path:
        path = generator.choice(self._good)
        return written(folder / path.name, mutated(path.read_bytes(), generator))

    def open(self, path: Path) -> object:
        from msmamba.microscope.slides import open_slide

        with closing(open_slide(path)) as slide:
            level = slide.levels[0]
            return slide.read(0, 0, 0, min(level.width, 100), min(level.height, 100)), slide.scale


class DrawnRegions:
    """GeoJSON of regions, as QuPath writes it, that says something else."""

    inputs = 2000

    def __init__(self, seeds: Seeds) -> None:
        def region(label: str | None, *rings: list[list[int]]) -> dict[str, object]:
            classes = {"classification": {"name": label, "color": [200, 0, 0]}} if label else {}
            return {
                "type": "Feature",
                "id": "f5b3f0d6-6e3a-4a8c-9d7b-3f3a4d1c2b10",
                "geometry": {"type": "Polygon", "coordinates": list(rings)},
                "properties": {"objectType": "annotation", **classes},
            }

        def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
            return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]

        self._good = {
            "type": "FeatureCollection",
            "features": [
                region(LABELS[0], box(0, 0, 90, 90), box(20, 20, 40, 40)),
                region(LABELS[1], box(50, 50, 200, 180)),
                region(None, box(150, 0, 190, 40)),
            ],
        }

    def make(self, generator: random.Random, folder: Path) -> Path:
        return written(folder / "regions.geojson", mutated_json(self._good, generator))

    def open(self, path: Path) -> object:
        from msmamba.microscope.slides.regions import Within, labels_of, read_regions
        from msmamba.microscope.slides.tiling import Tile

        regions = read_regions(path, _SIDE, _SIDE)
        tiles = (Tile(x, y, 20) for y in range(0, _SIDE, 20) for x in range(0, _SIDE, 20))
        return Within(regions).has_tissue(10, 10, 20, 20), list(labels_of(tiles, regions, 0.5))


class Sessions:
    """The folder of a session whose lines, facts or pictures are damaged; its report is made again."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        self._good = seeds.folder / "session"
        if not self._good.exists():
            self._record(self._good)

    def make(self, generator: random.Random, folder: Path) -> Path:
        session = Path(shutil.copytree(self._good, folder / "session"))
        files = [path for path in sorted(session.rglob("*")) if path.is_file()]
        path = generator.choice(files)
        if path.suffix == ".json":
            written(path, mutated_json(json_of(path), generator))
        elif path.suffix == ".jsonl" and generator.random() < 0.7:
            lines = path.read_bytes().splitlines()
            place = generator.randrange(len(lines))
            lines[place] = mutated_json(json.loads(lines[place]), generator)
            written(path, b"\n".join(lines))
        else:
            written(path, mutated(path.read_bytes(), generator))
        return session

    def open(self, path: Path) -> object:
        from msmamba.microscope.live.report import write_session_report

        again = Path(shutil.copytree(path, path.with_name("again")))  # the input stays as it was made
        return write_session_report(again)

    def _record(self, folder: Path) -> None:
        from msmamba.microscope.live.loop import Result
        from msmamba.microscope.live.record import recording
        from msmamba.microscope.sources import Frame
        from msmamba.runtime.quality import quality_of

        facts = {
            "msmamba": "1.0",
            "artefact": "small.fp32",
            "artefact_sha256": "a" * 64,
            "labels": list(LABELS),
            "source": "demo",
            "runs_by": "CPU",
        }
        latency = dict.fromkeys(("grab", "prepare", "network", "quality", "total"), 1.0)
        generator = np.random.default_rng(3)
        with recording(folder, facts, 0.0, print) as record:
            for number in range(12):
                pixels = generator.integers(0, 256, (40, 60, 3), np.uint8)
                frame = Frame(pixels, number, 10.0 * number, 0.5, f"#{number}")
                shares = tuple(np.roll((0.7, 0.2, 0.1), number).tolist())
                label, quality = LABELS[number % len(LABELS)], quality_of(pixels)
                shown = Result(frame, number, label, 0.7, shares, latency, 5.0, 1, quality)
                line = {"taken": "2026-11-27T18:00:00+00:00", **shown.as_json(), "painted_age_ms": None}
                record.add(shown, line)
                record.event(f"frame {number}")
                if number % 4 == 0:
                    record.snapshot(shown, line)


class DriftLogs:
    """A log of scores with other lines."""

    inputs = 1000

    def __init__(self, seeds: Seeds) -> None:
        from msmamba.runtime.drift import CalibratedScores, DriftLog, Origin, answer_scores, picture_scores

        generator = np.random.default_rng(4)
        pixels = [generator.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(12)]
        logits = generator.normal(0, 3, (12, len(LABELS))).astype(np.float32)
        pictures = [picture_scores(each) for each in pixels]
        rows = [{**one, **two} for one, two in zip(pictures, answer_scores(logits, 1.5), strict=True)]
        calibrated = CalibratedScores.of(rows)
        head = {"msmamba_drift": 1, "artefact": "a" * 64, "calibrated": calibrated.to_dict()}
        self._lines = [json.dumps(head)]
        log = DriftLog(self._lines.append, Origin("a" * 64, calibrated), "infer", 1.5)
        for one, row in zip(pictures, logits, strict=True):
            log.add(one, row, None)

    def make(self, generator: random.Random, folder: Path) -> Path:
        lines = [line.encode() for line in self._lines]
        for place in generator.sample(range(len(lines)), generator.choice((1, 1, 3))):
            lines[place] = mutated_json(json.loads(lines[place]), generator)
        content = b"\n".join(lines) + b"\n"
        return written(folder / "log", mutated(content, generator) if generator.random() < 0.25 else content)

    def open(self, path: Path) -> object:
        from msmamba.calib.drift import drift_of

        return drift_of(path).to_text()
