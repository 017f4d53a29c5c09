"""Peak memory of calibration by itself: a process that loads the network's file and measures its activations.

PyTorch is not in that process: it makes the file, in another one, and calibration needs none of it.

    python benchmarks/calibration_memory.py CHECKPOINT DATA [--images 24 500]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msmamba.calib import choose, measure
from msmamba.images import Transform
from msmamba.machine import peak_memory_bytes

PROBE = "--probe"


def peak_mb() -> float:
    """Resident high-water mark of this process; 10^6 bytes."""
    return (peak_memory_bytes() or 0) / 1e6


def probe(request: Path, count: int) -> None:
    """Calibrates, and prints how much memory that took."""
    asked = json.loads(request.read_text())
    samples = [(Path(path), label) for path, label in asked["samples"]]
    before = peak_mb()
    chosen = choose(asked["data"], samples, asked["labels"], count=count)
    started = time.perf_counter()
    cache = request.with_name(f"{count}.calib")
    transform = Transform(asked["size"], tuple(asked["mean"]), tuple(asked["std"]), asked["white_level"])
    measure(request.with_name("flat.onnx").read_bytes(), asked["values"], chosen, transform, cache)
    print(
        f"{len(chosen.images)} images, {len(asked['values'])} activations: "
        f"{time.perf_counter() - started:.0f} s, peak {peak_mb():.0f} MB ({before:.0f} MB before), "
        f"cache {cache.stat().st_size / 1e6:.2f} MB"
    )


def main() -> None:
    """Makes the file and starts a process for each number of images."""
    if sys.argv[1:2] == [PROBE]:
        probe(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, nargs="+", default=[24, 500])
    arguments = parser.parse_args()

    from msmamba.export.graph.int8_options import calibration_samples
    from msmamba.export.graph.onnx_model import flat_model, onnx_from_network
    from msmamba.export.graph.products import measured_values, merged, products
    from msmamba.model.networks.checkpoint import load_checkpoint

    loaded = load_checkpoint(arguments.checkpoint)
    said, labels = loaded.preprocessing, loaded.labels
    if said is None or labels is None:
        parser.error(f"'{arguments.checkpoint}' does not say its labels and how images are prepared")
    flat = merged(flat_model(onnx_from_network(loaded.network, said.image_size)))
    values = measured_values(products(flat))
    samples, _ = calibration_samples(arguments.data, labels)
    with tempfile.TemporaryDirectory() as name:
        request = Path(name) / "request.json"
        request.with_name("flat.onnx").write_bytes(flat.SerializeToString())
        request.write_text(
            json.dumps(
                {
                    "data": arguments.data,
                    "samples": [(str(sample.source), labels[sample.label]) for sample in samples],
                    "labels": labels,
                    "size": said.image_size,
                    "mean": said.mean,
                    "std": said.std,
                    "white_level": said.white_level,
                    "values": sorted(values),
                }
            )
        )
        for count in arguments.images:
            subprocess.run([sys.executable, __file__, PROBE, str(request), str(count)], check=True)


if __name__ == "__main__":
    main()
