"""Has the microscope changed: said where it has, not where it has not, nor of frames that are alike."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageFilter

import msmamba
from msmamba.calib.drift import (
    LEAST_D,
    LEVEL,
    Drift,
    ScoreDrift,
    chance,
    design_effect,
    drift_of,
    holm,
    independent,
    ks_distance,
    parted,
)
from msmamba.cli import mmdeploy
from msmamba.errors import InputError
from msmamba.runtime.drift import (
    SCORES,
    UNLIKENESS,
    CalibratedScores,
    drift_log,
    picture_scores,
    read_drift,
)
from tests.calib.test_guard import write_bundle
from tests.runtime.conftest import LABELS, SIZE, classifier, manifest
from tests.runtime.test_drift import add_scores
from tests.runtime.test_quality import field


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, [str(argument) for argument in arguments])


def write_pictures(root: Path, seed: int, images: int = 40) -> Path:
    """Spots in the colour of their class on a bright background, sharp, by an even lamp."""
    generator = np.random.default_rng(seed)
    side = 12 * SIZE
    rows, columns = np.mgrid[:side, :side]
    for index, label in enumerate(LABELS):
        (root / label).mkdir(parents=True)
        for number in range(images):
            pixels = np.full((side, side, 3), 225.0) * generator.normal(1, 0.01)
            for _ in range(24):
                y, x = generator.integers(6, side - 6, 2)
                spot = (rows - y) ** 2 + (columns - x) ** 2 < generator.integers(12, 40)
                stain = generator.uniform(0.3, 0.6, 3)
                stain[2 - index] = 0.9
                pixels[spot] *= stain
            pixels += generator.normal(0, 4, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("drift") / "pictures", seed=0)


@pytest.fixture(scope="module")
def bundle(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was calibrated on the pictures."""
    bundle = write_bundle(tmp_path_factory.mktemp("drift") / "bundle")
    done = command("calibrate", bundle, pictures, "--max-error", "10%")
    assert done.exit_code == 0, done.stderr
    return bundle


def logged(bundle: Path, pictures: Path, log: Path) -> Path:
    assert command("infer", bundle, pictures, "--format=csv", "--drift", log).exit_code == 0
    return log


def test_the_calibrations_own_images_are_no_change(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    result = command("drift", logged(bundle, pictures, tmp_path / "log.jsonl"))
    assert result.exit_code == 0
    assert "unchanged: no change of the microscope shows" in result.stdout
    found = drift_of(tmp_path / "log.jsonl")
    assert (found.pictures, found.calibrated) == (120, 120)
    assert max(score.distance for score in found.scores) < 0.02
    assert {score.name for score in found.scores} == {*SCORES} - {UNLIKENESS}  # the network tells no features


def test_pictures_that_are_logged_again_count_once(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    log = logged(bundle, pictures / "red", tmp_path / "log.jsonl")
    once = drift_of(log)
    logged(bundle, pictures, log)
    result = command("drift", log)
    assert "pictures that another run had logged already, which count once: 40\n" in result.stderr
    assert drift_of(log).scores == drift_of(logged(bundle, pictures, tmp_path / "whole.jsonl")).scores
    assert once.pictures == 40


def test_copies_in_one_run_and_pictures_of_nothing_count_each(
    bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    one, log = pictures / "red" / "0.png", tmp_path / "log.jsonl"
    for copies in (3, 2):
        for number in range(copies):
            shutil.copy(one, tmp_path / f"{number}.png")
        logged(bundle, tmp_path / "*.png", log)
        (tmp_path / "2.png").unlink(missing_ok=True)
    assert drift_of(log).pictures == 3
    for _ in range(2):
        Image.new("RGB", (SIZE, SIZE), "black").save(tmp_path / "black.bmp")
        logged(bundle, tmp_path / "black.bmp", log)
    assert drift_of(log).pictures == 5
    assert any("count once: 2" in note for note in drift_of(log).notes)


def test_other_images_of_the_same_kind_are_no_change(bundle: Path, tmp_path: Path) -> None:
    others = write_pictures(tmp_path / "others", seed=1, images=30)
    assert drift_of(logged(bundle, others, tmp_path / "log.jsonl")).verdict == "unchanged"


def _darker(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 0.85 * value)


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.5))


def _shifted(image: Image.Image) -> Image.Image:
    hue, *others = image.convert("HSV").split()
    return Image.merge("HSV", [hue.point(lambda value: (value + 20) % 256), *others]).convert("RGB")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(_darker, "darker", id="darker"),
        pytest.param(_blurred, "less sharp", id="blurred"),
        pytest.param(_shifted, "stain", id="hue"),
    ],
)
def test_a_change_is_seen_and_named(
    change: Callable[[Image.Image], Image.Image], words: str, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    for path in pictures.rglob("*.png"):
        copy = tmp_path / "changed" / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        change(Image.open(path)).save(copy)
    result = command("drift", logged(bundle, tmp_path / "changed", tmp_path / "log.jsonl"))
    assert result.exit_code == 1
    assert "changed: the microscope has changed" in result.stdout
    (sentence,) = (line for line in result.stdout.splitlines() if line.startswith("changed:"))
    assert words in sentence
    assert "is not as the images of the calibration were" in result.stderr
    told = json.loads(command("drift", tmp_path / "log.jsonl", "--format=json").stdout)
    assert told["verdict"] == "changed"
    assert any(score["changed"] and score["distance"] >= LEAST_D for score in told["scores"])


def test_features_less_like_the_calibrations_are_named_and_nearer_ones_are_no_change(
    pictures: Path, tmp_path: Path
) -> None:
    model = classifier(metadata=manifest().to_metadata(), features=True)
    bundle = write_bundle(tmp_path / "bundle", model)
    assert command("calibrate", bundle, pictures, "--max-error", "10%").exit_code == 0
    for name, change in (("as they are", lambda image: image), ("changed", _shifted)):
        for path in (pictures / LABELS[0]).glob("*.png"):
            (tmp_path / name).mkdir(exist_ok=True)
            change(Image.open(path)).save(tmp_path / name / path.name)
        found = drift_of(logged(bundle, tmp_path / name, tmp_path / f"{name}.jsonl"))
        (score,) = (each for each in found.scores if each.name == UNLIKENESS)
        assert score.changed == (name == "changed")
        assert ("features less like the calibration's" in found.sentence) == score.changed
    with msmamba.open(bundle) as session:
        (one,) = session.classify([tmp_path / "changed" / "0.png"])
    for arguments in (
        ["infer", bundle, tmp_path / "changed" / "0.png", "--format=csv"],
        ["live", bundle, tmp_path / "changed" / "0.png", "--no-page"],
        ["live", bundle, tmp_path / "changed" / "0.png", "--no-page", "--tiles=1"],
    ):
        log = tmp_path / f"{len(arguments)}.jsonl"
        log.unlink(missing_ok=True)
        assert command(*arguments, "--drift", log).exit_code == 0
        assert read_drift(log).scores[UNLIKENESS] == pytest.approx([np.log(one.distance)], abs=1e-3)
        log.unlink()
        assert command(*arguments, "--no-guard", "--drift", log).exit_code == 0
        assert np.isnan(read_drift(log).scores[UNLIKENESS]).all()


def test_another_bundle_may_be_compared_with(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain")
    log = logged(plain, pictures, tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="was logged with an artefact that has no scores of calibration"):
        drift_of(log)
    assert drift_of(log, bundle).verdict == "unchanged"
    with pytest.raises(InputError, match="has no scores of calibration images"):
        drift_of(log, plain)


def test_no_line_yet_is_said(bundle: Path, tmp_path: Path) -> None:
    with drift_log(tmp_path / "log.jsonl", bundle, None, "live"):
        pass
    with pytest.raises(InputError, match="holds no line of a picture yet"):
        drift_of(tmp_path / "log.jsonl")


def test_scores_that_nobody_knows_are_passed_over(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    add_scores(bundle, CalibratedScores(3, {"of a later version": (1.0, 2.0)}))
    write_session(tmp_path / "log.jsonl", bundle, [np.ones(3)])
    with pytest.raises(InputError, match="have no score in common"):
        drift_of(tmp_path / "log.jsonl")


def write_session(
    log: Path, bundle: Path, values: list[np.ndarray], by: str = "live", score: str = "brightness"
) -> None:
    """Sessions of pictures with one score."""
    with drift_log(log, bundle, None, by) as lines:
        for session in values:
            lines.begin(len(session))
            for value in session:
                lines.add({score: float(value)}, np.array([1.0, 0.0, 0.0]))


@pytest.fixture
def normal(tmp_path: Path) -> Path:
    """A bundle of which brightness is known, normal by the calibration."""
    bundle = write_bundle(tmp_path / "normal")
    values = np.random.default_rng(0).normal(0, 1, 500)
    add_scores(bundle, CalibratedScores.of([{"brightness": float(value)} for value in values]))
    return bundle


def test_what_a_log_cannot_tell_is_noted(normal: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write_session(log, normal, [np.zeros(3), np.ones(3)])
    assert drift_of(log).notes == ()
    with log.open("a") as file:
        file.write('{"time": "2026-11-')
    other = write_bundle(tmp_path / "other", classifier(metadata=manifest().to_metadata(), features=True))
    add_scores(other, CalibratedScores.of([{"brightness": 0.0}]))
    cut, network = drift_of(log, other).notes
    assert cut == "lines passed over, as they are not whole or of another artefact: 1"
    assert "of another network than --against" in network


def wandering(generator: np.random.Generator, count: int, kept: float = 0.98) -> np.ndarray:
    """Standard normal values, each of which keeps so much of the one before."""
    values = generator.normal(0, 1, count)
    for place in range(1, count):
        values[place] = kept * values[place - 1] + np.sqrt(1 - kept**2) * values[place]
    return values


def test_frames_that_resemble_each_other_raise_no_alarm() -> None:
    generator = np.random.default_rng(0)
    known = generator.normal(0, 1, 500)
    worths, naive, alarms = [], 0, 0
    for _ in range(100):
        values = wandering(generator, 2000)
        distance, worth = ks_distance(values, known), independent(values)
        worths.append(worth)
        naive += distance >= LEAST_D and chance(distance, 2000, 500) <= LEVEL
        alarms += distance >= LEAST_D and chance(distance, worth, 500) <= LEVEL
    # By an autocorrelation time of 99 some 20 of 2,000 values are independent; counted one each they alarm.
    assert 10 < np.median(worths) < 45
    assert naive >= 8
    assert alarms <= 1


def test_ten_minutes_at_few_fields_raise_no_alarm() -> None:
    """Ten fields, a minute each: by all fifteen scores together, as they are judged."""
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        chances, large = {}, set()
        for name in map(str, range(15)):
            lasts = 1 + generator.exponential(60, 100).astype(int)
            values = np.repeat(generator.normal(0, 1, 100), lasts)[:600]
            known = generator.normal(0, 1, 400)
            distance = ks_distance(values, known)
            chances[name] = chance(distance, independent(values), 400)
            large |= {name} if distance >= LEAST_D else set()
        alarms += bool(holm(chances, LEVEL) & large)
    assert alarms <= 3  # 1 is expected, and 13 were without what is known of short series


def test_a_live_session_that_wanders_is_too_little_to_tell(normal: Path, tmp_path: Path) -> None:
    values = wandering(np.random.default_rng(3), 600)
    write_session(tmp_path / "log.jsonl", normal, [values])
    found = drift_of(tmp_path / "log.jsonl")
    assert found.verdict == "too few"
    assert "worth" in found.sentence
    assert "one slide or session" in found.notes[0]
    write_session(tmp_path / "infer.jsonl", normal, [values], by="infer")
    assert drift_of(tmp_path / "infer.jsonl").scores[0].worth == 600
    write_session(tmp_path / "shifted.jsonl", normal, [values + 4])
    assert drift_of(tmp_path / "shifted.jsonl").verdict == "changed"


def test_a_stage_at_rest_is_one_picture_however_many_frames(normal: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    at_rest = 0.8 + generator.normal(0, 0.02, 600)  # by the camera's noise alone
    write_session(tmp_path / "log.jsonl", normal, [at_rest])
    found = drift_of(tmp_path / "log.jsonl")
    assert found.scores[0].worth == 1
    assert found.verdict == "too few"
    fields = generator.normal(0, 1, 600)  # a session at many fields beside it counts as before
    write_session(tmp_path / "both.jsonl", normal, [at_rest, fields[:300], fields[300:]])
    assert drift_of(tmp_path / "both.jsonl").scores[0].worth > 1


def test_a_score_that_does_not_vary_makes_no_stage_rest(tmp_path: Path) -> None:
    """No picture of the day is overexposed, and few of the calibration were; all else is as it was."""
    generator = np.random.default_rng(10)
    names = ("brightness", "focus", "white")
    bundle = write_bundle(tmp_path / "bundle")
    rows = [dict(zip(names, generator.normal(0, 1, 3).tolist(), strict=True)) for _ in range(300)]
    rows = [{**row, "white": float(number < 3)} for number, row in enumerate(rows)]
    add_scores(bundle, CalibratedScores.of(rows))
    with drift_log(tmp_path / "log.jsonl", bundle, None, "live") as lines:
        for brightness, focus in generator.normal(0, 1, (300, 2)).tolist():
            scores = {"brightness": brightness, "focus": focus, "white": 0.0}
            lines.add(scores, np.array([1.0, 0.0, 0.0]))
    found = drift_of(tmp_path / "log.jsonl")
    assert min(score.worth for score in found.scores) > 100
    assert found.verdict == "unchanged"


def test_slides_that_differ_count_by_the_slide(normal: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    slides = [generator.normal(centre, 0.1, 200) for centre in generator.normal(0, 1, 8)]
    write_session(tmp_path / "log.jsonl", normal, slides, by="slide")
    found = drift_of(tmp_path / "log.jsonl")
    assert found.scores[0].worth == pytest.approx(8, abs=1)
    assert found.verdict == "too few"
    alike = [generator.normal(0, 1, 200) for _ in range(8)]
    write_session(tmp_path / "alike.jsonl", normal, alike, by="slide")
    assert drift_of(tmp_path / "alike.jsonl").verdict == "unchanged"


@pytest.mark.parametrize("count", [0, 1, 50])
def test_groups_are_parted_in_order(count: int) -> None:
    groups = np.random.default_rng(count).integers(0, 5, count) * 3
    found = parted(groups)
    assert [*found] == np.unique(groups).tolist()
    assert all((places == np.flatnonzero(groups == group)).all() for group, places in found.items())


def test_the_design_effect_of_groups() -> None:
    groups = np.repeat(np.arange(10), 20)
    generator = np.random.default_rng(5)
    assert design_effect(generator.normal(0, 1, 200), groups) < 2
    assert design_effect(np.repeat(generator.normal(0, 1, 10), 20), groups) == pytest.approx(20)
    assert design_effect(np.arange(10.0), np.arange(10)) == 1
    # By hand, of groups of 1, 2 and 3: mean squares of 137/12 and 4/3, a typical size of 11/6.
    by_hand = 1 + (14 / 6 - 1) * (137 / 12 - 4 / 3) / (137 / 12 + 5 / 6 * 4 / 3)
    assert design_effect(np.array([0.0, 1, 3, 4, 5, 6]), np.array([0, 1, 1, 2, 2, 2])) == pytest.approx(
        by_hand
    )


def test_what_is_hardly_more_than_noise_is_no_change(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "steady")
    generator = np.random.default_rng(7)
    add_scores(
        bundle, CalibratedScores.of([{"stain_red": value} for value in generator.normal(0.33, 1e-4, 300)])
    )
    for shift, verdict in ((0.002, "unchanged"), (0.01, "changed")):
        log = tmp_path / f"{verdict}.jsonl"
        write_session(log, bundle, [generator.normal(0.33 + shift, 1e-4, 300)], by="infer", score="stain_red")
        found = drift_of(log)
        assert found.verdict == verdict
        assert found.scores[0].distance == 1
        assert found.scores[0].shift == pytest.approx(shift, rel=0.02)


def test_a_blur_is_a_change_whatever_a_cameras_noise(tmp_path: Path) -> None:
    """By the differences of single pixels, noise makes blurred pictures as sharp as any."""
    generator = np.random.default_rng(8)

    def scores(blur: float, seed: int) -> dict[str, float | None]:
        pixels = field(120, 120, 0.4, blur, seed) + generator.normal(0, 2, (120, 120, 3))
        return picture_scores(pixels.clip(0, 255).astype(np.uint8))

    bundle = write_bundle(tmp_path / "noisy")
    add_scores(bundle, CalibratedScores.of([scores(0.7, seed) for seed in range(60)]))
    with drift_log(tmp_path / "log.jsonl", bundle, None, "infer") as lines:
        for seed in range(60, 120):
            lines.add(scores(6, seed), np.array([1.0, 0.0, 0.0]))
    found = drift_of(tmp_path / "log.jsonl")
    assert "less sharp" in found.sentence
    assert "coarse_focus" in {score.name for score in found.scores if score.changed}


def test_a_covered_lens_is_a_change(normal: Path, tmp_path: Path) -> None:
    write_session(tmp_path / "log.jsonl", normal, [np.full(100, -5.0)])
    assert drift_of(tmp_path / "log.jsonl").verdict == "changed"


def test_the_figure_is_the_largest_difference_of_shares() -> None:
    assert ks_distance(np.array([1.0, 2]), np.array([1.0, 2])) == 0
    assert ks_distance(np.array([1.0, 2]), np.array([3.0, 4])) == 1
    assert ks_distance(np.array([1.0, 2, 3, 4]), np.array([3.0, 3])) == 0.5
    generator = np.random.default_rng(6)
    one, other = generator.normal(0, 1, 70).round(1), generator.normal(0.5, 1, 90).round(1)
    from scipy.stats import ks_2samp

    assert ks_distance(one, other) == pytest.approx(ks_2samp(one, other).statistic)


def test_the_chance_is_that_of_two_samples() -> None:
    from scipy.stats import ks_2samp

    generator = np.random.default_rng(11)
    for one, other in ((50, 50), (20, 20), (12, 400), (37, 211), (1, 7)):
        values = generator.normal(0, 1, one), generator.normal(0.6, 1, other)
        found = ks_2samp(*values, method="exact")
        assert chance(found.statistic, one, other) == pytest.approx(found.pvalue, rel=1e-6)
        assert chance(found.statistic, other, one) == pytest.approx(found.pvalue, rel=1e-6)
    assert chance(0.3, 50, 50) == pytest.approx(0.02171, abs=1e-5)  # of one sample it would be 0.017
    assert chance(0.3, 50.9, 50) == chance(0.3, 50, 50)
    assert chance(0, 3, 3) == 1
    assert chance(LEAST_D, 100_000, 100_000) < 1e-9


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param(("focus",), r"\(sharper, .*\); the answers show none", id="pictures"),
        pytest.param(("focus", "certainty"), r"\(sharper, .*\); and more certain answers: look", id="both"),
        pytest.param(
            ("energy", "certainty"),
            r"pictures show no change, .* answers otherwise \(more certain answers, stronger answers\)",
            id="answers",
        ),
        pytest.param((), "no change of the microscope shows: by any score a D of 0.35", id="nothing"),
    ],
)
def test_the_sentence_tells_pictures_from_answers(changed: tuple[str, ...], words: str) -> None:
    names = ("brightness", "focus", "energy", "certainty")
    scores = [
        ScoreDrift(name, 400, 400.0, 0.3, 0.2, 0.3 + 0.1 * place, 0.1, 1e-6, name in changed)
        for place, name in enumerate(names)
    ]
    found = Drift("log", 400, 400, (), tuple(scores), ())
    assert re.search(words, found.sentence)
    assert found.changed == bool(changed)
    assert "brighter" not in found.sentence
    spread = replace(scores[0], calibrated_median=0.3, changed=True)
    assert "(another spread of brightness)" in replace(found, scores=(spread,)).sentence


def test_chances_are_corrected_for_their_number() -> None:
    assert holm({"a": 0.001, "b": 0.006, "c": 0.02}, 0.01) == {"a"}
    assert holm({"a": 0.001, "b": 0.004, "c": 0.02}, 0.01) == {"a", "b"}
    assert holm({}, 0.01) == set()
