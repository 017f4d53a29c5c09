"""One image through the float32, float16 and int8 bundles of a checkpoint, interleaved, and where time goes.

    python benchmarks/precisions.py CHECKPOINT [DATA] [--rounds 60] [--threads 2] [--batch 1] [--kernels avx2]

Without images to calibrate on there is no int8. Every round runs each case once, in another order; ratios
are of median and of least times. ``--answers`` puts the images of DATA's test split through all of them,
by native kernels and by the file's own functions (seconds an image at 224 pixels), and counts the labels
that differ. With ``--against FOLDER`` bundles that another version exported there (``fp32``, ``fp16``,
``int8``) run beside them, on the same kernels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from int8_latency import session, times_by_operator
from onnxruntime import InferenceSession
from rich.console import Console
from rich.table import Table

import msmamba
from msmamba import machine
from msmamba.data.folders import match_labels, read_evaluation_folder
from msmamba.export.bundle import PRECISIONS, ExportOptions, export_bundle
from msmamba.export.graph.int8_options import Int8Options
from msmamba.plugins.selective_scan import cpu

SHOWN = 12


def export(checkpoint: str, data: str | None, size: int | None, folder: Path) -> dict[str, Path]:
    """The bundles' files by precision, made where they are not there yet."""
    paths = {}
    for precision in PRECISIONS:
        int8 = None
        if precision == "int8":
            if data is None:
                continue
            int8 = Int8Options(data, cache=folder / "int8.calib")
        if not (folder / precision).exists():
            chosen = ExportOptions(precision=precision, int8=int8, image_size=size)
            export_bundle(checkpoint, folder / precision, chosen)
        paths[precision] = folder / precision / "model.onnx"
    return paths


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--image-size", type=int, help="other than the checkpoint's")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--kernels", default=cpu.kernels(), help="the instruction set")
    parser.add_argument("--bundles", type=Path, help="keep the bundles there, or take them from there")
    parser.add_argument("--answers", action="store_true", help="compare labels, too")
    parser.add_argument("--against", type=Path, help="bundles of another version")
    parser.add_argument("-o", "--output", type=Path, help="write all samples there as JSON")
    options = parser.parse_args()
    if options.answers and options.data is None:
        parser.error("--answers takes the images of DATA's test split: name it")
    cpu.select_kernels(options.kernels)
    with tempfile.TemporaryDirectory() as name:
        folder = options.bundles or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        paths = export(options.checkpoint, options.data, options.image_size, folder)
        if options.against is not None:
            for precision in PRECISIONS:
                file = options.against / precision / "model.onnx"
                if file.exists():
                    paths[f"{precision}, other"] = file
        sessions = {case: session(path, threads=options.threads) for case, path in paths.items()}
        size = sessions["fp32"].get_inputs()[0].shape[2]
        shape = (options.batch, 3, size, size)
        images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        taken = interleaved(sessions, images, options.rounds)
        profiles = {
            case: times_by_operator(path, images, Path(name), options.threads) for case, path in paths.items()
        }
        answers = compare_answers(folder, options.data) if options.answers else []

    title = f"{machine.processor()}, {cpu.kernels()}, {options.threads} threads, batch {options.batch}"
    table = Table(title=title)
    for column in ("case", "median ms", "least ms", "ratio, medians", "ratio, least"):
        table.add_column(column, justify="left" if column == "case" else "right")
    base = taken["fp32"]
    for case, samples in taken.items():
        figures = (np.median(samples), min(samples))
        ratios = (np.median(samples) / np.median(base), min(samples) / min(base))
        table.add_row(case, *(f"{ms:.2f}" for ms in figures), *(f"{ratio:.3f}" for ratio in ratios))
    console = Console(width=150)
    console.print(table)
    for case, totals in profiles.items():
        rest = sum(list(totals.values())[SHOWN:])
        shown = ", ".join(f"{operator} {ms:.2f}" for operator, ms in list(totals.items())[:SHOWN])
        console.print(f"{case}: {sum(totals.values()):.1f} ms: {shown}, the rest {rest:.2f}", highlight=False)
    for line in answers:
        console.print(line, highlight=False)
    if options.output:
        result = {"context": title, "samples_ms": taken, "profiles_ms": profiles}
        options.output.write_text(json.dumps(result, indent=1))


def compare_answers(folder: Path, data: str) -> list[str]:
    """Labels and logits of every precision beside float32's, and of native kernels beside the functions'."""
    logits: dict[tuple[str, str], np.ndarray] = {}
    for precision in PRECISIONS:
        for kernels in ("native", "functions"):
            with msmamba.open(folder / precision, kernels=kernels, guard=False) as session:
                assert session.labels is not None
                assert session.transform is not None
                transform = session.transform
                (tests,) = match_labels(read_evaluation_folder(data), session.labels).splits.values()
                rows = [session.run(transform.of(sample.source)[None]) for sample in tests]
            logits[precision, kernels] = np.concatenate(rows)
    reference = logits["fp32", "native"]
    margins = np.sort(reference, axis=1)
    lines = [f"{len(reference)} images, least margin {(margins[:, -1] - margins[:, -2]).min():.4f}"]
    for precision in PRECISIONS:
        native = logits[precision, "native"]
        for name, other in (("float32", reference), ("its functions", logits[precision, "functions"])):
            flips = (native.argmax(1) != other.argmax(1)).sum()
            off = np.abs(native - other).max()
            lines.append(f"{precision} beside {name}: {flips} labels differ, logits by {off:.2g} at most")
    return lines


def interleaved(
    sessions: dict[str, InferenceSession], images: np.ndarray, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each call, by case."""
    for each in (*sessions.values(), *sessions.values()):
        each.run(None, {"image": images})
    taken: dict[str, list[float]] = {case: [] for case in sessions}
    order, shuffle = list(sessions), np.random.default_rng(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for case in order:
            started = time.perf_counter()
            sessions[case].run(None, {"image": images})
            taken[case].append(1e3 * (time.perf_counter() - started))
    return taken


if __name__ == "__main__":
    main()
