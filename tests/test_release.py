"""The makers of wheels, but for the compiler: what goes in, what is refused, and that it comes out alike."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import platform
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from release_scripts import names_in

from msmamba.plugins.selective_scan.cpu import library_path

ROOT = Path(__file__).parent.parent
EPOCH = 1_700_000_000
FUNCTIONS = [
    *("RegisterCustomOps", "msmamba_scan_forward", "msmamba_scan_backward", "msmamba_scan_kernels"),
    *("msmamba_scan_select_kernels", "msmamba_scan_threads", "msmamba_scan_set_threads", "msmamba_resize"),
    *("msmamba_normalise", "msmamba_block_unfit", "msmamba_block_create", "msmamba_block_run"),
    "msmamba_block_destroy",
]


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    """The names of `release/wheels.py`."""
    return names_in("wheels.py")


def of_tag(maker: dict[str, Any], tag: str) -> Any:
    return next(platform for platform in maker["PLATFORMS"] if platform.tag == tag)


def test_a_wheel_is_sorted_and_recorded_and_the_same_again(maker: dict[str, Any]) -> None:
    files = {
        "msmamba-1.0.dist-info/METADATA": b"Name: msmamba\n",
        "msmamba/version.py": b"",
        "msmamba/__init__.py": b"pass\n",
    }
    windows = of_tag(maker, "win_amd64")
    packed = maker["pack_wheel"](files, windows, EPOCH)
    assert packed == maker["pack_wheel"](dict(reversed(files.items())), windows, EPOCH)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    info = "msmamba-1.0.dist-info"
    assert list(contents) == [
        *("msmamba/__init__.py", "msmamba/version.py"),
        *(f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"),
    ]
    assert b"Tag: py3-none-win_amd64\n" in contents[f"{info}/WHEEL"]
    *rows, last = csv.reader(contents[f"{info}/RECORD"].decode().splitlines())
    assert last == [f"{info}/RECORD", "", ""]
    for name, digest, size in rows:
        raw = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
        assert (raw, int(size)) == (hashlib.sha256(contents[name]).digest(), len(contents[name]))


LINUX = {"asked": ("libc.so.6", "libm.so.6"), "versions": ("GLIBC_2.2.5", "GLIBC_2.17")}
MACOS = {"architecture": "ARM64", "asked": ("/usr/lib/libSystem.B.dylib",), "least_system": (11, 0, 0)}
WINDOWS = {"asked": ("KERNEL32.dll", "api-ms-win-crt-heap-l1-1-0.dll")}


@pytest.mark.parametrize(
    ("tag", "fields", "found"),
    [
        ("manylinux_2_17_x86_64", LINUX, []),
        ("manylinux_2_17_x86_64", LINUX | {"versions": ("GLIBC_2.9", "GLIBC_2.34")}, ["asks for GLIBC_2.34"]),
        (
            "manylinux_2_17_x86_64",
            {"asked": ("libc.so.6", "libstdc++.so.6"), "versions": ("GLIBCXX_3.4",)},
            ["asks for libstdc++.so.6", "asks for GLIBCXX_3.4"],
        ),
        ("manylinux_2_17_aarch64", LINUX, ["is for X86_64, expected ARM64"]),
        ("manylinux_2_17_x86_64", LINUX | {"stripped": False}, ["is not stripped"]),
        ("win_amd64", WINDOWS, []),
        ("win_amd64", {"asked": ("KERNEL32.dll", "libstdc++-6.dll")}, ["asks for libstdc++-6.dll"]),
        ("macosx_11_0_arm64", MACOS, []),
        ("macosx_11_0_arm64", MACOS | {"least_system": (12, 3, 0)}, ["asks for macOS 12.3.0"]),
        (
            "macosx_11_0_arm64",
            MACOS | {"asked": ("/usr/local/lib/libomp.dylib",)},
            ["asks for /usr/local/lib/libomp.dylib"],
        ),
    ],
)
def test_what_a_library_asks_too_much_is_named(
    maker: dict[str, Any], tag: str, fields: dict[str, Any], found: list[str]
) -> None:
    library = maker["Library"](**{"architecture": "X86_64", "shown": frozenset(FUNCTIONS), **fields})
    assert maker["misfits"](of_tag(maker, tag), library, FUNCTIONS) == found


def test_every_function_that_is_missing_is_named(maker: dict[str, Any]) -> None:
    library = maker["Library"]("X86_64", frozenset(FUNCTIONS[2:]), ("libc.so.6",))
    assert maker["misfits"](of_tag(maker, "manylinux_2_17_x86_64"), library, FUNCTIONS) == [
        f"lacks the function {name}" for name in FUNCTIONS[:2]
    ]


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64" or library_path() is None,
    reason="the native library of Linux on x86-64 is looked at",
)
def test_a_library_that_was_built_for_this_machine_alone_is_refused(maker: dict[str, Any]) -> None:
    """GCC links its own C++ library, which other machines may not have."""
    path = library_path()
    assert path is not None
    content = path.read_bytes()
    with pytest.raises(SystemExit, match=r"glibc 2\.17, .*asks for libstdc\+\+\.so\.6"):
        maker["check_library"](of_tag(maker, "manylinux_2_17_x86_64"), content, FUNCTIONS)
    library = maker["read_library"](content)
    assert library.architecture == "X86_64"
    assert library.shown >= set(FUNCTIONS)


def test_what_is_no_library_is_refused(maker: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="13 bytes that are no ELF"):
        maker["read_library"](b"not a library")


def test_the_functions_to_show_are_those_that_the_sources_export(maker: dict[str, Any]) -> None:
    marked = [
        line
        for path in ROOT.glob("plugins/*/native/*.cpp")
        for line in path.read_text().splitlines()
        if line.startswith("MSMAMBA_EXPORT ")
    ]
    found = maker["expected_functions"](ROOT)
    assert len(found) == len(set(found)) == len(marked)
    assert set(found) >= set(FUNCTIONS)


def test_the_source_distribution_is_the_same_again_and_has_what_compiles(
    maker: dict[str, Any], tmp_path: Path
) -> None:
    """Five seconds: setuptools makes it, in a process, and twice is what is tested."""
    name, packed = maker["build_sdist"](tmp_path / "one", EPOCH)
    assert (name, packed) == maker["build_sdist"](tmp_path / "two", EPOCH)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        inside = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
    native = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("plugins/*/native/*")}
    assert inside >= native | {"setup.py", "pyproject.toml", "LICENSE", "README.md"}
    assert not [path for path in inside if path.startswith(("tests/", "release/"))]
