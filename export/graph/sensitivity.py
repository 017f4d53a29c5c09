"""Which parts of a network suffer from int8: harm measured unit by unit, and the plan that follows from it.

Harm is what a clinician would see: labels that flip against the float32 network and accuracy lost, on
labelled images that the ranges were not measured on; beside them the error of the logits, which tells units
apart where no label flips. The plan keeps the fewest units in floating point, most harmful first, with which
the whole network meets the limits; nothing is kept where all of it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from onnx import ModelProto

from ...errors import ExportError
from ...pages.figures import DOTS_PER_INCH, INK, check_can_draw, png_of
from ...schema import as_json
from .judging import Judge, Judgement, Limits
from .plan import Plan
from .products import Product

Quantise = Callable[[Sequence[Product]], ModelProto]
"""Makes the model with just the given products in int8."""


RANKED_IMAGES = 64
"""How many images measure one unit's harm, at most: the error of the logits ranks most units, which takes
fewer images than counting flips does. The plan itself is judged on all."""


@dataclass(frozen=True)
class Harm:
    """What happens when one part alone is quantised."""

    part: str
    """A unit, or all units' products of a kind."""
    judgement: Judgement
    share: float
    """The share of all multiply-adds."""


@dataclass(frozen=True)
class Sensitivity:
    """The harm of each part, most harmful first."""

    units: tuple[Harm, ...]
    kinds: tuple[Harm, ...]

    def to_json(self, plan: Plan) -> str:
        """A file's content, with the plan that came of it."""
        content = {
            "units": [asdict(harm) for harm in self.units],
            "kinds": [asdict(harm) for harm in self.kinds],
            "kept": list(plan.kept),
        }
        return as_json(content, indent=2) + "\n"

    def plot(self, plan: Plan, name: str) -> bytes:
        """The harm of each part, as a PNG of that name."""
        from matplotlib.figure import Figure

        kept, quantised = "#b2182b", "#2166ac"
        parts = [*self.units, *self.kinds]
        figure = Figure(figsize=(9, 1.4 + 0.3 * len(parts)), layout="constrained")
        axes = figure.subplots(
            2, 1, sharex=True, height_ratios=(max(1, len(self.units)), max(1, len(self.kinds)))
        )
        largest = max(harm.judgement.logit_error for harm in parts)
        titles = ("one unit in int8, the others in float32", "all products of one kind in int8")
        for area, harms, title in zip(axes, (self.units, self.kinds), titles, strict=True):
            rows = range(len(harms))
            float_parts = [
                harm.part in plan.kept or (harms is self.kinds and harm.part not in plan.kinds)
                for harm in harms
            ]
            area.barh(
                rows,
                [harm.judgement.logit_error for harm in harms],
                color=[kept if is_kept else quantised for is_kept in float_parts],
                height=0.7,
            )
            for row, harm in zip(rows, harms, strict=True):
                flips = harm.judgement.flips
                note = f"{flips} flip{'s' if flips != 1 else ''}, {100 * harm.share:.1f} % of the work"
                area.text(
                    harm.judgement.logit_error + 0.01 * largest, row, note, va="center", fontsize=8, color=INK
                )
            area.set_yticks(rows, [harm.part for harm in harms], fontsize=9)
            area.invert_yaxis()
            area.set_title(title, loc="left", fontsize=10)
            area.set_xlim(0, 1.35 * largest)
            area.tick_params(left=False)
            for side in ("top", "right", "left"):
                area.spines[side].set_visible(False)
        axes[1].set_xlabel("error of the logits, root mean square")
        images = parts[0].judgement.images
        figure.suptitle(
            f"Harm of int8 on {images} images (blue: in int8 in the plan; red: kept in floating point)",
            fontsize=11,
        )
        return png_of(figure, name, dpi=DOTS_PER_INCH)


def measure_sensitivity(
    judge: Judge, quantise: Quantise, found: Sequence[Product], plan: Plan, kinds: Sequence[str]
) -> Sensitivity:
    """Quantises each unit alone, and each kind of product alone, and ranks them by the harm done.

    Args:
        judge: measures a model on the images that decide.
        quantise: makes the model with the given products in int8.
        found: all products of the network.
        plan: says which kinds of product a unit's quantisation takes in.
        kinds: those to measure by themselves, where the network has products of them.

    Raises:
        BackendError: Matplotlib is missing, which draws what is measured.
    """
    check_can_draw()
    total = sum(product.macs for product in found)

    def harm(part: str, chosen: Sequence[Product]) -> Harm:
        judge.report(f"measuring the harm of int8 in {part}")
        judgement = judge.of(quantise(chosen), RANKED_IMAGES)
        return Harm(part, judgement, sum(product.macs for product in chosen) / total)

    planned = [product for product in found if product.kind in plan.kinds]
    units = [
        harm(unit, [product for product in planned if product.unit == unit])
        for unit in dict.fromkeys(product.unit for product in planned)
    ]
    by_kind = [
        harm(kind, of_kind)
        for kind in kinds
        if (of_kind := [product for product in found if product.kind == kind])
    ]

    def most_harmful_first(harms: Sequence[Harm]) -> tuple[Harm, ...]:
        keys = [(-harm.judgement.flips, -harm.judgement.logit_error) for harm in harms]
        return tuple(harms[i] for i in sorted(range(len(harms)), key=keys.__getitem__))

    return Sensitivity(most_harmful_first(units), most_harmful_first(by_kind))


def find_plan(
    judge: Judge,
    quantise: Quantise,
    found: Sequence[Product],
    plan: Plan,
    limits: Limits,
    sensitivity: Sensitivity | None = None,
) -> tuple[Plan, ModelProto, Judgement, Sensitivity | None]:
    """The plan that keeps the fewest units in floating point and meets the limits.

    Units are kept in the order of the harm that they do alone, until the whole meets the limits. The order
    is measured only when quantising everything does not do.

    Args:
        judge: measures a model on the images that decide.
        quantise: makes the model with the given products in int8.
        found: all products of the network.
        plan: the plan to begin with.
        limits: what the plan must meet.
        sensitivity: the harm of each unit, where it is known already.

    Returns:
        The plan, its model, how that was judged, and the sensitivity where it is known.

    Raises:
        ExportError: no plan meets the limits.
    """
    while True:
        kept = f" but {len(plan.kept)} units" if plan.kept else ""
        judge.report(f"judging int8 in everything{kept}")
        model = quantise(plan.chosen(found))
        judgement = judge.of(model)
        if not limits.missed(judgement):
            return plan, model, judgement, sensitivity
        if sensitivity is None:
            sensitivity = measure_sensitivity(judge, quantise, found, plan, plan.kinds)
        left = [harm.part for harm in sensitivity.units if harm.part not in plan.kept]
        if len(left) < 2:
            raise ExportError(
                f"no plan meets the limits: with all units but {left[0]} in floating point, "
                f"{limits.missed(judgement)}: allow more with --max-flips and --max-accuracy-drop, or export "
                "in fp16"
            )
        plan = replace(plan, kept=(*plan.kept, left[0]))
