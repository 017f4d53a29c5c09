"""One self-contained HTML page of a demo run: pictures and figures, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from msmamba.model.data import read_training_folder

THUMBNAIL = 96
"""Side of the pictures in the gallery, pixels."""


def write_report(out: Path, run: Path, bundles: Mapping[str, Path], seconds: float) -> None:
    """Writes ``out/report.html``.

    Args:
        out: holds ``plankton/``, ``predictions.jsonl`` and ``bench.json``.
        run: the training run.
        bundles: by precision, verified.
        seconds: the demo's wall time so far.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = json.loads((run / "metrics.json").read_text())
    test_images = {sample.path.name for sample in read_training_folder(out / "plankton").split("test")}
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    page = environment.get_template("report.html.jinja").render(
        seconds=seconds,
        classes=class_counts(out / "plankton"),
        metrics=metrics,
        curve=picture(run / "curve.png"),
        confusion=picture(run / "confusion.png"),
        parity={name: json.loads((bundle / "parity.json").read_text()) for name, bundle in bundles.items()},
        sizes={name: (bundle / "model.onnx").stat().st_size / 1e6 for name, bundle in bundles.items()},
        checkpoint_mb=(run / "best.safetensors").stat().st_size / 1e6,
        bench=json.loads((out / "bench.json").read_text()),
        gallery=list(gallery(predictions, test_images)),
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def class_counts(folder: Path) -> dict[str, int]:
    """Images of each class."""
    return {label.name: sum(1 for _ in label.iterdir()) for label in sorted(folder.iterdir())}


def picture(path: Path) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def thumbnail(path: Path) -> str:
    """An image file as a small square data URL, on white."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    square.paste(small, ((THUMBNAIL - small.width) // 2, (THUMBNAIL - small.height) // 2))
    buffer = io.BytesIO()
    square.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def gallery(predictions: Iterable[dict[str, Any]], test_images: set[str]) -> Iterable[dict[str, Any]]:
    """The test images with what the FP32 bundle says of them, the surest first."""
    shown = [row for row in predictions if Path(row["image"]).name in test_images]
    for row in sorted(shown, key=lambda row: -row["probability"]):
        path = Path(row["image"])
        yield {
            "image": thumbnail(path),
            "truth": path.parent.name,
            "label": row["label"],
            "probability": row["probability"],
            "right": row["label"] == path.parent.name,
        }
