"""A session: an artefact opened for classification, from image files to predictions.

Dims: ``B`` images of a batch, ``S`` side of the square input in pixels, ``classes`` logits an image.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import machine
from ..data.labels import as_labels, labels_as_asked
from ..errors import ArtefactError, ArtefactNote, BackendError, ImageError, InputError, some
from ..images import (
    FULL_WHITE,
    MAX_PIXELS,
    ImageSource,
    Transform,
    as_channels,
    channels_as_asked,
    check_white_level,
    describe_source,
    is_masked,
    is_source,
    load_image,
    white_as_asked,
)
from ..plugins import cuda_driver
from ..plugins.selective_scan.gpu_package import KERNELS_SUFFIX, STEPS_SUFFIX
from ..text import as_word
from .artefact import (
    ENGINE_NAME,
    MODEL_NAME,
    Bundle,
    Kind,
    files_beside,
    open_bundle,
    read_file,
    recognise,
)
from .backend import Backend
from .device_arrays import DeviceArray
from .drift import DriftLog, picture_scores
from .guard import Guard
from .manifest import METADATA_KEY, Manifest
from .onnxruntime_backend import DEVICES, KERNELS, PROVIDERS, OnnxRuntimeBackend, check_choices
from .probe import differences
from .processes import Home
from .quality import Quality, quality_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_SIZE = 1
"""Default images a batch. One image keeps a CPU's cores busy (tiny at 224, batch 4 against 1: the same images
a second, and 270 MB in place of 150); on a GPU larger ones pay."""

_UNPROVEN = "answers may not be those that were proven"


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        label: name of the likeliest class.
        index: its place in the session's labels.
        probability: the probability of that class, softmax of the logits, at the guard's temperature if any.
        probabilities: the probability of every class, in the order of the labels; they sum to 1.
        notes: what reading the image had to decide ("page 1 of 5"); mostly empty.
        decided: whether the label is an answer; without a guard it always is.
        reasons: why it is none, of `msmamba.runtime.guard.REASONS`; empty where it is decided.
        candidates: the classes that the image may belong to, the likeliest first; empty without a guard.
        distance: how far its features are from the calibration's (`Likeness.distances`); None where the
            guard compares none.
    """

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    notes: tuple[str, ...] = ()
    decided: bool = True
    reasons: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    distance: float | None = None


class _Prepared(NamedTuple):
    """An image on its way to the network."""

    image: NDArray[np.float32]
    """(3, S, S)."""
    notes: tuple[str, ...]
    quality: Quality | None
    """None where neither a guard nor a log looks at it."""
    scores: Mapping[str, float | None]
    """`picture_scores`; empty where nobody logs them."""


class Session:
    """An artefact opened for classification; a context manager that owns the loaded network.

    `run`, `classify` and `classify_stream` may be called from several threads at once, in the process that
    opened it: a fork of that process has to open its own.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        manifest: Manifest | None,
        labels: tuple[str, ...] | None,
        transform: Transform | None,
        guard: Guard | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Use `open_session`; this takes parts that fit together already."""
        self._backend = backend
        self._name = name
        self._manifest = manifest
        self._labels = labels
        self._transform = transform
        self._guard = guard
        self._notes = notes
        self._home = Home(backend, name)

    @property
    def manifest(self) -> Manifest | None:
        """What the artefact says of itself; None for an ONNX file that msmamba did not export."""
        return self._manifest

    @property
    def notes(self) -> tuple[str, ...]:
        """Why answers on image files may not be quite those that were proven, one line each; mostly empty.

        An artefact may be from before the resize was msmamba's own, this machine may decode or transform
        pictures otherwise than the one that exported it (`msmamba.runtime.probe`), and a white level, means
        or deviations may have been given in place of the artefact's own.
        """
        return self._notes

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes' names in the order of the logits, None where nobody said."""
        return self._labels

    @property
    def transform(self) -> Transform | None:
        """Makes pixels the network's input; None where mean, std or size are not known."""
        return self._transform

    @property
    def guard(self) -> Guard | None:
        """What withholds decisions; None where the artefact has none, or it was to be left out."""
        return self._guard

    @property
    def judges_pictures(self) -> bool:
        """Whether the guard looks at the quality of the pictures, so that it has to be told."""
        return self._guard is not None and bool(self._guard.quality)

    def quality_of(self, pixels: NDArray[np.uint8], known: Quality | None = None) -> Quality:
        """The quality of a picture by which a guard judges it (`Guard.quality_of`); its own without one.

        Args:
            pixels: (H, W, 3) uint8, RGB, as they were taken; not changed.
            known: what `msmamba.runtime.quality.quality_of` makes of them, where that is known already.
        """
        return known or quality_of(pixels) if self._guard is None else self._guard.quality_of(pixels, known)

    @property
    def image_size(self) -> int | None:
        """Side of the square input in pixels, None where the model leaves it open."""
        return self._transform.size if self._transform else self._backend.image_size

    @property
    def classes(self) -> int:
        """Number of logits an image."""
        return self._backend.classes

    @property
    def features(self) -> int | None:
        """Number of features an image, which the network's head takes; None where the artefact tells none."""
        return self._backend.features

    @property
    def max_batch(self) -> int | None:
        """Largest batch that `run` takes, None for any."""
        return self._backend.max_batch

    @property
    def provider(self) -> str:
        """What executes the network: ``CPUExecutionProvider``, …, ``tensorrt`` or ``tensorrt_rtx``."""
        return self._backend.provider

    @property
    def path(self) -> str:
        """What executes the network, in words: runtime, device, and whose kernels run msmamba's operators."""
        in_int8 = self._manifest is not None and self._manifest.precision_asked == "int8"
        return f"{self._backend.path}, int8 products" if in_int8 else self._backend.path

    def run(self, images: NDArray[np.float32] | Any) -> NDArray[np.float32]:
        """Runs the network on images that are transformed already.

        Args:
            images: (B, 3, S, S) float32, finite; a NumPy array or, on a GPU, anything in its
                memory that has ``__cuda_array_interface__`` (PyCUDA, CuPy, PyTorch). The latter is
                copied on the GPU, after the work of its stream, and is not checked for finite values.

        Returns:
            (B, classes) float32 logits, as the network gives them: not checked for NaN. The logarithms of
            probabilities where that is what the file of somebody else answers with.

        Raises:
            InputError: the images are not that; every mismatch is named.
            ArtefactError: the network answers with something else than a row of logits for each image.
            BackendError: the session is closed, this is a fork of the process that opened it, or the network
                failed.
        """
        return self._backend.run(self._checked(images))

    def run_with_features(
        self, images: NDArray[np.float32] | Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Runs the network as `run` does, and tells what its head takes, too.

        Args:
            images: as `run` takes them.

        Returns:
            (B, classes) logits, and (B, features) float32: the pooled features, the second output of an
            exported network. None where the artefact has no such output: of an earlier version, or somebody
            else's.

        Raises:
            InputError, ArtefactError, BackendError: as `run`.
        """
        return self._backend.run_with_features(self._checked(images))

    def classify(
        self, sources: Iterable[ImageSource], batch_size: int = BATCH_SIZE, max_pixels: int = MAX_PIXELS
    ) -> list[Prediction]:
        """Classifies images.

        Args:
            sources: a list of paths, arrays, encoded bytes or Pillow images (see `msmamba.images`), or any
                other iterable of them. One by itself is refused: an array could as well be a stack of images.
            batch_size: images that go through the network at once.
            max_pixels: larger images are refused.

        Returns:
            One prediction an image, in order.

        Raises:
            ImageError: an image cannot be used; the first one is named, and nothing is returned.
            InputError: ``sources`` is no iterable of images, or a number is not one that it can be.
            ArtefactError: the artefact does not say its labels, mean or std, or answers with NaN.
            BackendError: as `run`.
        """
        predictions = []
        for _, result in self.classify_stream(sources, batch_size, max_pixels):
            if isinstance(result, ImageError):
                raise result
            predictions.append(result)
        return predictions

    def classify_stream(
        self,
        sources: Iterable[ImageSource],
        batch_size: int = BATCH_SIZE,
        max_pixels: int = MAX_PIXELS,
        log: DriftLog | None = None,
    ) -> Iterator[tuple[ImageSource, Prediction | ImageError]]:
        """Classifies as `classify` does, one by one; an unusable image yields its error and stops nothing.

        A thread reads and transforms at most two batches ahead of the network, so memory does not grow with
        the number of images; an array must not be changed before its answer has come. What ``sources`` itself
        raises is raised here once the images before it are answered. A ``log`` gets the scores of each image
        that was classified.

        Raises:
            InputError, ArtefactError, BackendError: as `classify`.
        """
        self._home.require()
        self._require_labels_and_transform()
        batch_size = _positive("batch size", batch_size)
        max_pixels = _positive("largest number of pixels", max_pixels)
        if self.max_batch is not None:
            batch_size = min(batch_size, self.max_batch)
        return self._stream(_iterator(sources), batch_size, max_pixels, log)

    def prepare(
        self, source: ImageSource, max_pixels: int = MAX_PIXELS
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Reads and transforms one image: (3, S, S) float32, and the notes of reading it.

        Raises:
            ImageError: the image cannot be used.
            ArtefactError: the artefact does not say its labels, mean or std.
        """
        ready = self._prepared(source, max_pixels)
        return ready.image, ready.notes

    def predict(
        self,
        images: NDArray[np.float32] | Any,
        notes: Sequence[tuple[str, ...]] = (),
        qualities: Sequence[Quality] | None = None,
    ) -> list[Prediction]:
        """Classifies images that are transformed already: `run`, and what `predictions` makes of it.

        Args:
            images: as `run` takes them.
            notes: the notes on each image; none where left out.
            qualities: what the pictures are worth as they were taken (`quality_of`), for the guard.

        Raises:
            InputError, ArtefactError, BackendError: as `run` and `predictions`.
        """
        return self.answers(images, notes, qualities)[1]

    def answers(
        self,
        images: NDArray[np.float32] | Any,
        notes: Sequence[tuple[str, ...]] = (),
        qualities: Sequence[Quality] | None = None,
    ) -> tuple[NDArray[np.float32], list[Prediction]]:
        """The (B, classes) logits beside what `predict` makes of them; the arguments and errors are its."""
        features = None
        if self._guard is not None and self._guard.needs_features:
            logits, features = self.run_with_features(images)
        else:
            logits = self.run(images)
        return logits, self.predictions(logits, notes, qualities, features)

    def predictions(
        self,
        logits: NDArray[np.floating[Any]],
        notes: Sequence[tuple[str, ...]] = (),
        qualities: Sequence[Quality] | None = None,
        features: NDArray[np.floating[Any]] | None = None,
    ) -> list[Prediction]:
        """Turns (B, classes) logits into predictions: a softmax in float64, and what the guard says.

        Args:
            logits: what `run` gives.
            notes: the notes on each image; none where left out.
            qualities: what the pictures are worth as they were taken (`quality_of`), for the guard.
            features: what `run_with_features` gives beside them, where the guard needs them.

        Raises:
            InputError: the logits are not (B, classes), there are not as many notes, qualities or rows of
                features, or there are no qualities, or no features, and the guard needs them.
            ArtefactError: logits are NaN or infinite, or the artefact does not say its labels.
        """
        labels, _ = self._require_labels_and_transform()
        logits = np.asarray(logits)
        if logits.ndim != 2 or logits.shape[1] != len(labels) or logits.dtype.kind != "f":
            raise InputError(
                f"the logits are {logits.dtype} of shape {logits.shape}: expected floats (B, {len(labels)})"
            )
        if notes and len(notes) != len(logits):
            raise InputError(f"there are notes of {len(notes)} images for {len(logits)} rows of logits")
        if qualities is not None and len(qualities) != len(logits):
            raise InputError(
                f"there are qualities of {len(qualities)} images for {len(logits)} rows of logits"
            )
        if qualities is None and self.judges_pictures and len(logits):
            raise InputError(
                f"the guard of '{self._name}' judges pictures, too: give their quality (quality_of), or open "
                "it with guard=False"
            )
        if not np.isfinite(logits).all():
            raise ArtefactError(
                f"'{self._name}' answers with NaN or infinite logits: "
                "check it with 'mmdeploy verify', and export it again in fp32"
            )
        if features is None and self._guard is not None and self._guard.needs_features and len(logits):
            raise InputError(
                f"the guard of '{self._name}' compares features, too: use predict, or give what "
                "run_with_features gives, or open it with guard=False"
            )
        likeness = None if self._guard is None else self._guard.likeness
        if features is not None and likeness is not None:
            expected = (len(logits), likeness.means.shape[1])
            if np.shape(features) != expected:
                raise InputError(f"the features are of shape {np.shape(features)}: expected {expected}")
        scaled = logits.astype(np.float64) / (self._guard.temperature if self._guard else 1)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        notes = notes or [()] * len(probabilities)
        results = []
        for row, index, said in zip(probabilities, logits.argmax(axis=1), notes, strict=True):
            results.append(
                Prediction(labels[index], int(index), float(row[index]), tuple(row.tolist()), said)
            )
        if self._guard is not None:
            distances = self._guard.distances(features)
            each_distance = [None] * len(results) if distances is None else distances.tolist()
            results = [
                replace(
                    result,
                    decided=not verdict.reasons,
                    reasons=verdict.reasons,
                    candidates=tuple(labels[index] for index in verdict.candidates),
                    distance=distance,
                )
                for result, verdict, distance in zip(
                    results, self._guard.judge(logits, qualities, distances), each_distance, strict=True
                )
            ]
        return results

    def close(self) -> None:
        """Frees the network; later calls raise BackendError. May be called more than once.

        In a fork of the process that opened the session it does nothing: the network is that process's.
        """
        if self._home.is_here:
            self._backend.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session of '{self._name}': {self.classes} classes, {self.path}>"

    def _prepared(self, source: ImageSource, max_pixels: int, scored: bool = False) -> _Prepared:
        """Reads and transforms one image, and looks at the picture where a guard or a log does.

        Raises:
            ImageError, ArtefactError: as `prepare`.
        """
        _, transform = self._require_labels_and_transform()
        image = load_image(source, _positive("largest number of pixels", max_pixels), transform.white_level)
        quality = self.quality_of(image.pixels) if self.judges_pictures or scored else None
        scores = picture_scores(image.pixels, quality) if scored else {}
        return _Prepared(transform(image.pixels), image.notes, quality, scores)

    def _stream(
        self, sources: Iterator[ImageSource], batch_size: int, max_pixels: int, log: DriftLog | None
    ) -> Iterator[tuple[ImageSource, Prediction | ImageError]]:
        ahead: deque[tuple[ImageSource, Future[_Prepared]]] = deque()
        failure: Exception | None = None
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="msmamba-images")
        try:
            while True:
                self._home.require()  # the images ahead were left to a thread, which a fork has not
                while failure is None and len(ahead) < 2 * batch_size:
                    try:
                        source = next(sources)
                    except StopIteration:
                        break
                    except Exception as error:  # of the caller's, and told when what came before is answered
                        failure = error
                        break
                    ahead.append((source, pool.submit(self._prepared, source, max_pixels, log is not None)))
                if not ahead:
                    if failure is not None:
                        raise failure
                    return
                batch = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
                yield from self._classified(batch, log)
        finally:
            if self._home.is_here:
                pool.shutdown(cancel_futures=True)

    def _classified(
        self, batch: list[tuple[ImageSource, Future[_Prepared]]], log: DriftLog | None
    ) -> Iterator[tuple[ImageSource, Prediction | ImageError]]:
        """Runs one batch; images that could not be read keep their place in the order."""
        errors = [future.exception() for _, future in batch]
        for error in errors:
            if error is not None and not isinstance(error, ImageError):
                raise error
        read = [future.result() for (_, future), error in zip(batch, errors, strict=True) if error is None]
        predictions: Iterator[Prediction] = iter(())
        if read:
            qualities = [each.quality for each in read if each.quality is not None]
            images, notes = np.stack([each.image for each in read]), [each.notes for each in read]
            logits, found = self.answers(images, notes, qualities if self.judges_pictures else None)
            predictions = iter(found)
            if log is not None:
                for each, row, said in zip(read, logits, found, strict=True):
                    log.add(each.scores, row, said.distance)
        for (source, _), error in zip(batch, errors, strict=True):
            yield source, error if isinstance(error, ImageError) else next(predictions)

    def _checked(self, images: NDArray[np.float32] | Any) -> Any:
        """Images that the backend takes.

        Raises:
            InputError, BackendError: as `run`.
        """
        self._home.require()
        array = images if isinstance(images, np.ndarray) else DeviceArray.of(images)
        problems = (
            [f"is a {type(images).__name__}: expected an array (B, 3, S, S) of float32"]
            if array is None
            else self._mismatches(array)
        )
        if problems:
            raise InputError(f"'image' {'; and it '.join(problems)}")
        return array

    def _mismatches(self, images: NDArray[Any] | DeviceArray) -> list[str]:
        problems = []
        size = self.image_size
        expected = f"(B, 3, {size or 'S'}, {size or 'S'})"
        dims = len(images.shape)
        if dims != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            problems.append(f"has shape {images.shape}; this artefact takes {expected}")
        elif size is not None and images.shape[2] != size:
            problems.append(
                f"is 3x{images.shape[2]}x{images.shape[3]}; this artefact takes 3x{size}x{size}: "
                f"resize, or export with --image-size {images.shape[2]}"
            )
        if dims == 4 and images.shape[0] < 1:
            problems.append("is an empty batch: expected at least one image")
        if dims == 4 and self.max_batch is not None and images.shape[0] > self.max_batch:
            problems.append(f"is a batch of {images.shape[0]}; this artefact takes at most {self.max_batch}")
        if images.dtype != np.float32:
            problems.append(f"holds {images.dtype}; this artefact takes float32: use .astype(np.float32)")
        if is_masked(images):
            problems.append("is a masked array: expected one without a mask")
        if isinstance(images, DeviceArray):
            if not self._backend.takes_device_arrays:
                problems.append(
                    f"lies in a GPU's memory, and this session runs on {self.path}: copy it to NumPy"
                )
            if not images.contiguous:
                problems.append("is strided: expected C order without gaps")
        elif images.dtype == np.float32 and not np.isfinite(images).all():
            problems.append("holds NaN or infinite values: expected finite ones")
        return problems

    def _require_labels_and_transform(self) -> tuple[tuple[str, ...], Transform]:
        if self._labels is not None and self._transform is not None:
            return self._labels, self._transform
        missing = ["labels"] if self._labels is None else []
        if self._transform is None:
            missing.append("mean and std" if self._backend.image_size else "mean, std and image size")
        raise ArtefactError(
            f"'{self._name}' carries no {' and no '.join(missing)}, so it runs but cannot classify: "
            "export it with 'mmdeploy export', or open it with labels=[…], mean=(…) and std=(…)"
        )


def _iterator(sources: Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Refuses a single image, most kinds of which can be iterated over and give something else.

    Raises:
        InputError: it is one, or nothing that can be iterated over.
    """
    if is_source(sources):
        stack = isinstance(sources, np.ndarray) and sources.ndim > 2
        raise InputError(
            f"'{describe_source(sources)}' was given where a list of images is expected: classify([image]) "
            f"takes it as one{', classify(list(images)) as a stack of them' if stack else ''}"
        )
    try:
        return iter(sources)
    except TypeError as error:
        raise InputError(f"expected a list of images, found {type(sources).__name__}") from error


def _positive(name: str, value: int) -> int:
    """The value as a whole number of at least 1.

    Raises:
        InputError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise InputError(f"the {name} is {value!r}: expected a whole number of at least 1")
    return number


def open_session(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    kernels: str = "auto",
    provider: str = "auto",
    trust_engine_code: bool = False,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white_level: int | None = None,
    guard: bool = True,
) -> Session:
    """Opens an artefact, recognised by content: a bundle, an ONNX file or a TensorRT engine.

    Args:
        path: the bundle's folder, or the file.
        device: ``auto`` (a GPU where the bundle's engine or ONNX Runtime can use one, else the CPU), ``cpu``
            or ``cuda``. `Session.path` says what was taken, and why not the engine.
        threads: CPU threads; None takes every core that this process may use.
        kernels: ``auto`` (the native ones where they are built and the file has operators for them),
            ``native``, or ``functions`` (ONNX only).
        provider: insists on what executes: ``engine`` (the bundle's or the file), or ONNX Runtime's ``cpu``,
            ``cuda``, ``tensorrt`` or ``nv-tensorrt-rtx``, the last two for comparison. ``auto`` lets the
            device decide.
        trust_engine_code: lets a bundle's engine that was built with ``--version-compatible`` run the library
            that it carries, in this process; one by itself, which nothing describes, never may.
        labels: the classes' names, for a file that does not carry them, or in place of those it carries.
        mean: three means of the channels, in place of what the artefact says.
        std: three standard deviations of the channels, in place of what the artefact says.
        white_level: the value of white in 16-bit images, in place of what the artefact says.
        guard: whether the artefact's guard is applied, where it has one.

    Warns:
        ArtefactNote: this machine makes other values of a picture than the one that exported the artefact;
            `Session.notes` has it too.

    Raises:
        ArtefactError: there is no usable artefact, a file of the bundle was changed, or its guard was fitted
            on another model.
        BackendError: the device, the kernels or a library asked for cannot be had.
        InputError: the path is none, or an option is not what it can be: means or deviations that are not
            three sensible numbers, a white level that is none, labels that are no names, threads.
    """
    name = _name_of(path)
    check_choices(device=(device, DEVICES), kernels=(kernels, KERNELS), provider=(provider, PROVIDERS))
    threads = machine.threads_to_use(threads)
    labels = None if labels is None else as_labels(labels)
    if white_level is not None:
        check_white_level(white_level)
    kind = recognise(name)
    bundle = open_bundle(name) if kind is Kind.BUNDLE else None
    manifest = bundle.manifest if bundle else None
    backend: Backend | None = None
    obstacle = None
    if kind is Kind.ENGINE:
        if device == "cpu" or provider not in ("auto", "engine"):
            raise BackendError(
                f"'{name}' is a TensorRT engine, which runs by itself on a GPU and nowhere else: open the "
                f"bundle it belongs to, or its {MODEL_NAME}"
            )
        try:
            cuda_driver.initialise()
        except BackendError as error:
            raise BackendError(
                f"'{name}' is a TensorRT engine, which needs a GPU: {error}: elsewhere open the bundle it "
                f"belongs to, or its {MODEL_NAME}"
            ) from error
        from .tensorrt_backend import TensorRtBackend  # not at the top: the other artefacts need none of it

        backend = TensorRtBackend(read_file(name), name)
    elif provider == "engine" or (bundle and ENGINE_NAME in bundle.manifest.files and provider == "auto"):
        backend, obstacle = _engine_of(bundle, name, device, provider, trust_engine_code)
    if backend is None:
        backend = _onnx_backend(bundle, name, obstacle, device, provider, threads=threads, kernels=kernels)
    try:
        if manifest is None and METADATA_KEY in backend.metadata:
            manifest = Manifest.from_metadata(backend.metadata, f"'{name}'")
        _check_fit(backend, name, manifest, labels)
        found = differences(manifest) if manifest else ()
        if found:
            said = f"'{name}': {'; '.join(found)}: {_UNPROVEN}"
            warnings.warn(said, ArtefactNote, stacklevel=2)
        notes = [*(manifest.notes if manifest else ()), *(f"{each}: {_UNPROVEN}" for each in found)]
        transform = _transform(backend, manifest, mean, std, white_level)
        asked = [labels_as_asked(labels, manifest.labels if manifest else None)]
        asked.append(white_as_asked(white_level, manifest.white_level if manifest else None))
        if manifest and transform:
            asked.append(channels_as_asked("mean", transform.mean, manifest.mean))
            asked.append(channels_as_asked("std", transform.std, manifest.std))
        notes += filter(None, asked)
        applied = Guard.of(manifest.guard, name) if manifest and guard else None
        if applied is not None:
            content = bundle.read(MODEL_NAME) if bundle else read_file(name)
            applied.check_network(content, name)
            applied = applied.with_likeness(content, name, backend.features)
            if applied.needs_features and backend.features is None:
                raise ArtefactError(
                    f"the guard of '{name}' compares features, and {backend.path} gives none: build the "
                    "engine again from the bundle, or leave the guard out with --no-guard (guard=False)"
                )
        return Session(
            backend,
            name,
            manifest,
            tuple(labels) if labels is not None else manifest.labels if manifest else None,
            transform,
            applied,
            tuple(notes),
        )
    except BaseException:  # whatever it is, what the backend holds on a GPU does not go by itself
        backend.close()
        raise


def _name_of(path: str | os.PathLike[str]) -> str:
    """The path as text.

    Raises:
        InputError: it is none.
    """
    try:
        return os.fsdecode(path)
    except TypeError as error:
        raise InputError(f"expected the path of an artefact, found {type(path).__name__}") from error


def _engine_of(
    bundle: Bundle | None, name: str, device: str, provider: str, trust_engine_code: bool
) -> tuple[Backend | None, str | None]:
    """The bundle's engine opened, or why it is not.

    Raises:
        ArtefactError: the engine was changed or is damaged.
        BackendError: ``provider`` insists on an engine that there is not or that does not run here.
    """
    if bundle is None or ENGINE_NAME not in bundle.manifest.files:
        raise BackendError(
            f"provider 'engine' was asked for, but '{name}' holds none: build one by mmdeploy export "
            f"{as_word(name)} --target tensorrt-rtx --sm 8.9 -o NEW (--target tensorrt on the device itself)"
        )
    if device == "cpu":
        if provider == "engine":
            raise BackendError(
                "provider 'engine' and device 'cpu' exclude each other: an engine runs on a GPU"
            )
        return None, "asked for the CPU"
    from .tensorrt_backend import TensorRtBackend  # not at the top, as above

    try:
        cuda_driver.initialise()  # before the engine is read and a TensorRT library is loaded for nothing
        plan = bundle.read(ENGINE_NAME)
        return TensorRtBackend(plan, name, bundle.manifest, trust_engine_code=trust_engine_code), None
    except BackendError as error:
        if provider == "engine":
            raise
        return None, str(error)


def _onnx_backend(
    bundle: Bundle | None, name: str, obstacle: str | None, device: str, provider: str, **options: Any
) -> Backend:
    """ONNX Runtime on the bundle's model or on the file; ``obstacle`` is why not the bundle's engine."""
    model: bytes | str = name
    if bundle:
        model = bundle.read(MODEL_NAME)
        if beside := files_beside(model):
            raise ArtefactError(
                f"'{bundle.folder / MODEL_NAME}' has weights in files beside it ({some(sorted(beside))}), "
                "for which the manifest does not vouch: export the bundle again, or open the file by itself"
            )

    def gpu_kernels() -> dict[str, bytes]:
        if bundle is None:
            return {}
        names = [each for each in bundle.manifest.files if each.endswith((KERNELS_SUFFIX, STEPS_SUFFIX))]
        return {each: bundle.read(each) for each in names}

    try:
        backend = OnnxRuntimeBackend(
            model, name, device=device, provider=provider, gpu_kernels=gpu_kernels, **options
        )
    except BackendError as error:
        raise BackendError(f"{error}; and not the engine: {obstacle}") if obstacle else error from error
    if obstacle:
        backend.path += f"; not the engine: {obstacle}"
    return backend


def _check_fit(backend: Backend, name: str, manifest: Manifest | None, labels: Sequence[str] | None) -> None:
    """Refuses labels or a size that are not the network's."""
    problems = []
    named = labels if labels is not None else manifest.labels if manifest else None
    if named is not None and len(named) != backend.classes:
        problems.append(f"there are {len(named)} labels for {backend.classes} logits")
    if manifest and backend.image_size not in (None, manifest.image_size):
        problems.append(
            f"the manifest says {manifest.image_size} pixels and the network takes {backend.image_size}"
        )
    if problems:
        raise ArtefactError(f"'{name}' does not fit together: {'; '.join(problems)}")


def _transform(
    backend: Backend,
    manifest: Manifest | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    white_level: int | None,
) -> Transform | None:
    size = manifest.image_size if manifest else backend.image_size
    mean = mean if mean is not None else manifest.mean if manifest else None
    std = std if std is not None else manifest.std if manifest else None
    if size is None or mean is None or std is None:
        return None
    if white_level is None:
        white_level = manifest.white_level if manifest else FULL_WHITE
    return Transform(size, as_channels("mean", mean), as_channels("std", std), white_level)
