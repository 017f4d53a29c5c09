"""The native libraries of wheels for other machines, called by a small program on an emulated one.

`make test-arm` and `make test-windows` build the wheels, or take them from the folder ``WHEELS``, and install
the emulators: Debian's QEMU with its C library for ARM64, and Wine. The program (`driver.c`) gets all calls
in one file: one start a machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import msmamba

ROOT = Path(__file__).parent.parent.parent
WHEELS = ROOT / os.environ.get("WHEELS", "build/wheels")  # as in the Makefile
PYTHON = ROOT / ".venv-wheels" / "bin" / "python"  # which has the compiler
DRIVER = Path(__file__).parent / "driver.c"
FORWARD, BACKWARD, BLOCK, RESIZE = range(4)
"""Kinds of call, as the driver numbers them."""


@dataclass(frozen=True)
class Machine:
    """A machine that this one emulates, with kernels of its library."""

    tag: str  # of the wheel
    target: str  # as zig names it
    emulator: tuple[str, ...]
    kernels: str
    suffix: str = ""  # of programs
    asked: bool = False  # whether the kernels have to be asked for, or are what the library takes there

    def __str__(self) -> str:
        return f"{self.target.partition('.')[0]}-{self.kernels}"


_ARM = ("manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17")
_QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu")
_WINDOWS = ("win_amd64", "x86_64-windows-gnu", ("wine",))
MACHINES = [
    # The Jetson Nano's processor, which has nothing that is newer than ARMv8.0, and one that has everything.
    pytest.param(Machine(*_ARM, (*_QEMU, "cortex-a57"), "neon"), marks=pytest.mark.arm),
    pytest.param(Machine(*_ARM, (*_QEMU, "max"), "neon+dotprod"), marks=pytest.mark.arm),
    *(
        pytest.param(Machine(*_WINDOWS, kernels, ".exe", asked=True), marks=pytest.mark.windows)
        for kernels in ("avx512", "avx2+vnni", "avx2", "baseline")
    ),
]


@dataclass(frozen=True)
class Call:
    """One call of the library, with outputs of those shapes and types."""

    kind: int
    numbers: Sequence[int]
    inputs: Sequence[NDArray[Any]]
    outputs: Sequence[tuple[tuple[int, ...], Any]]

    def to_bytes(self) -> bytes:
        """The call as the driver reads it."""
        sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.outputs]
        arrays = [np.ascontiguousarray(array).tobytes() for array in self.inputs]
        parts = [
            *(_numbers(self.kind, len(self.numbers), *self.numbers), _numbers(len(arrays))),
            *(part for array in arrays for part in (_numbers(len(array)), array)),
            _numbers(len(sizes), *sizes),
        ]
        return b"".join(parts)


def _numbers(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


Results = list[NDArray[Any]]
Library = Callable[[dict[str, Call]], dict[str, Results]]


@pytest.fixture(scope="session", params=MACHINES, ids=str)
def machine(request: pytest.FixtureRequest) -> Machine:
    chosen: Machine = request.param
    return chosen


@pytest.fixture(scope="session")
def library(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Runs calls, by their names, on a machine; skips where this processor cannot do for it."""
    folder = tmp_path_factory.mktemp("machine")
    wheel = WHEELS / f"msmamba-{msmamba.__version__}-py3-none-{machine.tag}.whl"
    assert wheel.is_file(), (
        f"there is no {wheel}: make {'test-arm' if 'aarch64' in machine.tag else 'test-windows'}"
    )
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = (name for name in archive.namelist() if Path(name).name.startswith("_native"))
        native = folder / Path(inside).name
        native.write_bytes(archive.read(inside))
    program = folder / f"driver{machine.suffix}"
    cache = str(PYTHON.parent.parent / "zig-cache")
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    flags = ["-target", machine.target, "-std=c11", "-O2", "-Wall", "-Werror"]
    libraries = ["-ldl"] if "linux" in machine.target else []
    command = [PYTHON, "-m", "ziglang", "cc", *flags, DRIVER, "-o", program, *libraries]
    subprocess.run(command, env={**os.environ, **caches}, check=True)
    environment = {
        **os.environ,
        # Wine's own folder of Windows, without browser and .NET, which it would ask the user to fetch.
        "WINEPREFIX": str(tmp_path_factory.getbasetemp() / "wine"),
        "WINEDLLOVERRIDES": "mscoree,mshtml=",
        "WINEDEBUG": "-all",
    }
    emulator = shutil.which(machine.emulator[0])
    assert emulator is not None, f"there is no {machine.emulator[0]}: the Makefile's target installs it"

    def run(calls: dict[str, Call]) -> dict[str, Results]:
        (folder / "calls").write_bytes(_numbers(len(calls)) + b"".join(map(Call.to_bytes, calls.values())))
        command = [emulator, *machine.emulator[1:], program.name, f"./{native.name}", "calls", "results"]
        said, complained = folder / "said", folder / "complained"
        # Into files, since Wine's server outlives the program, and would hold a pipe open.
        with said.open("w") as output, complained.open("w") as errors:
            done = subprocess.run(
                [*command, *([machine.kernels] if machine.asked else [])],
                cwd=folder,
                env=environment,
                timeout=400,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        if "no such kernels" in complained.read_text():
            pytest.skip(f"this processor has no {machine.kernels}")
        assert done.returncode == 0, complained.read_text()[-3000:]
        assert said.read_text().split()[0] == machine.kernels
        content = memoryview((folder / "results").read_bytes())
        found: dict[str, Results] = {}
        for name, call in calls.items():
            found[name] = []
            for shape, dtype in call.outputs:
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                found[name].append(np.frombuffer(content[:size], dtype).reshape(shape))
                content = content[size:]
        assert len(content) == 0
        return found

    return run
