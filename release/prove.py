"""Proves that a wheel of this platform brings its kernels to where no compiler can be found.

The wheel and what it needs go into a fresh virtual environment of the Python that runs this, and what is
asked of it runs with an empty PATH. The kernels expected are the best for the instruction sets that Linux
says this processor has.

With ``--artefact BUNDLE`` it also classifies a picture, and says how long after the beginning of the install
the answer was there; and with ``--beside PYTHON``, the interpreter of an environment where pip compiled
msmamba (``pip install .``), it measures both builds' latency in one interleaved run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDS = {
    "avx512": {"avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bw", "avx512dq"},
    "avx2+vnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "baseline": set[str](),
}


def expected_kernels() -> str:
    """The best kernels that this machine can run, by /proc/cpuinfo."""
    found = re.search(r"^flags\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    return next(name for name, needed in NEEDS.items() if needed <= flags)


def main() -> None:
    """Installs, asks `mmdeploy doctor`, and opens an artefact where one is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--artefact", type=Path, help="a bundle to open, whose session says how it runs")
    parser.add_argument("--beside", type=Path, metavar="PYTHON", help="also time it beside a build by pip")
    options = parser.parse_args()
    if options.beside and not options.artefact:
        parser.error("--beside needs an artefact to time: --artefact BUNDLE")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        python = Path(folder, "bin", "python")
        install = [
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--python",
            str(python),
        ]
        install += ["install", "--constraint", str(ROOT / "constraints.txt"), "--only-binary", ":all:"]
        subprocess.run([*install, str(options.wheel.resolve())], check=True)
        took = time.monotonic() - began
        (packages,) = Path(folder, "lib").glob("python3*/site-packages")
        size = sum(path.lstat().st_size for path in packages.rglob("*"))
        print(f"{options.wheel.name}: installed in {took:.1f} s, {size / 1e6:.0f} MB", flush=True)

        def ask(*arguments: str) -> str:
            command = [str(python), "-I", *arguments]
            return subprocess.run(
                command, cwd=folder, env={"PATH": ""}, stdout=subprocess.PIPE, text=True, check=True
            ).stdout

        report = json.loads(ask("-m", "msmamba", "doctor", "--format", "json"))
        (native,) = (
            ability for ability in report["abilities"] if ability["name"].startswith("native kernels")
        )
        expected = expected_kernels()
        if not native["works"] or not native["found"].startswith(f"{expected},"):
            sys.exit(f"{options.wheel.name}: found {native['found']!r}, expected the {expected} kernels")
        print(f"{options.wheel.name}, Python {report['machine']['Python']}: {native['found']}")
        if options.artefact:
            opening = "import sys, msmamba; print(msmamba.open(sys.argv[1]).path)"
            path = ask("-c", opening, str(options.artefact.resolve())).strip()
            if "native kernels" not in path:
                sys.exit(f"{options.artefact} runs by {path!r}, expected native kernels")
            print(f"{options.artefact.name}: {path}")
            picture = packages / "msmamba" / "runtime" / "probe_1.jpg"
            asked = time.monotonic()
            ask("-m", "msmamba", "infer", str(options.artefact.resolve()), str(picture))
            answered = time.monotonic() - asked
            print(f"answered {took + answered:.1f} s after the install began, {answered:.2f} s of them infer")
        if options.beside:
            beside = options.beside.absolute()  # where a link leads is no environment
            peers = (ROOT / "benchmarks" / "peers.py", options.artefact.resolve(), "--before", beside)
            print(f"the wheel's build, and as 'before' that of {options.beside}:", flush=True)
            command = [str(python), *map(str, peers), "--threads", "1", "2"]
            subprocess.run(command, cwd=folder, env={"PATH": ""}, check=True)


if __name__ == "__main__":
    main()
