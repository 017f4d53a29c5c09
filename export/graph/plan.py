"""A plan: which of a network's products are quantised, as a file and as a choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...errors import ExportError, InputError, some
from ...schema import TEXT, listed, parsed, record, whole
from .products import CONVOLUTION, KINDS, LINEAR, Product

PLAN_FORMAT = 1

QUANTISED_KINDS = (CONVOLUTION, LINEAR)
"""Depthwise convolutions stay in floating point: they are a twentieth of the multiply-adds, do as much harm
as all dense convolutions, and take ONNX Runtime five times as long in int8 as in float32 (docs/int8.md)."""


_PLAN = record(
    {"format_version": whole(PLAN_FORMAT, PLAN_FORMAT), "kept": listed(TEXT), "kinds": listed(TEXT)}
)


@dataclass(frozen=True)
class Plan:
    """Which products are quantised: those of some kinds, but for units that are kept in floating point."""

    kept: tuple[str, ...] = ()
    """Units, such as ``layers.0.blocks.1``; the one whose quantisation does most harm comes first."""
    kinds: tuple[str, ...] = QUANTISED_KINDS

    def chosen(self, found: Sequence[Product]) -> list[Product]:
        """The products to quantise.

        Raises:
            ExportError: a unit or a kind is unknown, or nothing is left to quantise.
        """
        units = dict.fromkeys(product.unit for product in found)
        strange = [unit for unit in self.kept if unit not in units]
        strange += [kind for kind in self.kinds if kind not in KINDS]
        if strange:
            raise ExportError(
                f"the plan names {some([repr(each) for each in strange])}: this network has the units "
                f"{some([*units])} and the kinds {', '.join(KINDS)}; make a plan for this network"
            )
        left = [product for product in found if product.kind in self.kinds and product.unit not in self.kept]
        if not left:
            raise ExportError("int8 was asked for, but the plan leaves no product to quantise")
        return left

    def to_json(self) -> str:
        """The plan as a file's content."""
        return json.dumps({"format_version": PLAN_FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Plan:
        """Reads a plan; ``source`` names it in messages.

        Raises:
            InputError: it is none, or of a newer format.
        """
        try:
            data = parsed(text)
            problems = _PLAN.problems(data)
        except ValueError as error:
            problems = [str(error)]
        if problems:
            raise InputError(
                f"'{source}' is no plan that can be read: {'; '.join(problems)}: make one with "
                "'mmdeploy export --int8'"
            )
        return cls(kept=tuple(data["kept"]), kinds=tuple(data["kinds"]))
