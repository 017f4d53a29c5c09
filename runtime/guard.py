"""The guard: when an artefact's answer is to be trusted, fitted on labelled images by `mmdeploy calibrate`.

It stands in the manifest and is applied to logits, and to the quality of the picture: probabilities at a
temperature, a decision or the reasons why there is none, and the classes that an image may belong to. What
the figures promise is said in `msmamba.measures.selective`; the promise is of images that no gate withholds.

Dims: B images of a batch, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ArtefactError, some
from ..measures.selective import TEMPERATURES, certainty, masses_above
from ..schema import SHA256, by_name, listed, maybe, number, record, whole
from .likeness import METADATA_KEY, Floats, Likeness
from .protobuf import Buffer
from .protobuf import fields as fields_of
from .quality import Quality, quality_of

UNCERTAIN = "uncertain"
"""Why an answer is withheld: the network is less certain than the promised error rate asks for."""
OUT_OF_FOCUS, EMPTY, TOO_DARK, TOO_BRIGHT = "out of focus", "empty", "too dark", "too bright"
"""Why an answer is withheld: it is less sharp, emptier, darker or brighter than the calibration's."""
UNLIKE = "unlike the training images"
"""Why an answer is withheld: by its features, or its colours, it is another kind of picture."""
REASONS = (UNCERTAIN, OUT_OF_FOCUS, EMPTY, TOO_DARK, TOO_BRIGHT, UNLIKE)
"""All reasons, in the order in which they are told."""

_BELOW = {
    **dict.fromkeys(("focus", "coarse_focus"), OUT_OF_FOCUS),
    "brightest": TOO_DARK,
    **dict.fromkeys(("red", "blue"), UNLIKE),
}
_ABOVE = {"emptiness": EMPTY, "brightest": TOO_BRIGHT, "white": TOO_BRIGHT, "red": UNLIKE, "blue": UNLIKE}
LIMITED = {name: (name in _BELOW, name in _ABOVE) for name in {**_BELOW, **_ABOVE}}
"""The measures of a picture (`Quality.measures`), and whether each has a least and a largest value."""

_REDUCED = Image.Resampling.BOX  # as a camera with larger pixels sees
_METADATA_FIELD = 14  # of ModelProto, onnx.proto3

GUARD = record(
    {
        "network_sha256": SHA256,
        "max_error": number(1e-6, 1 - 1e-6),
        "confidence": number(1e-6, 1 - 1e-6),
        "temperature": number(*TEMPERATURES),
        "threshold": maybe(number()),
        "candidate_bound": number(0, 1),
        "images": whole(1),
        "answered": whole(1),
        "errors": whole(),
    },
    # What guards of earlier versions lack.
    optional={
        "quality": by_name(listed(maybe(number()), 2, 2)),
        "unlike_from": maybe(number(0)),
        "largest": maybe(whole(1)),
    },
)
"""What a manifest holds of a guard."""


def is_of_format_2(facts: Mapping[str, Any]) -> bool:
    """Whether a guard has what readers of a manifest's first format pass over, and so withhold otherwise.

    Args:
        facts: what the manifest holds of it; empty without one.
    """
    quality = facts.get("quality", {})
    return facts.get("largest") is not None or (isinstance(quality, Mapping) and "coarse_focus" in quality)


class Verdict(NamedTuple):
    """What the guard says of one image."""

    reasons: tuple[str, ...]
    """Why its likeliest class is no answer, of `REASONS`; empty where it is one."""
    candidates: tuple[int, ...]
    """The classes that it may belong to, the likeliest first; at least that one."""


@dataclass(frozen=True)
class Guard:
    """What is applied to logits, and what it was fitted on.

    Attributes:
        network_sha256: `network_sha256` of the ONNX file that it was fitted on.
        max_error: the share of wrong answers among those that are given is at most this, and so is the
            share of images whose true class is not among the candidates.
        confidence: the share of calibration sets whose threshold keeps the former.
        temperature: what logits are divided by before they are made probabilities.
        threshold: images of a larger `certainty` are decided; None: all are.
        candidate_bound: classes are candidates up to this much probability of likelier ones.
        images: how many it was fitted on; ``answered`` of them are decided, ``errors`` of these wrong.
        quality: the least and the largest value of some of `Quality.measures`, None where there is none;
            pictures outside are withheld. Empty in guards that do not judge pictures.
        unlike_from: images farther than that from those of calibration are withheld (`Likeness.distances`);
            None: none are.
        largest: pixels of the shorter side of the largest picture that it was fitted on; None in guards of
            earlier versions.
        likeness: what they are compared with; it stands in the ONNX file and not in the manifest.
    """

    network_sha256: str
    max_error: float
    confidence: float
    temperature: float
    threshold: float | None
    candidate_bound: float
    images: int
    answered: int
    errors: int
    quality: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    unlike_from: float | None = None
    largest: int | None = None
    likeness: Likeness | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, facts: Mapping[str, Any], name: str = "the artefact") -> Guard | None:
        """The guard that a manifest states, None where it has none.

        Args:
            facts: what the manifest states.
            name: what messages call the artefact.

        Raises:
            ArtefactError: it has what is not known here: answers may be given that it does not give.
        """
        if not facts:
            return None
        known = [item.name for item in fields(cls)]
        unknown = sorted({*facts} - {*known}) + sorted({*facts.get("quality", {})} - {*LIMITED})
        if unknown:
            raise ArtefactError(
                f"the guard of '{name}' has what this msmamba does not apply ({some(unknown)}), made by a "
                "newer one: upgrade msmamba, or leave the guard out with --no-guard (guard=False)"
            )
        return cls(**{item: facts[item] for item in known if item in facts})

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest holds of it."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "likeness"}

    @property
    def needs_features(self) -> bool:
        """Whether images are told by their features, too."""
        return self.unlike_from is not None

    def with_likeness(self, model: Buffer, name: str, features: int | None) -> Guard:
        """The guard with what an ONNX file holds to compare images with, where it compares them.

        Args:
            model: the file's content.
            name: what messages call the artefact.
            features: how many an image has; None where the artefact gives none.

        Raises:
            ArtefactError: it is damaged, or of other features.
        """
        if not self.needs_features:
            return self
        likeness = Likeness.from_text(metadata(model).get(METADATA_KEY, ""), name)
        compared = likeness.means.shape[1]
        if features not in (None, compared):
            raise ArtefactError(
                f"the guard of '{name}' compares {compared} features, and an image has {features}: fit it "
                "again with 'mmdeploy calibrate'"
            )
        return replace(self, likeness=likeness)

    def judge(
        self,
        logits: npt.NDArray[Any],
        qualities: Sequence[Quality] | None = None,
        distances: npt.NDArray[Any] | None = None,
    ) -> list[Verdict]:
        """What is to be made of images.

        What is left out is not judged: then some images are decided that the promise leaves out.

        Args:
            logits: (B, C), finite.
            qualities: what the B pictures are worth as they were taken (`quality.quality_of`).
            distances: (B,), of their features from those of calibration (`distances`).
        """
        certain = self.decided(logits)
        found = [self.faults(each) for each in qualities] if qualities else [set[str]()] * len(certain)
        if distances is not None and self.unlike_from is not None:
            far = distances > self.unlike_from
            found = [
                {*faults, UNLIKE} if is_far else faults for faults, is_far in zip(found, far, strict=True)
            ]
        verdicts = []
        for sure, faults, candidates in zip(certain, found, self.candidates(logits), strict=True):
            said = faults if sure else {UNCERTAIN, *faults}
            verdicts.append(Verdict(tuple(reason for reason in REASONS if reason in said), candidates))
        return verdicts

    def distances(self, features: npt.NDArray[Any] | None) -> Floats | None:
        """(B, F) to (B,): how far images are from those of calibration; None where that is not told."""
        if self.likeness is None or features is None:
            return None
        return self.likeness.distances(features)

    def quality_of(self, pixels: npt.NDArray[np.uint8], known: Quality | None = None) -> Quality:
        """The quality that the limits are of: in no more pixels than pictures of the calibration had.

        A camera with twice as many a side shows each square of 16 less, and neighbouring pixels differ less.

        Args:
            pixels: (H, W, 3) uint8, RGB, as they were taken; not changed.
            known: the quality of all of these pixels, where it is known already.
        """
        height, width, _ = pixels.shape
        if self.largest is None or min(height, width) <= self.largest:
            return known or quality_of(pixels)
        share = self.largest / min(height, width)
        picture = Image.fromarray(pixels).resize((round(width * share), round(height * share)), _REDUCED)
        return quality_of(np.asarray(picture))

    def faults(self, quality: Quality) -> set[str]:
        """What a picture is that those of calibration were not, of `REASONS`."""
        found = set()
        for name, value in quality.measures.items():
            least, most = self.quality.get(name, (None, None))
            if value is not None and least is not None and value < least:
                found.add(_BELOW[name])
            if value is not None and most is not None and value > most:
                found.add(_ABOVE[name])
        return found - {OUT_OF_FOCUS} if EMPTY in found else found  # where nothing is, nothing is sharp

    @property
    def promise(self) -> str:
        """What is kept of the answers that are given, in words."""
        return (
            f"at most {100 * self.max_error:g} % of the answers wrong, with {100 * self.confidence:g} % "
            "confidence"
        )

    def decided(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """(B, C) to (B,): whether the network is certain enough, whatever the pictures are worth."""
        if self.threshold is None:
            return np.ones(len(logits), np.bool_)
        decided: npt.NDArray[np.bool_] = certainty(logits) > self.threshold
        return decided

    def candidates(self, logits: npt.NDArray[Any]) -> list[tuple[int, ...]]:
        """(B, C) to the classes that each image may belong to, the likeliest first; at least that one."""
        masses = masses_above(logits)
        order = np.argsort(masses, axis=1, kind="stable")
        counts = (masses <= self.candidate_bound).sum(axis=1)
        return [tuple(row[:count].tolist()) for row, count in zip(order, counts, strict=True)]

    def check_network(self, model: Buffer, name: str) -> None:
        """Refuses an ONNX file that the guard was not fitted on.

        Raises:
            ArtefactError: it is another network.
        """
        found = network_sha256(model)
        if found != self.network_sha256:
            raise ArtefactError(
                f"the guard of '{name}' was fitted on another model ({self.network_sha256[:12]}…; this is "
                f"{found[:12]}…): fit one with 'mmdeploy calibrate', or leave it out with --no-guard "
                "(guard=False)"
            )


def metadata(model: Buffer) -> dict[str, str]:
    """An ONNX file's ``metadata_props``."""
    content = memoryview(model)
    entries = (
        {
            part.number: bytes(content[part.start : part.end]).decode()
            for part in fields_of(model, item.start, item.end)
        }
        for item in fields_of(model)
        if item.number == _METADATA_FIELD
    )
    return {entry.get(1, ""): entry.get(2, "") for entry in entries}  # of StringStringEntryProto


def network_sha256(model: Buffer) -> str:
    """SHA-256 of all of an ONNX file but its metadata, which hold the manifest and so the guard itself."""
    digest = hashlib.sha256()
    view = memoryview(model)
    for item in fields_of(model):
        if item.number != _METADATA_FIELD:
            digest.update(b"%d %d " % (item.number, item.end - item.start))
            digest.update(view[item.start : item.end])
    return digest.hexdigest()
