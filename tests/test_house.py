"""The rules of the house: who may import whom, and what nobody loads unasked."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import msmamba

ROOT = Path(msmamba.__file__).parent

HEAVY = (
    *("torch", "onnxruntime", "onnx", "onnxscript", "onnx_ir", "tensorrt", "tensorrt_rtx", "triton", "cuda"),
    *("mamba_ssm", "matplotlib", "sklearn", "scipy", "safetensors", "tensorboard", "jinja2", "ray", "captum"),
)

# Who may know whom; everyone knows itself and the errors.
MAY_IMPORT = {
    "plugins": set(),
    "runtime": {"plugins", "images", "files"},
    "model": {"plugins", "images", "files"},
    "calib": {"runtime", "images", "files"},
    "export": {"model", "plugins", "calib", "runtime", "images", "files"},
    "errors": set(),
    "files": set(),
    "images": set(),
}


def sources(part: str) -> list[Path]:
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path: Path) -> Iterator[str]:
    """The absolute name of everything a source file imports, inside functions too."""
    package = ["msmamba", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_knows_only_those_it_may(part: str) -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    allowed = {part, "errors"} | MAY_IMPORT[part]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(part)
        for name in imported(path)
        if name.startswith("msmamba.") and name.split(".")[1] in parts - allowed
    ]
    assert wrong == []


def test_calibration_never_imports_torch() -> None:
    assert [
        name for path in sources("calib") for name in imported(path) if name.split(".")[0] == "torch"
    ] == []


def test_the_runtime_never_imports_torch_or_onnx() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (*sources("runtime"), *sources("images"), *sources("files"), *sources("errors"))
        for name in imported(path)
        if name.split(".")[0] in ("torch", "onnx", "safetensors", "onnxscript")
    ]
    assert wrong == []


def test_the_rules_see_relative_imports() -> None:
    names = set(imported(ROOT / "runtime" / "session.py"))
    assert {"msmamba.errors", "msmamba.images", "msmamba.runtime.manifest.Manifest", "numpy"} <= names


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules that are loaded after ``code``, in an interpreter of its own."""
    report = "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["msmamba", "msmamba.runtime", "msmamba.plugins", "msmamba.plugins.selective_scan"]
)
def test_importing_is_light(module: str) -> None:
    assert loaded_by(f"import {module}") & set(HEAVY) == set()


HELP = """
from click.testing import CliRunner
from msmamba.cli import mmdeploy
groups = [[name, below] for name in ("data",) for below in mmdeploy.commands[name].commands]
for arguments in [[], *([name] for name in mmdeploy.commands), *groups]:
    assert CliRunner().invoke(mmdeploy, [*arguments, "--help"]).exit_code == 0
assert CliRunner().invoke(mmdeploy, ["--version"]).exit_code == 0
"""


def test_help_loads_nothing() -> None:
    assert loaded_by(HELP) & {*HEAVY, "numpy", "PIL", "rich"} == set()


IMPORT_DATA = """
import sys
from msmamba.model.datasets import ImportOptions, import_data_set
import_data_set("folder", sys.argv[1], sys.argv[2], ImportOptions(seed=1))
"""


def test_importing_data_loads_nothing_heavy(tmp_path: Path) -> None:
    from published_layouts import write_image

    for number in range(12):
        write_image(tmp_path / "cells" / "ab"[number % 2] / f"{number}.png", number)
    loaded = loaded_by(IMPORT_DATA, str(tmp_path / "cells"), str(tmp_path / "out"))
    assert loaded & set(HEAVY) == set()


CLASSIFY = """
import sys
import numpy
import msmamba
with msmamba.open(sys.argv[1]) as session:
    session.classify([numpy.zeros((40, 40, 3), numpy.uint8)])
"""


def test_classification_loads_onnxruntime_and_nothing_else_heavy(bundles: dict[str, Path]) -> None:
    assert loaded_by(CLASSIFY, str(bundles["fp32"])) & set(HEAVY) == {"onnxruntime"}
