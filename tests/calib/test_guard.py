"""A guard fitted on images and put into a bundle: what it says, what it refuses, and that all else stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from full_disk import no_file_larger_than
from PIL import Image

import msmamba
from msmamba.calib import guard as module
from msmamba.calib.guard import _copy, fit_guard
from msmamba.calib.guard import calibrate as calibrate_bundle
from msmamba.cli import mmdeploy
from msmamba.data.seen import Seen
from msmamba.errors import ArtefactError, DataError, InputError, TargetError
from msmamba.files import atomic_folder, folder_turn, sha256_of
from msmamba.runtime.artefact import open_bundle
from msmamba.runtime.guard import Guard, network_sha256
from msmamba.runtime.likeness import METADATA_KEY, Likeness
from msmamba.runtime.manifest import Manifest
from msmamba.runtime.quality import Quality, quality_of
from tests.runtime.conftest import LABELS, SIZE, classifier, manifest
from tests.runtime.test_quality import field

IMAGES = 60


def write_images(root: Path, images: int = IMAGES, labels: tuple[str, ...] = LABELS) -> Path:
    """Images whose colour is their class's by much or by little; every tenth of little is another class's."""
    generator = np.random.default_rng(0)
    for index, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for number in range(images):
            lift = 10 + 2 * number
            channel = index if number >= images // 6 or number % 2 else (index + 1) % 3
            pixels = generator.integers(90, 110, (SIZE, SIZE, 3))
            pixels[..., 2 - channel] += min(lift, 140)
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures") / "cells")


def write_bundle(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    folder.mkdir()
    model = model or classifier(metadata={**manifest().to_metadata(), "other": "kept"})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "notes.txt").write_text("of the user")
    files = {"model.onnx": sha256_of(folder / "model.onnx")}
    (folder / "manifest.json").write_text(manifest(files=files).to_json())
    return folder


@pytest.fixture(scope="module")
def guarded(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a guard; not to be changed."""
    bundle = write_bundle(tmp_path_factory.mktemp("guarded") / "bundle")
    assert calibrate(bundle, pictures).exit_code == 0
    return bundle


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, ["calibrate", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.is_fifo()}


def test_the_figures_are_told(pictures: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    measured = CliRunner().invoke(mmdeploy, ["eval", str(bundle), str(pictures), "--format", "json"])
    result = calibrate(bundle, pictures, "--format", "json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    guard = told["guard"]
    assert guard["images"] == 3 * IMAGES
    assert 0 < guard["answered"] < guard["images"]
    errors = told["errors"]
    assert errors["before"] == pytest.approx(
        json.loads(measured.stdout)["trust"]["calibration_error"]["value"]
    )
    assert errors["after"] < errors["before"]
    assert errors["after_interval"]["low"] <= errors["after"] <= errors["after_interval"]["high"]
    assert set(told["errors_by_class"]) == set(LABELS)
    assert sum(each["images"] for each in told["errors_by_class"].values()) == 3 * IMAGES
    assert guard["temperature"] < 1


def test_the_table_says_the_promise(pictures: Path, tmp_path: Path) -> None:
    result = calibrate(write_bundle(tmp_path / "bundle"), pictures, "--max-error", "0.1")
    assert "at most 10 % of the answers wrong, with 95 % confidence" in result.stdout
    assert "  green (" in result.stdout


def test_the_page_shows_what_is_withheld(pictures: Path, tmp_path: Path) -> None:
    page = tmp_path / "guard.html"
    result = calibrate(
        write_bundle(tmp_path / "<bundle>"), pictures, "--report", page, "--format", "json", "--max-error=5%"
    )
    told, text = json.loads(result.stdout), page.read_text()
    count = told["withheld"]["uncertain"]
    assert f"uncertain ({count})" in text
    assert text.count("data:image/png;base64,") == count
    assert text.count("data:image/svg+xml;base64,") == 2
    assert f"answers {told['guard']['answered']} of these 180 images" in text
    assert "&lt;bundle&gt;" in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_page_that_cannot_be_written_leaves_the_bundle(pictures: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    before = contents(bundle)
    result = calibrate(bundle, pictures, "--report", tmp_path / "missing" / "guard.html")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    result = calibrate(bundle, pictures, "--report", bundle / "guard.html")  # a bundle is replaced as a whole
    assert (result.exit_code, "would go with the old" in result.stderr) == (1, True)
    assert contents(bundle) == before


def in_splits(pictures: Path, data: Path) -> Path:
    """The pictures as ``{train,val,test}/<class>/*``, a third of each class in each."""
    for label in LABELS:
        for path in (pictures / label).iterdir():
            split = ("train", "val", "test")[int(path.stem) % 3]
            (data / split / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, data / split / label)
    return data


def test_images_that_training_saw_are_refused(pictures: Path, tmp_path: Path) -> None:
    data, bundle = in_splits(pictures, tmp_path / "data"), write_bundle(tmp_path / "bundle")
    known = [*(data / "train").rglob("*.png")]
    add_seen(bundle, Seen.of(known, (data / "val").rglob("*.png")))
    before = contents(bundle)
    refused = calibrate(bundle, pictures)
    assert refused.exit_code == 1
    assert f"training saw {len(known)} of these {3 * IMAGES} images (blue/0.png, " in refused.stderr
    assert "give images that it did not see" in refused.stderr
    assert contents(bundle) == before
    chosen = calibrate(bundle, data, "--max-error=20%")
    assert f"{IMAGES} of the {IMAGES} images chose the training's epoch" in chosen.stderr
    unseen = calibrate(bundle, data, "--max-error=20%", "--split=test")
    assert (chosen.exit_code, unseen.exit_code) == (0, 0)
    assert "the 'test' images fit the guard from now on" in unseen.stderr
    assert "chose" not in unseen.stderr
    assert open_bundle(bundle).seen is not None


def test_where_nobody_knows_what_training_saw_it_is_said(pictures: Path, tmp_path: Path) -> None:
    data, bundle = in_splits(pictures, tmp_path / "data"), write_bundle(tmp_path / "bundle")
    int8 = [sha256_of(path) for path in sorted((data / "val").rglob("*.png"))[:2]]
    add_file(bundle, "calibration.json", {"files": {"a": int8[0]}, "judged": {"b": int8[1]}})
    told = calibrate(bundle, data, "--max-error=20%").stderr
    assert f"int8 was calibrated or judged on 2 of these {IMAGES} images (val/blue/" in told
    assert "does not say which images training saw" in told
    assert "the 'val' images chose the training's epoch" in told


def add_seen(bundle: Path, seen: Seen) -> None:
    add_file(bundle, "seen.json", seen.to_dict())


def add_file(bundle: Path, name: str, values: Mapping[str, Any]) -> None:
    (bundle / name).write_text(json.dumps(values))
    sealed = open_bundle(bundle).manifest
    files = {**sealed.files, name: sha256_of(bundle / name)}
    (bundle / "manifest.json").write_text(replace(sealed, files=files).to_json())


def test_the_bundle_is_sealed_again_and_nothing_else_changed(guarded: Path, tmp_path: Path) -> None:
    before = write_bundle(tmp_path / "before")
    bundle = open_bundle(guarded)
    model = onnx.load_model_from_string(bundle.read("model.onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert Manifest.from_metadata(metadata).guard == bundle.manifest.guard
    assert metadata["other"] == "kept"
    original = onnx.load(before / "model.onnx")
    for each in (model, original):
        del each.metadata_props[:]
    assert model == original
    assert (guarded / "notes.txt").read_text() == "of the user"
    assert set(contents(guarded)) == {*contents(before), "scores.json", "calibrated.json"}


def test_figures_of_a_guard_on_the_images_that_fitted_it_are_told_to_be_better(
    pictures: Path, tmp_path: Path
) -> None:
    data, bundle = in_splits(pictures, tmp_path / "data"), write_bundle(tmp_path / "bundle")
    add_seen(bundle, Seen.of((data / "train").rglob("*.png"), (data / "val").rglob("*.png")))
    assert calibrate(bundle, data, "--max-error=20%", "--split=test").exit_code == 0

    def told(*arguments: object) -> list[str]:
        answer = CliRunner().invoke(mmdeploy, ["eval", str(bundle), str(data), *map(str, arguments)])
        assert answer.exit_code == 0, answer.stderr
        return [line for line in answer.stderr.splitlines() if "of these" in line]

    (note,) = told("--split=test")
    assert f"the guard was fitted on {IMAGES} of these {IMAGES} images (test/blue/" in note
    assert note.endswith("what is told of its answers is better than it is on others")
    assert told("--split=test", "--no-guard") == []
    (note,) = told("--split=val")
    assert "chose the epoch" in note

    content = (bundle / "calibrated.json").read_text()
    (bundle / "calibrated.json").write_text(content.replace("images", "pictures"))
    changed = CliRunner().invoke(mmdeploy, ["eval", str(bundle), str(data)])
    assert changed.exit_code == 1
    assert "was changed after export" in changed.stderr


def test_pictures_outside_of_what_was_calibrated_are_withheld(
    guarded: Path, pictures: Path, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(pictures / "red" / "59.png"))
    with msmamba.open(guarded) as session:
        good, dark = session.classify([pixels, pixels // 3])
    assert (good.decided, dark.decided) == (True, False)
    assert "too dark" in dark.reasons
    result = CliRunner().invoke(mmdeploy, ["infer", str(guarded), str(save(tmp_path / "a.png", pixels // 3))])
    assert f"undecided ({', '.join(dark.reasons)}): red" in result.stdout


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_the_promise_is_of_the_images_that_no_other_gate_withholds() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=1000)
    logits = generator.normal(size=(1000, 3))
    logits[np.arange(1000), truth] += 3
    # The two darkest pictures are answered best of all; 1 in 400 is let fall below each limit.
    logits[:2] = 20 * np.eye(3)[truth[:2]]
    logits -= logits[:, :1]  # as of a network that gives one class 0, whatever it sees
    good = Quality(0.6, 0.9, 0.7, 0.0, 0.0, 0.1, (0.9, 0.9, 0.9))
    qualities = [replace(good, brightest=0.9 + generator.random() / 20) for _ in truth]
    qualities[:2] = [replace(good, brightest=0.2), replace(good, brightest=0.3)]
    guard, verdicts, _ = fit_guard(logits, None, qualities, truth, 0.05, 0.95, "ab" * 32, "these")
    decided = np.array([not each.reasons for each in verdicts])
    assert verdicts[0].reasons == ("too dark",)
    assert (guard.images, guard.answered) == (1000, decided.sum())
    assert guard.errors == (logits.argmax(axis=1) != truth)[decided].sum() > 0


def test_how_many_would_do_is_told_of_more_patients_or_of_more_images_of_one() -> None:
    good = Quality(0.6, 0.9, 0.7, 0.0, 0.0, 0.1, (0.9, 0.9, 0.9))
    truth = np.arange(40) % 2
    logits = 9 * np.eye(2)[truth] + np.random.default_rng(0).normal(size=(40, 2))
    logits[3] *= -1
    for members, more in (
        (np.arange(40) % 4, "images of as many more such patients"),
        (truth * 0, "such images"),
    ):
        with pytest.raises(DataError, match=rf"about \d+ {more} would: add some"):
            fit_guard(logits, None, [good] * 40, truth, 0.05, 0.95, "ab" * 32, "these", members=members)


@pytest.mark.parametrize("side", [120, 360])
def test_a_blur_is_withheld_whatever_a_cameras_noise(side: int) -> None:
    """Noise is detail to `focus`, so that a blurred picture is as sharp as the calibration's."""
    generator = np.random.default_rng(0)

    def pictures(blur: float, seeds: range) -> list[Quality]:
        fields = (field(side, side, 0.4, blur, seed).astype(float) for seed in seeds)
        noise = (each + generator.normal(0, 2, each.shape) for each in fields)
        return [quality_of(each.clip(0, 255).astype(np.uint8)) for each in noise]

    truth = np.arange(120) % 3
    logits = 9 * np.eye(3)[truth] + generator.normal(size=(120, 3))
    guard, verdicts, _ = fit_guard(
        logits, None, pictures(0.7, range(120)), truth, 0.05, 0.95, "ab" * 32, "these"
    )
    assert sum("out of focus" in each.reasons for each in verdicts) <= 2
    others = [guard.faults(each) for each in pictures(0.7, range(120, 140))]
    assert sum("out of focus" in each for each in others) <= 1
    blurred = pictures(6, range(120, 140))
    assert all("out of focus" in guard.faults(each) for each in blurred)
    # A guard from before the coarse focus means what it meant.
    before = {name: limits for name, limits in guard.quality.items() if name != "coarse_focus"}
    assert not any("out of focus" in replace(guard, quality=before).faults(each) for each in blurred)


def test_fitting_again_gives_the_same_bundle(guarded: Path, pictures: Path, tmp_path: Path) -> None:
    again = shutil.copytree(guarded, tmp_path / "again")
    assert calibrate(again, pictures).exit_code == 0
    assert contents(again) == contents(guarded)


def test_a_model_of_small_batches_is_calibrated_too(guarded: Path, pictures: Path, tmp_path: Path) -> None:
    model = classifier(batch=1, metadata=manifest().to_metadata())
    bundle = write_bundle(tmp_path / "bundle", model)
    assert calibrate(bundle, pictures).exit_code == 0
    found, expected = (open_bundle(folder).manifest.guard for folder in (bundle, guarded))
    assert found["answered"] == expected["answered"]


def test_a_proof_that_comes_while_a_bundle_is_calibrated_is_kept(pictures: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")

    def verify(done: int, images: int) -> None:
        if done == images:
            (bundle / "parity.json").write_text("{}")
            before = open_bundle(bundle).manifest
            files = {**before.files, "parity.json": sha256_of(bundle / "parity.json")}
            proven = replace(before, files=files, precision_proven={"parity": {"passed": True}})
            (bundle / "manifest.json").write_text(proven.to_json())

    calibrate_bundle(bundle, pictures, advance=verify)
    found = open_bundle(bundle)
    assert found.manifest.precision_proven == {"parity": {"passed": True}}
    assert found.manifest.guard
    assert found.read("parity.json") == b"{}"


@pytest.mark.parametrize("words", [(), ("--max-error", "40%")], ids=["the same", "another"])
def test_what_a_proof_says_of_another_guard_goes_with_it(
    words: tuple[str, ...], guarded: Path, pictures: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(guarded, tmp_path / "bundle"))
    proof = {"passed": True, "images": 9, "guard": {"differing": 1}}
    (bundle / "parity.json").write_text(json.dumps(proof))
    before = open_bundle(bundle).manifest
    files = {**before.files, "parity.json": sha256_of(bundle / "parity.json")}
    said = {"passed": True, "images": 9, "guard_decides_otherwise": 1}
    proven = replace(before, files=files, precision_proven={"parity": said})
    (bundle / "manifest.json").write_text(proven.to_json())

    result = calibrate(bundle, pictures, *words)
    assert result.exit_code == 0, result.stderr
    found = open_bundle(bundle)
    is_other = found.manifest.guard != before.guard
    assert is_other == bool(words)
    assert ("'mmdeploy verify' proves this one" in result.output) == is_other
    assert json.loads(found.read("parity.json")) == {**proof, "guard": None if is_other else proof["guard"]}
    assert ("guard_decides_otherwise" in found.manifest.precision_proven["parity"]) != is_other


@pytest.mark.skipif(os.name == "nt", reason="a folder that is locked keeps its place there")
def test_who_changes_a_bundle_waits_until_its_guard_is_in_place(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, found, write = write_bundle(tmp_path / "bundle"), [], module._write

    def verify() -> None:
        with folder_turn(bundle):
            found.append(open_bundle(bundle).manifest.guard)

    other = Thread(target=verify)

    def written_beside(*arguments: Any) -> None:
        other.start()
        other.join(0.1)
        write(*arguments)

    monkeypatch.setattr(module, "_write", written_beside)
    calibrate_bundle(bundle, pictures)
    other.join()
    assert found == [open_bundle(bundle).manifest.guard]
    assert found[0]


def test_a_model_that_was_replaced_while_it_was_calibrated_gets_no_guard(
    pictures: Path, tmp_path: Path
) -> None:
    bundle, other = write_bundle(tmp_path / "bundle"), classifier(features=True)
    other.metadata_props.add(key="msmamba.manifest", value=manifest().to_metadata()["msmamba.manifest"])

    def export(done: int, images: int) -> None:
        if done == images:
            shutil.rmtree(bundle)
            write_bundle(bundle, other)

    with pytest.raises(ArtefactError, match="was changed while it was calibrated"):
        calibrate_bundle(bundle, pictures, advance=export)
    assert not open_bundle(bundle).manifest.guard


def test_uncertain_images_are_not_decided(guarded: Path, pictures: Path) -> None:
    sources = [pictures / "red" / "59.png", pictures / "red" / "0.png"]
    for artefact in (guarded, guarded / "model.onnx"):
        with msmamba.open(artefact) as session:
            certain, uncertain = session.classify(sources)
        assert (certain.decided, certain.reasons, certain.candidates) == (True, (), ("red",))
        assert (uncertain.decided, uncertain.reasons) == (False, ("uncertain",))
        assert uncertain.candidates[0] == uncertain.label
    with msmamba.open(guarded, guard=False) as session:
        plain = session.classify(sources)
    assert [(each.decided, each.candidates) for each in plain] == [(True, ())] * 2
    assert plain[0].probability < certain.probability
    assert [each.label for each in plain] == [certain.label, uncertain.label]


def test_infer_shows_it_in_every_format(guarded: Path, pictures: Path) -> None:
    def rows(*options: str) -> list[str]:
        arguments = ["infer", str(guarded), *(str(pictures / "red" / name) for name in ("0.png", "59.png"))]
        return CliRunner().invoke(mmdeploy, [*arguments, *options]).stdout.splitlines()

    _, uncertain, certain = rows()
    assert "undecided (uncertain): " in uncertain
    assert "undecided" not in certain
    first, second = map(json.loads, rows("--format", "json"))
    assert (first["decided"], first["reasons"]) == (False, ["uncertain"])
    assert (second["decided"], second["reasons"], second["candidates"]) == (True, [], ["red"])
    header, *lines = rows("--format", "csv")
    assert header == "image,label,probability,decided,reasons,candidates,notes,error"
    assert [line.split(",")[3] for line in lines] == ["no", "yes"]
    assert "undecided" not in "".join(rows("--no-guard"))
    assert rows("--no-guard", "--format", "csv")[0] == "image,label,probability,notes,error"


def test_a_guard_of_another_model_is_refused(guarded: Path, tmp_path: Path) -> None:
    other = classifier(metadata=manifest(guard=open_bundle(guarded).manifest.guard).to_metadata())
    other.graph.initializer[1].raw_data = other.graph.initializer[1].raw_data[::-1]
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    with pytest.raises(ArtefactError, match="was fitted on another model"):
        msmamba.open(tmp_path / "other.onnx")
    msmamba.open(tmp_path / "other.onnx", guard=False).close()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"temperature": 0}, id="temperature"),
        pytest.param({"threshold": "high"}, id="threshold"),
        pytest.param({"candidate_bound": 2}, id="candidates"),
        pytest.param({"network_sha256": "ab"}, id="hash"),
    ],
)
def test_a_damaged_guard_is_named(guarded: Path, change: dict[str, object]) -> None:
    guard = open_bundle(guarded).manifest.guard
    with pytest.raises(ArtefactError, match="'guard' is"):
        manifest(guard={**guard, **change})


def test_a_guard_without_a_threshold_decides_all() -> None:
    guard = Guard("ab" * 32, 0.05, 0.95, 1.0, None, 1.0, 100, 100, 0)
    logits = np.array([[0.0, 0.1, 0.2]])
    assert guard.decided(logits).all()
    assert guard.candidates(logits) == [(2, 1, 0)]


def test_copies_promise_nothing(pictures: Path, tmp_path: Path) -> None:
    """Thirty images cannot promise 5 % (below), nor can thirty of which each is there six times."""
    data, bundle = shutil.copytree(pictures, tmp_path / "data"), write_bundle(tmp_path / "bundle")
    for path in data.glob("*/*.png"):
        if int(path.stem) < 50:
            path.write_bytes((path.parent / f"{50 + int(path.stem) % 10}.png").read_bytes())
    result = calibrate(bundle, data)
    assert result.exit_code == 1
    assert "30 images cannot promise an error of at most 5 %" in result.stderr

    some = shutil.copytree(pictures, tmp_path / "some")
    shutil.copy(some / "red" / "1.png", some / "red" / "copy.png")
    shutil.copy(some / "red" / "1.png", some / "green" / "copy.png")
    for place, path in enumerate(sorted(some.glob("*/*.png"))):  # of five patients
        patient = path.parent / ("p4" if path.parent.name == "red" else f"p{place % 4}")
        patient.mkdir(exist_ok=True)
        path.rename(patient / path.name)
    by_image = calibrate(bundle, pictures, "--format", "json")
    result = calibrate(bundle, some, "--format", "json", "--report", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["groups"] == 5
    assert told["guard"]["answered"] < json.loads(by_image.stdout)["guard"]["answered"]
    assert told["wrong_interval"]["high"] > json.loads(by_image.stdout)["wrong_interval"]["high"]
    # All that are given red are of one patient, but for a copy: by image it would end at 0.12.
    assert told["errors_by_class"]["red"]["after_interval"]["high"] > 0.3
    assert "the promise allows for patients who differ in how often the model is wrong" in result.stderr
    assert "These are of 5 patients, slides or the like" in (tmp_path / "page.html").read_text()
    assert told["guard"]["images"] == 3 * IMAGES + 1  # with the one that was given two classes
    assert "1 of 182 images are copies of others and count once" in result.stderr
    assert any("copies" in note for note in told["notes"])


def _few(data: Path) -> None:
    for path in data.glob("*/*.png"):
        if int(path.stem) < 50:
            path.unlink()


def _class_away(data: Path) -> None:
    shutil.rmtree(data / "red")


def _classes_away(data: Path) -> None:
    for label in ("red", "green"):
        shutil.rmtree(data / label)


def _unknown_class(data: Path) -> None:
    (data / "red").rename(data / "purple")


def _alike(data: Path) -> None:
    content = (data / "red" / "1.png").read_bytes()
    for path in data.glob("*/*.png"):
        path.write_bytes(content)


def _unlabelled(data: Path) -> None:
    for path in data.glob("*/*.png"):
        path.rename(data / f"{path.parent.name}{path.name}")
    for folder in data.glob("*/"):
        folder.rmdir()


def _mostly_wrong(data: Path) -> None:
    for one, other in (("red", "spare"), ("green", "red"), ("spare", "green")):
        (data / one).rename(data / other)


def _broken_image(data: Path) -> None:
    (data / "red" / "7.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            _few, "30 images cannot promise an error of at most 5 % at 95 % confidence", id="too-few"
        ),
        pytest.param(_few, "such images would: add some", id="how-many"),
        pytest.param(_class_away, "there are none of 'red'", id="class-missing"),
        pytest.param(_classes_away, "there are none of 'green', 'red'", id="one-class"),
        pytest.param(_unknown_class, "1 classes are unknown to the model: purple", id="unknown-class"),
        pytest.param(_alike, "all 3 images have the same logits", id="all-alike"),
        pytest.param(_unlabelled, "data: ", id="unlabelled"),
        pytest.param(
            _mostly_wrong,
            "no number would, as the most certain answers are wrong too often",
            id="wrong-labels",
        ),
        pytest.param(_broken_image, "7.png", id="broken-image"),
    ],
)
def test_images_that_do_not_do_are_one_line_and_leave_the_bundle(
    spoil: Callable[[Path], None], said: str, pictures: Path, tmp_path: Path
) -> None:
    data, bundle = shutil.copytree(pictures, tmp_path / "data"), write_bundle(tmp_path / "bundle")
    before = contents(bundle)
    spoil(data)
    result = calibrate(bundle, data)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents(bundle) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "data"]


def _changed_file(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\x08\x01")


def _pipe(bundle: Path) -> None:
    os.mkfifo(bundle / "extra")


def _nan(bundle: Path) -> None:
    shutil.rmtree(bundle)
    model = classifier(metadata=manifest().to_metadata())
    model.graph.initializer[1].raw_data = np.full((3, 3), np.nan, np.float32).tobytes()
    write_bundle(bundle, model)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(_changed_file, "was changed after export", id="hash"),
        pytest.param(_nan, "logits of 180 of 180 images are not finite", id="nan"),
        pytest.param(_pipe, "cannot be copied (extra:", id="pipe"),
    ],
)
def test_bundles_that_do_not_do_are_one_line(
    spoil: Callable[[Path], None], said: str, pictures: Path, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    spoil(bundle)
    before = contents(bundle)
    result = calibrate(bundle, pictures)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents(bundle) == before


def test_a_bundle_is_calibrated_where_rights_and_times_cannot_be_set(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    bundle = write_bundle(tmp_path / "bundle")
    for name in ("chmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    assert calibrate(bundle, pictures).exit_code == 0
    assert (bundle / "scores.json").exists()


def test_a_bundle_that_finds_no_room_for_its_copy_is_told_of_the_disk(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    with (
        no_file_larger_than(100),
        pytest.raises(TargetError, match="the file system or a limit"),
        atomic_folder(tmp_path / "copy") as folder,
    ):
        _copy(bundle, folder)


def test_a_bundle_that_cannot_be_written_is_known_before_any_work(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(bundle))

    monkeypatch.setattr(Path, "mkdir", refuse)  # as a folder that is read-only does, to all but root
    result = calibrate(bundle, pictures)
    assert result.exit_code == 1
    assert "permission denied" in result.stderr


def test_without_scipy_it_is_said_how_to_get_it(
    guarded: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    result = calibrate(guarded, pictures)
    assert result.exit_code == 1
    assert "pip install 'msmamba[calibrate]'" in result.stderr


def test_a_bare_file_is_no_bundle(guarded: Path, pictures: Path) -> None:
    result = calibrate(guarded / "model.onnx", pictures)
    assert "is an ONNX file: a guard is put into a bundle" in result.stderr


@pytest.mark.parametrize("share", ["0", "100%", "5", "many", "-1%", "nan"])
def test_what_is_no_share_is_wrong_usage(share: str, pictures: Path, guarded: Path) -> None:
    result = calibrate(guarded, pictures, f"--max-error={share}")
    assert result.exit_code == 2
    assert "is no share" in result.stderr


def test_images_unlike_those_of_calibration_are_withheld(pictures: Path, tmp_path: Path) -> None:
    model = classifier(metadata=manifest().to_metadata(), features=True)
    bundle = write_bundle(tmp_path / "bundle", model)
    assert calibrate(bundle, pictures).exit_code == 0
    red = np.asarray(Image.open(pictures / "red" / "40.png"))
    yellow = np.maximum(red, red[..., [1, 0, 2]])
    for artefact in (bundle, bundle / "model.onnx"):
        with msmamba.open(artefact) as session:
            guard = session.guard
            assert guard is not None
            assert guard.unlike_from is not None
            known, unknown = session.classify([red, yellow])
            logits, features = session.run_with_features(session.prepare(yellow)[0][None])
            with pytest.raises(InputError, match="compares features, too"):
                session.predictions(logits, qualities=[quality_of(yellow)])
            for wrong in (np.zeros((2, 3)), np.zeros((1, 2))):
                with pytest.raises(InputError, match=r"the features are of shape .*: expected \(1, 3\)"):
                    session.predictions(logits, qualities=[quality_of(yellow)], features=wrong)
        assert (known.decided, known.reasons) == (True, ())
        assert "unlike the training images" in unknown.reasons
        distances = guard.distances(features)
        assert distances is not None
        assert distances[0] > guard.unlike_from
    assert METADATA_KEY not in (bundle / "manifest.json").read_text()
    facts = {**open_bundle(bundle).manifest.guard, "unlike_from": None}
    assert Guard.of(facts).judge(logits, None, distances)[0].reasons == ()  # type: ignore[union-attr]  # it is one


def test_a_guard_that_compares_other_features_is_refused(pictures: Path, tmp_path: Path) -> None:
    model = classifier(metadata=manifest().to_metadata(), features=True)
    bundle = write_bundle(tmp_path / "bundle", model)
    assert calibrate(bundle, pictures).exit_code == 0
    model = onnx.load(bundle / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            likeness = Likeness.from_text(entry.value, "the bundle")
            fewer = replace(likeness, means=likeness.means[:, :2], directions=likeness.directions[:, :2])
            entry.value = fewer.to_text()
    onnx.save(model, bundle / "model.onnx")
    with pytest.raises(ArtefactError, match="compares 2 features, and an image has 3: fit it again"):
        msmamba.open(bundle / "model.onnx")


def test_a_bundle_without_features_is_told_so(pictures: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    result = calibrate(bundle, pictures)
    assert "note: the bundle tells no features (it is of an earlier version)" in result.stderr
    assert open_bundle(bundle).manifest.guard["unlike_from"] is None


def test_a_guard_that_needs_features_does_not_open_with_what_gives_none(
    pictures: Path, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "b", classifier(metadata=manifest().to_metadata(), features=True))
    assert calibrate(bundle, pictures).exit_code == 0
    older = classifier()
    facts = {
        **open_bundle(bundle).manifest.guard,
        "network_sha256": network_sha256(older.SerializeToString()),
    }
    entries = {entry.key: entry.value for entry in onnx.load(bundle / "model.onnx").metadata_props}
    held = {**manifest(guard=facts).to_metadata(), METADATA_KEY: entries[METADATA_KEY]}
    (tmp_path / "older.onnx").write_bytes(classifier(metadata=held).SerializeToString())
    with pytest.raises(ArtefactError, match=r"compares features, and .* gives none"):
        msmamba.open(tmp_path / "older.onnx")
    (tmp_path / "cut.onnx").write_bytes(
        classifier(metadata={**held, METADATA_KEY: held[METADATA_KEY][:-9]}).SerializeToString()
    )
    with pytest.raises(ArtefactError, match="compares images with is damaged"):
        msmamba.open(tmp_path / "cut.onnx")
