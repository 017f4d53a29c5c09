"""Compiled GPU kernels as a value: what travels inside a bundle or a TensorRT engine.

A package holds, for one type of the tensors and one number of states N, the machine code (cubin) of the
three kernels of `gpu_launch` for each compute capability asked for; or that of the hybrid block's
(`plugins.hybrid_block.gpu_kernels`). An engine serialises the scan's package, so the machine that runs it
needs neither Triton nor a compiler.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import BackendError
from .gpu_launch import dotted

MAGIC = b"msmamba-kernels-1\n"
KERNELS_SUFFIX = ".kernels"
"""How the names of a bundle's files end that hold packages of the scan's kernels."""
STEPS_SUFFIX = ".steps"
"""The same of the hybrid block's: not `KERNELS_SUFFIX`, of which version 0.2 refuses all for one unknown."""
_MOST_BYTES = 64 << 20  # unpacked, some hundred times a package for every GPU
ELEMENT_TYPES = ("float16", "float32")
"""Types of x, delta, B, C and y that kernels are compiled for; A, D and delta_bias are always float32."""
BLOCK_STATES = 0
"""In the place of N in a package of the hybrid block's kernels, which know none."""


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one compute capability, with what its launch needs to know."""

    name: str  # the name of the entry in the cubin
    cubin: bytes
    threads: int  # threads of one block, along x
    shared_bytes: int  # dynamic shared memory
    hidden_pointers: int  # null pointers to pass after the arguments of the source


@dataclass(frozen=True)
class KernelPackage:
    """Kernels per compute capability (``10 * major + minor``) and name."""

    element_type: str  # one of ELEMENT_TYPES
    states: int  # N of the scan, or BLOCK_STATES
    kernels: dict[int, dict[str, CompiledKernel]]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that is launched, in hexadecimal."""
        digest = hashlib.sha256()
        for sm, kernels in sorted(self.kernels.items()):
            for name, kernel in sorted(kernels.items()):
                described = (sm, name, *(value for key, value in vars(kernel).items() if key != "cubin"))
                digest.update(repr((described, len(kernel.cubin))).encode() + kernel.cubin)
        return digest.hexdigest()

    @property
    def compute_capabilities(self) -> tuple[int, ...]:
        return tuple(sorted(self.kernels))

    def for_device(self, compute_capability: int) -> dict[str, CompiledKernel]:
        """The kernels for a device; machine code runs on no other compute capability.

        Raises:
            BackendError: The package was not compiled for that device.
        """
        try:
            return self.kernels[compute_capability]
        except KeyError:
            raise BackendError(
                f"the engine's scan kernels are for compute capability {dotted(self.compute_capabilities)}; "
                f"this device has {compute_capability / 10:.1f}: "
                f"rebuild the engine with --sm {compute_capability / 10:.1f}"
            ) from None

    def only(self, compute_capabilities: Iterable[int]) -> KernelPackage:
        """The package with the kernels of some compute capabilities alone, for an engine built from it.

        Raises:
            BackendError: It lacks some of them.
        """
        wanted = tuple(compute_capabilities)
        missing = [sm for sm in wanted if sm not in self.kernels]
        if missing:
            raise BackendError(
                f"the compiled scan kernels are for compute capability {dotted(self.compute_capabilities)}, "
                f"not for {dotted(missing)}: export the ONNX bundle again, where Triton is installed"
            )
        return KernelPackage(self.element_type, self.states, {sm: self.kernels[sm] for sm in wanted})

    def to_bytes(self) -> bytes:
        """The package as bytes; equal packages give equal bytes."""
        listing = {
            str(sm): {
                name: {**asdict(kernel), "cubin": base64.b64encode(kernel.cubin).decode()}
                for name, kernel in sorted(kernels.items())
            }
            for sm, kernels in sorted(self.kernels.items())
        }
        document = {"element_type": self.element_type, "states": self.states, "kernels": listing}
        return MAGIC + zlib.compress(json.dumps(document, sort_keys=True).encode(), level=9)

    @classmethod
    def from_bytes(cls, data: bytes) -> KernelPackage:
        """The package that `to_bytes` wrote.

        Raises:
            BackendError: The bytes are not a whole package of this version.
        """
        if not data.startswith(MAGIC):
            raise BackendError(
                f"scan kernels in an engine start with {data[:20]!r}, expected {MAGIC!r}: "
                "the engine was built by another version of msmamba; rebuild it"
            )
        try:
            inflate = zlib.decompressobj()
            text = inflate.decompress(data[len(MAGIC) :], _MOST_BYTES)
            if not inflate.eof:
                raise ValueError("they are cut off, or larger than kernels are")
            document: dict[str, Any] = json.loads(text)
            kernels = {
                int(sm): {
                    name: CompiledKernel(**{**fields, "cubin": base64.b64decode(fields["cubin"])})
                    for name, fields in listing.items()
                }
                for sm, listing in document["kernels"].items()
            }
            return cls(document["element_type"], document["states"], kernels)
        except (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BackendError(f"the scan kernels in an engine are damaged ({error}); rebuild it") from error
