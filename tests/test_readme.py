"""The commands and programs of the README and of the users' pages, run word for word in an empty folder."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preloaded import Preloaded

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What they have in common with the README is run once.
USERS = [
    (ROOT / "docs" / name).read_text("utf-8") for name in ("developer.md", "microscope.md", "integrator.md")
]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cells/``: three classes of ten images that differ in colour."""
    folder = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    for label, colour in {"basophil": 60, "eosinophil": 120, "lymphocyte": 180}.items():
        (folder / "cells" / label).mkdir(parents=True)
        for name in "abcdefghij":
            pixels = np.clip(generator.normal(colour, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "cells" / label / f"{name}.png")
    return folder


def test_every_command_does_what_the_readme_says(folder: Path, preloaded: Preloaded) -> None:
    pages = [README, *USERS]
    commands = [line for page in pages for block in blocks("sh", page) for line in block.splitlines()]
    commands = list(dict.fromkeys(commands))
    assert {command.split()[1] for command in commands} >= {
        "train",
        "eval",
        "export",
        "verify",
        "infer",
        "bench",
    }
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "mmdeploy"
        done = preloaded.run(["-m", "msmamba", *arguments], cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (folder / "run" / "curve.png").is_file()
    assert (folder / "cells.fp16" / "parity.json").is_file()
    assert len((folder / "predictions.csv").read_text().splitlines()) == 31


def test_the_program_runs_after_the_commands(folder: Path) -> None:
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()[:2]
    assert label in {"basophil", "eosinophil", "lymphocyte"}
    assert 1 / 3 <= float(probability) <= 1


def test_the_integrator_s_programs_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    programs = blocks("python", USERS[-1])
    assert len(programs) == 5
    output, names = io.StringIO(), {"__name__": "program"}
    with redirect_stdout(output):
        for program in programs:
            exec(program, names)
    printed = output.getvalue()
    assert "native kernels" in printed
    assert "missing.png failed: " in printed


def test_every_page_that_the_readme_names_exists() -> None:
    pages = re.findall(r"\]\(([^):]+)\)", README)
    assert pages
    for page in pages:
        assert (ROOT / page).is_file(), page
