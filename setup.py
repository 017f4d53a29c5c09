"""Builds the native kernels; everything else about the package stands in setup.cfg.

One shared library serves every machine of its platform: the kernels are compiled once per instruction
set, each from a source of its own with its own flags, and chosen at run time. It has no Python in it
(ctypes and ONNX Runtime load it), and it is optional: where there is no C++ compiler the package
installs without it and ``plugins.selective_scan.cpu.why_unavailable()`` says so.

``release/wheels.py`` compiles the same sources with the same flags for other platforms than this one.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

NATIVE_FOLDERS = [
    Path("plugins") / name / "native" for name in ("selective_scan", "hybrid_block", "image_resize")
]
COMPILE_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-g0", "-Wno-psabi"]


def kernel_flags(machine: str) -> dict[str, list[str]]:
    """For each ending of a source's name, the flags of its instruction set, on machines of that kind."""
    flags: dict[str, list[str]] = {"kernels_baseline": []}
    if machine.lower() in ("x86_64", "amd64"):
        flags["kernels_avx2"] = ["-mavx2", "-mfma", "-mf16c"]
        flags["kernels_avxvnni"] = flags["kernels_avx2"]
        flags["kernels_avx512"] = [
            *flags["kernels_avx2"],
            *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"),
        ]
    elif machine.lower() in ("aarch64", "arm64"):
        flags["kernels_dotprod"] = []
    return flags


def native_files(pattern: str) -> list[str]:
    """Files of the native folders, sorted so that builds are alike."""
    return sorted(str(path) for folder in NATIVE_FOLDERS for path in folder.glob(pattern))


def common_sources() -> list[str]:
    """Native sources that need no flags of their own."""
    return [path for path in native_files("*.cpp") if "kernels_" not in path]


class BuildExtension(build_ext):
    """Compiles the kernels with the flags of their instruction set, the rest as usual, on every core."""

    def build_extension(self, ext: Extension) -> None:
        sources, own = ext.sources, kernel_flags(platform.machine())
        # The dearest come first: the wider the vectors, the longer it takes.
        jobs = [
            (path, flags) for name, flags in reversed(own.items()) for path in native_files(f"*{name}.cpp")
        ]
        jobs += [(path, []) for path in sources]

        def compiled(job: tuple[str, list[str]]) -> list[str]:
            path, flags = job
            arguments = {"extra_postargs": [*COMPILE_FLAGS, *flags], "depends": ext.depends}
            objects: list[str] = self.compiler.compile([path], output_dir=self.build_temp, **arguments)
            return objects

        with ThreadPoolExecutor(os.cpu_count()) as cores:
            # Linked in one order, so that builds are alike.
            ext.extra_objects = sorted(name for objects in cores.map(compiled, jobs) for name in objects)
        try:
            ext.sources = []  # what is left to do is linking
            super().build_extension(ext)
        finally:
            ext.sources = sources


class BuildPython(build_py):
    """Leaves this file out: the repository's root is the package, so it would count as a module."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("msmamba", "setup")]


if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
        ext_modules=[
            Extension(
                "msmamba.plugins.selective_scan._native",
                sources=common_sources(),
                depends=native_files("*.h") + native_files("*.cpp"),
                extra_compile_args=COMPILE_FLAGS,
                extra_link_args=["-pthread"],
                language="c++",
                optional=True,
            )
        ],
    )
