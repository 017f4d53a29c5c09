"""`benchmarks/device_check.py`, whose types nobody checks yet, asks modules of msmamba for what they have."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device_check.py"


def imported(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """Names that a script gives to what it takes from msmamba; what an extra is missing for is left out."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "msmamba":
            continue
        for name in node.names:
            try:
                found = importlib.import_module(f"{node.module}.{name.name}")
            except ModuleNotFoundError as error:
                if not (error.name or "").startswith("msmamba"):
                    continue
                found = getattr(importlib.import_module(node.module or ""), name.name)
            yield name.asname or name.name, found


def test_what_is_asked_of_a_module_is_there() -> None:
    """Read, or set: one that set a name which had moved measured the same network twice, and told nobody."""
    tree = ast.parse(SCRIPT.read_text())
    modules = {name: found for name, found in imported(tree) if isinstance(found, ModuleType)}
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    asked = [
        (node.lineno, node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    ]
    missing = [
        f"{line}: {name}.{attribute}"
        for line, name, attribute in asked
        if name not in bound and not hasattr(modules[name], attribute)
    ]
    assert not missing
