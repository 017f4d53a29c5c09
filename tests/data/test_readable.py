"""A corrupt image in the middle of two thousand: named, and left out only when asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from msmamba.cli import mmdeploy
from msmamba.data.folders import read_training_folder
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.data.readable import unreadable_images, without
from msmamba.errors import DataError, ImageError
from msmamba.images import Transform
from msmamba.model.training.loading import Batches, EvaluationImages, Images

COUNT, BAD = 2_000, 1_003
pytestmark = pytest.mark.usefixtures("threads_as_before")
PLAIN = Transform(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small images, all of which differ; one is broken. Not to be changed."""
    root = tmp_path_factory.mktemp("many") / "cells"
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    for label in "ab":
        (root / label).mkdir(parents=True)
    for number in range(COUNT):
        Image.fromarray(pixels[number]).save(root / "ab"[number % 2] / f"{number:05}.bmp")
    broken = root / "ab"[BAD % 2] / f"{BAD:05}.bmp"
    broken.write_bytes(broken.read_bytes()[:80])
    return root


def test_an_import_stops_at_it_or_skips_it(two_thousand: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"b/01003\.bmp' is truncated or corrupt"):
        import_data_set("folder", two_thousand, tmp_path / "out")
    manifest = import_data_set("folder", two_thousand, tmp_path / "out", ImportOptions(skip_bad=True))
    assert list(manifest.skipped) == ["b/01003.bmp"]
    assert sum(sum(counts.values()) for counts in manifest.counts.values()) == COUNT - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_stops_at_it_unless_it_was_left_out(two_thousand: Path, workers: int) -> None:
    data = read_training_folder(two_thousand)
    (bad,) = (name for name, samples in data.splits.items() if any("01003" in str(s.source) for s in samples))

    def read(samples: object) -> int:
        images = EvaluationImages(Images(samples, 0), PLAIN)  # type: ignore[arg-type]
        return sum(len(labels) for _, labels in Batches(images, workers, batch_size=100))

    with pytest.raises(ImageError, match=r"b/01003\.bmp'"):
        read(data.split(bad))
    whole = without(data, unreadable_images(data))
    assert read(whole.split(bad)) == len(data.split(bad)) - 1
    assert list(whole.skipped) == ["b/01003.bmp"]
    assert "01003.bmp' is truncated or corrupt" in whole.skipped["b/01003.bmp"]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Twelve images of each of two classes, one of them broken."""
    generator = np.random.default_rng(0)
    for label in ("round", "square"):
        (tmp_path / "cells" / label).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "cells" / label / f"{number}.png")
    (tmp_path / "cells" / "round" / "7.png").write_bytes(b"\x89PNG broken")
    return tmp_path / "cells"


def test_training_names_it_and_goes_on_only_when_asked(few: Path, tmp_path: Path) -> None:
    train = [
        *("train", str(few), "-o", str(tmp_path / "run"), "--image-size", "32", "--epochs", "1"),
        *("--warm-up", "0", "--batch-size", "8", "--threads", "1"),
    ]
    stopped = CliRunner().invoke(mmdeploy, train)
    assert stopped.exit_code == 1
    assert "round/7.png' is not a PNG" in stopped.stderr
    assert stopped.stderr.endswith(" with --skip-bad\n")
    skipping = [*train[:3], str(tmp_path / "other"), *train[4:], "--skip-bad", "--resume"]
    done = CliRunner().invoke(mmdeploy, skipping)
    assert done.exit_code == 0, done.stderr
    assert "other': a new one begins" in done.stderr
    assert "left out, because it cannot be read: round/7.png" in done.stdout
    assert "round/7.png" in (tmp_path / "other" / "config.json").read_text()

    # Continued without saying it again: it is among the run's own options.
    done = CliRunner().invoke(mmdeploy, ["train", str(few), "-o", str(tmp_path / "other"), "--resume"])
    assert done.exit_code == 0, done.stderr
    assert "a new one begins" not in done.stderr

    measure = ["eval", str(tmp_path / "other" / "best.safetensors"), str(few), "--threads", "1"]
    stopped = CliRunner().invoke(mmdeploy, measure)
    assert stopped.exit_code == 1
    assert "round/7.png' is not a PNG" in stopped.stderr
    assert stopped.stderr.endswith(" with --skip-bad\n")
    done = CliRunner().invoke(mmdeploy, [*measure, "--skip-bad"])
    assert done.exit_code == 0, done.stderr
    assert "left out: " in done.stdout
    assert "23 images" in done.stdout


def test_what_is_left_out_changes_the_digest_and_keeps_groups_aligned(few: Path, tmp_path: Path) -> None:
    (few / "round" / "7.png").unlink()
    options = ImportOptions(group_by=r"^(\d+)", copy=True)
    import_data_set("folder", few, tmp_path / "out", options)
    data = read_training_folder(tmp_path / "out")
    assert without(data, unreadable_images(data)) is data
    broken = data.split("train")[3].source
    assert isinstance(broken, Path)
    broken.write_bytes(b"")
    whole = without(data, unreadable_images(data))
    assert whole.digest != data.digest
    assert [*whole.groups["train"]] == [g for place, g in enumerate(data.groups["train"]) if place != 3]
    assert [Path(name).stem for name in whole.names("train")] == [*whole.groups["train"]]


def test_too_little_may_be_left(few: Path, tmp_path: Path) -> None:
    for path in (few / "round").iterdir():
        path.write_bytes(b"broken")
    result = CliRunner().invoke(mmdeploy, ["train", str(few), "-o", str(tmp_path / "run"), "--skip-bad"])
    assert result.exit_code == 1
    assert "every class needs at least 2 training images, but 'round' has 0" in result.stderr
    with pytest.raises(DataError):
        import_data_set("folder", few, tmp_path / "out", ImportOptions(skip_bad=True))
