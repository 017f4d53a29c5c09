"""The program inside a TensorRT-RTX engine: which types its products multiply in, after all fusion.

TensorRT tells an engine's layers only to a machine with a GPU. The engine of TensorRT-RTX 1.7 holds its
compiled program as text, though, and the text names the operands of every product and their types. The
format is documented nowhere: an engine in which nothing is recognised says nothing, and never that something
is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FIELDS = rb"[^{}]*(?:\{[^{}]*\}[^{}]*)*?"  # with lists in braces, such as dims={ 48 4 3 3 }
_STATEMENT = re.compile(
    rb"tensor=\{" + _FIELDS + rb'name="(?P<tensor>[^"]+)"' + _FIELDS + rb"type=(?P<type>[a-z0-9_]+)"
    rb'|(?:corrltn|fully_connected)=\{ name="(?P<product>[^"]+)" output=\{[^}]*\} input=\{(?P<inputs>[^}]*)\}'
)
_NAME = re.compile(rb'"([^"]+)"')


def product_types(plan: bytes) -> Mapping[str, tuple[str, str]]:
    """The types of both operands of every convolution and matrix product in an engine.

    Args:
        plan: the serialised engine.

    Returns:
        By the layer's name, such as ``{"patch_embed.0/Conv": ("int8", "int8")}``; empty where the program
        cannot be read.
    """
    types: dict[bytes, str] = {}  # of the program being read: each GPU's declares its own before it uses them
    found: dict[str, tuple[str, str]] = {}
    for statement in _STATEMENT.finditer(plan):
        if statement["tensor"] is not None:
            types[statement["tensor"]] = statement["type"].decode()
            continue
        operands = [types.get(name) for name in _NAME.findall(statement["inputs"])[:2]]
        if len(operands) == 2 and operands[0] is not None and operands[1] is not None:
            name = statement["product"].decode(errors="replace")
            pair = (operands[0], operands[1])
            if name not in found or set(pair) != {"int8"}:  # where GPUs differ, what is not int8 counts
                found[name] = pair
    return found
