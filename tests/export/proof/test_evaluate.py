"""`mmdeploy train` and `mmdeploy eval`: from folders to metrics, for checkpoints and artefacts alike."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from full_disk import no_file_larger_than
from PIL import Image

from msmamba.cli import mmdeploy
from msmamba.data.seen import Seen
from msmamba.errors import ArtefactError, DataError, InputError, TargetError
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.export.proof.evaluate import evaluate_model
from msmamba.export.proof.verify import verify
from msmamba.files import folder_turn
from msmamba.measures.selective import certainty
from msmamba.model.networks.checkpoint import load_checkpoint, save_checkpoint
from msmamba.model.networks.described import Described, notes_on
from msmamba.model.networks.microscopic_mamba import Architecture, MicroscopicMamba
from msmamba.plugins.selective_scan import cpu
from msmamba.runtime import open_session
from tests.export.proof.test_guarded import with_guard

LABELS = ("blue", "green", "red")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True, scope="module")
def threads_as_before() -> Iterator[None]:
    """Runs here limit the threads of the whole process; what follows gets them back."""
    before = torch.get_num_threads(), cpu.threads()
    yield
    torch.set_num_threads(before[0])
    cpu.set_threads(before[1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder: seven noise images of three classes, of odd sizes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(7):
        folder = root / LABELS[number % 3]
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (35 + number, 50 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with weights large enough that images differ in their logits."""
    torch.manual_seed(0)
    network = MicroscopicMamba(Architecture(depths=(1, 1), dims=(32, 64), num_classes=3)).eval()
    with torch.no_grad():
        network.head.weight.mul_(50)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, network, labels=LABELS, image_size=32, mean=MEAN, std=STD)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "small"
    export_bundle(checkpoint, path, ExportOptions())
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, [str(argument) for argument in arguments], prog_name="mmdeploy")


def test_a_checkpoint_is_evaluated_in_float32_and_not_in_tf32(checkpoint: Path, photos: Path) -> None:
    seen = set()
    before = torch.backends.cudnn.allow_tf32

    def note(module: torch.nn.Module, inputs: object) -> None:
        seen.add(torch.backends.cudnn.allow_tf32)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        evaluate_model(checkpoint, photos, threads=1)
    finally:
        hook.remove()
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_checkpoint_a_bundle_and_an_onnx_file_get_the_same_metrics(
    checkpoint: Path, bundle: Path, photos: Path
) -> None:
    first, *others = (
        evaluate_model(model, photos, threads=1) for model in (checkpoint, bundle, bundle / "model.onnx")
    )
    assert first.split == "all"
    assert first.metrics.images == 7
    assert len({row.predicted for row in first.metrics.classes}) > 1  # not one answer for all
    for other in others:
        assert other.metrics.confusion == first.metrics.confusion
        assert other.metrics.loss == pytest.approx(first.metrics.loss, rel=1e-3)
        assert other.ran_on != first.ran_on


def test_classes_are_matched_by_name_and_strangers_are_named(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "red", tmp_path / "fewer" / "red")
    fewer = evaluate_model(checkpoint, tmp_path / "fewer")
    assert [row.images for row in fewer.metrics.classes] == [0, 0, 2]
    assert re.search(r"^blue +0 +- +- +- +-$", fewer.to_text(), re.MULTILINE)  # and not 0.0000
    shutil.copytree(photos / "red", tmp_path / "strange" / "violet")
    with pytest.raises(
        DataError, match=r"1 classes are unknown to the model: violet \(it knows blue, green, red\)"
    ):
        evaluate_model(checkpoint, tmp_path / "strange")


def test_a_state_dict_without_labels_asks_for_them(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "published.pth"
    torch.save({"model": MicroscopicMamba.from_checkpoint(checkpoint).state_dict()}, weights)
    with pytest.raises(ArtefactError, match=r"class names \(--labels\) and its channels' mean and std"):
        evaluate_model(weights, photos)
    described = Described(labels=LABELS, mean=MEAN, std=STD, image_size=32)
    metrics = evaluate_model(weights, photos, described=described).metrics
    assert metrics == evaluate_model(checkpoint, photos).metrics
    assert not any(
        "size of its images" in note for note in evaluate_model(weights, photos, described=described).notes
    )
    with pytest.raises(ArtefactError, match=r"2 labels were given, but .* has 3 classes"):
        evaluate_model(weights, photos, described=Described(LABELS[:2], MEAN, STD, 32))


def test_a_size_that_nobody_says_is_told(checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "published.pth"
    torch.save({"model": MicroscopicMamba.from_checkpoint(checkpoint).state_dict()}, weights)
    (taken,) = (
        note
        for note in notes_on(load_checkpoint(weights), Described(LABELS, MEAN, STD))
        if "size of its images" in note
    )
    assert "224 pixels are taken" in taken
    assert "--image-size" in taken
    assert not any("size of" in note for note in notes_on(load_checkpoint(checkpoint), Described()))


@pytest.mark.parametrize(
    "described",
    [{"mean": ()}, {"mean": (0.5, 0.5)}, {"std": 0.5}, {"image_size": 0}, {"white_level": 0}],
    ids=str,
)
def test_what_cannot_be_said_of_a_checkpoint_is_refused(
    described: dict[str, Any], checkpoint: Path, photos: Path
) -> None:
    with pytest.raises(InputError, match="expected"):
        evaluate_model(checkpoint, photos, described=Described(**described))


def test_statistics_may_come_in_any_sequence(checkpoint: Path, photos: Path) -> None:
    found = evaluate_model(checkpoint, photos, described=Described(mean=np.array([0.5, 0.25, 0.5])))
    assert any(note.startswith("the channels' mean is (0.5, 0.25, 0.5), as asked") for note in found.notes)


def test_an_artefact_of_another_size_is_refused(bundle: Path, photos: Path) -> None:
    with pytest.raises(ArtefactError, match="takes 32x32 images, not 64: export it with --image-size 64"):
        evaluate_model(bundle, photos, described=Described(image_size=64))


@pytest.mark.parametrize(
    "option", [{"provider": "cpu"}, {"kernels": "functions"}, {"trust_engine_code": True}], ids=str
)
def test_what_is_for_artefacts_is_not_ignored_of_a_checkpoint(
    option: dict[str, str | bool], checkpoint: Path, photos: Path
) -> None:
    ((name, _),) = option.items()
    with pytest.raises(InputError, match=f"PyTorch runs: leave --{name.replace('_', '-')} out"):
        evaluate_model(checkpoint, photos, **option)


def test_progress_counts_every_image(checkpoint: Path, photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_model(checkpoint, photos, batch_size=3, advance=lambda done, images: seen.append((done, images)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_eval_prints_a_table_or_json_and_writes_its_report(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    table = command("eval", checkpoint, photos)
    assert table.exit_code == 0, table.output
    assert [line.split()[0] for line in table.stdout.splitlines()[3:7]] == [*LABELS, "weighted"]
    assert "overall accuracy" in table.stdout

    report = tmp_path / "deep" / "report"
    answer = command("eval", checkpoint, photos, "--format", "json", "-o", report)
    values = json.loads(answer.stdout)
    assert values["metrics"]["images"] == 7
    assert json.loads((report / "metrics.json").read_text())["metrics"] == values["metrics"]
    with Image.open(report / "confusion.png") as picture:
        assert min(picture.size) > 300

    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="cannot make the folder"):
        evaluate_model(checkpoint, photos).write(tmp_path / "file" / "report")


def test_what_certainty_is_worth_is_told_of_anything(
    checkpoint: Path, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    first, other = (evaluate_model(model, photos, threads=1) for model in (checkpoint, bundle))
    for each in (first, other):
        assert each.trust.guard is None
        assert "calibration error" in each.to_text()
        assert "area under risk and coverage" in each.to_text()
        assert "answered" not in each.to_text()
    assert other.trust.risk_coverage_area.value == pytest.approx(first.trust.risk_coverage_area.value)
    assert other.trust.risk_by_coverage[-1] == (1, pytest.approx(1 - other.metrics.accuracy))
    first.write(tmp_path)
    with Image.open(tmp_path / "risk.png") as picture:
        assert min(picture.size) > 300
    assert json.loads((tmp_path / "metrics.json").read_text())["trust"]["groups"] is None


def test_a_guards_decisions_are_counted_by_patient(bundle: Path, photos: Path, tmp_path: Path) -> None:
    patients = tmp_path / "patients"
    for path in photos.rglob("*.png"):
        (patients / path.parent.name / f"p{int(path.stem) // 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, patients / path.parent.name / f"p{int(path.stem) // 2}")
    with open_session(bundle) as session:
        images = [session.prepare(path)[0] for path in photos.rglob("*.png")]
        threshold = float(np.median(certainty(session.run(np.stack(images)))))
    guarded = with_guard(bundle, tmp_path / "guarded", threshold, temperature=2.0)
    answer = command("eval", guarded, patients, "--format", "json")
    values = json.loads(answer.stdout)
    trust, guard = values["trust"], values["guard"]
    assert (trust["images"], trust["groups"]) == (7, 4)
    assert (guard["temperature"], guard["max_error"]) == (2.0, 0.05)
    assert trust["guard"]["answered"] == 3  # of seven those above the median
    assert trust["guard"]["coverage"]["value"] == pytest.approx(trust["guard"]["answered"] / 7)
    table = command("eval", guarded, patients, "-o", tmp_path / "report").stdout
    assert "guard: at most 5 % of the answers wrong, with 95 % confidence" in table
    assert "(intervals of 95 %, by 4 groups)" in table
    assert (tmp_path / "report" / "risk.png").is_file()
    assert "guard: " not in command("eval", guarded, patients, "--no-guard").stdout
    plain = json.loads(command("eval", guarded, patients, "--no-guard", "--format=json").stdout)
    assert plain["trust"]["calibration_error"]["value"] != trust["calibration_error"]["value"]
    assert plain["metrics"] == values["metrics"]


def test_copies_count_once_for_intervals(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    once = evaluate_model(checkpoint, photos, threads=1).trust.calibration_error
    for path in photos.rglob("*.png"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        for number in range(4):
            shutil.copy(path, tmp_path / path.parent.name / f"{number}-{path.name}")
    trust = evaluate_model(checkpoint, tmp_path, threads=1).trust
    assert (trust.images, trust.groups) == (28, 7)
    assert trust.calibration_error.value == pytest.approx(once.value)
    assert trust.calibration_error.interval.width == pytest.approx(once.interval.width, rel=0.2)


def test_figures_on_what_training_saw_are_told_to_be_better(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MicroscopicMamba(Architecture(depths=(1, 1), dims=(32, 64), num_classes=3)).eval()
    seen = Seen.of(sorted(photos.rglob("*.png"))[:2], [])
    path = tmp_path / "seen.safetensors"
    save_checkpoint(path, network, labels=LABELS, image_size=32, mean=MEAN, std=STD, seen=seen)
    exported = export_bundle(path, tmp_path / "bundle", ExportOptions()).path
    for model in (path, exported):
        (note,) = (note for note in evaluate_model(model, photos).notes if "training saw" in note)
        assert note.startswith("training saw 2 of these 7 images (blue/0.png, ")
    for model in (exported, exported / "model.onnx"):
        (note,) = (note for note in verify(model, path, photos, limit=3).notes if "training saw" in note)
        assert re.match("training saw [12] of these 3 images .*: the figures are better than", note)


@pytest.mark.skipif(sys.platform == "win32", reason="no folder can be locked there")
def test_what_belongs_together_is_written_by_one_at_a_time(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    found, folder = evaluate_model(checkpoint, photos), tmp_path / "measured"
    found.write(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    writer = Thread(target=replace(found, split="other").write, args=(folder,))
    with folder_turn(folder):
        writer.start()
        writer.join(0.1)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    writer.join()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(after) == ["confusion.png", "metrics.json", "risk.png"]
    assert all(after[name] != before[name] for name in after)


def test_where_one_of_the_three_finds_no_room_all_stay_as_they_were(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    found, folder = evaluate_model(checkpoint, photos), tmp_path / "measured"
    found.write(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    room = len(before["metrics.json"]) + 100  # which no picture is as small as
    assert room < min(len(before["confusion.png"]), len(before["risk.png"]))
    with no_file_larger_than(room), pytest.raises(TargetError, match=r"confusion\.png"):
        replace(found, split="other").write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["absent", "{photos}"], "error: 'absent' does not exist", id="no-model"),
        pytest.param(["{checkpoint}", "absent"], "error: absent: does not exist", id="no-data"),
        pytest.param(
            ["{checkpoint}", "{photos}", "--split", "val"], "error: .* no 'val' folder", id="no-split"
        ),
    ],
)
def test_eval_fails_in_one_line(arguments: list[str], message: str, checkpoint: Path, photos: Path) -> None:
    answer = command(
        "eval", *(argument.format(checkpoint=checkpoint, photos=photos) for argument in arguments)
    )
    assert answer.exit_code == 1
    assert len(answer.stderr.splitlines()) == 1
    assert re.match(message, answer.stderr)


def test_train_then_eval_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        shutil.copytree(photos, data / split)
    for label in LABELS[1:]:  # two training images of each class are the least
        shutil.copy(next((photos / label).iterdir()), data / "train" / label / "again.png")
    run = tmp_path / "run"
    options = ["--epochs", 1, "--warm-up", 0, "--image-size", 32, "--crop-scale", 0.5, 1, "--horizontal-flip"]
    options += ["--keep-shape", "--rotation", 30, "--colour", 0.1, "--focus", 0.01]
    options += ["--label-smoothing", 0.2, "--average", 0.5]
    answer = command("train", data, "-o", run, "--threads", 1, *options)
    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert lines[0] == "train: 9 images (blue 3, green 3, red 3)"
    assert lines[-3].startswith("best epoch 1 of 1")
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["augmentation"] == {
        "crop_scale": [0.5, 1.0],
        "crop_ratio": [3 / 4, 4 / 3],
        "horizontal_flip": True,
        "vertical_flip": False,
        "keep_shape": True,
        "rotation": 30,
        "colour": 0.1,
        "focus": 0.01,
    }
    assert (config["recipe"]["label_smoothing"], config["recipe"]["average_epochs"]) == (0.2, 0.5)
    assert config["architecture"]["depths"] == [2, 2, 4, 2]

    # Resumed without its options: they are in the run.
    assert command("train", data, "-o", run, "--resume").exit_code == 0
    measured = (run / "metrics.json").read_bytes()
    refused = command("eval", run / "best.safetensors", data, "-o", run)
    assert refused.exit_code == 1
    assert "holds a run, whose metrics.json and confusion.png would be replaced" in refused.stderr
    assert (run / "metrics.json").read_bytes() == measured
    refused = command("train", data, "-o", run, "--resume", "--lr", 0.5)
    assert refused.exit_code == 1
    assert "--lr was 0.0001 and is 0.5" in refused.stderr
    again = command("train", data, "-o", run)
    assert again.exit_code == 1
    assert "holds a run already" in again.stderr

    measured = json.loads(command("eval", run / "best.safetensors", data, "--format", "json").stdout)
    trained = json.loads((run / "metrics.json").read_text())["test"]
    assert measured["metrics"]["confusion"] == trained["confusion"]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        pytest.param(["--epochs", "5"], 1, "--warm-up is 10, which leaves none of 5 epochs", id="warm-up"),
        pytest.param(["--crop-scale", "1", "0"], 1, r"--crop-scale is 1\.0 to 0\.0", id="crops"),
        pytest.param(["--group-by", "("], 1, "is no regular expression", id="pattern"),
        pytest.param(["--amp"], 1, "mixed precision needs CUDA", id="amp"),
        pytest.param(["--network", "huge"], 1, "there is no network 'huge'", id="network"),
    ],
)
def test_train_refuses_before_it_writes(
    options: list[str], status: int, message: str, photos: Path, tmp_path: Path
) -> None:
    answer = command("train", photos, "-o", tmp_path / "run", *options)
    assert answer.exit_code == status
    assert re.search(message, answer.stderr)
    assert not (tmp_path / "run").exists()
