"""Tiles of a slide through WSInfer's or TIAToolbox's own reader and loop; `slide.py` runs it.

    python benchmarks/slide_peers.py {wsinfer,tiatoolbox} CHECKPOINT SLIDE OUT

The interpreter is that of an environment with this package and `wsinfer[openslide]==0.6.1` and `zarr<3`, or
`tiatoolbox==2.1.3`, which needs a newer one. Both get the network of CHECKPOINT in PyTorch, with its
compiled kernels, batches of 32 (WSInfer's default) and a DataLoader of a process on each core. A line is
written to OUT for each tile. The network is the only thing that is ours: WSInfer's command takes its own
models alone, so its loop (`run_inference`) stands here over its data set; TIAToolbox's engine takes a
network as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msmamba import machine
from msmamba.model import MicroscopicMamba

MODEL_PIXELS = 224
BATCH = 32

Classify = Callable[[torch.Tensor], torch.Tensor]
"""(B, 3, S, S) to probabilities (B, classes), which are written down."""


def classifier(checkpoint: str, out: Path) -> Classify:
    """The network, which writes a line for each tile."""
    network = MicroscopicMamba.from_checkpoint(checkpoint).eval()
    file = out.open("w")
    file.write("first line\n")

    def classify(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            said = network(images).softmax(1)
        file.writelines(f"{row}\n" for row in said.tolist())
        file.flush()
        return said

    return classify


def normalised(tile: Any) -> torch.Tensor:
    """A tile of (S, S, 3) as the network takes it, (3, S, S)."""
    pixels = torch.from_numpy(np.array(tile, np.float32)).permute(2, 0, 1).contiguous() / 255
    return (pixels - 0.7) / 0.2


def wsinfer(classify: Classify, slide: str, out: Path) -> None:
    """WSInfer's data set of a slide's patches, in its loop."""
    import h5py
    from torch.utils.data import DataLoader
    from wsinfer.modellib.data import WholeSlideImagePatches
    from wsinfer.wsi import WSI

    width, height = WSI(slide).dimensions
    across, down = width // MODEL_PIXELS, height // MODEL_PIXELS
    places = np.stack(np.meshgrid(np.arange(across), np.arange(down)), -1).reshape(-1, 2) * MODEL_PIXELS
    patches = out.with_suffix(".h5")
    with h5py.File(patches, "w") as file:
        coords = file.create_dataset("coords", data=places)
        coords.attrs.update(patch_level=0, patch_size=MODEL_PIXELS)
    tiles = WholeSlideImagePatches(slide, patches, normalised)
    workers = machine.usable_cores()
    for images, _ in DataLoader(
        tiles, batch_size=BATCH, num_workers=workers, worker_init_fn=tiles.worker_init
    ):
        classify(images)


def tiatoolbox(classify: Classify, slide: str, out: Path) -> None:
    """TIAToolbox's engine for patches of whole slides."""
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
    from tiatoolbox.models.engine.patch_predictor import PatchPredictor
    from tiatoolbox.models.models_abc import ModelABC

    class Network(ModelABC):  # type: ignore[misc]  # the library ships no types
        """Ours behind the toolbox's interface."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """(B, 3, S, S) to (B, classes)."""
            return classify(images)

        @staticmethod
        def preproc(image: np.ndarray) -> torch.Tensor:
            """A patch of (S, S, 3)."""
            return normalised(image)

        @staticmethod
        def infer_batch(model: Any, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
            """A batch of patches."""
            return np.asarray(model(batch_data))

    config = IOPatchPredictorConfig(
        input_resolutions=[{"units": "mpp", "resolution": 0.25}],
        patch_input_shape=(MODEL_PIXELS, MODEL_PIXELS),
        stride_shape=(MODEL_PIXELS, MODEL_PIXELS),
    )
    engine = PatchPredictor(model=Network(), batch_size=BATCH, num_workers=machine.usable_cores())
    engine.run(
        images=[Path(slide)],
        patch_mode=False,
        ioconfig=config,
        auto_get_mask=False,
        device="cpu",
        save_dir=out.with_suffix(".tia"),
        output_type="zarr",
    )


def main() -> None:
    """Classifies until it is stopped."""
    tool, checkpoint, slide, out = sys.argv[1:]
    {"wsinfer": wsinfer, "tiatoolbox": tiatoolbox}[tool](classifier(checkpoint, Path(out)), slide, Path(out))


if __name__ == "__main__":
    main()
