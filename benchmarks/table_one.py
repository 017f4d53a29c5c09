"""Table I's networks and Microscopic-Mamba side by side: sizes, exactness, exports and latency, in Markdown.

    python benchmarks/table_one.py -o FOLDER DATA [--networks t,pvt_small]    # DATA holds <class>/*
    python benchmarks/table_one.py -o FOLDER --latency-only [--rounds 50]     # of the files there, minutes

The error to the reference is that of the logits to the authors' own (`tests/reference`), or to timm's, for
weights that anyone can make again. For the export each network has random weights, a say for every block,
batch norms with the images' statistics, and a head that is fitted to 64 labelled images by ridge
regression, so that its answers have margins as a trained network's have. On 32 others: how far the exported
files are from PyTorch, and how many labels float16 flips. All errors are over the largest logit. Latency
is of one image, the float32 files of all networks interleaved, in an order shuffled anew each round.

FOLDER keeps each network's figures and files (3 GB in float32, half of that in float16) and ``table.md``.
What is there is not made again; a network that fails is named and stops no other. Needs the extras train,
export and peers.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from msmamba.data.folders import read_evaluation_folder
from msmamba.data.samples import classes_of, sources_of
from msmamba.errors import BackendError
from msmamba.export.graph.onnx_model import onnx_from_network
from msmamba.export.graph.precision import fp16_from_fp32
from msmamba.images import Transform
from msmamba.model import build_network
from msmamba.model.evaluation.listing import Listed, listed_networks
from msmamba.model.evaluation.paper import PEERS, PUBLISHED
from msmamba.model.networks.complexity import complexity
from msmamba.model.networks.family import Network
from msmamba.model.networks.registry import NETWORKS, architecture_named, family_of
from msmamba.model.networks.timm_networks import TimmNetwork
from msmamba.runtime.benchmark import BenchmarkOptions, benchmark
from msmamba.runtime.onnxruntime_backend import OnnxRuntimeBackend

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"
PRINTED = {peer.network for peer in PEERS} | PUBLISHED.keys()
NAMES = [name for name in NETWORKS if name in PRINTED]
SIZE, FITTED, COMPARED, BATCH, THREADS = 224, 64, 32, 16, 2
TRANSFORM = Transform(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LATENCIES, TABLE = "latencies.json", "table.md"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """What is known of a network but its latency."""

    name: str
    parameters: int
    """With 1000 classes."""
    as_paper: int
    """With as many as the paper counted."""
    paper_parameters_m: float | None
    macs_as_paper: int
    paper_gmacs: float | None
    macs: int
    reference_error: float | None
    nodes: int
    fp32_mb: float
    fp16_mb: float
    fp32_error: float
    fp16_error: float
    flips: int
    right: int


def main() -> None:
    """Measures what is missing, and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", help="a folder of labelled images")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--networks", default=",".join(NAMES), help="to measure now; the table has all")
    parser.add_argument("--latency-only", action="store_true", help="of the files that are there")
    parser.add_argument("--no-latency", action="store_true", help="leave latencies as they are")
    parser.add_argument("--rounds", type=int, default=50, help="of latency, in four minutes at most")
    asked = parser.parse_args()
    if asked.data is None and not asked.latency_only:
        parser.error("give the folder of labelled images, or --latency-only")
    torch.set_num_threads(THREADS)
    folder: Path = asked.output
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    if not asked.latency_only:
        images, truth = labelled_images(asked.data)
        for name in asked.networks.split(","):
            if (folder / f"{name}.json").exists():
                continue
            try:
                (listed,) = listed_networks([name])
                row = measured(listed, images, truth, folder)
            except Exception as error:  # whatever one network raises stops no other
                failed.append(name)
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            (folder / f"{name}.json").write_text(json.dumps(asdict(row), indent=1) + "\n")
            print(row, file=sys.stderr, flush=True)
    kept = [name for name in NAMES if (folder / f"{name}.json").exists()]
    if not kept:
        sys.exit(f"'{folder}' has no network's figures")
    rows = [Row(**json.loads((folder / f"{name}.json").read_text())) for name in kept]
    if not asked.no_latency:
        (folder / LATENCIES).write_text(json.dumps(latencies(rows, folder, asked.rounds), indent=1) + "\n")
    if (folder / LATENCIES).exists():
        text = to_markdown(rows, json.loads((folder / LATENCIES).read_text()))
        (folder / TABLE).write_text(text, encoding="utf-8")
        print(text)
    sys.exit(bool(failed))


def labelled_images(data: str) -> tuple[Floats, npt.NDArray[np.int32]]:
    """The images to fit and to compare on, class by class in turn: (B, 3, S, S), and their classes."""
    samples = next(iter(read_evaluation_folder(data).splits.values()))
    truth, sources = classes_of(samples), list(sources_of(samples))
    classes = int(truth.max()) + 1
    order = [
        int(np.flatnonzero(truth == place % classes)[place // classes]) for place in range(FITTED + COMPARED)
    ]
    return np.stack([TRANSFORM.of(sources[index]) for index in order]), truth[order]


@torch.no_grad()
def awaken(network: Network, images: Floats) -> None:
    """Gives every block a say, and batch norms the statistics of images; both begin without."""
    for name, weight in network.named_parameters():
        if name.endswith("gamma") or "layer_scale" in name:  # 1e-4 and less
            weight.uniform_(0.1, 0.3)
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        network.train()(torch.from_numpy(images))
        network.eval()


@torch.no_grad()
def fit_head(network: Network, images: Floats, truth: npt.NDArray[np.int32]) -> None:
    """Sets the head so that it tells the classes of images apart: ridge regression on what it takes."""
    path = family_of(network).head
    modules = dict(network.named_modules())
    heads = [modules[name] for name in (path, f"{path}_dist") if name in modules]  # SwiftFormer has two
    taken: list[torch.Tensor] = []
    handle = heads[0].register_forward_hook(lambda module, inputs, result: taken.append(inputs[0]))
    for start in range(0, len(images), BATCH):
        network(torch.from_numpy(images[start : start + BATCH]))
    handle.remove()
    features = torch.cat(taken).double()  # (B, C)
    mean, spread = features.mean(0), features.std(0) + 1e-6
    scaled = (features - mean) / spread
    wanted = 8 * nn.functional.one_hot(torch.from_numpy(truth).long()).double() - 1
    kernel = scaled @ scaled.T + features.shape[1] * torch.eye(len(scaled), dtype=torch.float64)
    weight = (scaled.T @ torch.linalg.solve(kernel, wanted)).T / spread  # (classes, C)
    for head in heads:
        assert isinstance(head, nn.Linear)
        head.weight.copy_(weight)
        head.bias.copy_(wanted.mean(0) - weight @ mean)


def measured(listed: Listed, images: Floats, truth: npt.NDArray[np.int32], folder: Path) -> Row:
    """Builds, fits, exports and compares one network; its files stay in the folder."""
    name = listed.name
    if listed.count is None:
        raise BackendError(listed.unavailable)
    reference = reference_error(name)
    torch.manual_seed(0)
    network = build_network(name, num_classes=int(truth.max()) + 1).eval()
    awaken(network, images[:BATCH])
    fit_head(network, images[:FITTED], truth[:FITTED])
    model = onnx_from_network(network, SIZE)
    files = {"fp32": folder / f"{name}.onnx", "fp16": folder / f"{name}.fp16.onnx"}
    onnx.save(model, files["fp32"])
    onnx.save(fp16_from_fp32(model), files["fp16"])
    compared = images[FITTED:]
    with torch.no_grad():
        expected = np.concatenate([network(torch.from_numpy(image[None])).numpy() for image in compared])
    found = {precision: answers(file, compared) for precision, file in files.items()}
    largest = float(np.abs(expected).max())
    return Row(
        name=name,
        parameters=complexity(architecture_named(name, num_classes=1000), SIZE).parameters,
        as_paper=listed.count.parameters,
        paper_parameters_m=listed.printed_parameters,
        macs_as_paper=listed.count.paper_macs,
        paper_gmacs=listed.printed_macs,
        macs=listed.count.macs,
        reference_error=reference,
        nodes=len(model.graph.node),
        fp32_mb=files["fp32"].stat().st_size / 1e6,
        fp16_mb=files["fp16"].stat().st_size / 1e6,
        fp32_error=float(np.abs(found["fp32"] - expected).max()) / largest,
        fp16_error=float(np.abs(found["fp16"] - expected).max()) / largest,
        flips=int((found["fp16"].argmax(1) != expected.argmax(1)).sum()),
        right=int((expected.argmax(1) == truth[FITTED:]).sum()),
    )


def answers(file: Path, images: Floats) -> Floats:
    """The logits of a file, image by image."""
    backend = OnnxRuntimeBackend(str(file), file.name, device="cpu", threads=THREADS)
    try:
        return np.concatenate([backend.run(image[None]) for image in images])
    finally:
        backend.close()


def reference_error(name: str) -> float | None:
    """The largest error of the logits to the authors' or timm's, over the largest; None without such."""
    sys.path.insert(0, str(REFERENCE.parent))
    from reference.weights import (  # type: ignore[import-not-found]  # below tests, which mypy does not read
        reference_image,
        reference_state,
    )

    network = build_network(name, num_classes=4).eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in reference_state(shapes).items()}
    tied = REFERENCE / "peers" / f"{name}_tied.json"
    for alias, first in json.loads(tied.read_text()).items() if tied.exists() else ():
        state[alias] = state[first]
    network.load_state_dict(state)
    images = torch.from_numpy(reference_image(2, SIZE))
    published = REFERENCE / (f"expected_{name}.npz" if name in PUBLISHED else f"peers/expected_{name}.npz")
    with torch.no_grad():
        if published.exists():
            expected = torch.from_numpy(np.load(published)["logits"])
        elif isinstance(network, TimmNetwork):
            import timm

            options = {"distillation": False} if name.startswith("repvit") else {}
            other = timm.create_model(name, num_classes=4, **options).eval()
            other.load_state_dict(state)
            expected = other(images)
        else:
            return None
        return float((network(images) - expected).abs().max() / expected.abs().max())


def latencies(rows: list[Row], folder: Path, rounds: int) -> dict[str, Any]:
    """One image through every float32 file, interleaved: median and least milliseconds by network."""
    files = {str(folder / f"{row.name}.onnx"): row.name for row in rows}
    options = BenchmarkOptions(threads=(THREADS,), device="cpu", rounds=rounds, seconds=240, memory=False)
    found = benchmark(list(files), options, report=lambda step: print(step, file=sys.stderr, flush=True))
    return {
        "run": f"{found.machine['processor']}, {THREADS} threads, {found.rounds} rounds, ONNX Runtime "
        f"{found.versions['onnxruntime']}; a fixed loop spread by {found.noise:.0%}",
        "ms": {
            files[result.case.artefact]: (result.network_ms.median, result.network_ms.min)
            for result in found.results
        },
    }


def to_markdown(rows: list[Row], latencies: dict[str, Any]) -> str:
    """The table in two parts: the networks, and their exported files."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    lines = [
        "| network | params M, 1000 classes | as the paper counts | paper | GMACs as the paper counts "
        "| paper | in full | logits off |",
        "|---|" + "---:|" * 7,
    ]
    for row in rows:
        figures = (
            f"{row.parameters / 1e6:.2f}",
            f"{row.as_paper / 1e6:.2f}",
            shown(row.paper_parameters_m, ".2f"),
            f"{row.macs_as_paper / 1e9:.2f}",
            shown(row.paper_gmacs, ".2f"),
            f"{row.macs / 1e9:.2f}",
            "0" if row.reference_error == 0 else shown(row.reference_error, ".0e"),
        )
        lines.append(f"| `{row.name}` | {' | '.join(figures)} |")
    lines += [
        "",
        latencies["run"],
        "",
        f"| network | nodes | MB | float32 off | MB float16 | float16 off | flips of {COMPARED} "
        f"| right of {COMPARED} | ms median | least |",
        "|---|" + "---:|" * 9,
    ]
    for row in rows:
        median, least = latencies["ms"].get(row.name, (None, None))
        of_files = (
            f"{row.nodes}",
            f"{row.fp32_mb:.1f}",
            f"{row.fp32_error:.0e}",
            f"{row.fp16_mb:.1f}",
            f"{row.fp16_error:.0e}",
            f"{row.flips}",
            f"{row.right}",
            shown(median, ".1f"),
            shown(least, ".1f"),
        )
        lines.append(f"| `{row.name}` | {' | '.join(of_files)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
