"""Fills a folder with all that a machine without a network installs: `release/wheelhouse.py windows DIST`.

uv resolves for the other machine, whose conditions (``sys_platform == "win32"`` and their like) pip would
answer for this one; pip fetches; and uv installs from the folder alone in the end, without writing anything:
what is missing is missing here then, and not at the microscope.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class System:
    """One kind of machine."""

    wheel: str  # tag of msmamba's own
    target: str  # as uv names it
    tags: tuple[str, ...]  # of wheels that it takes, as pip names them


def _manylinux(machine: str) -> tuple[str, ...]:
    """The tags up to glibc 2.28, which ONNX Runtime asks for."""
    return (f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in range(5, 29)))


SYSTEMS = {
    "linux": System("manylinux_2_17_x86_64", "x86_64-manylinux_2_28", _manylinux("x86_64")),
    "jetson": System("manylinux_2_17_aarch64", "aarch64-manylinux_2_28", _manylinux("aarch64")),
    "windows": System("win_amd64", "x86_64-pc-windows-msvc", ("win_amd64",)),
    "macos": System("macosx_11_0_arm64", "aarch64-apple-darwin", ("macosx_14_0_arm64",)),
}


def run(*command: str | Path) -> None:
    """Runs a command, and ends with its status where it fails."""
    # The least macOS that ONNX Runtime has wheels for, which uv otherwise takes for an older one.
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run([str(word) for word in command], env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Resolves, fetches and tries what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("dist", type=Path, help="folder with msmamba's wheels (make wheels)")
    parser.add_argument("-o", "--out", type=Path, default=Path("wheelhouse"), help="folder to fill")
    parser.add_argument("--extras", default="", metavar="A,B", help="msmamba's extras to include")
    parser.add_argument("--python", default="3.11", help="Python of the other machine (default: 3.11)")
    options = parser.parse_args()
    system = SYSTEMS[options.system]
    wheels = sorted(options.dist.glob(f"msmamba-*-{system.wheel}.whl"))
    if len(wheels) != 1:
        sys.exit(
            f"found {len(wheels)} wheels for {system.wheel} in '{options.dist}', expected one: make wheels"
        )
    extras = f"[{options.extras}]" if options.extras else ""
    uv = (sys.executable, "-m", "uv", "pip")
    there = ("--python-platform", system.target, "--python-version", options.python)
    with tempfile.TemporaryDirectory() as name:
        wanted, resolved = Path(name, "wanted.txt"), Path(name, "resolved.txt")
        wanted.write_text(f"msmamba{extras} @ {wheels[0].resolve().as_uri()}\n")
        constraints = ("--constraint", ROOT / "constraints.txt", "--only-binary", ":all:")
        run(
            *uv,
            "compile",
            "--quiet",
            "--no-header",
            "--no-annotate",
            *there,
            *constraints,
            wanted,
            "-o",
            resolved,
        )
        fetch = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        tags = [word for tag in system.tags for word in ("--platform", tag)]
        where = ("--only-binary", ":all:", "--python-version", options.python, "--dest", options.out)
        run(sys.executable, *fetch, *tags, *where, "--requirement", resolved)
        offline = ("--no-index", "--find-links", options.out, "--target", Path(name, "empty"))
        run(*uv, "install", "--quiet", "--dry-run", *there, *offline, f"msmamba{extras}")
    files = list(options.out.iterdir())
    size = f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
    print(f"{options.out}: {size}, for {options.system}, Python {options.python}")
    print(f"there: pip install --no-index --find-links {options.out.name} 'msmamba{extras}'")


if __name__ == "__main__":
    main()
