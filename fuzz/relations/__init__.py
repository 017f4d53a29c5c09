"""Relations: what must hold between two runs, whatever the input, tried over many of them.

No run says what is right; two of them say what is wrong where they differ: the same pixels in another file,
the same slide in other tiles, the same folder under another name, the same words in another place. Each
relation makes a situation of its number, as the campaign's targets do, and says how it was broken.
"""

from __future__ import annotations

import random
import shutil
import traceback
from pathlib import Path

from campaign import Count
from seeds import Seeds

from . import doors, files, guards, readers, slides, surroundings, training
from .lab import Lab, Relation

AREAS: dict[str, dict[str, Relation]] = {
    "files": files.RELATIONS,
    "doors": doors.RELATIONS,
    "slides": slides.RELATIONS,
    "readers": readers.RELATIONS,
    "guards": guards.RELATIONS,
    "training": training.RELATIONS,
    "surroundings": surroundings.RELATIONS,
}
"""Relations by area and name."""
EACH = 1
"""Situations of each relation at a scale of 1."""


def run(area: str, seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Tries an area's relations; what is broken is a finding, kept with its situation.

    Args:
        area: of `AREAS`.
        seeds: those of the other targets; the networks of relations are others (`Lab`).
        out: findings are kept in its folder ``findings``, and the networks in ``lab``.
        scale: times `EACH`.
        seed: of all situations.
    """
    relations = AREAS[area]
    count = Count(f"same-{area}")
    lab = Lab(out / "lab")
    for name, relation in relations.items():
        broken = 0
        for number in range(max(1, round(EACH * scale))):
            work = (out / "relations").resolve()
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            try:
                wrong = list(relation(lab, random.Random(f"{area} {name} {seed} {number}"), work))
            except Exception:  # whatever it is, two runs were to agree
                wrong = [traceback.format_exc()]
            count.tried += 1
            if wrong:
                count.findings += 1
                broken += 1
                if broken <= 2:
                    kept = out / "findings" / f"same-{area}-{name}-{seed}-{number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(work, kept, symlinks=True)
                    (kept / "said.txt").write_text("\n".join(wrong), errors="backslashreplace")
                    print(f"  {kept}: {wrong[0].strip()[-700:]}", flush=True)
    count.note = f"{len(relations):6} relations"
    return count
