"""Runs a command on a CUDA that the processor plays: what is around kernels, for real, without a GPU.

    python benchmarks/played_cuda.py [--log FILE] [--serve LIBRARY …] -- COMMAND …

Memory is the process's own, copies copy, streams and events order nothing, and kernels do nothing but are
counted (`played_cuda.c`). So answers mean nothing; but which nodes ONNX Runtime's CUDA takes, whether it
captures them as a CUDA graph and how many kernels that launches, and whether the code of PyTorch, Triton
and cuda-bindings around kernels runs through, is what a GPU would show. ``--log`` gets a line for each
kernel, copy and capture.

Every function that the libraries to serve ask of CUDA, cuBLAS, cuRAND and cuDNN and that `played_cuda.c`
has not is made up: it succeeds, and what it creates is an empty object. Served are ONNX Runtime's CUDA
provider and PyTorch, where they are installed, and those named. Linux; needs a C compiler, `nm`, and CUDA
13's headers: of CUDA itself, PyTorch's NVIDIA packages or Triton 3.7.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
PLAYED = re.compile(r"(?:__cuda|cuda|cublas|cudnn|curand|cu)[A-Z]\w*")
LIBRARIES = {
    "libcudart.so.13": "cuda[A-Z]*; __cuda*",
    "libcublas.so.13": "cublas[A-KM-Z]*",
    "libcublasLt.so.13": "cublasLt*",
    "libcudnn.so.9": "cudnn*",
    "libcurand.so.10": "curand*",
    "libcuda.so.1": "",
}
"""The libraries that are played, and which functions have their name for a version."""


def package_folder(name: str) -> Path | None:
    """Where a package lies, None where it is not installed."""
    found = importlib.util.find_spec(name)
    folders = found.submodule_search_locations if found else None
    return Path(next(iter(folders))) if folders else None


def served() -> list[Path]:
    """The installed libraries that ask for CUDA."""
    folders = {"onnxruntime": "capi/*providers_cuda.so", "torch": "lib/*.so", "nvidia": "*/lib/*.so*"}
    found = []
    for package, pattern in folders.items():
        if (folder := package_folder(package)) is not None:
            found += sorted(folder.glob(pattern))
    return found


def symbols(file: Path, which: str) -> set[str]:
    """The names that a library asks for, or has, among those that are played."""
    done = subprocess.run(["nm", "-D", which, str(file)], capture_output=True, text=True, check=False)
    names = (line.split()[-1].split("@")[0] for line in done.stdout.splitlines() if line.split())
    return set(filter(PLAYED.fullmatch, names))


def header_folders() -> list[Path]:
    """Where CUDA 13's headers lie, and after them others that may have what those lack.

    Raises:
        SystemExit: there are none.
    """
    nvidia, triton = package_folder("nvidia"), package_folder("triton")
    folders = [Path("/usr/local/cuda/include")]
    folders += [nvidia / "cu13" / "include"] if nvidia else []
    folders += [triton / "backends" / "nvidia" / "include"] if triton else []
    there = [folder for folder in folders if (folder / "cuda.h").is_file()]
    fitting = [
        folder
        for folder in there
        if re.search(r"#define CUDA_VERSION 13", (folder / "cuda.h").read_text("utf-8", "replace"))
    ]
    if not fitting:
        raise SystemExit("finds no headers of CUDA 13: pip install 'triton>=3.7'")
    return fitting + [folder for folder in there if folder not in fitting]


def driver_functions(headers: Path) -> set[str]:
    """The driver's, which are looked up by name and asked for by no library."""
    return set(re.findall(r"CUDAAPI (cu[A-Z]\w*)\(", (headers / "cuda.h").read_text("utf-8", "replace")))


def made_up(names: Iterable[str]) -> str:
    """C functions that succeed; those that create something give an empty object."""
    lines = ["#include <stdlib.h>"]
    for name in sorted(names):
        creates = "Create" in name
        body = "if (made != NULL) *made = calloc(1, 4096); " if creates else ""
        lines.append(f"int {name}({'void** made' if creates else 'void'}) {{ {body}return 0; }}")
    return "\n".join([*lines, ""])


def build(folder: Path, libraries: Iterable[Path]) -> list[Path]:
    """Builds what is to be loaded before all else, in this order.

    Raises:
        SystemExit: there are no headers, or the compiler fails.
    """
    headers = header_folders()
    included = [f"-I{folder}" for folder in headers]
    compiler = [*os.environ.get("CC", "cc").split(), "-fPIC", "-O1", "-w"]

    def compiled(*arguments: str | Path) -> None:
        if subprocess.run([*compiler, *map(str, arguments)], check=False).returncode:
            raise SystemExit(f"{compiler[0]} fails")

    own, rest = folder / "own.so", folder / "rest.c"
    compiled("-shared", SOURCE, *included, "-o", own, "-ldl", "-lpthread")
    wanted = driver_functions(headers[0]).union(*(symbols(file, "--undefined-only") for file in libraries))
    cudnn = [file for file in libraries if file.name == "libcudnn.so.9"]  # its users look its functions up
    wanted = wanted.union(*(symbols(file, "--defined-only") for file in cudnn))
    rest.write_text(made_up(wanted - symbols(own, "--defined-only")))
    versions = folder / "versions"
    versions.write_text(
        "".join(f"{name} {{ global: {names}; }};\n" for name, names in LIBRARIES.items() if names)
    )
    played = folder / "libplayed_cuda.so"
    options = [f"-Wl,--version-script={versions}", f"-Wl,-soname,{played.name}"]
    compiled("-shared", SOURCE, rest, *included, *options, "-o", played, "-ldl", "-lpthread")
    nothing = folder / "nothing.c"
    nothing.write_text("")
    for name in LIBRARIES:  # which whoever opens them by name gets
        linked = ["-Wl,--no-as-needed", f"-L{folder}", f"-l:{played.name}", "-Wl,-rpath,$ORIGIN"]
        compiled("-shared", nothing, f"-Wl,-soname,{name}", *linked, "-o", folder / name)
    return [played, *(folder / name for name in LIBRARIES)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, help="file for what is called")
    parser.add_argument(
        "--serve", type=Path, nargs="+", default=[], help="further libraries that ask for CUDA"
    )
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("runs on Linux")
    with tempfile.TemporaryDirectory() as folder:
        first = build(Path(folder), [*served(), *arguments.serve])
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(map(str, first)),
            "LD_LIBRARY_PATH": os.pathsep.join(paths),
        }
        if arguments.log:
            arguments.log.unlink(missing_ok=True)
            environment["PLAYED_CUDA_LOG"] = str(arguments.log.resolve())
        return subprocess.run(arguments.command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
