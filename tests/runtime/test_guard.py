"""What the guard says of pictures: each reason, their order, and what a program has to tell it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from msmamba.errors import ArtefactError, InputError
from msmamba.runtime import open_session
from msmamba.runtime.guard import (
    EMPTY,
    OUT_OF_FOCUS,
    REASONS,
    TOO_BRIGHT,
    TOO_DARK,
    UNCERTAIN,
    UNLIKE,
    Guard,
    network_sha256,
)
from msmamba.runtime.manifest import Manifest
from msmamba.runtime.quality import quality_of

from .conftest import classifier, manifest
from .test_quality import field

RANGES = {
    "focus": [0.8, None],
    "emptiness": [None, 0.5],
    "brightest": [0.5, 0.95],
    "white": [None, 0.1],
    "red": [-0.3, 0.3],
    "blue": [-0.3, 0.3],
}
SURE, UNSURE = [[9.0, 0.0, 0.0]], [[0.2, 0.1, 0.0]]


def guard(**changes: object) -> Guard:
    values = {
        "network_sha256": "ab" * 32,
        "max_error": 0.05,
        "confidence": 0.95,
        "temperature": 1.0,
        "threshold": 2.0,
        "candidate_bound": 0.5,
        "images": 100,
        "answered": 90,
        "errors": 1,
        "quality": RANGES,
    }
    return Guard(**{**values, **changes})  # type: ignore[arg-type]  # of a plain dictionary


def picture() -> np.ndarray:
    """Grey noise of which nothing is wrong."""
    noise = np.random.default_rng(0).integers(60, 200, (64, 64, 1))
    return np.broadcast_to(noise, (64, 64, 3)).astype(np.uint8)


def blurred(pixels: np.ndarray) -> np.ndarray:
    # Stretched again: noise loses its brightness by a blur.
    smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(5))).astype(float)
    return np.interp(smooth, (smooth.min(), smooth.max()), (60, 200)).astype(np.uint8)


def mostly_empty(pixels: np.ndarray) -> np.ndarray:
    """Nothing but a slow slope in a corner: where nothing is, nothing is sharp."""
    slope = np.full_like(pixels, 180)
    slope[:16, :16] -= (3 * np.arange(16)[:, None] + 3 * np.arange(16))[..., None].astype(np.uint8)
    assert guard().faults(replace(quality_of(slope), emptiness=0.0)) == {OUT_OF_FOCUS}
    return slope


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        pytest.param(lambda pixels: pixels, (), id="good"),
        pytest.param(blurred, (OUT_OF_FOCUS,), id="blurred"),
        pytest.param(lambda pixels: np.full_like(pixels, 180), (EMPTY,), id="empty"),
        pytest.param(mostly_empty, (EMPTY,), id="blurred-where-it-is-not-empty"),
        pytest.param(lambda pixels: pixels // 3, (TOO_DARK,), id="dark"),
        pytest.param(lambda pixels: pixels + 55, (TOO_BRIGHT,), id="bright"),
        pytest.param(lambda pixels: (pixels * [1, 1, 0.6]).astype(np.uint8), (UNLIKE,), id="no-blue"),
        pytest.param(lambda pixels: np.zeros_like(pixels), (EMPTY, TOO_DARK), id="black"),
    ],
)
def test_each_fault_of_a_picture_is_a_reason(
    change: Callable[[np.ndarray], np.ndarray], reasons: tuple[str, ...]
) -> None:
    quality = quality_of(change(picture()))
    (sure,), (unsure,) = (guard().judge(np.array(logits), [quality]) for logits in (SURE, UNSURE))
    assert sure.reasons == reasons
    assert unsure.reasons == (UNCERTAIN, *reasons)
    assert [sure.candidates, unsure.candidates] == [(0,), (0, 1)]


@pytest.mark.parametrize("times", [1, 2, 3.3])
def test_a_finer_camera_makes_no_picture_emptier_or_less_sharp(times: float) -> None:
    """Squares of 16 pixels show less of the same field, and neighbouring pixels differ less."""
    shown = field(240, 320)
    size = round(320 * times), round(240 * times)
    finer = np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.BICUBIC))
    own = quality_of(shown)
    found = guard(largest=240).quality_of(finer)
    assert found.side == 240
    for name in ("emptiness", "focus", "coarse_focus", "brightest"):
        assert getattr(found, name) == pytest.approx(getattr(own, name), abs=0.09), name
    before = guard().quality_of(finer)  # a guard that does not say how large its pictures were
    assert before == quality_of(finer)
    if times > 1:
        assert before.emptiness > own.emptiness + 0.1
    known = replace(own, brightness=0.5)
    assert guard(largest=240).quality_of(shown, known) is known


def test_a_guard_of_an_earlier_version_judges_no_pictures() -> None:
    facts = {name: value for name, value in guard().facts.items() if name != "quality"}
    before = Guard.of(manifest(guard=facts).guard)
    assert before is not None
    assert before.judge(np.array(SURE), [quality_of(np.zeros((64, 64, 3), np.uint8))])[0].reasons == ()


def test_a_guard_is_of_the_format_whose_readers_apply_all_of_it() -> None:
    """Version 0.2.0, which reads format 1, passes over limits that it does not know."""
    assert manifest(guard=guard().facts).format_version == 1
    coarse = guard(quality={**RANGES, "coarse_focus": [0.4, None]})
    for later in (coarse, guard(largest=240)):
        said = manifest(guard=later.facts)
        values = json.loads(said.to_json())
        assert values["format_version"] == said.format_version == 2
        for version in (1, 2):  # 1: of the days between
            assert Manifest.from_json(json.dumps({**values, "format_version": version})) == said


@pytest.mark.parametrize(
    "change", [{"angle": 3}, {"quality": {**RANGES, "hue": [0, 1]}}], ids=["field", "limit"]
)
def test_a_guard_with_something_unknown_is_not_applied(guarded: Path, change: dict[str, object]) -> None:
    network = network_sha256(classifier().SerializeToString())
    said = manifest(guard={**guard(network_sha256=network).facts, **change})
    guarded.write_bytes(classifier(metadata=said.to_metadata()).SerializeToString())
    with pytest.raises(ArtefactError, match=r"does not apply \((angle|hue)\), made by a newer one: upgrade"):
        open_session(guarded)
    open_session(guarded, guard=False).close()


def test_the_reasons_are_those_that_are_documented() -> None:
    assert REASONS == (
        "uncertain",
        "out of focus",
        "empty",
        "too dark",
        "too bright",
        "unlike the training images",
    )


@pytest.fixture
def guarded(tmp_path: Path) -> Path:
    path = tmp_path / "guarded.onnx"
    applied = guard(network_sha256=network_sha256(classifier().SerializeToString()), threshold=None)
    path.write_bytes(classifier(metadata=manifest(guard=applied.facts).to_metadata()).SerializeToString())
    return path


def test_pictures_are_judged_where_they_are_read(guarded: Path) -> None:
    with open_session(guarded) as session:
        assert session.judges_pictures
        good, dark = session.classify([picture(), picture() // 3], batch_size=2)
        assert (good.decided, dark.decided, dark.reasons) == (True, False, (TOO_DARK,))
        quality = quality_of(picture() // 3)
        (given,) = session.predict(session.prepare(picture() // 3)[0][None], qualities=[quality])
        assert given == dark


def test_a_guard_that_judges_pictures_has_to_be_told_of_them(guarded: Path) -> None:
    with open_session(guarded) as session:
        image = session.prepare(picture())[0][None]
        with pytest.raises(InputError, match="judges pictures, too: give their quality"):
            session.predict(image)
        with pytest.raises(InputError, match="qualities of 2 images for 1 rows"):
            session.predict(image, qualities=[quality_of(picture())] * 2)
    with open_session(guarded, guard=False) as session:
        assert not session.judges_pictures
        assert session.predict(image)[0].decided
