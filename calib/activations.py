"""Runs a model on the calibration images and counts what its activations hold, image by image.

The counts go into a cache file every few seconds, so that a killed run goes on where it was and a second
export need not measure again. The file says what it was measured with, by hash, and serves nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArtefactError, InputError
from ..files import open_file, write_atomically
from ..images import FULL_WHITE, Transform
from ..resize import RULE
from ..runtime.onnxruntime_backend import register_native_kernels
from ..runtime.onnxruntime_library import import_onnxruntime
from ..schema import TEXT, listed, parsed, record, whole
from .data import CalibrationSet
from .histogram import BINS, Histogram

if TYPE_CHECKING:
    import onnxruntime

FORMAT_VERSION = 1
SAVE_SECONDS = 5.0
"""Seconds between two writes of the cache: what a killed run loses at most."""

_PARTS = {"model": "the model", "images": "the images", "preprocessing": "the preprocessing"}


@dataclass(frozen=True)
class _Key:
    """What a cache was measured with."""

    model: str
    images: str
    preprocessing: str
    values: tuple[str, ...]


def measure(
    model: bytes,
    values: Sequence[str],
    images: CalibrationSet,
    transform: Transform,
    cache: str | Path,
    *,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> dict[str, Histogram]:
    """Measures activations, or takes them from the cache.

    Args:
        model: an ONNX file's content, with one image input.
        values: names of the activations, of which the input may be one.
        images: what to run it on.
        transform: makes an image the model's input.
        cache: the file to take up and to write.
        advance: called after each image with the images done and all images.

    Returns:
        A histogram of absolute values for each name.

    Raises:
        InputError: the cache was measured with something else, or is no cache.
        ArtefactError: the model gives values that are not finite.
        ImageError: an image cannot be read.
        TargetError: the cache cannot be written.
    """
    # What was measured before there was a white level took all of 16 bits.
    white = () if transform.white_level == FULL_WHITE else (transform.white_level,)
    key = _Key(
        model=hashlib.sha256(model).hexdigest(),
        images=images.digest,
        preprocessing=_digest([transform.size, *transform.mean, *transform.std, RULE, *white]),
        values=tuple(values),
    )
    cache = Path(cache)
    total = len(images.images)
    histograms, done = [Histogram() for _ in values], 0
    if cache.exists():
        histograms, done = _read(cache, key, total)
    advance(done, total)
    if done == total:
        return dict(zip(values, histograms, strict=True))
    session, input_name, outputs = _session(model, values)
    saved = time.monotonic()
    for image in images.images[done:]:
        batch = transform.of(image.source)[None]
        found = dict(zip(outputs, session.run(outputs, {input_name: batch}), strict=True))
        for name, histogram in zip(values, histograms, strict=True):
            try:
                histogram.add(batch if name == input_name else found[name])
            except ValueError as error:
                raise ArtefactError(f"the model gives {error} at {name} for '{image.name}'") from error
        done += 1
        advance(done, total)
        if done == total or time.monotonic() - saved >= SAVE_SECONDS:
            _write(cache, key, histograms, done)
            saved = time.monotonic()
    return dict(zip(values, histograms, strict=True))


def _session(content: bytes, values: Sequence[str]) -> tuple[onnxruntime.InferenceSession, str, list[str]]:
    """A session that gives the values, its input's name, and the values that are no input."""
    import onnx

    runtime = import_onnxruntime()
    model = onnx.load_from_string(content)
    input_name = model.graph.input[0].name
    outputs = [name for name in values if name != input_name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # an arena would keep what the largest image took
    register_native_kernels(options)  # without them the file's own functions run: the same values, slower
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, input_name, outputs


def _write(cache: Path, key: _Key, histograms: Sequence[Histogram], done: int) -> None:
    header = json.dumps({"format_version": FORMAT_VERSION, "done": done, **vars(key)})
    content = io.BytesIO()
    np.savez_compressed(
        content,
        header=np.array(header),
        counts=np.stack([histogram.counts for histogram in histograms]),
        widths=np.array([histogram.width for histogram in histograms]),
        largest=np.array([histogram.largest for histogram in histograms]),
    )
    write_atomically(cache, content.getvalue(), through_links=True)


_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, SyntaxError, TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, MemoryError),
    *(NotImplementedError, RuntimeError),  # a compression that Python has not; encryption, deep nesting
)
_MOST_BYTES = 1 << 30
_HEADER = record(
    {
        "format_version": whole(FORMAT_VERSION, FORMAT_VERSION),
        "done": whole(),
        "values": listed(TEXT),
        **dict.fromkeys(_PARTS, TEXT),
    }
)


def _read(cache: Path, key: _Key, total: int) -> tuple[list[Histogram], int]:
    """What a cache holds, and the number of images that it covers.

    Raises:
        InputError: it was measured with something else, or is no cache.
    """
    try:
        with open_file(cache) as file:
            if not zipfile.is_zipfile(file):  # of which NumPy would say how to load it without safety
                raise ValueError("it holds no arrays")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                if sum(member.file_size for member in arrays.zip.infolist()) > _MOST_BYTES:
                    raise ValueError("it is larger than any cache")
                header = parsed(str(arrays["header"]))
                counts, widths, largest = arrays["counts"], arrays["widths"], arrays["largest"]
        shapes = (counts.shape, widths.shape, largest.shape)
        if problems := _HEADER.problems(header):
            raise ValueError("; ".join(problems))
        held, done = len(header["values"]), header["done"]
        kinds = "".join(array.dtype.kind for array in (counts, widths, largest))
        if shapes != ((held, BINS), (held,), (held,)) or kinds != "iff":
            raise ValueError("its arrays are of other shapes or types")
        measured = np.concatenate([widths, largest])
        if counts.min(initial=0) < 0 or not (np.isfinite(measured) & (measured >= 0)).all():
            raise ValueError("it counts below 0, or measured what is no number")
    except _UNREADABLE as error:
        raise InputError(
            f"'{cache}' is no calibration cache that can be read ({error}): delete it, or name another with "
            "--calib-cache"
        ) from error
    changed = [words for part, words in _PARTS.items() if header.get(part) != getattr(key, part)]
    if not changed and tuple(header["values"]) != key.values:
        changed = ["the list of activations"]
    if not changed and done > total:
        changed = ["the number of images"]
    if changed:
        raise InputError(
            f"the calibration cache '{cache}' is stale: {' and '.join(changed)} changed since it was "
            "measured: delete it, or name another with --calib-cache"
        )
    rows = zip(counts.astype(np.int64), widths.tolist(), largest.tolist(), strict=True)
    return [Histogram(*each) for each in rows], done


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
