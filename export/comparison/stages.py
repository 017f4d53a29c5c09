"""The way of one network: counted, trained, exported, verified; what is done already is not done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.folders import ImageFolder
from ...errors import ArtefactError, DataError, ImageError, InputError, MsmambaError, TrainingError, some
from ...files import as_utf8, sha256_of
from ...measures.predictions import PREDICTIONS, Predictions, read_predictions
from ...model.networks.complexity import Complexity, complexity
from ...model.networks.family import Architecture
from ...model.networks.registry import architecture_named, family_of
from ...model.training.loop import Hardware, Listener, train
from ...model.training.recipe import Recipe
from ...model.training.run import RunFolder
from ...runtime.artefact import open_bundle
from ...runtime.manifest import Manifest
from ...schema import TRUTH, maybe, number, record, whole
from ..bundle import ExportOptions, export_bundle
from ..proof.verify import verify
from .folder import ComparisonFolder

VERIFIED = 1000
"""Images that a bundle is verified on, at most: spread evenly over those that are tested on."""

_PARITY = record(
    {
        "passed": TRUTH,
        "images": whole(1),
        "max_abs_error": maybe(number(0)),
        "flips": whole(),
        "undecided": whole(),
        "undecided_flips": whole(),
    }
)


class Watch:
    """Is told how a comparison goes; this one keeps it to itself."""

    def on_stage(self, network: str, stage: str) -> None:
        """A stage of a network begins, or one of them all where ``network`` is empty."""

    def training(self) -> AbstractContextManager[Sequence[Listener]]:
        """The listeners of a network's training, for as long as it takes."""
        return nullcontext(())

    def working(self) -> AbstractContextManager[Callable[[str], None]]:
        """What is told the steps of another stage, for as long as it takes."""
        return nullcontext(lambda step: None)


@dataclass(frozen=True)
class Trained:
    """What the training of a network came to."""

    predictions: Predictions
    """Its answers on the images that are tested on."""
    epochs: int
    best_epoch: int
    seconds: float
    """Wall time of all epochs."""


@dataclass(frozen=True)
class Parity:
    """Whether the exported network answers like the trained one (see `proof.verify`)."""

    kept: bool
    images: int
    max_abs_error: float | None
    """The largest of any logit; None where one is not finite."""
    flips: int
    """Images that get another label: those that the network decides, and those that it does not."""
    undecided: int = 0
    """Images that the network itself does not decide: too many of them lose parity, too."""


def counted(
    networks: Sequence[str], classes: int, image_size: int
) -> dict[str, tuple[Architecture, Complexity]]:
    """The networks' architectures and what an image costs, before anything is trained.

    Raises:
        InputError: a network that there is not, that cannot be built here, or that takes no such images; all
            of them are named.
    """
    found, wrong = {}, []
    for name in networks:
        try:
            arch = architecture_named(name, num_classes=classes)
            found[name] = arch, complexity(arch, image_size)
        except MsmambaError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("; ".join(wrong))
    return found


def split_of(data: ImageFolder) -> str:
    """The split that networks are compared on: that to test with, or to validate with where there is none."""
    return "test" if "test" in data.splits else "val"


@dataclass
class Stages:
    """What all networks of a comparison have in common, and the way that each of them goes."""

    folder: ComparisonFolder
    data: ImageFolder
    recipe: Recipe
    hardware: Hardware
    precision: str
    white_level: int | None
    mpp: float | None
    watch: Watch
    begun: int = 0
    """How many stages were begun, of all networks: none where everything was done before."""

    def trained(self, network: str, arch: Architecture) -> Trained:
        """Trains a network, or goes on where its training was.

        Raises:
            ImageError: an image cannot be read, which concerns every network.
            MsmambaError: whatever `train` raises.
        """
        run = self.folder.run(network)
        done = self._done(run, network)
        if done is not None:
            return done
        self._begin(network, "training")
        with self.watch.training() as listeners:
            result = train(
                self.data,
                run.path,
                arch,
                self.recipe,
                hardware=self.hardware,
                resume=True,
                white_level=self.white_level,
                mpp=self.mpp,
                listeners=listeners,
            )
        if result.lost:
            raise ImageError(f"{len(result.lost)} images can no longer be read: {some(result.lost)}")
        done = self._done(run, network)
        if done is None:
            raise TrainingError(f"'{run.path}' holds another run: move it away, and the same command goes on")
        return done

    def exported(self, network: str) -> None:
        """Exports the trained network, once more where the bundle that is there does not answer like it.

        Raises:
            MsmambaError: whatever `export_bundle` raises.
        """
        checkpoint, bundle = self.folder.run(network).best, self.folder.bundle(network, self.precision)
        if (manifest := self._manifest_of(bundle, checkpoint)) is not None:
            parity = _parity_of(manifest)
            if parity is None or parity.kept:
                return
        self._begin(network, "export")
        with self.watch.working() as report:
            export_bundle(
                checkpoint, bundle, ExportOptions(precision=self.precision), force=True, report=report
            )

    def verified(self, network: str) -> Parity:
        """Verifies the network's bundle.

        Raises:
            MsmambaError: whatever `verify` raises.
        """
        bundle = self.folder.bundle(network, self.precision)
        if (parity := _parity_of(open_bundle(bundle).manifest)) is not None:
            return parity
        self._begin(network, "parity")
        images, split = self._to_verify_on()
        with self.watch.working() as report:
            verify(
                bundle,
                self.folder.run(network).best,
                images,
                split=split,
                limit=VERIFIED,
                force=True,  # what is there cannot be used
                report=report,
            )
        parity = _parity_of(open_bundle(bundle).manifest)
        assert parity is not None  # verify has just written it
        return parity

    def _begin(self, network: str, stage: str) -> None:
        self.begun += 1
        self.watch.on_stage(network, stage)

    def _done(self, run: RunFolder, network: str) -> Trained | None:
        """What a finished run came to; None where it is not finished, or was measured on other images."""
        try:
            begun, metrics = run.read_beginning(), run.read_metrics()
            predictions = read_predictions(run.path / PREDICTIONS).get(split_of(self.data))
        except (TrainingError, DataError):
            return None
        if begun is None or predictions is None or not run.best.is_file():
            return None
        is_same = begun.recipe == self.recipe and family_of(begun.arch).name_of(begun.arch) == network
        names = self.data.names(split_of(self.data))
        if not is_same or predictions.images != tuple(as_utf8(name).decode() for name in names):
            return None
        return Trained(predictions, metrics["epochs"], metrics["best_epoch"], metrics["seconds"])

    def _manifest_of(self, bundle: Path, checkpoint: Path) -> Manifest | None:
        """The manifest of the checkpoint's bundle; None where there is none that is whole."""
        try:
            opened = open_bundle(bundle)
            for name in opened.manifest.files:
                opened.read(name)
        except ArtefactError:
            return None
        same = opened.manifest.checkpoint_sha256 == sha256_of(checkpoint)
        return opened.manifest if same and opened.manifest.precision_asked == self.precision else None

    def _to_verify_on(self) -> tuple[list[Path], str | None]:
        """The images that are tested on, as `verify` takes them: by name, or as a split of a stack."""
        samples = self.data.split(split_of(self.data))
        files = [sample.source for sample in samples if isinstance(sample.source, Path)]
        return (files, None) if files else ([self.data.root], split_of(self.data))


def _parity_of(manifest: Manifest) -> Parity | None:
    found: Mapping[str, Any] | None = manifest.precision_proven.get("parity")
    if found is None or _PARITY.problems(found):
        return None
    flips = found["flips"] + found["undecided_flips"]
    return Parity(found["passed"], found["images"], found["max_abs_error"], flips, found["undecided"])
