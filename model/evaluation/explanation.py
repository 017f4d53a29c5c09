"""Where a network looks: heat maps of the evidence for a class, laid over the image.

Two methods, both Captum's, that err in different ways. *Grad-CAM* (Selvaraju et al., 2017) weights the
channels of a map inside the network by the gradient of the class's logit, the scans' own gradient included,
and keeps what speaks for the class. *Occlusion* (Zeiler and Fergus, 2014) covers one part of the image after
another and measures how far the logit falls; it knows nothing of the inside, and is the check of the other.

What a map does not tell is in docs/explain.md.

Dims: B batch, H W an image's own size, S side of the square network input, h side of a map, C channels.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ...errors import ArtefactError, BackendError, ImageError, InputError, Note
from ...files import as_utf8, common_folder, make_folder
from ...images import Transform, read_image
from ...pages.figures import DOTS_PER_INCH, INK, write_figure
from ...text import share_as_text
from ..networks.checkpoint import load_checkpoint
from ..networks.described import Described, described_by, notes_on
from ..networks.family import CHANNELS_FIRST, MapLayout, Network
from ..networks.registry import family_of

Floats = npt.NDArray[np.float32]

METHODS = ("gradcam", "occlusion")
BATCH_SIZE = 8

WINDOW, STEP = 4, 8
"""Occlusion covers squares of S/4 at steps of S/8."""

LARGEST_PANEL, SMALLEST_PANEL = 1600, 420
"""Longest side of an image in a picture, pixels: larger ones are reduced, smaller ones enlarged."""
COLOURS = "inferno"
OPACITY = 0.65


@dataclass(frozen=True)
class Explanation:
    """One image, what the network says of it, and where the evidence for a class is."""

    image: str
    label: str = ""
    """The likeliest class."""
    probability: float = 0.0
    explained: str = ""
    """The class whose evidence is shown."""
    explained_probability: float = 0.0
    heat: Floats | None = None
    """(h, h), at least 0: Grad-CAM's weighted sum, or the fall of the logit."""
    picture: Path | None = None
    error: str = ""
    """Why there is none of this."""


def explain_images(
    checkpoint: str | Path,
    images: Sequence[Path],
    output: str | Path,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    label: str | None = None,
    described: Described | None = None,
) -> Iterator[Explanation]:
    """Writes a picture of each image with its heat map into a folder, one after the other.

    Args:
        checkpoint: safetensors, or the authors' ``.pth``.
        images: files; below their common folder each keeps its place.
        output: the folder, made if it is not there. ``a.png`` becomes ``a.gradcam.png``.
        method: ``gradcam`` or ``occlusion``.
        layer: where Grad-CAM looks, one of `Family.map_layers`; `Family.default_map_layer` by default.
        label: the class to explain; by default each image's likeliest.
        described: labels and preprocessing of a checkpoint that does not say.

    Yields:
        One an image, in order; an image that cannot be read has its error in place of the rest.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ArtefactError: it does not say its labels and preprocessing.
        InputError: there is no such method, layer or class.
        BackendError: Captum is not installed.
        TargetError: a picture cannot be written.
    """
    described = described or Described()
    loaded = load_checkpoint(checkpoint, described.weights_of, described.network)
    labels, transform = described_by(loaded, described, str(checkpoint))
    for note in notes_on(loaded, described):
        warnings.warn(note, Note, stacklevel=2)
    explainer = Explainer(loaded.network, transform.size, method, layer)
    if label is not None and label not in labels:
        raise InputError(f"there is no class '{label}': choose one of {', '.join(labels)}")
    targets = _pictures(images, Path(output), method)
    caption = f"{explainer.description}, {Path(checkpoint).name}"
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        read = dict(_read(batch, transform.white_level))
        pixels = {path: each for path, each in read.items() if not isinstance(each, ImageError)}
        explained = dict(
            zip(pixels, _explained(explainer, list(pixels.values()), transform, labels, label), strict=True)
        )
        for path in batch:
            content = read[path]
            if isinstance(content, ImageError):
                yield Explanation(str(path), error=str(content))
                continue
            result = Explanation(str(path), *explained[path], targets[path])
            _write_picture(targets[path], content, result, caption)
            yield result


class Explainer:
    """One method on one network.

    Args:
        network: in evaluation mode; it is left as it is.
        image_size: S, pixels.
        method: one of `METHODS`.
        layer: where Grad-CAM looks, one of `Family.map_layers`; None for the default.

    Raises:
        InputError: there is no such method or layer, or a layer for a method that has none.
        BackendError: Captum is not installed.
    """

    def __init__(
        self,
        network: Network,
        image_size: int,
        method: str = "gradcam",
        layer: str | None = None,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"there is no method '{method}': choose one of {', '.join(METHODS)}")
        if method == "occlusion" and layer is not None:
            raise InputError("occlusion looks at no layer: leave the layer out, or choose gradcam")
        try:
            import captum.attr  # noqa: F401  # before anything is computed
        except ImportError as error:
            raise BackendError(
                "heat maps need Captum, which is not installed: pip install 'msmamba[train]'"
            ) from error
        self.network = deepcopy(network).requires_grad_(False)
        self.method = method
        self.description = "occlusion"
        if method == "gradcam":
            family = family_of(network)
            layers = family.map_layers(network)
            if not layers:
                raise InputError(f"{family.title} tells of no maps for gradcam: choose occlusion")
            chosen = layer or family.default_map_layer(network, image_size)
            if chosen not in layers:
                raise InputError(f"there is no layer '{chosen}': choose one of {', '.join(layers)}")
            self.description = f"Grad-CAM at {chosen}"
            self._shown = _shown_in_place(self.network, layers[chosen], family.map_layout)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, classes)."""
        with torch.inference_mode():
            logits: Tensor = self.network(images)
        return logits

    def heat(self, images: Tensor, classes: Tensor) -> Floats:
        """The evidence for one class an image: at least 0, in raster order, upright.

        Args:
            images: (B, 3, S, S).
            classes: (B,) class indices.

        Returns:
            (B, h, h): Grad-CAM's map, or the fall of the logit on S x S.
        """
        return (
            self._gradcam(images, classes) if self.method == "gradcam" else self._occlusion(images, classes)
        )

    def _gradcam(self, images: Tensor, classes: Tensor) -> Floats:
        from captum.attr import LayerGradCam

        # The weights are frozen, so the gradient has to begin at the images.
        cam = LayerGradCam(self.network, self._shown)
        heat = cam.attribute(images.clone().requires_grad_(), target=classes, relu_attributions=True)
        assert isinstance(heat, Tensor)
        return heat.detach()[:, 0].numpy()

    def _occlusion(self, images: Tensor, classes: Tensor) -> Floats:
        from captum.attr import Occlusion

        size = images.shape[-1]
        with torch.inference_mode():
            fall = Occlusion(self.network).attribute(
                images,
                sliding_window_shapes=(3, size // WINDOW, size // WINDOW),
                strides=(3, size // STEP, size // STEP),
                baselines=0,  # the training images' mean colour
                target=classes,
            )
        assert isinstance(fall, Tensor)
        heat: Floats = fall[:, 0].clamp(min=0).numpy()  # covered in all three channels at once: all alike
        return heat


class _Shown(nn.Module):
    """A module whose map passes through `map` as Captum expects it, channels first."""

    def __init__(self, module: nn.Module, layout: MapLayout) -> None:
        super().__init__()
        self.module = module
        self.layout = layout
        self.map = nn.Identity()

    def forward(self, *inputs: Any) -> Tensor:
        result = self.module(*inputs)
        return self.layout.restored(self.map(self.layout.shown(result)), result)


def _shown_in_place(network: Network, path: str, layout: MapLayout) -> nn.Module:
    """The module whose result is the map of the module at a path, channels first; put there if need be."""
    module = network.get_submodule(path)
    if layout is CHANNELS_FIRST:
        return module
    shown = _Shown(module, layout)
    owner, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(owner), leaf, shown)
    return shown.map


def _read(
    paths: Sequence[Path], white_level: int
) -> Iterator[tuple[Path, npt.NDArray[np.uint8] | ImageError]]:
    for path in paths:
        try:
            yield path, read_image(path, white_level=white_level)
        except ImageError as error:
            yield path, error


def _explained(
    explainer: Explainer,
    pixels: Sequence[npt.NDArray[np.uint8]],
    transform: Transform,
    labels: Sequence[str],
    label: str | None,
) -> Iterator[tuple[str, float, str, float, Floats]]:
    """What follows the name in each image's `Explanation`."""
    if not pixels:
        return
    inputs = torch.from_numpy(np.stack([transform(each) for each in pixels]))  # (B, 3, S, S)
    logits = explainer.logits(inputs)
    if not torch.isfinite(logits).all():
        raise ArtefactError("the network answers with NaN or infinite logits, which nothing can explain")
    likeliest = logits.argmax(dim=1)
    classes = likeliest if label is None else torch.full_like(likeliest, labels.index(label))
    heat = explainer.heat(inputs, classes)
    probabilities = logits.double().softmax(dim=1)
    for row, first, shown, map_ in zip(
        probabilities.tolist(), likeliest.tolist(), classes.tolist(), heat, strict=True
    ):
        yield labels[first], row[first], labels[shown], row[shown], map_


def _pictures(images: Sequence[Path], output: Path, method: str) -> dict[Path, Path]:
    """Where each image's picture goes: its place below their common folder; never the image's own name."""
    parents = [path.parent.resolve() for path in images]  # a ".." would lead out of `output`
    folders = [output / below for below in _below_common(parents)]
    stems = Counter((folder, path.stem) for folder, path in zip(folders, images, strict=True))
    return {
        path: folder / f"{path.stem if stems[folder, path.stem] == 1 else path.name}.{method}.png"
        for folder, path in zip(folders, images, strict=True)
    }


def _below_common(folders: Sequence[PurePath]) -> list[PurePath]:
    """Each folder from the one on that all lie in; on several drives, below one with its drive's name."""
    common = common_folder(folders) if folders else None
    if common is not None:
        return [folder.relative_to(common) for folder in folders]
    return [PurePath(re.sub(r"\W+", "_", folder.anchor).strip("_"), *folder.parts[1:]) for folder in folders]


def _write_picture(target: Path, pixels: npt.NDArray[np.uint8], result: Explanation, caption: str) -> None:
    """Draws the image beside itself under its heat map, with a colour bar and what the network says."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    assert result.heat is not None
    height, width, _ = pixels.shape
    scale = min(max(SMALLEST_PANEL / max(height, width), 1.0), LARGEST_PANEL / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    shown = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    strongest = float(result.heat.max())
    heat = result.heat / strongest if strongest > 0 else np.zeros_like(result.heat)
    spread = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)

    panel_width, panel_height = (side / DOTS_PER_INCH for side in size)
    figure = Figure(figsize=(2 * panel_width + 1.6, panel_height + 1.0), layout="constrained")
    plain, laid_over = figure.subplots(1, 2)
    plain.imshow(shown, interpolation="nearest")
    laid_over.imshow(shown, interpolation="nearest")
    laid_over.imshow(spread, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY * spread)
    said = f"{result.label} {share_as_text(result.probability)} %"
    plain.set_title(f"predicted: {said}", fontsize=10, color=INK, parse_math=False)
    of = result.explained
    evidence = f"evidence for {of}" if strongest > 0 else f"no evidence for {of}"
    if of != result.label:
        evidence += f" ({share_as_text(result.explained_probability)} %)"
    laid_over.set_title(evidence, fontsize=10, color=INK, parse_math=False)
    for axes in (plain, laid_over):
        axes.set_axis_off()
    opaque = ScalarMappable(Normalize(0, 1), COLOURS)
    bar = figure.colorbar(opaque, ax=laid_over, fraction=0.05, pad=0.03)
    bar.set_label(f"share of the strongest, {strongest:.3g}", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    name = as_utf8(Path(result.image).name).decode()
    below = f"{name}: {caption}, {len(heat)}x{len(heat)}"
    figure.supxlabel(below, fontsize=7, color=INK, parse_math=False)  # names may hold dollar signs
    make_folder(target.parent, parents=True)
    write_figure(target, figure)
