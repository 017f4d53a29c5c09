"""What an ONNX file says of itself: whose operators it imports, and what its classifier answers with.

msmamba's own files import operators of its domain, for which there are native kernels, and answer with
logits. Those of others import none of them, and may end in a softmax, of whose probabilities a second one
would make near-uniform ones. The file says so itself: from the graph's output one goes back, through what
does not change values, to the operator that made them.

Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .protobuf import LENGTH_DELIMITED, Buffer, fields

_MODEL_GRAPH, _MODEL_IMPORTS, _MODEL_FUNCTIONS = 7, 8, 25
_GRAPH_NODE, _GRAPH_OUTPUT = 1, 12
_FUNCTION_NAME, _FUNCTION_INPUT, _FUNCTION_OUTPUT, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 4, 5, 7, 10
_FUNCTION_IMPORTS, _IMPORT_DOMAIN = 9, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_DOMAIN = 1, 2, 4, 7
_VALUE_NAME = 1

_STEPS = 100  # from the output back; a file whose nodes go round in circles ends here

# Operators that hand on their first input: the same values, in another shape, type or grid.
_SAME_VALUES = frozenset(
    (
        *(b"Identity", b"Cast", b"CastLike", b"Dropout", b"QuantizeLinear", b"DequantizeLinear"),
        *(b"Reshape", b"Flatten", b"Squeeze", b"Unsqueeze"),
    )
)
_SOFTMAX = frozenset((b"Softmax", b"QLinearSoftmax", b"Hardmax"))
_ONE_BY_ONE = frozenset((b"Sigmoid", b"QLinearSigmoid", b"HardSigmoid"))


class Answer(Enum):
    """What the numbers of a row are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    """They sum to 1."""
    ONE_BY_ONE = "a probability of each class by itself"
    """Probabilities of classes that do not exclude each other, or of one against all others."""


@dataclass(frozen=True)
class _Node:
    operator: bytes
    domain: bytes
    inputs: Sequence[bytes]
    outputs: Sequence[bytes]


@dataclass(frozen=True)
class _Body:
    """Nodes in the order in which they run, what goes in (not needed of a graph), and what comes out."""

    nodes: Sequence[_Node]
    inputs: Sequence[bytes]
    outputs: Sequence[bytes]

    def producer(self, value: bytes) -> _Node | None:
        return next((node for node in reversed(self.nodes) if value in node.outputs), None)


class Told(NamedTuple):
    """What a file says of itself.

    Attributes:
        answer: what its first output holds.
        domains: the domains from which it imports operators; ONNX's own is empty. Without such an import no
            node may call an operator, wherever it stands.
    """

    answer: Answer
    domains: frozenset[str]


def told_by(content: Buffer) -> Told:
    """Reads the imports, the graph and the functions of an ONNX file, none of its weights.

    Args:
        content: the bytes of a file that ONNX Runtime takes.
    """
    graph, functions, domains = _Body((), (), ()), {}, set[bytes]()
    try:
        for field in fields(content):
            if field.number == _MODEL_GRAPH:
                graph = _graph(content, field.start, field.end)
            elif field.number == _MODEL_IMPORTS:
                domains.add(_imported(content, field.start, field.end))
            elif field.number == _MODEL_FUNCTIONS:
                key, body = _function(content, field.start, field.end)
                functions[key] = body
                domains |= {
                    _imported(content, each.start, each.end)
                    for each in fields(content, field.start, field.end)
                    if each.number == _FUNCTION_IMPORTS
                }
    except EOFError:  # what ONNX Runtime reads and this does not says nothing of itself
        return Told(Answer.LOGITS, frozenset())
    answer = _answer(graph, graph.outputs[0], functions) if graph.outputs else Answer.LOGITS
    return Told(answer, frozenset(domain.decode(errors="replace") for domain in domains))


def _answer(graph: _Body, value: bytes, functions: dict[tuple[bytes, bytes], _Body]) -> Answer:
    """Goes back from a value, into the functions that are called on the way and out of them again."""
    body, callers = graph, list[tuple[_Body, _Node]]()
    for _ in range(_STEPS):
        node = body.producer(value)
        if node is None:
            if value not in body.inputs or not callers:
                break
            place = body.inputs.index(value)
            body, call = callers.pop()
            if place >= len(call.inputs):
                break
            value = call.inputs[place]
            continue
        called = functions.get((node.domain, node.operator))
        if called is not None:
            callers.append((body, node))
            place = node.outputs.index(value)
            if place >= len(called.outputs):
                break
            body, value = called, called.outputs[place]
        elif node.operator in _SOFTMAX or _is_written_out_softmax(body, node):
            return Answer.PROBABILITIES
        elif node.operator in _ONE_BY_ONE:
            return Answer.ONE_BY_ONE
        elif node.operator in _SAME_VALUES and node.inputs:
            value = node.inputs[0]
        else:
            break
    return Answer.LOGITS


def _is_written_out_softmax(body: _Body, node: _Node) -> bool:
    """Whether a node is the last of ``exp(x) / sum(exp(x))``."""
    if node.operator != b"Div" or len(node.inputs) != 2:
        return False
    powers, total = (body.producer(name) for name in node.inputs)
    return (
        powers is not None
        and powers.operator == b"Exp"
        and total is not None
        and total.operator == b"ReduceSum"
        and total.inputs[:1] == node.inputs[:1]
    )


def _graph(content: Buffer, start: int, end: int) -> _Body:
    nodes, outputs = [], []
    for field in fields(content, start, end):
        if field.number == _GRAPH_NODE:
            nodes.append(_node(content, field.start, field.end))
        elif field.number == _GRAPH_OUTPUT:
            outputs += _texts(content, field.start, field.end, _VALUE_NAME)[0]
    return _Body(nodes, (), outputs)


def _imported(content: Buffer, start: int, end: int) -> bytes:
    """The domain of an import."""
    return b"".join(_texts(content, start, end, _IMPORT_DOMAIN)[0])


def _function(content: Buffer, start: int, end: int) -> tuple[tuple[bytes, bytes], _Body]:
    """A function by its domain and name."""
    nodes = [
        _node(content, field.start, field.end)
        for field in fields(content, start, end)
        if field.number == _FUNCTION_NODE
    ]
    numbers = (_FUNCTION_DOMAIN, _FUNCTION_NAME, _FUNCTION_INPUT, _FUNCTION_OUTPUT)
    domain, name, inputs, outputs = _texts(content, start, end, *numbers)
    return (b"".join(domain), b"".join(name)), _Body(nodes, inputs, outputs)


def _node(content: Buffer, start: int, end: int) -> _Node:
    numbers = (_NODE_OPERATOR, _NODE_DOMAIN, _NODE_INPUT, _NODE_OUTPUT)
    operator, domain, inputs, outputs = _texts(content, start, end, *numbers)
    return _Node(b"".join(operator), b"".join(domain), inputs, outputs)


def _texts(content: Buffer, start: int, end: int, *numbers: int) -> list[list[bytes]]:
    """What stands in each of a message's fields that are texts, once or several times."""
    found: dict[int, list[bytes]] = {number: [] for number in numbers}
    for field in fields(content, start, end):
        if field.number in found and field.wire_type == LENGTH_DELIMITED:
            found[field.number].append(bytes(content[field.start : field.end]))
    return list(found.values())
