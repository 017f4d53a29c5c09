"""One self-contained HTML page of a demo run: pictures and figures, with nothing to load from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from msmamba.data.folders import read_training_folder
from msmamba.measures.predictions import PREDICTIONS, read_predictions
from msmamba.pages.page import COMPARE, data_url, page_from_template, photograph, thumbnail

THUMBNAIL = 96
"""Side of the pictures in the gallery, pixels."""

LARGE = 900
"""Longest side of the slide's pictures, pixels."""


def write_report(out: Path, run: Path, bundles: Mapping[str, Path], tissue: Path, seconds: float) -> None:
    """Writes ``out/report.html``.

    Args:
        out: holds ``plankton/``, ``predictions.jsonl`` and ``bench.json``.
        run: the training run.
        bundles: the verified bundles, by precision.
        tissue: what ``mmdeploy slide`` has made of a slide.
        seconds: the demo's wall time so far.
    """
    metrics = json.loads((run / "metrics.json").read_text())
    test_images = {sample.source.name for sample in read_training_folder(out / "plankton").split("test")}
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    tested = read_predictions(run / PREDICTIONS)["test"]
    page = page_from_template(
        Path(__file__).parent / "report.html.jinja",
        COMPARE,
        seconds=seconds,
        classes=class_counts(out / "plankton"),
        metrics=metrics,
        accuracy_interval=tested.intervals()["accuracy"],
        curve=data_url((run / "curve.png").read_bytes()),
        confusion=data_url((run / "confusion.png").read_bytes()),
        parity={name: json.loads((bundle / "parity.json").read_text()) for name, bundle in bundles.items()},
        sizes={name: (bundle / "model.onnx").stat().st_size / 1e6 for name, bundle in bundles.items()},
        checkpoint_mb=(run / "best.safetensors").stat().st_size / 1e6,
        bench=json.loads((out / "bench.json").read_text()),
        gallery=list(gallery(predictions, test_images)),
        slide=slide_shown(tissue),
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def class_counts(folder: Path) -> dict[str, int]:
    """Images of each class."""
    return {label.name: sum(1 for _ in label.iterdir()) for label in sorted(folder.iterdir())}


def gallery(predictions: Iterable[dict[str, Any]], test_images: set[str]) -> Iterable[dict[str, Any]]:
    """The test images with what the FP32 bundle says of them, the surest first."""
    shown = [row for row in predictions if Path(row["image"]).name in test_images]
    for row in sorted(shown, key=lambda row: -row["probability"]):
        path = Path(row["image"])
        yield {
            "image": thumbnail(path, THUMBNAIL),
            "truth": path.parent.name,
            "label": row["label"],
            "probability": row["probability"],
            "right": row["label"] == path.parent.name,
        }


def slide_shown(results: Path) -> dict[str, Any]:
    """The one slide in a folder of results, with the map of its most frequent class."""
    run = json.loads((results / "run.json").read_text())
    ((name, facts),) = run["slides"].items()
    label = max(facts["shares"], key=facts["shares"].__getitem__)
    (found,) = (results / "heat-maps" / name).glob(f"{run['labels'].index(label)}-*.png")
    return {
        **facts,
        "label": label,
        "picture": photograph(Image.open(results / "thumbnails" / f"{name}.png"), LARGE),
        "map": photograph(Image.open(found), LARGE),
    }
