"""A probe of how pictures become the network's input: two small files, and what they must come out as.

Decoding is done by libraries, the transform by msmamba; either may change from one machine or version to
another, and a network answers differently to other values. So an export writes into the manifest what a JPEG
and a PNG, which come with this package, were decoded and transformed to; whoever opens the artefact does the
same and compares. What differs is told and stops nothing: the artefact is as good as before, but its answers
are not those that were proven.

The PNG is high and narrow: it is resized along its columns first, and the JPEG along its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..errors import ImageError
from ..images import Transform, load_image
from .manifest import Manifest

PICTURES = {"probe_1.jpg": ("JPEG", "simplejpeg"), "probe_1.png": ("PNG", "pillow")}
"""The files beside this module, their formats and what decodes them. Manifests hold the names:
another picture gets another."""

LARGEST_SIDE = 2048
"""Pixels a side of the largest input that pictures are made for, so that no manifest asks for more."""

_EXAMPLE = Transform(224, (0.5, 0.25, 0.125), (0.25, 0.5, 0.75))

_EXPECTED: Mapping[str, Mapping[str, str]] = {
    "probe_1.jpg": {
        "pixels": "605f6fbf26b876fdb0bc1c8d14881c23bdc3bf405419a31c7fa76ee483b167df",
        "tensor": "a213f2878192fb1e1c308084b56a90c9e8bab27ec10e841c3a3506a76c94b234",
    },
    "probe_1.png": {
        "pixels": "d7c56464792d460c2d8cd8bc01ddf116944d7037a411040f4847ef3715de80d6",
        "tensor": "d5219e5cf21d9eabf5a7e972fbf068d1270bd361a22520fb125c96c691cc5637",
    },
}


@cache
def checksums(transform: Transform) -> dict[str, dict[str, str]]:
    """What this machine makes of the pictures, for a manifest.

    Returns:
        For each picture the SHA-256 of its ``pixels``, (H, W, 3) uint8 after decoding, and of its ``tensor``,
        (3, S, S) float32, little-endian, after the transform. One that cannot be decoded is left out.
    """
    made = {}
    for name in PICTURES:
        try:
            pixels = load_image(Path(__file__).with_name(name)).pixels
        except ImageError:
            continue
        tensor = transform(pixels).astype("<f4", copy=False)
        made[name] = {"pixels": _sha256(pixels.tobytes()), "tensor": _sha256(tensor.tobytes())}
    return made


def differences(manifest: Manifest) -> tuple[str, ...]:
    """What becomes of the pictures here otherwise than where an artefact was exported, one line each.

    Pictures that this version does not have are passed over; manifests from before there were probes have
    none, and inputs of more than `LARGEST_SIDE` are not tried.
    """
    if not manifest.probe or manifest.image_size > LARGEST_SIDE:
        return ()
    return _compared(manifest.probe, checksums(manifest.transform), "the machine that exported it")


def differences_here() -> tuple[str, ...]:
    """What becomes of the pictures here otherwise than msmamba is tested with, one line each."""
    return _compared(_EXPECTED, checksums(_EXAMPLE), "the machines that msmamba is tested on")


def _installed(library: str) -> str:
    """A library and its version."""
    from importlib.metadata import version  # not at the top: it loads sockets and all of e-mail

    return f"{library} {version(library)}"


def _compared(
    expected: Mapping[str, Mapping[str, str]], found: Mapping[str, Mapping[str, str]], others: str
) -> tuple[str, ...]:
    said = []
    for name, sums in expected.items():
        if name not in PICTURES:
            continue
        kind, library = PICTURES[name]
        if name not in found:
            said.append(f"{_installed(library)} here cannot decode {kind}")
        elif found[name]["pixels"] != sums["pixels"]:
            said.append(f"{_installed(library)} here decodes {kind} to other pixels than {others}")
        elif found[name]["tensor"] != sums["tensor"]:
            said.append(f"the transform here makes other values of a {kind} picture than {others}")
    return tuple(said)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
