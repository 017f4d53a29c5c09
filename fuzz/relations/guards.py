"""Guards of the same images in another order, doubled, or in other words; and what drift is."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from seeds import LABELS

from .doors import near
from .lab import CommandFailed, Lab, Relation, apart, differ, save


def calibrated(lab: Lab, data: Path, target: Path, *words: object) -> dict[str, Any] | None:
    """A copy of the bundle with a guard of these images; what it says of itself, None where there is none."""
    shutil.copytree(lab.bundle, target)
    try:
        lab.mmdeploy("calibrate", target, data, *words)
    except CommandFailed as error:
        if "cannot promise" in str(error):
            return None
        raise
    return json.loads((target / "manifest.json").read_bytes())["guard"]


def a_set(lab: Lab, chance: random.Random, folder: Path, count: int = 60) -> list[tuple[Path, str]]:
    """Labelled pictures, most of which the network puts where they are."""
    pictures = [lab.drawn(chance, 40, 40) for _ in range(count)]
    found = []
    for number, (pixels, said) in enumerate(zip(pictures, lab.session.classify(pictures), strict=True)):
        label = said.label if number >= 3 and chance.random() < 0.93 else LABELS[number % 3]
        (folder / label).mkdir(parents=True, exist_ok=True)
        found.append((save(pixels, folder / label / f"{number:03}.png"), label))
    return found


def same_guard(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Twice, in another order, with copies, and with the shares in other words."""
    pictures = a_set(lab, chance, work / "in")
    most = chance.choice((0.1, 0.2, 0.3))
    one = calibrated(lab, work / "in", work / "one", "--max-error", f"{100 * most:g}%")
    two = calibrated(lab, work / "in", work / "two", "--max-error", most)
    yield from differ("in other words", two, one)
    if one is None:
        return
    bytes_of = [{p.name: p.read_bytes() for p in (work / name).iterdir()} for name in ("one", "two")]
    yield from differ("same bytes", [n for n in bytes_of[0] if bytes_of[0][n] != bytes_of[1].get(n)], [])
    names = chance.sample(range(1000), len(pictures))
    for (path, label), name in zip(pictures, names, strict=True):
        for folder in ("mixed", "doubled"):
            (work / folder / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, work / folder / label / f"{name:04}.png")
        shutil.copy(path, work / "doubled" / label / f"copy of {name:04}.png")
    mixed = calibrated(lab, work / "mixed", work / "three", "--max-error", most)
    doubled = calibrated(lab, work / "doubled", work / "four", "--max-error", most)
    # Which fold an image is measured with goes by its place, so what is unlike may differ a little.
    loose = {"unlike_from", "answered", "errors", "threshold"}
    for what, other in (("mixed", mixed), ("doubled", doubled)):
        if other is None:
            continue
        keys = one.keys() - loose
        yield from near(what, {k: other[k] for k in keys}, {k: one[k] for k in keys}, 1e-6)
    yield from near("mixed and doubled", doubled, mixed, 1e-6)


def less_is_answered(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """A stricter promise answers no more, and what it answers the looser one does; labels stay."""
    a_set(lab, chance, work / "in", 90)
    errors = sorted(chance.sample((0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5), 4))
    (work / "others").mkdir()
    others = [save(lab.drawn(chance, 40, 40), work / "others" / f"{number:02}.png") for number in range(30)]
    plain = lab.inferred(*others)
    before: set[str] = set()
    candidates: dict[str, set[str]] = {}
    for number, most in enumerate(errors):
        target = work / f"guard-{number}"
        if calibrated(lab, work / "in", target, "--max-error", most) is None:
            yield from differ(f"none at {most}, though there was one", before, set())
            continue
        rows = lab.inferred(*others, artefact=target)
        yield from differ("labels", [row["label"] for row in rows], [row["label"] for row in plain])
        off = lab.inferred(*others, "--no-guard", artefact=target)
        yield from differ("left out", off, plain)
        answered = {row["image"] for row in rows if row["decided"]}
        yield from differ(f"answered no more at {most}", before - answered, set())
        before = answered
        for row in rows:
            own = set(row["candidates"])
            wider = candidates.get(row["image"])
            yield from differ("more candidates", wider is not None and not own <= wider, False)
            candidates[row["image"]] = own
            yield from differ("the label is a candidate", row["candidates"][0], row["label"])
    reach: int | None = None
    for number, sure in enumerate((0.5, 0.8, 0.95, 0.99)):
        guard = calibrated(
            lab, work / "in", work / f"sure-{number}", "--max-error", 0.2, "--confidence", sure
        )
        found = 0 if guard is None else guard["answered"]
        if reach is not None and found > reach:
            yield f"at a confidence of {sure} {found} are answered, and {reach} at less"
        reach = found


def same_arithmetic(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Logits times a number or plus one, classes in another order, other names: the guard goes along."""
    from msmamba.calib.guard import fit_guard
    from msmamba.runtime.quality import quality_of

    noise = np.random.default_rng(chance.getrandbits(32))
    images, classes = chance.randrange(60, 300), chance.randrange(2, 6)
    truth = np.concatenate([np.arange(classes), noise.integers(0, classes, images - classes)])
    logits = noise.normal(0, 1, (images, classes)) + 3 * np.eye(classes)[truth]
    features = (
        noise.normal(0, 1, (images, 40))
        + 2 * np.repeat(np.eye(classes), 40, axis=0).reshape(classes, 40, classes)[truth][..., 0]
    )
    qualities = [quality_of(lab.drawn(chance, 24, 24)) for _ in range(12)]
    qualities = [qualities[place % 12] for place in range(images)]
    most, sure = chance.choice((0.05, 0.1, 0.2)), 0.95
    patients = chance.choice((None, 4, 12, 40))
    members = None if patients is None else noise.permutation(np.arange(images) % patients)

    def fitted(rows: Any, kinds: Any, names: Any = None) -> tuple[Any, list[Any]]:
        of = members if members is None or names is None else names[members]
        guard, verdicts, _ = fit_guard(
            rows, features, qualities, kinds, most, sure, "0" * 64, "x", members=of
        )
        return guard, [(each.reasons, sorted(each.candidates)) for each in verdicts]

    try:
        guard, verdicts = fitted(logits, truth)
    except Exception as error:
        if "cannot promise" in str(error):
            return
        raise
    times = 2.0 ** chance.randrange(-3, 6)
    scaled, said = fitted(logits * times, truth)
    yield from apart("temperature", scaled.temperature / times, guard.temperature, 1e-3 * guard.temperature)
    if classes == 2:  # of more, the order of the log-odds goes by the scale
        yield from differ("answered when scaled", scaled.answered, guard.answered)
        yield from differ(
            "decided when scaled", [bool(each[0]) for each in said], [bool(each[0]) for each in verdicts]
        )
    moved, said = fitted(logits + noise.normal(0, 5, (images, 1)).round(), truth)
    yield from apart("temperature when moved", moved.temperature, guard.temperature, 1e-6)
    yield from differ("decided when moved", said, verdicts)
    if patients is not None:
        renamed, _ = fitted(logits, truth, noise.permutation(patients))
        yield from differ("answered when patients are renamed", renamed.answered, guard.answered)
    order = noise.permutation(classes)
    back = np.argsort(order)
    turned, said = fitted(logits[:, order], back[truth])
    yield from apart("temperature of other classes", turned.temperature, guard.temperature, 1e-6)
    yield from differ("reasons of other classes", [each[0] for each in said], [each[0] for each in verdicts])
    named = [sorted(int(order[c]) for c in each[1]) for each in said]
    yield from differ("candidates of other classes", named, [[*map(int, each[1])] for each in verdicts])


def same_drift(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """A log of one call or many, its lines in another order; the calibration's own images are no change."""
    count = chance.randrange(20, 50)
    pictures = [save(lab.drawn(chance, 40, 40), work / f"{number}.png") for number in range(count)]
    lab.mmdeploy("infer", lab.guarded, *pictures, "--drift", work / "one.jsonl")
    for path in chance.sample(pictures, count):
        lab.mmdeploy("infer", lab.guarded, path, "--drift", work / "two.jsonl")

    def said(path: Path) -> dict[str, Any]:
        from click.testing import CliRunner

        from msmamba.cli import mmdeploy

        answer = CliRunner().invoke(mmdeploy, ["drift", str(path), "--format", "json"])
        found = json.loads(answer.stdout)
        return {key: value for key, value in found.items() if key not in ("log", "times", "sessions")}

    one = said(work / "one.jsonl")
    yield from near("many calls", said(work / "two.jsonl"), one, 1e-4)
    head, *lines = (work / "one.jsonl").read_text().splitlines(keepends=True)
    chance.shuffle(lines)
    (work / "mixed.jsonl").write_text(head + "".join(lines))
    yield from near("mixed", said(work / "mixed.jsonl"), one, 1e-9)
    lab.mmdeploy("infer", lab.guarded, lab.judged, "--drift", work / "same.jsonl")
    lab.mmdeploy("drift", work / "same.jsonl")
    lab.mmdeploy("live", lab.guarded, pictures[0], "--no-page", "--keep-all", "--drift", work / "live.jsonl")
    lab.mmdeploy(
        "slide",
        lab.guarded,
        pictures[0],
        "-o",
        work / "out",
        "--pixel-for-pixel",
        "--no-tissue",
        "--drift",
        work / "slide.jsonl",
    )
    lab.mmdeploy("infer", lab.guarded, pictures[0], "--drift", work / "infer.jsonl")
    scores = [
        json.loads((work / f"{n}.jsonl").read_text().splitlines()[1])["scores"]
        for n in ("infer", "live", "slide")
    ]
    yield from near("live's scores", scores[1], scores[0], 2e-4)
    yield from near("slide's scores", scores[2], scores[0], 2e-4)


def same_quality(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """A mirrored, turned picture is as sharp, bright and full; one with its colours exchanged too."""
    from msmamba.runtime.quality import quality_of

    side = 16 * chance.randrange(2, 20)
    pixels = lab.picture(chance, side, side)
    expected = quality_of(pixels).as_json()
    for name, other in {
        "mirrored": pixels[:, ::-1],
        "upside down": pixels[::-1],
        "turned": pixels.transpose(1, 0, 2),
        "rotated": np.rot90(pixels),
    }.items():
        yield from near(name, quality_of(np.ascontiguousarray(other)).as_json(), expected, 0.02)


RELATIONS: dict[str, Relation] = {
    each.__name__: each for each in (same_guard, less_is_answered, same_arithmetic, same_drift, same_quality)
}
