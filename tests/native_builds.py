"""Programs of the native sources for the sanitizers' tests, kept between runs under what they are made of.

A build for a sanitizer takes up to half a minute, its run a second. So a program is built anew only where a
source, a header, a flag or the compiler is another one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from scan_cases import ARM, KERNELS

import msmamba
from msmamba.plugins.selective_scan import cpu as scan

PLUGINS = Path(msmamba.__file__).parent / "plugins"
KERNEL_FLAGS: dict[str, list[str]] = {"baseline": []}
"""The flags of each instruction set that this machine's compiler has; as in setup.py."""
DOT_PRODUCT_FLAGS: dict[str, list[str]] = {}
"""Likewise of those that only the block's int8 operators have kernels for."""
if platform.machine() in ("x86_64", "AMD64"):
    # Wider vectors of the same code: its arithmetic of pointers is checked in the baseline's build, and
    # AddressSanitizer sees each access.
    KERNEL_FLAGS["avx2"] = ["-fno-sanitize=null,object-size,pointer-overflow", "-mavx2", "-mfma", "-mf16c"]
    KERNEL_FLAGS["avx512"] = [
        *KERNEL_FLAGS["avx2"],
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"),
    ]
    DOT_PRODUCT_FLAGS["avxvnni"] = KERNEL_FLAGS["avx2"]
elif ARM:
    DOT_PRODUCT_FLAGS["dotprod"] = []

_CHECKS_AS_CALLS = [
    "-fsanitize-undefined-trap-on-error",
    *("--param", "asan-instrumentation-with-call-threshold=0"),
]
"""GCC's, for a third of the time to compile. What is undefined is an illegal instruction then, and a debugger
says which."""


def compiler() -> str:
    """The C++ compiler; without one the test is skipped."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("there is no C++ compiler on this machine")
    return found


def runnable_sets() -> list[str]:
    """The instruction sets that this machine runs, of those that the native library holds."""
    best, found = scan.kernels(), []
    for name in KERNELS:
        with suppress(ValueError):
            scan.select_kernels(name)
            found.append(name)
    scan.select_kernels(best)
    return found


def sanitized(
    driver: Path, sources: Mapping[Path, Sequence[str]], sanitizers: str, flags: Sequence[str], cache: Path
) -> Path:
    """A program under sanitizers, each of whose findings ends it.

    Args:
        driver: the source of its ``main``, which includes the headers that stand beside ``sources``.
        sources: native sources, each with the flags that it needs beside ``flags``.
        sanitizers: as ``-fsanitize=`` takes them. Where the compiler has none of them the test is skipped.
        flags: for all of them.
        cache: where programs are kept.

    Returns:
        The program, which is not to be changed.
    """
    command = [compiler(), "-std=c++17", "-Wno-psabi", f"-fsanitize={sanitizers}"]
    command += ["-fno-sanitize-recover=all", *flags]
    compiler_said = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    if "undefined" in sanitizers and b"clang" not in compiler_said:
        command += _CHECKS_AS_CALLS
    identity = hashlib.sha256(compiler_said + repr((command, list(sources.values()))).encode())
    for path in (driver, *sources, *sorted(PLUGINS.glob("*/native/*.h"))):
        identity.update(path.name.encode() + path.read_bytes())
    kind = f"{driver.stem}-{sanitizers.replace(',', '-')}"
    program = cache / f"{kind}-{identity.hexdigest()[:20]}"
    if program.exists():
        return program

    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        (folder / "probe.cpp").write_text("int main() { return 0; }\n")
        if subprocess.run([*command, "probe.cpp", "-o", "probe"], cwd=folder, capture_output=True).returncode:
            pytest.skip(f"{compiler()} has no -fsanitize={sanitizers}")
        every = {driver: [f"-I{next(iter(sources)).parent}"], **sources}
        objects = [folder / f"{source.stem}.o" for source in every]
        compiling = [
            subprocess.Popen([*command, *own, "-c", source, "-o", target])
            for (source, own), target in zip(every.items(), objects, strict=True)
        ]
        assert [process.wait() for process in compiling] == [0] * len(objects)
        subprocess.run([*command, "-pthread", *objects, "-o", folder / "program"], check=True)
        for stale in cache.glob(f"{kind}-*"):
            stale.unlink()
        (folder / "program").rename(program)
    return program


def shared_library(source: Path, cache: Path) -> Path:
    """A shared library of one source that stands by itself."""
    command = [compiler(), "-std=c++17", "-O1", "-fPIC", "-shared"]
    identity = hashlib.sha256(repr(command).encode() + source.read_bytes()).hexdigest()[:20]
    library = cache / f"{source.stem}-{identity}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, source, "-o", partial, "-ldl"], check=True)
        partial.rename(library)
    return library


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program, leaks looked for too."""
    environment = {
        "ASAN_OPTIONS": "detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PATH": os.environ["PATH"],
    }
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
