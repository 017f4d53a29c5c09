"""What int8 costs in answers: methods, numbers of calibration images, kinds of products, precision around.

Ranges are measured on DATA's training images, answers on its test images, always beside float32's.

    python benchmarks/int8_accuracy.py CHECKPOINT DATA [--images 24 128 500] [-o FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from rich.console import Console
from rich.table import Table

from msmamba.calib import METHODS, Histogram, choose, measure, range_of
from msmamba.data.folders import match_labels, read_evaluation_folder
from msmamba.export.graph.int8_options import DEFAULT_METHOD, calibration_samples
from msmamba.export.graph.onnx_model import flat_model, onnx_from_network
from msmamba.export.graph.plan import QUANTISED_KINDS
from msmamba.export.graph.precision import fp16_from_fp32
from msmamba.export.graph.products import KINDS, measured_values, merged, products
from msmamba.export.graph.quantise import int8_from_fp32, int8_proof
from msmamba.images import Transform, as_channels
from msmamba.measures.metrics import metrics_of
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.runtime.onnxruntime_backend import OnnxRuntimeBackend


def change(auc: float | None, reference: float | None) -> float | None:
    """None where the images are all of one class."""
    return None if auc is None or reference is None else auc - reference


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, nargs="+", default=[24, 128, 500])
    parser.add_argument("-o", "--output", type=Path, help="write everything there as JSON")
    arguments = parser.parse_args()

    loaded = load_checkpoint(arguments.checkpoint)
    said, labels = loaded.preprocessing, loaded.labels
    if said is None or labels is None:
        parser.error(f"'{arguments.checkpoint}' does not say its labels and how images are prepared")
    mean, std = as_channels("mean", said.mean), as_channels("std", said.std)
    transform = Transform(said.image_size, mean, std, said.white_level)
    original = onnx_from_network(loaded.network, said.image_size)
    flat = merged(flat_model(original))
    found = products(flat)
    (tests,) = match_labels(read_evaluation_folder(arguments.data), labels).splits.values()
    truth = np.array([sample.label for sample in tests])

    def logits(model: ModelProto) -> np.ndarray[Any, np.dtype[np.float32]]:
        backend = OnnxRuntimeBackend(model.SerializeToString(), "the model")
        return np.concatenate([backend.run(transform.of(sample.source)[None]) for sample in tests])

    expected = logits(original)
    reference = metrics_of(expected, truth, labels)
    whole = len(original.SerializeToString())
    rows: list[dict[str, Any]] = []

    def judge(
        case: str,
        histograms: dict[str, Histogram],
        method: str,
        kinds: Sequence[str] = QUANTISED_KINDS,
        half: bool = False,
    ) -> None:
        ranges = {name: range_of(histogram, method) for name, histogram in histograms.items()}
        names = [product.node for product in found if product.kind in kinds]
        model = int8_from_fp32(flat, ranges, names, outputs=not half)
        if half:
            model = fp16_from_fp32(model)
        answers = logits(model)
        metrics = metrics_of(answers, truth, labels)
        errors = answers.astype(np.float64) - expected
        rows.append(
            {
                "case": case,
                "flips": int((answers.argmax(1) != expected.argmax(1)).sum()),
                "accuracy_change": 100 * (metrics.accuracy - reference.accuracy),
                "auc_change": change(metrics.auc, reference.auc),
                "logit_rms_error": float(np.sqrt((errors**2).mean())),
                "largest_logit_error": float(np.abs(errors).max()),
                "share_of_multiply_adds": int8_proof(model, flat).share,
                "size_share": len(model.SerializeToString()) / whole,
            }
        )
        print(rows[-1], flush=True)

    samples, _ = calibration_samples(arguments.data, labels)
    named = [(sample.source, labels[sample.label]) for sample in samples]
    values = sorted(measured_values(found))
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.images:
            chosen = choose(arguments.data, named, labels, count=count)
            histograms = measure(
                flat.SerializeToString(), values, chosen, transform, Path(folder) / str(count)
            )
            for method in METHODS:
                judge(f"{method}, {len(chosen.images)} images", histograms, method)
    last = f"{DEFAULT_METHOD}, {arguments.images[-1]} images"
    judge(f"{last}, float16 around", histograms, DEFAULT_METHOD, half=True)
    for kind in KINDS:
        judge(f"{last}, {kind} products only", histograms, DEFAULT_METHOD, (kind,))
    judge(f"{last}, all products", histograms, DEFAULT_METHOD, KINDS)

    area = "–" if reference.auc is None else f"{reference.auc:.5f}"
    table = Table(title=f"{len(tests)} images; float32: accuracy {reference.accuracy:.4f}, AUC {area}")
    for column in ("case", "flips", "accuracy, points", "AUC", "logits, rms", "largest", "int8", "size"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(
            row["case"],
            str(row["flips"]),
            f"{row['accuracy_change']:+.2f}",
            "–" if row["auc_change"] is None else f"{row['auc_change']:+.5f}",
            f"{row['logit_rms_error']:.4f}",
            f"{row['largest_logit_error']:.3f}",
            f"{100 * row['share_of_multiply_adds']:.1f} %",
            f"{100 * row['size_share']:.1f} %",
        )
    Console(width=130).print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
