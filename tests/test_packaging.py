"""What is installed: the wheel's files, and that the core alone classifies images."""

from __future__ import annotations

import configparser
import csv
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

import msmamba

ROOT = Path(__file__).parent.parent
ASSETS = ("index.html", "page.css", "page.js", "connection.js", "picture.js", "icon.svg")


def run(command: Sequence[str | Path], **options: object) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return str(done.stdout)


def unoptimised(folder: Path) -> dict[str, str]:
    """The environment with compilers that take no notice of ``-O3``."""
    environment = dict(os.environ)
    if os.name == "nt":
        return environment
    for variable, name in {"CC": "cc", "CXX": "c++"}.items():
        compiler = folder / f"unoptimised-{name}"
        compiler.write_text(f'#!/bin/sh\nexec {os.environ.get(variable, name)} "$@" -O0\n')
        compiler.chmod(0o755)
        environment[variable] = str(compiler)
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files so that nothing else can get into it.

    Its native library is compiled unoptimised, in a sixth of the time; `make` compiles it as users have it.
    """
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = run(["git", "ls-files", "-z"], cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "build", "--wheel", "--outdir", out, source], env=unoptimised(source.parent))
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    inside = {name.parts[1] for name in names if name.parts[0] == "msmamba"}
    assert inside >= {
        "__init__.py",
        "cli",
        "errors.py",
        "py.typed",
        "data",
        "measures",
        "pages",
        "model",
        "export",
        "plugins",
        "runtime",
        "microscope",
    }
    assert not inside & {
        "setup.py",
        "conftest.py",
        "tests",
        "benchmarks",
        "demo",
        "fuzz",
        "release",
        "docs",
        "site",
        "mkdocs.yml",
    }
    assert {name.parts[0] for name in names} <= {"msmamba", f"msmamba-{msmamba.__version__}.dist-info"}
    assert any(name.name.startswith("_native") for name in names)
    assert {
        PurePosixPath("msmamba/export/proof/decision.html.jinja"),
        PurePosixPath("msmamba/pages/frame.html.jinja"),
        PurePosixPath("msmamba/pages/compare.js"),
        PurePosixPath("msmamba/microscope/slides/report.html.jinja"),
        PurePosixPath("msmamba/microscope/live/report.html.jinja"),
        *(PurePosixPath("msmamba/microscope/live/page/assets", name) for name in ASSETS),
    } <= set(names)
    assert PurePosixPath("msmamba/model/evaluation/paper_results.csv") in names
    assert not any(name.suffix in (".cpp", ".h", ".o") for name in names)


def lowest(folder: Path) -> Path:
    """Constraints to the lowest version of each package of the core that setup.cfg allows."""
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    path = folder / "lowest.txt"
    path.write_text(declared["options"]["install_requires"].replace(">=", "=="), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "versions",
    [
        "pinned",
        pytest.param(
            "lowest",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 13), reason="the lowest versions have no wheels for this Python"
            ),
        ),
    ],
)
def test_the_core_alone_classifies_images(
    versions: str, wheel: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    constraints = ROOT / "constraints.txt" if versions == "pinned" else lowest(tmp_path)
    run([*pip, "install", "--quiet", "--no-compile", "--constraint", constraints, wheel])
    picture = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(picture)
    for bundle in bundles.values():
        output = run([python, "-m", "msmamba", "infer", bundle, picture, "--format", "csv"], cwd=tmp_path)
        (answer,) = csv.DictReader(output.splitlines())
        with msmamba.open(bundle) as session:
            (here,) = session.classify([picture])
        assert answer["label"] == here.label
        assert float(answer["probability"]) == pytest.approx(here.probability, abs=1e-3)
    installed = {line.split("==")[0].lower() for line in run([*pip, "freeze"]).splitlines()}
    assert not installed & {"torch", "onnx", "scikit-learn", "matplotlib"}
    report = run([python, "-m", "msmamba", "doctor"], cwd=tmp_path)
    assert "torch" in report
    assert "no   native kernels" not in report
