"""Builds the wheels with the native kernels inside, and the source distribution: `make wheels`.

The native library has no Python in it, so one wheel of a platform serves every Python that msmamba runs
on. zig's C++ compiler (PyPI's ``ziglang``) compiles it for all of them on one Linux machine, and links its
C++ library in. What comes out is to depend on the tracked files and on ``SOURCE_DATE_EPOCH`` (by default the
time of the last commit) alone; `rebuild.py` builds it once more and compares.

zig compiles its C++ library itself, once for each platform, and keeps it beside the compiler.
"""

from __future__ import annotations

import argparse
import base64
import csv
import gzip
import hashlib
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from libraries import Library, read_library
from sums import SUMS, sums_text

ROOT = Path(__file__).parent.parent
LARGEST = 3_000_000  # bytes of a wheel
LIBRARY = "msmamba/plugins/selective_scan/_native"


@dataclass(frozen=True)
class Platform:
    """One platform: its tag in the wheel's name, zig's target, and what its library may ask of the system."""

    tag: str
    target: str
    architecture: str  # as LIEF names it
    suffix: str  # one that every Python of the platform tries for libraries
    may_ask: str  # pattern of the system's libraries
    suits: str  # the oldest system, in words
    least_system: tuple[int, ...] = ()  # the macOS, as far as it is one

    @property
    def machine(self) -> str:
        return self.target.split("-")[0]

    @property
    def newest_version(self) -> tuple[int, ...]:
        """The newest version of the C library that its symbols may be of; empty but on Linux."""
        return tuple(map(int, self.target.rpartition("gnu.")[2].split("."))) if "linux" in self.target else ()


_LIBC = r"lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux[-\w]*\.so\.\d"
PLATFORMS = (
    Platform("manylinux_2_17_x86_64", "x86_64-linux-gnu.2.17", "X86_64", ".so", _LIBC, "glibc 2.17"),
    Platform("manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17", "ARM64", ".so", _LIBC, "glibc 2.17"),
    Platform(
        *("win_amd64", "x86_64-windows-gnu", "X86_64", ".pyd"),
        r"(?i:kernel32|ntdll|advapi32|api-ms-win-crt-[-\w]+)\.dll",
        "Windows 10",
    ),
    Platform(
        *("macosx_11_0_arm64", "aarch64-macos.11.0", "ARM64", ".so", r"/usr/lib/libSystem\.B\.dylib"),
        "macOS 11",
        (11, 0),
    ),
)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed ({done.returncode})")
    return done.stdout


def build_epoch() -> int:
    """The time that everything made here bears, in seconds since 1970."""
    committed = run("git", "log", "-1", "--format=%ct", cwd=ROOT)
    return int(os.environ.get("SOURCE_DATE_EPOCH", committed))


def entry_time(epoch: int) -> tuple[int, int, int, int, int, int]:
    """The time of a wheel's entries; zip keeps every other second alone."""
    year, month, day, hour, minute, second = time.gmtime(epoch)[:6]
    return year, month, day, hour, minute, second - second % 2


def wheel_name(version: str, platform: Platform) -> str:
    """The file's name of a platform's wheel."""
    return f"msmamba-{version}-py3-none-{platform.tag}.whl"


def bill_name(wheel: str) -> str:
    """The file's name of a wheel's bill of materials (`bills.py`)."""
    return f"{wheel.removesuffix('.whl')}.cdx.json"


def build_sdist(work: Path, epoch: int) -> tuple[str, bytes]:
    """The source distribution's name and bytes, made of the tracked files alone."""
    tree = work / "tracked"
    for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "setup.py", "-q", "sdist", "--formats", "tar", "--dist-dir", work / "sdist", cwd=tree)
    (made,) = (work / "sdist").glob("*.tar")
    packed = io.BytesIO()
    with tarfile.open(made) as source, tarfile.open(fileobj=packed, mode="w") as target:
        for entry in sorted(source.getmembers(), key=lambda entry: entry.name):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = epoch, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() else 0o644
            entry.pax_headers = {}
            target.addfile(entry, source.extractfile(entry) if entry.isfile() else None)
    return f"{made.name}.gz", gzip.compress(packed.getvalue(), mtime=epoch)


def python_files(tree: Path, work: Path) -> dict[str, bytes]:
    """What every wheel holds but for the library, WHEEL and RECORD: contents by name."""
    stage = work / "stage"
    run(sys.executable, "setup.py", "-q", "build_py", "--build-lib", stage, cwd=tree)
    run(sys.executable, "setup.py", "-q", "dist_info", "--output-dir", stage, cwd=tree)
    return {
        path.relative_to(stage).as_posix(): path.read_bytes()
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    }


def compile_library(platform: Platform, tree: Path, work: Path, cache: Path) -> bytes:
    """The native library of a platform, from the sources in ``tree`` with setup.py's flags."""
    build = runpy.run_path(str(tree / "setup.py"))
    here = Path.cwd()
    os.chdir(tree)  # setup.py looks for its sources where it runs
    try:
        sources: dict[str, list[str]] = {path: [] for path in build["common_sources"]()}
        for ending, flags in build["kernel_flags"](platform.machine).items():
            sources |= dict.fromkeys(build["native_files"](f"*{ending}.cpp"), flags)
    finally:
        os.chdir(here)
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", platform.target]
    caches = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(cache))
    independent = [] if "windows" in platform.target else ["-fPIC"]
    objects = work / platform.tag
    objects.mkdir()

    def compile_one(source: tuple[str, list[str]]) -> None:
        path, flags = source
        made = objects / f"{Path(path).stem}.o"
        command = [*compiler, *build["COMPILE_FLAGS"], *independent, *flags, "-c", path, "-o", made]
        run(*command, cwd=tree, **caches)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources.items()))
    # By names alone, from where they lie: the place of the build shall not get into the library.
    names = sorted(path.name for path in objects.iterdir())
    library = f"_native{platform.suffix}"
    run(*compiler, "-O2", "-shared", "-s", *names, "-o", library, cwd=objects, **caches)
    return (objects / library).read_bytes()


def expected_functions(tree: Path) -> list[str]:
    """The functions that the native sources mark for export."""
    native = "".join(path.read_text() for path in sorted(tree.glob("plugins/*/native/*.cpp")))
    return re.findall(r"^MSMAMBA_EXPORT [^(]*?(\w+)\(", native, re.MULTILINE)


def misfits(platform: Platform, library: Library, functions: Sequence[str]) -> list[str]:
    """What keeps a library from being a platform's: all of it, in words."""
    found = []
    if library.architecture != platform.architecture:
        found.append(f"is for {library.architecture}, expected {platform.architecture}")
    found += [f"lacks the function {name}" for name in functions if name not in library.shown]
    found += [f"asks for {name}" for name in library.asked if not re.fullmatch(platform.may_ask, name)]
    for version in library.versions:
        name, _, number = version.partition("_")
        if name != "GLIBC" or tuple(map(int, number.split("."))) > platform.newest_version:
            found.append(f"asks for {version}")
    if library.least_system[:2] > platform.least_system:
        found.append(f"asks for macOS {'.'.join(map(str, library.least_system))}")
    if not library.stripped:
        found.append("is not stripped")
    return found


def check_library(platform: Platform, content: bytes, functions: Sequence[str]) -> None:
    """Tells what a library asks for, and ends the build where it is not the platform's."""
    library = read_library(content)
    wrong = misfits(platform, library, functions)
    if wrong:
        sys.exit(f"{platform.tag}: the library, which is to suit {platform.suits}, {', '.join(wrong)}")
    asks = ", ".join([*library.asked, *library.versions])
    print(f"{platform.tag}: {len(content):,} bytes, {len(functions)} functions, asks for {asks}", flush=True)


@dataclass(frozen=True)
class Part:
    """Something that zig's linker puts into a library.

    Attributes:
        name: what it is called.
        licence: an SPDX expression.
        text: where in zig's folder the licence is.
        version_in: a file there and the pattern of its version's numbers; None for what is zig's own.
    """

    name: str
    licence: str
    text: str
    version_in: tuple[str, str] | None = None


_LLVM = "Apache-2.0 WITH LLVM-exception"
_LLVM_VERSION = ("lib/libcxx/include/__config", r"define _LIBCPP_VERSION (\d\d)(\d\d)(\d\d)\b")
COMPILER_RT = Part("zig compiler_rt", "MIT", "LICENSE")
LIBCXX = Part("libc++", _LLVM, "lib/libcxx/LICENSE.TXT", _LLVM_VERSION)
LIBCXXABI = Part("libc++abi", _LLVM, "lib/libcxxabi/LICENSE.TXT", _LLVM_VERSION)
LIBUNWIND = Part("libunwind", _LLVM, "lib/libunwind/LICENSE.TXT", _LLVM_VERSION)
MINGW = Part(
    *("MinGW-w64", "ZPL-2.1", "lib/libc/mingw/COPYING"),
    (
        "lib/libc/include/any-windows-any/_mingw_mac.h",
        r"define __MINGW64_VERSION_MAJOR\s+(\d+)\s+#define __MINGW64_VERSION_MINOR\s+(\d+)",
    ),
)


def linked_in(platform: Platform) -> list[Part]:
    """What zig's linker puts into a platform's library."""
    parts = [COMPILER_RT, LIBCXX, LIBCXXABI]
    if "macos" not in platform.target:  # which has an unwinder of its own
        parts.append(LIBUNWIND)
    if "windows" in platform.target:
        parts.append(MINGW)
    return parts


def zig_folder() -> Path:
    """Where ziglang is installed."""
    found = find_spec("ziglang")
    if found is None or found.origin is None:
        sys.exit("there is no ziglang: pip install -r release/requirements.txt")
    return Path(found.origin).parent


def zig_licences(platform: Platform) -> dict[str, bytes]:
    """The licences of what is linked in, by their names in a wheel's folder of licences."""
    paths = [part.text for part in linked_in(platform)]
    return {f"zig/{path.removeprefix('lib/')}": (zig_folder() / path).read_bytes() for path in paths}


def with_licences(files: Mapping[str, bytes], licences: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with licences beside the package's own, which the metadata then names, too."""
    (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    info = metadata.rpartition("/")[0]
    own = b"License-File: LICENSE\n"
    named = own + b"".join(f"License-File: {name}\n".encode() for name in licences)
    added = {f"{info}/licenses/{name}": text for name, text in licences.items()}
    return {**files, metadata: files[metadata].replace(own, named, 1), **added}


def pack_wheel(files: Mapping[str, bytes], platform: Platform, epoch: int) -> bytes:
    """The wheel's bytes (PyPA's binary distribution format 1.0), entries sorted, RECORD last."""
    (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    info = metadata.rpartition("/")[0]
    tag = f"py3-none-{platform.tag}"
    wheel = f"Wheel-Version: 1.0\nGenerator: msmamba release/wheels.py\nRoot-Is-Purelib: false\nTag: {tag}\n"
    held = {**files, f"{info}/WHEEL": wheel.encode()}
    # The information after the package, as the format recommends.
    names = sorted(held, key=lambda name: (name.startswith(info), name))
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name in names:
        digest = base64.urlsafe_b64encode(hashlib.sha256(held[name]).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(held[name])])
    rows.writerow([f"{info}/RECORD", "", ""])
    held[f"{info}/RECORD"] = record.getvalue().encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in [*names, f"{info}/RECORD"]:
            entry = zipfile.ZipInfo(name, entry_time(epoch))
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix, whose modes these are
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, held[name], compresslevel=9)
    return packed.getvalue()


def main() -> None:
    """Builds what was asked for, checks it, and writes it with its checksums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder for the files")
    tags = [platform.tag for platform in PLATFORMS]
    parser.add_argument("--only", choices=tags, action="append", help="platforms (default: all)")
    cache = Path(sys.prefix) / "zig-cache"
    parser.add_argument("--cache", type=Path, default=cache, help=f"what zig keeps (default: {cache})")
    options = parser.parse_args()
    epoch = build_epoch()
    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sdist, packed = build_sdist(work, epoch)
        made[sdist] = packed
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(work / "source", filter="data")
        # From the source distribution on, which so proves to be whole.
        (tree,) = (work / "source").iterdir()
        files = python_files(tree, work)
        functions = expected_functions(tree)
        version = sdist.removeprefix("msmamba-").removesuffix(".tar.gz")
        for platform in PLATFORMS:
            if options.only and platform.tag not in options.only:
                continue
            library = compile_library(platform, tree, work, options.cache.resolve())
            check_library(platform, library, functions)
            held = with_licences(files, zig_licences(platform)) | {f"{LIBRARY}{platform.suffix}": library}
            wheel = pack_wheel(held, platform, epoch)
            if len(wheel) > LARGEST:
                sys.exit(f"{platform.tag}: the wheel has {len(wheel):,} bytes, expected {LARGEST:,} at most")
            made[wheel_name(version, platform)] = wheel
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in {**made, SUMS: sums_text(made).encode()}.items():
        (options.out / name).write_bytes(content)
    for name in sorted(made):
        print(f"{len(made[name]):>10,}  {options.out / name}")


if __name__ == "__main__":
    main()
