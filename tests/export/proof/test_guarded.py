"""The artefact's guard on both answers: what differs is judged, what lies at the threshold is told apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.export.proof.guarded import compare_guarded
from msmamba.export.proof.parity import Bar, compare
from msmamba.export.proof.verify import verify
from msmamba.measures.selective import certainty
from msmamba.runtime import Manifest, open_session
from msmamba.runtime.guard import Guard, network_sha256

BAR = 0.25
GUARD = Guard(
    network_sha256="ab" * 32,
    max_error=0.05,
    confidence=0.95,
    temperature=1.0,
    threshold=2.0,
    candidate_bound=0.9,
    images=100,
    answered=80,
    errors=1,
)


def logits(*certainties: float) -> np.ndarray:
    """Of two classes, whose certainty is the difference."""
    return np.array([[each, 0.0] for each in certainties])


@pytest.mark.parametrize(
    ("reference", "artefact", "differing", "at_threshold", "at_threshold_differing"),
    [
        pytest.param(2.6, 2.4, 0, 0, 0, id="both-answer"),
        pytest.param(1.4, 1.6, 0, 0, 0, id="both-withhold"),
        pytest.param(2.5, 2.0, 0, 1, 1, id="twice-the-bar-above"),
        pytest.param(1.5, 2.1, 0, 1, 1, id="twice-the-bar-below"),
        pytest.param(2.51, 1.9, 1, 0, 0, id="more-above"),
        pytest.param(1.49, 2.1, 1, 0, 0, id="more-below"),
        pytest.param(2.1, 2.2, 0, 1, 0, id="at-the-threshold-and-alike"),
    ],
)
def test_what_differs_beyond_twice_the_bar_is_judged(
    reference: float, artefact: float, differing: int, at_threshold: int, at_threshold_differing: int
) -> None:
    found = compare_guarded(GUARD, logits(reference, 9), logits(artefact, 9), ["a.png", "b.png"], BAR)
    counts = (found.differing, found.at_threshold, found.at_threshold_differing)
    assert counts == (differing, at_threshold, at_threshold_differing)
    assert len(found.differing_images) == differing
    assert found.reference_answered == 1 + (reference > 2)


def test_errors_within_the_bar_never_differ_beyond_the_threshold() -> None:
    generator = np.random.default_rng(0)
    expected = generator.normal(0, 1.5, (20_000, 4))
    found = expected + generator.choice([-BAR, BAR], expected.shape)
    parity = compare_guarded(GUARD, expected, found, [""] * len(expected), BAR)
    assert parity.differing == 0
    assert parity.at_threshold_differing > 500
    # The reach is not wider than it must be: some that differ are nearly twice the bar away.
    assert max(abs(each.distance) for each in parity.at_threshold_images if each.differs) > 1.8 * BAR


def test_without_a_bar_all_that_differs_is_told() -> None:
    found = compare_guarded(GUARD, logits(2.1, 3), logits(1.9, 3), ["a.png", "b.png"], None)
    assert (found.differing, found.at_threshold) == (1, 0)
    assert found.differing_images[0].text == "answered -> withheld, +0.1 from the threshold"


def test_a_guard_without_a_threshold_never_differs() -> None:
    found = compare_guarded(replace(GUARD, threshold=None), logits(0.1), logits(-0.1), ["a.png"], BAR)
    assert (found.differing, found.at_threshold, found.artefact_answered) == (0, 0, 1)
    assert found.candidates_differing == 1  # the same two in another order


def test_what_is_not_finite_is_left_to_the_bar_on_logits() -> None:
    expected, found = logits(2.5, 3), logits(np.nan, 3)
    assert compare_guarded(GUARD, expected, found, ["a.png", "b.png"], BAR).images == 1


@pytest.mark.parametrize(("bar", "passed"), [(BAR, False), (None, True)])
def test_a_decision_that_differs_loses_parity_where_there_is_a_bar(bar: float | None, passed: bool) -> None:
    expected, found = logits(2.6, 9), logits(1.9, 9)
    images = ["a.png", "b.png"]
    parity = compare(
        expected.astype(np.float32),
        found.astype(np.float32),
        images=images,
        labels=["x", "y"],
        bar=Bar(bar, 0, "for a test"),
        precision="fp32",
        executed_by="a test",
    )
    parity = replace(parity, guard=compare_guarded(GUARD, expected, found, images, bar))
    assert parity.passed is passed
    assert ("the guard decides 1 of 2 images otherwise" in parity.failure) is not passed
    text = parity.to_text()
    assert "by certainty answers 1 of 2, of the reference's logits 2; 1 decided otherwise" in text
    assert "answered -> withheld, +0.6 from the threshold" in text
    assert ("reported, not judged" in text) is passed
    assert json.loads(parity.to_json())["guard"]["differing_images"][0]["image"] == "a.png"
    assert parity.summary["guard_decides_otherwise"] == 1


def with_guard(bundle: Path, copy: Path, threshold: float, **changes: object) -> Path:
    """A copy of a bundle with a guard."""
    shutil.copytree(bundle, copy)
    manifest = Manifest.from_json((copy / "manifest.json").read_bytes())
    network = network_sha256((copy / "model.onnx").read_bytes())
    guard = replace(GUARD, threshold=threshold, **{"network_sha256": network, **changes}).facts
    (copy / "manifest.json").write_text(replace(manifest, guard=guard).to_json())
    return copy


def test_verify_says_what_the_guard_makes_of_both(
    bundles: dict[str, Path], checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    with open_session(bundles["fp32"]) as session:
        images = [*(labelled / "val").rglob("*.png")]
        scores = certainty(session.run(np.stack([session.prepare(each)[0] for each in images])))
    threshold = float(np.median(scores))
    bundle = with_guard(bundles["fp32"], tmp_path / "fp32", threshold)
    parity = verify(bundle, checkpoint, [labelled], split="val", page=tmp_path / "page.html")
    assert parity.passed
    assert parity.guard is not None
    assert (parity.guard.images, parity.guard.differing) == (12, 0)
    assert parity.guard.artefact_answered == (scores > threshold).sum()
    assert "What the guard withholds" in (tmp_path / "page.html").read_text()
    said = json.loads((bundle / "parity.json").read_text())
    assert said["guard"]["artefact_answered"] == parity.guard.artefact_answered
    again = Manifest.from_json((bundle / "manifest.json").read_bytes())
    assert again.precision_proven["parity"]["guard_decides_otherwise"] == 0
    assert verify(bundle, checkpoint, [labelled], split="val", guard=False).guard is None

    other = verify(bundles["fp16"] / "model.onnx", bundle, [labelled], split="val")
    assert other.guard is None
    assert any("calibrate again" in note for note in other.notes)


def test_a_guard_of_another_network_is_left_out_on_request(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path, tmp_path: Path
) -> None:
    bundle = with_guard(bundles["fp32"], tmp_path / "other", 1.0, network_sha256="cd" * 32)
    arguments = ["verify", str(bundle), "--against", str(checkpoint), "--data", str(micrographs), "--limit=3"]
    refused = CliRunner().invoke(mmdeploy, arguments)
    assert refused.exit_code == 1
    assert "was fitted on another model" in refused.stderr
    assert CliRunner().invoke(mmdeploy, [*arguments, "--no-guard"]).exit_code == 0
