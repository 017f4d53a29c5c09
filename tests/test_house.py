"""The rules of the house: who may import whom, and what nobody loads unasked."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import msmamba

ROOT = Path(msmamba.__file__).parent

HEAVY = (
    *("torch", "onnxruntime", "onnx", "onnxscript", "onnx_ir", "tensorrt", "tensorrt_rtx", "triton", "cuda"),
    *("mamba_ssm", "matplotlib", "sklearn", "scipy", "safetensors", "tensorboard", "jinja2", "ray", "captum"),
    *("openslide", "tifffile", "starlette", "uvicorn", "websockets", "av", "mss", "pymmcore"),
    *("shapely", "pylibCZIrw", "pyvips", "timm", "torchvision"),
)

# The ground floor, known by all: who stands later may know who stands earlier.
GROUND = (
    *("version", "errors", "schema", "text", "files", "machine", "resize", "decoding", "images"),
    *("data", "pages", "measures"),
)

# What the ground floor knows of the rooms: `images` asks for the compiled resize, inside a function.
GROUND_ASKS = {"images": {"msmamba.plugins.image_resize", "msmamba.plugins.image_resize.cpu"}}

# Who may know whom beside the ground floor; everyone knows itself.
MAY_IMPORT: dict[str, set[str]] = {
    "plugins": set(),
    "runtime": {"plugins"},
    "calib": {"runtime"},
    "microscope": {"runtime", "plugins"},
    "model": {"plugins"},
    "export": {"model", "plugins", "calib", "runtime"},
    "cli": {"model", "export", "plugins", "calib", "runtime", "microscope"},
}

# Inside a room, folders and files named later may know the earlier ones.
ORDER = {
    "model": ("networks", "training", "evaluation"),
    "export": ("graph", "engine", "proof", "bundle", "comparison"),
    "microscope": ("slides", "sources", "live"),
    "export/graph": (
        *("inlining", "onnx_model", "precision"),
        *("products", "plan", "quantise", "judging", "sensitivity", "int8_options", "int8"),
    ),
}

FACE = ("__init__", "__main__", "setup")
OUTSIDE = ("tests", "benchmarks", "demo", "fuzz", "release", "docs", "build")


def sources(part: str) -> list[Path]:
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def module_of(path: Path) -> str:
    """The absolute name of a source file's module."""
    parts = ["msmamba", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def package() -> dict[str, Path]:
    """Every source file of the package, by module."""
    parts = (*GROUND, *MAY_IMPORT)
    return {module_of(path): path for part in parts for path in sources(part)}


@cache
def imported(path: Path) -> tuple[str, ...]:
    """The absolute name of everything a source file imports, inside functions too."""
    package = ["msmamba", *path.relative_to(ROOT).parts[:-1]]
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return tuple(found)


def known(module: str, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports: of a name in a package, the file that has it."""
    found = {name for name in imported(modules[module]) if name in modules}
    # ``from .package import name`` counts as the submodule where there is one, else as the package.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)} - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The ways round: groups of two and more that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            each = waiting.pop()
            if each not in seen:
                seen.add(each)
                waiting.extend(graph.get(each, ()))
        reached[start] = seen
    groups = {
        tuple(sorted({other for other in reached[each] if each in reached.get(other, ())}))
        for each in graph
        if each in reached[each]
    }
    return sorted(map(list, groups))


def test_every_part_has_its_place() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py"}
    parts |= {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert parts - set(OUTSIDE) == {*FACE, *GROUND, *MAY_IMPORT}


@pytest.mark.parametrize("part", [*GROUND, *MAY_IMPORT])
def test_each_part_knows_only_those_it_may(part: str) -> None:
    parts = {*GROUND, *MAY_IMPORT, "__init__", "__main__"}
    below = GROUND[: GROUND.index(part)] if part in GROUND else GROUND
    allowed = {part, *below, *MAY_IMPORT.get(part, ())}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(part)
        for name in imported(path)
        if name.startswith("msmamba.") and name.split(".")[1] in parts - allowed
        if name not in GROUND_ASKS.get(part, ())
    ]
    assert wrong == []


def test_images_ask_for_the_native_resize_in_a_function_only() -> None:
    tree = ast.parse((ROOT / "images.py").read_text(encoding="utf-8"))
    at_the_top = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    assert [module for module in at_the_top if module.startswith("plugins")] == []
    assert GROUND_ASKS["images"] <= set(imported(ROOT / "images.py"))


@pytest.mark.parametrize("part", [*GROUND, *MAY_IMPORT])
def test_nothing_knows_the_face(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(part)
        for name in imported(path)
        if name.startswith("msmamba.") and name.split(".")[1] not in (*GROUND, *MAY_IMPORT)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ORDER)
def test_inside_a_room_the_later_know_the_earlier(room: str) -> None:
    order, inside_of = ORDER[room], f"msmamba.{room.replace('/', '.')}."
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for place, inner in enumerate(order)
        for path in sources(f"{room}/{inner}")
        for name in imported(path)
        if name.startswith(inside_of) and name.removeprefix(inside_of).split(".")[0] in order[place + 1 :]
    ]
    assert wrong == []
    inside = {path.stem for path in (ROOT / room).glob("*.py")}
    inside |= {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    assert inside - {"__init__"} == set(order)


def test_no_two_files_import_each_other() -> None:
    modules = package()
    assert circles({module: known(module, modules) for module in modules}) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize("part", [*GROUND, "calib", "microscope"])
def test_the_ground_floor_calibration_and_the_microscope_never_import_torch(part: str) -> None:
    assert [name for path in sources(part) for name in imported(path) if name.split(".")[0] == "torch"] == []


def test_the_runtime_never_imports_torch_or_onnx() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for part in (*GROUND, "runtime")
        for path in sources(part)
        for name in imported(path)
        if name.split(".")[0] in ("torch", "onnx", "safetensors", "onnxscript")
    ]
    assert wrong == []


def test_the_rules_see_relative_imports() -> None:
    names = set(imported(ROOT / "runtime" / "session.py"))
    assert {"msmamba.errors", "msmamba.images", "msmamba.runtime.manifest.Manifest", "numpy"} <= names


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules that are loaded after ``code``, in an interpreter of its own."""
    return {name.split(".")[0] for name in modules_of(code, *arguments)}


def modules_of(code: str, *arguments: str) -> set[str]:
    """All modules that are loaded after ``code``, in an interpreter of its own."""
    report = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        *("msmamba", "msmamba.runtime", "msmamba.plugins", "msmamba.plugins.selective_scan", "msmamba.model"),
        *("msmamba.microscope", "msmamba.microscope.slides"),
    ],
)
def test_importing_is_light(module: str) -> None:
    assert loaded_by(f"import {module}") & set(HEAVY) == set()


HELP = """
from click.testing import CliRunner
from msmamba.cli import mmdeploy
commands = mmdeploy.commands.items()
groups = [[name, below] for name, group in commands for below in getattr(group, "commands", ())]
for arguments in [[], *([name] for name in mmdeploy.commands), *groups]:
    assert CliRunner().invoke(mmdeploy, [*arguments, "--help"]).exit_code == 0
assert CliRunner().invoke(mmdeploy, ["--version"]).exit_code == 0
"""


def test_help_loads_nothing() -> None:
    assert loaded_by(HELP) & {*HEAVY, "numpy", "PIL", "rich"} == set()


IMPORT_DATA = """
import sys
from msmamba.data.published import ImportOptions, import_data_set
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
    loaded = modules_of(CLASSIFY, str(bundles["fp32"]))
    assert {name.split(".")[0] for name in loaded} & set(HEAVY) == {"onnxruntime"}
    # Each of these is a hundredth of a second or more of the first answer, and none is needed for it.
    assert not {"numpy.ma", "email", "statistics", "msmamba.runtime.tensorrt_backend"} & loaded


def test_the_repository_may_lie_in_a_folder_of_any_name(request: pytest.FixtureRequest) -> None:
    """As a package pytest would import it by the folder's name, and `msmamba-main` is none of a module."""
    packages = [node.path for node in request.node.listchain() if isinstance(node, pytest.Package)]
    assert request.config.rootpath not in packages


def test_python_is_begun_in_one_way_which_looks_into_no_current_folder() -> None:
    begin = {name for name, path in package().items() if "[sys.executable" in path.read_text("utf-8")}
    assert begin == {"msmamba.machine"}
