"""The probe tells what becomes of pictures otherwise than at their artefact's export, and stops nothing."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from msmamba import images
from msmamba.cli import mmdeploy
from msmamba.errors import ArtefactNote, ImageError
from msmamba.images import LoadedImage
from msmamba.resize import PILLOW_RULE
from msmamba.runtime import doctor, open_session, probe

from .conftest import SIZE, classifier, manifest


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing that one test makes of the pictures is kept for another."""
    probe.checksums.cache_clear()
    yield
    probe.checksums.cache_clear()


@pytest.fixture
def probed(make_bundle: Callable[..., Path]) -> Path:
    """A bundle with the probe of this machine."""
    return make_bundle(probe=probe.checksums(manifest().transform))


def with_sums(picture: str, part: str) -> dict[str, dict[str, str]]:
    """This machine's probe, but for one sum."""
    sums = {name: dict(each) for name, each in probe.checksums(manifest().transform).items()}
    sums[picture][part] = "ab" * 32
    return sums


def decode_otherwise(path: Path) -> LoadedImage:
    return LoadedImage(images.load_image(path).pixels ^ np.uint8(1))


def refuse_jpeg(path: Path) -> LoadedImage:
    if path.suffix == ".jpg":
        raise ImageError(f"'{path}' cannot be decoded")
    return images.load_image(path)


class EarlierPillow:
    """A resize that begins with the rows, and so makes other values of the tall picture."""

    @staticmethod
    def resize(pixels: np.ndarray, size: int, box: None) -> np.ndarray:
        rows = Image.fromarray(pixels).resize((size, len(pixels)), Image.Resampling.BILINEAR)
        return np.asarray(rows.resize((size, size), Image.Resampling.BILINEAR))

    @classmethod
    def prepare(cls, pixels: np.ndarray, size: int, tables: np.ndarray) -> np.ndarray:
        resized = cls.resize(pixels, size, None)
        return np.stack([tables[channel][resized[..., channel]] for channel in range(3)])


def test_pictures_become_here_what_they_become_everywhere() -> None:
    assert probe.differences_here() == ()


def test_without_the_native_library_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "native_resize", lambda: None)
    assert probe.differences_here() == ()


def test_nothing_is_said_where_all_is_alike(probed: Path) -> None:
    with open_session(probed) as session:  # a warning would be an error
        assert session.notes == ()
        assert session.manifest is not None
        assert set(session.manifest.probe) == set(probe.PICTURES)


@pytest.mark.parametrize(
    ("module", "name", "replacement", "said"),
    [
        (probe, "load_image", decode_otherwise, ["decodes JPEG to other", "decodes PNG to other"]),
        (probe, "load_image", refuse_jpeg, ["cannot decode JPEG"]),
        (images, "native_resize", lambda: EarlierPillow, ["transform here makes other values of a PNG"]),
    ],
    ids=["decoding", "no-decoder", "transform"],
)
def test_a_machine_that_answers_otherwise_is_told_what_differs(
    module: Any,
    name: str,
    replacement: Any,
    said: list[str],
    probed: Path,
    monkeypatch: pytest.MonkeyPatch,
    colours: list[np.ndarray],
) -> None:
    probe.checksums.cache_clear()
    monkeypatch.setattr(module, name, replacement)
    with pytest.warns(ArtefactNote, match=".*".join(said)):
        session = open_session(probed)
    with session:
        assert [text in line for text, line in zip(said, session.notes, strict=True)] == [True] * len(said)
        assert session.classify(colours)[0].label == "red"


@pytest.mark.parametrize(
    ("picture", "part", "said"),
    [
        ("probe_1.jpg", "pixels", "decodes JPEG to other pixels than the machine that exported it"),
        ("probe_1.png", "tensor", "the transform here makes other values of a PNG picture"),
    ],
)
def test_an_artefact_that_was_exported_elsewhere_is_told_and_opened(
    picture: str, part: str, said: str, make_bundle: Callable[..., Path]
) -> None:
    path = make_bundle(probe=with_sums(picture, part))
    with pytest.warns(ArtefactNote, match=said), open_session(path) as session:
        assert said in session.notes[0]
    ability = next(item for item in doctor.examine(str(path)).abilities if "exporter" in item.name)
    assert not ability.works
    assert said in ability.found


def test_pictures_of_later_versions_are_passed_over() -> None:
    assert probe.differences(manifest(probe={"probe_9.jpg": {"pixels": "0" * 64, "tensor": "0" * 64}})) == ()


def test_a_huge_input_is_not_made_for_a_probe() -> None:
    sums = with_sums("probe_1.jpg", "tensor")
    assert probe.differences(manifest(image_size=8192, probe=sums)) == ()


def test_an_artefact_from_before_says_whose_resize_it_was_trained_with(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_bundle(resize=PILLOW_RULE)
    with open_session(path) as session:
        assert len(session.notes) == 1
        assert "Pillow's resize, of a version that it does not say" in session.notes[0]
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "red.png")
    result = CliRunner().invoke(mmdeploy, ["infer", str(path), str(tmp_path / "red.png"), "--format", "json"])
    assert result.exit_code == 0
    assert result.stderr.startswith("note: its network was trained with Pillow's resize")
    assert json.loads(result.stdout)["label"] == "red"


def test_doctor_compares_an_artefacts_probe(probed: Path, make_bundle: Callable[..., Path]) -> None:
    report = CliRunner().invoke(mmdeploy, ["doctor", str(probed), "--format", "json"])
    abilities = {item["name"]: item for item in json.loads(report.stdout)["abilities"]}
    assert abilities["prepare pictures as everywhere"]["works"]
    assert abilities["prepare pictures as its exporter"]["works"]
    assert "probe_1.png" in abilities["prepare pictures as its exporter"]["found"]


def test_doctor_says_where_there_is_no_probe_or_artefact(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(classifier().SerializeToString())
    cases = [(bundle, "carries no probe"), (tmp_path / "none", "none")]
    for path, said in (*cases, (tmp_path / "theirs", "has no manifest of msmamba's")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ability = next(item for item in doctor.examine(str(path)).abilities if "exporter" in item.name)
        assert not ability.works
        assert said in ability.found


def test_doctor_fails_where_the_artefact_cannot_be_opened(probed: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(mmdeploy, ["doctor", str(probed)]).exit_code == 0
    missing = CliRunner().invoke(mmdeploy, ["doctor", str(tmp_path / "none")])
    assert missing.exit_code == 1
    assert "prepare pictures as its exporter" in missing.stdout
    assert missing.stderr.startswith("error: ")
    assert "none' does not exist" in missing.stderr


def test_doctor_fails_where_pictures_become_others(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(probe={"probe_1.jpg": {"pixels": "0" * 64, "tensor": "0" * 64}})
    result = CliRunner().invoke(mmdeploy, ["doctor", str(bundle)])
    assert result.exit_code == 1
    name = "'prepare pictures as its exporter'"
    assert result.stdout.startswith(f"This machine may answer otherwise than was proven: see {name} below")
    assert re.fullmatch(
        r"error: answers may be others here than those that were proven: "
        r"prepare pictures as its exporter: no, "
        r"simplejpeg \S+ here decodes JPEG to other pixels than the machine that exported it: install .*\n",
        result.stderr,
    )
