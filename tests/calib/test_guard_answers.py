"""`benchmarks/guard_answers.py`: answers come back from their file as they were, and as nobody else's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmark_scripts import script_as_module
from PIL import Image

from msmamba.images import read_image
from msmamba.runtime.quality import quality_of
from tests.calib.test_guard import write_bundle
from tests.runtime.conftest import LABELS, classifier, manifest


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The benchmarks' module."""
    return script_as_module("guard_answers")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each class in each split: small, large, and one that has no focus at all."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split in ("val", "test"):
        for label, side in zip(LABELS, (40, 300, 64), strict=True):
            (folder / split / label).mkdir(parents=True)
            pixels = generator.integers(60, 200, (side, side, 3), np.uint8)
            if label == LABELS[-1]:
                pixels[:] = 255
            Image.fromarray(pixels).save(folder / split / label / "0.png")
    return folder


def test_answers_are_kept_and_have_the_pictures_own_measures(
    script: ModuleType, data: Path, tmp_path: Path
) -> None:
    bundle, cache = write_bundle(tmp_path / "bundle"), tmp_path / "kept.npz"
    made = script.all_answers(cache, str(bundle), str(data), {}, changed=True)
    kept = script.all_answers(cache, str(bundle), str(data), {})
    assert list(kept) == ["val", "test"]
    assert set(made) > {"val", "test", "blur 8", "hue 90°"}
    for split, answers in kept.items():
        for before, after in zip(made[split], answers, strict=True):
            np.testing.assert_array_equal(before, after)
        expected = [quality_of(read_image(data / split / label / "0.png")) for label in LABELS]
        assert answers.qualities == expected
        assert [each.focus is None for each in expected] == [False, False, True]
        assert [each.coarse_focus is None for each in expected] == [True, False, True]


def test_answers_of_another_network_or_other_images_are_refused(
    script: ModuleType, data: Path, tmp_path: Path
) -> None:
    bundle, cache = str(write_bundle(tmp_path / "bundle")), tmp_path / "kept.npz"
    script.all_answers(cache, bundle, str(data), {})
    model = classifier(metadata={**manifest().to_metadata(), "other": "another"})
    other = str(write_bundle(tmp_path / "other", model))
    for asked, what in (
        ((other, str(data), {}), "network"),
        ((bundle, str(tmp_path), {}), "data"),
        ((bundle, str(data), {"dust": str(data)}), "unlike dust"),
    ):
        with pytest.raises(SystemExit, match=f"kept.npz was made of another {what}: name another file"):
            script.all_answers(cache, *asked)
    with pytest.raises(SystemExit, match="another changes"):
        script.all_answers(cache, bundle, str(data), {}, changed=True)
