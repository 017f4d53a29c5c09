"""Compiles translated PTX with the machine's C++ compiler and launches it on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as made_once
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .parser import Kernel, PtxError, parse
from .translator import translate

Order = Literal["forward", "reverse", "shuffled"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "shuffled")
_RUNTIME = Path(__file__).with_name("runtime.h")
_FLAGS = ("-std=c++20", "-O1", "-mf16c", "-mfma", "-ffp-contract=off", "-w", "-fPIC")


@dataclass(frozen=True)
class EmulatedKernel:
    """A kernel ready to launch."""

    kernel: Kernel
    library: ctypes.CDLL

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: Sequence[bytes],
        buffers: Sequence[NDArray[np.generic]],
        order: Order = "forward",
        ulps: int = 0,
        seed: int = 1,
    ) -> None:
        """Runs every block of the grid, one after the other.

        Args:
            grid: Blocks along x, y and z.
            threads: Threads of a block, along x.
            shared_bytes: Dynamic shared memory of a block.
            arguments: The raw bytes of every parameter, hidden ones included.
            buffers: All memory that the kernel may touch; what is read-only in NumPy is read-only to it.
            order: The order in which the threads of a block take turns.
            ulps: How far the approximate functions may be off, either way, at random.
            seed: Seed of the shuffled order and of the error of approximate functions.

        Raises:
            PtxError: The launch does not fit the kernel, or the kernel did something wrong.
        """
        parameters = self.kernel.parameters
        found, expected = [len(value) for value in arguments], [parameter.size for parameter in parameters]
        if found != expected:
            raise PtxError(f"arguments of {found} bytes for parameters of {expected} bytes")
        if self.kernel.threads is not None and threads != self.kernel.threads:
            raise PtxError(f"{threads} threads for a kernel that requires {self.kernel.threads}")
        values = [ctypes.create_string_buffer(value, len(value)) for value in arguments]
        message = ctypes.create_string_buffer(512)
        status = self.library.launch(
            (ctypes.c_uint32 * 3)(*grid),
            ctypes.c_uint32(threads),
            ctypes.c_uint32(shared_bytes),
            (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values)),
            len(values),
            len(buffers),
            (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers)),
            (ctypes.c_uint64 * len(buffers))(*(buffer.nbytes for buffer in buffers)),
            (ctypes.c_int * len(buffers))(*(int(buffer.flags.writeable) for buffer in buffers)),
            ORDERS.index(order),
            ulps,
            ctypes.c_uint32(seed),
            message,
            len(message),
        )
        if status:
            raise PtxError(message.value.decode())


def emulate(ptx: str, cache: Path) -> EmulatedKernel:
    """The only kernel of a PTX module, compiled for this CPU.

    Args:
        ptx: The module's text.
        cache: A folder for compiled kernels; one that is there already is used again.

    Raises:
        PtxError: PTX that the emulator does not know.
        CalledProcessError: The C++ compiler failed.
    """
    kernel = parse(ptx)
    source = translate(kernel)
    identity = hashlib.sha256("\n".join((source, _RUNTIME.read_text(), *_FLAGS)).encode()).hexdigest()[:20]
    library = cache / f"{kernel.name}-{identity}.so"
    if not library.exists():
        path = library.with_suffix(".cpp")
        path.write_text(source)
        partial = library.with_suffix(".partial")
        headers = [f"-I{_parsed_runtime().name}", f"-I{_RUNTIME.parent}"]
        subprocess.run(["g++", *_FLAGS, "-shared", *headers, "-o", str(partial), str(path)], check=True)
        partial.rename(library)
    return EmulatedKernel(kernel, ctypes.CDLL(str(library)))


@made_once
def _parsed_runtime() -> tempfile.TemporaryDirectory[str]:
    """A folder that has the runtime's header as the compiler keeps it: a kernel takes a third of the time."""
    folder = tempfile.TemporaryDirectory()
    target = Path(folder.name) / f"{_RUNTIME.name}.gch"
    subprocess.run(["g++", *_FLAGS, "-x", "c++-header", str(_RUNTIME), "-o", str(target)], check=True)
    return folder
