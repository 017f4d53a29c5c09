"""What an artefact's answers mean: flips, figures and the bar, from logits and from real artefacts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

from msmamba.cli import mmdeploy
from msmamba.errors import ArtefactError, ArtefactNote, DataError, ImageError, InputError
from msmamba.export.proof.decision_page import write_page
from msmamba.export.proof.parity import Bar, compare
from msmamba.export.proof.verify import verify
from msmamba.files import sha256_of
from msmamba.images import StackedImage
from msmamba.measures.decision import INT8_BAR, Decision, DecisionBar, ImageLimit, decide
from msmamba.measures.decision_text import decision_text
from msmamba.measures.metrics import log_softmax
from msmamba.runtime import open_session

LABELS = ("cyst", "node", "scar")


def logits_of(*classes: int, sure: float = 3.0) -> np.ndarray:
    """Rows that give these classes."""
    return (np.eye(3)[list(classes)] * sure).astype(np.float32)


def decided(reference: np.ndarray, artefact: np.ndarray, truth: list[int], **options: object) -> Decision:
    names = [f"{number}.png" for number in range(len(truth))]
    return decide(reference, artefact, np.array(truth), labels=LABELS, images=names, **options)


def test_flips_are_told_apart_and_counted_by_true_class() -> None:
    truth = [0, 0, 0, 1, 1, 2, 2]
    before = logits_of(0, 0, 1, 1, 0, 2, 0)
    after = logits_of(0, 1, 0, 0, 2, 2, 0, sure=2.0)
    found = decided(before, after, truth)
    assert [(flip.image, flip.outcome) for flip in found.flips] == [
        ("1.png", "lost"),
        ("3.png", "lost"),
        ("2.png", "gained"),
        ("4.png", "neither"),
    ]
    first = found.flips[0]
    assert (first.truth, first.reference, first.artefact) == ("cyst", "cyst", "node")
    assert first.reference_probability == pytest.approx(np.exp(3) / (np.exp(3) + 2))
    assert (found.lost, found.gained) == (2, 1)
    assert [(row.flips, row.lost, row.gained) for row in found.classes] == [(2, 1, 1), (2, 1, 0), (0, 0, 0)]
    assert found.mcnemar_p == 1.0
    assert found.sentence == (
        "4 of 7 images get another label: 2 were right and now wrong, 1 was wrong and now right, "
        "1 was wrong and still wrong."
    )
    text = decision_text(found)
    assert "lost, gained" in text
    assert all(flip.image in text for flip in found.flips)
    for width in (60, 80):
        narrow = decision_text(found, width)
        assert max(map(len, narrow.splitlines())) <= width
        lost = {word for word in set(text.split()) - set(narrow.split()) if word.strip("─")}
        assert lost <= {*found.sentence.split()}, narrow


def test_sensitivity_and_specificity_by_hand() -> None:
    #        truth 0 0 0 1 1 2 2
    found = decided(logits_of(0, 0, 1, 1, 0, 2, 0), logits_of(0, 0, 0, 0, 0, 0, 0), [0, 0, 0, 1, 1, 2, 2])
    cyst, node, _ = found.classes
    assert cyst.reference_sensitivity.value == pytest.approx(2 / 3)
    assert cyst.reference_specificity.value == pytest.approx(2 / 4)
    assert (cyst.artefact_sensitivity.value, cyst.artefact_specificity.value) == (1.0, 0.0)
    assert (node.artefact_sensitivity.value, node.artefact_specificity.value) == (0.0, 1.0)
    assert found.reference_confusion == ((2, 1, 0), (1, 1, 0), (1, 0, 1))
    assert found.artefact_confusion == ((3, 0, 0), (2, 0, 0), (2, 0, 0))


def test_without_a_flip_the_doubt_that_is_left_is_stated() -> None:
    logits = logits_of(*[0, 1, 2] * 20)
    found = decided(logits, logits, [0, 1, 2] * 20, bar=INT8_BAR)
    assert found.met
    assert not found.certain
    most = 1 - 0.025 ** (1 / 60)  # none of 60, exact
    assert found.accuracy.change_interval.high == pytest.approx(most)
    assert found.accuracy.change_interval.low == pytest.approx(-most)
    assert found.accuracy.reference_interval.low == pytest.approx(1 - most)
    assert found.sentence == "All 60 images keep their label."
    assert any("too few to exclude 6 points" in note for note in found.notes)
    assert found.auc is not None
    assert found.auc.change_interval.width > 0
    assert found.auc.reference_interval.low == pytest.approx(0.025 ** (1 / 20))


def test_intervals_and_mcnemar_are_of_whole_patients_where_they_are_known() -> None:
    truth, patients = [0, 1] * 60, [f"P{number // 12}" for number in range(120)]
    after = [1 - label if 24 <= number < 30 else label for number, label in enumerate(truth)]
    alone, together = (
        decided(logits_of(*truth), logits_of(*after), truth, groups=groups) for groups in (None, patients)
    )
    assert (alone.groups, together.groups) == (None, 10)
    assert together.notes[0] == "intervals are by 10 groups (patients, slides, copies), not by images"
    assert (alone.mcnemar_p, together.mcnemar_p) == (2 / 2**6, 1)
    one = decided(logits_of(*truth), logits_of(*truth), truth, groups=["P1"] * 120, bar=INT8_BAR)
    assert one.notes[0] == "intervals are by 1 group (patients, slides, copies), not by images"
    assert any("too few to exclude 100 points on others" in note for note in one.notes)
    for figure in (
        lambda found: found.accuracy.artefact_interval,
        lambda found: found.accuracy.change_interval,
        lambda found: found.auc.artefact_interval,
        lambda found: found.auc.change_interval,
        lambda found: found.flip_share.interval,
        lambda found: found.classes[0].artefact_sensitivity.interval,
        lambda found: found.classes[0].artefact_specificity.interval,
    ):
        assert figure(together).width > 1.2 * figure(alone).width


@pytest.mark.parametrize(
    ("lost", "bar", "missed"),
    [
        pytest.param(1, DecisionBar(0.5, None, ImageLimit(2)), [], id="half-a-point-exactly"),
        pytest.param(2, DecisionBar(0.5, None, ImageLimit(2)), ["accuracy drop"], id="a-point"),
        pytest.param(2, DecisionBar(1, None, ImageLimit(1, per_cent=True)), [], id="one-per-cent-exactly"),
        pytest.param(
            3, DecisionBar(2, None, ImageLimit(1, per_cent=True)), ["flips"], id="above-one-per-cent"
        ),
        pytest.param(1, DecisionBar(None, None, ImageLimit(0)), ["flips"], id="no-flip-allowed"),
        pytest.param(3, DecisionBar(None, 0.002, ImageLimit(9)), ["AUC drop"], id="auc"),
        pytest.param(0, INT8_BAR, [], id="nothing-lost"),
    ],
)
def test_the_bar_is_met_up_to_its_edge(lost: int, bar: DecisionBar, missed: list[str]) -> None:
    truth = [0, 1] * 100
    after = [1 - label if number < lost else label for number, label in enumerate(truth)]
    found = decided(logits_of(*truth), logits_of(*after), truth, bar=bar)
    assert [criterion.name for criterion in found.criteria if not criterion.met] == missed
    drops = [criterion.found for criterion in found.criteria if criterion.name == "accuracy drop"]
    assert drops in ([], [lost / 2])


def test_a_calibration_error_that_may_be_chance_has_an_interval_from_0() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (60, 3))
    truth = (np.exp(log_softmax(logits)).cumsum(axis=1) > generator.random((60, 1))).argmax(axis=1)
    error = decided(logits, logits, truth.tolist()).calibration_error
    assert error.reference_interval == error.artefact_interval
    assert error.reference_interval.low == 0 < error.reference < error.reference_interval.high
    assert error.change == 0
    assert -0.05 < error.change_interval.low < 0 < error.change_interval.high < 0.05
    patients = [str(number // 4) for number in range(60)]
    of_patients = decided(logits, logits, truth.tolist(), groups=patients).calibration_error
    assert of_patients.reference == error.reference
    assert of_patients.reference_interval != error.reference_interval


def test_the_diagram_counts_calibration_errors_as_the_table_does() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (60, 3))
    coarse = logits + generator.normal(0, 0.1, (60, 3))
    found = decided(logits, coarse, generator.integers(0, 3, 60).tolist())
    assert found.reference_reliability.error == pytest.approx(found.calibration_error.reference)
    assert found.artefact_reliability.error == pytest.approx(found.calibration_error.artefact)
    assert found.artefact_reliability.images == found.reference_reliability.images


def test_one_class_alone_says_that_auc_is_not_defined() -> None:
    found = decided(logits_of(1, 1, 0), logits_of(1, 1, 1), [1, 1, 1], bar=INT8_BAR)
    assert found.auc is None
    assert [criterion.certain for criterion in found.criteria if criterion.found is None] == [False]
    assert not found.certain
    assert any("AUC is not defined: all images are of class 'node'" in note for note in found.notes)
    assert any("no images of cyst, scar" in note for note in found.notes)
    assert "not defined" in decision_text(found)
    assert found.classes[1].reference_specificity.value is None


def test_a_bar_finer_than_one_image_says_so() -> None:
    found = decided(logits_of(0, 1, 2), logits_of(0, 1, 2), [0, 1, 2], bar=INT8_BAR)
    assert any("one image of 3 is 33 points" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "images", "allowed"),
    [
        pytest.param("0", 100, 0, id="none"),
        pytest.param("3", 50, 3, id="count"),
        pytest.param("0.5%", 1000, 5, id="per-cent"),
        pytest.param("0.7 %", 1000, 7, id="not-exact-in-binary"),
        pytest.param("1%", 209, 2, id="rounded-down"),
        pytest.param("100%", 7, 7, id="all"),
    ],
)
def test_a_limit_of_flips(text: str, images: int, allowed: int) -> None:
    assert ImageLimit.parse(text).allowed(images) == allowed


@pytest.mark.parametrize(("images", "allowed"), [(1, 1), (49, 1), (99, 1), (100, 2), (2000, 40)])
def test_one_image_may_always_be_undecided_by_default(images: int, allowed: int) -> None:
    assert DecisionBar().max_undecided.allowed(images) == allowed


@pytest.mark.parametrize("text", ["", "-1", "0.5", "101%", "-1%", "nan%", "few", "%"])
def test_what_is_no_limit_of_flips_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a count such as 2, or a per cent such as"):
        ImageLimit.parse(text)


def test_flips_of_undecided_images_are_told_with_their_harm_and_not_judged() -> None:
    truth = [0, 0, 1, 1, 2]
    before, after = logits_of(0, 0, 1, 0, 2), logits_of(1, 0, 1, 1, 0)
    before[0, 1], before[3, 1] = 2.75, 2.875  # of 3: two margins of a quarter and less
    undecided = np.array([True, False, False, True, False])
    bar = DecisionBar(None, None, ImageLimit(25, per_cent=True), ImageLimit(40, per_cent=True))
    found = decided(before, after, truth, bar=bar, undecided=undecided)
    assert [(flip.image, flip.outcome, flip.undecided, flip.margin) for flip in found.flips] == [
        ("4.png", "lost", False, 3.0),
        ("0.png", "lost", True, 0.25),
        ("3.png", "gained", True, 0.125),
    ]
    assert (found.lost, found.gained, found.undecided, found.decided_flips) == (2, 1, 2, 1)
    assert found.flip_share.value == pytest.approx(1 / 3)
    flips, share = found.criteria
    assert (flips.name, flips.met, flips.found) == ("flips", False, pytest.approx(100 / 3))
    assert (share.name, share.met, share.found, share.worst) == ("undecided", True, 40, None)
    assert found.sentence == (
        "3 of 5 images get another label: 2 were right and now wrong, 1 was wrong and now right. "
        "The reference itself does not decide 2, 2 of those that get another label among them."
    )
    text = decision_text(found)
    assert re.search(r"^flips +1 \(33.33 %\)", text, flags=re.MULTILINE)
    assert re.search(r"^undecided +2 \(40.00 %\) +2 of them flip +40 % +met$", text, flags=re.MULTILINE)
    assert re.search(r"^0.png +cyst .* 0.25 +lost, undecided$", text, flags=re.MULTILINE)

    none_decided = decided(before, after, truth, bar=bar, undecided=np.ones(5, np.bool_))
    assert [criterion.met for criterion in none_decided.criteria] == [True, False]
    assert none_decided.flip_share.value is None
    assert "undecided" not in decision_text(decided(before, before, truth))

    one = np.eye(1, 5, dtype=np.bool_)[0]  # which `DecisionBar` always allows, of however few images
    by_default = {each.name: each for each in decided(before, after, truth, undecided=one).criteria}
    assert (by_default["undecided"].met, by_default["undecided"].allowed) == (True, 20)

    none_flips = decided(before, before, truth, bar=bar, undecided=np.ones(5, np.bool_))
    assert [criterion.name for criterion in none_flips.criteria] == ["flips"]
    told = decision_text(none_flips)
    assert re.search(r"^undecided +5 \(100.00 %\) +none of them flips *$", told, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def labelled(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``test/<class>/*`` and ``train/<class>/*``: noise images in the class that the network gives them.

    But for one image of ``test``, which stands in another class.
    """
    root = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(0)
    with open_session(bundles["fp32"]) as session:
        for split, count in (("train", 3), ("test", 24)):
            for label in session.labels or ():
                (root / split / label).mkdir(parents=True)
            for number in range(count):
                colour = generator.integers(0, 256, size=(1, 1, 3))
                pixels = np.clip(generator.normal(colour, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
                (answer,) = session.classify([pixels])
                Image.fromarray(pixels).save(root / split / answer.label / f"{number:02}.png")
    classes = {folder.name: len(list(folder.iterdir())) for folder in (root / "test").iterdir()}
    assert sum(count > 0 for count in classes.values()) > 1  # or nothing below would test much
    first = next((root / "test" / max(classes, key=lambda name: classes[name])).iterdir())
    first.rename(root / "test" / min(classes, key=lambda name: classes[name]) / "stray.png")
    return root


@pytest.fixture
def rounded(bundles: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle whose weights are rounded to so many levels, and that says which precision it has."""

    def make(levels: int, precision: str = "int8") -> Path:
        bundle = Path(shutil.copytree(bundles["fp32"], tmp_path / f"rounded-{levels}-{precision}"))
        model = onnx.load(bundle / "model.onnx")
        for tensor in model.graph.initializer:
            weight = numpy_helper.to_array(tensor)
            if weight.dtype == np.float32 and weight.ndim > 1:
                step = np.abs(weight).max() / levels
                tensor.CopyFrom(numpy_helper.from_array(np.round(weight / step) * step, tensor.name))
        onnx.save(model, bundle / "model.onnx")
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"]["model.onnx"] = sha256_of(bundle / "model.onnx")
        manifest["precision_asked"] = precision
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return make


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, [str(argument) for argument in arguments], prog_name="mmdeploy")


def test_a_coarse_artefact_misses_the_bar_and_the_page_shows_why(
    rounded: Callable[..., Path], checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    bundle, page = rounded(2), tmp_path / "page.html"
    result = command("verify", bundle, "--against", checkpoint, "--data", labelled, "--report", page)
    assert result.exit_code == 1
    assert re.search(r"does not answer like its reference: \d+ of 24 labels flip, allowed 0", result.stderr)
    assert "reported, not judged" in result.stdout

    written = json.loads((bundle / "parity.json").read_text())
    decision = written["decision"]
    assert written["passed"] is False
    assert written["split"] == "test"
    assert len(decision["flips"]) == written["flips"] > 0
    assert decision["images"] == 24

    html = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert len(sources) == len(decision["flips"]) + 1  # each flip and the reliability diagram
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?:", re.sub(r'src="[^"]*"', "", html))
    for flip in decision["flips"]:
        assert Path(flip["image"]).name in html


def test_flips_within_the_bar_are_undecided_and_too_many_of_them_lose(
    rounded: Callable[..., Path], bundles: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    bundle, page = rounded(2, "fp32"), tmp_path / "page.html"
    free = verify(bundle, bundles["fp32"], [labelled])
    assert free.undecided == 0
    assert free.flips > 0
    assert all(answer.margin is not None for answer in free.flipped_images)

    arguments = ("verify", bundle, "--against", bundles["fp32"], "--data", labelled)
    bar = ("--max-error", free.max_abs_error, "--report", page)
    result = command(*arguments, *bar)
    assert result.exit_code == 1
    assert re.search(
        r"the reference does not decide \d+ of 24 images \([\d.]+ %\), allowed 1 where one flips, "
        r"and \d+ do(es)? "
        r"\(--max-undecided\)$",
        result.stderr,
    )

    kept = command(*arguments, *bar, "--max-undecided", "100%")
    assert kept.exit_code == 0
    written = json.loads((bundle / "parity.json").read_text())
    assert (written["flips"], written["undecided_flips"]) == (0, free.flips)
    assert {flip["undecided"] for flip in written["decision"]["flips"]} == {True}
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["precision_proven"]["parity"]["undecided"] == written["undecided"]
    html = page.read_text(encoding="utf-8")
    assert html.count('<span class="tag">undecided</span>') == free.flips
    for answer in written["undecided_images"]:
        assert f'<td class="name">{answer["image"]}</td>' in html

    wrong = command(*arguments, "--max-undecided", "some")
    assert wrong.exit_code == 1
    assert "'some' undecided: expected a count such as 2, or a per cent such as" in wrong.stderr


def test_images_of_a_stack_are_pictured_too(tmp_path: Path) -> None:
    np.save(tmp_path / "cells.npy", np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8))
    sources = [StackedImage(tmp_path / "cells.npy", index) for index in range(4)]
    before, after, names = logits_of(0, 1, 2, 0), logits_of(0, 1, 2, 1), [str(source) for source in sources]
    parity = compare(
        before,
        after,
        images=names,
        labels=LABELS,
        bar=Bar(None, 1, "for a test"),
        precision="int8",
        executed_by="",
    )
    decision = decide(before, after, np.array([0, 1, 2, 0]), labels=LABELS, images=names)
    write_page(tmp_path / "page.html", replace(parity, decision=decision), sources)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("data:image/png") == 1
    assert "<small>cells.npy[3]</small>" in html


def test_int8_is_judged_by_what_it_decides_and_not_by_its_tensors(
    rounded: Callable[..., Path], checkpoint: Path, labelled: Path
) -> None:
    as_int8, as_fp32 = (verify(rounded(512, kind), checkpoint, [labelled]) for kind in ("int8", "fp32"))
    assert as_fp32.bar.max_abs_error is not None
    assert as_int8.max_abs_error == as_fp32.max_abs_error > as_fp32.bar.max_abs_error
    assert (as_int8.flips, as_int8.passed, as_fp32.passed) == (0, True, False)
    assert as_int8.decision is not None
    assert {criterion.name for criterion in as_int8.decision.criteria} == {
        "accuracy drop",
        "AUC drop",
        "flips",
    }
    assert as_int8.decision.accuracy.reference == pytest.approx(23 / 24)  # the stray one


def test_flips_alone_are_judged_where_no_folder_says_the_classes(
    rounded: Callable[..., Path], checkpoint: Path, micrographs: Path
) -> None:
    parity = verify(rounded(2), checkpoint, [micrographs])
    assert parity.decision is None
    assert not parity.passed
    assert re.search("^decision  +not judged: .* has no class folders", parity.to_text(), flags=re.MULTILINE)
    assert "no_decision" in json.loads(parity.to_json())


def test_the_reference_may_be_an_artefact(bundles: dict[str, Path], labelled: Path, tmp_path: Path) -> None:
    parity = verify(bundles["fp16"] / "model.onnx", bundles["fp32"], [labelled])
    assert parity.passed
    assert parity.bar.max_abs_error is None
    assert 0 < parity.max_abs_error < 0.1
    other = Path(shutil.copytree(bundles["fp32"], tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "mean": [0, 0, 0], "std": [1, 1, 1]}))
    differ = pytest.raises(ArtefactError, match="differ in mean, std: compare artefacts that take the same")
    with pytest.warns(ArtefactNote, match="the transform here makes other values"), differ:
        verify(bundles["fp16"], other, [labelled])


def test_logits_that_are_not_finite_are_no_decision(
    rounded: Callable[..., Path], checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    bundle = rounded(512)
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), "head.bias"))
    onnx.save(model, tmp_path / "nan.onnx")
    parity = verify(
        *(tmp_path / "nan.onnx", checkpoint, [labelled]),
        max_flips=ImageLimit(100, per_cent=True),
        page=tmp_path / "page.html",
    )
    assert parity.decision is None
    assert parity.notes[-1].endswith(
        "page.html: no page was written, because the logits of 24 images are not finite"
    )
    assert not (tmp_path / "page.html").exists()
    assert parity.failure.startswith("a logit is not finite")
    assert parity.no_decision == "the logits of 24 images are not finite"


def test_the_split_is_chosen_and_the_limit_spreads_over_classes(
    bundles: dict[str, Path], labelled: Path
) -> None:
    model = bundles["fp32"] / "model.onnx"
    assert verify(model, model, [labelled], split="train").images == 3
    limited = verify(model, model, [labelled], limit=12).decision
    assert limited is not None
    assert limited.images == 12
    assert sum(each.images > 0 for each in limited.classes) > 1


def bare(labelled: Path, target: Path) -> Path:
    """The test split's images without folders of classes."""
    target.mkdir()
    for number, path in enumerate(sorted((labelled / "test").rglob("*.png"))):
        shutil.copy(path, target / f"{number}.png")
    return target


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param("max_accuracy_drop", 0.5, id="accuracy"),
        pytest.param("max_auc_drop", 0.002, id="auc"),
        pytest.param("split", "test", id="split"),
        pytest.param("page", "never.html", id="report"),
    ],
)
def test_what_needs_labels_says_so_before_anything_runs(
    option: str, value: object, bundles: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    images = bare(labelled, tmp_path / "bare")
    with pytest.raises(DataError, match=r"class folders"):
        verify(bundles["fp32"], "no such checkpoint", [images], **{option: value})
    with pytest.raises(DataError, match=r"needs labelled images, and .* is not one folder of classes"):
        verify(bundles["fp32"], "no such checkpoint", [images, labelled], **{option: value})
    assert not Path("never.html").exists()


def test_a_split_that_is_missing_is_no_reason_to_compare_without_labels(
    bundles: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    model = bundles["fp32"] / "model.onnx"
    shutil.copytree(labelled / "train", tmp_path / "data" / "train")
    with pytest.raises(DataError, match="test"):
        verify(model, model, [tmp_path / "data"])
    assert verify(model, model, [tmp_path / "data"], split="train").decision is not None


def test_classes_are_known_or_named(bundles: dict[str, Path], labelled: Path, tmp_path: Path) -> None:
    model = bundles["fp32"] / "model.onnx"
    data = Path(shutil.copytree(labelled / "test", tmp_path / "data"))
    shutil.copytree(max(data.iterdir(), key=lambda folder: len(list(folder.iterdir()))), data / "blast")
    with pytest.raises(DataError, match="1 classes are unknown to the model: blast"):
        verify(model, model, [data])
    strangers = tmp_path / "patients"
    shutil.copytree(data / "blast", strangers / "patient 1")
    parity = verify(model, model, [strangers])
    assert parity.decision is None
    assert "none of the folders" in parity.no_decision


def test_a_bar_on_auc_needs_two_classes(bundles: dict[str, Path], labelled: Path, tmp_path: Path) -> None:
    model = bundles["fp32"] / "model.onnx"
    fullest = max((labelled / "test").iterdir(), key=lambda folder: len(list(folder.iterdir())))
    shutil.copytree(fullest, tmp_path / "one" / fullest.name)
    with pytest.raises(DataError, match=f"are of class '{fullest.name}', so AUC is not defined"):
        verify(model, model, [tmp_path / "one"], max_auc_drop=0.1)
    decision = verify(model, model, [tmp_path / "one"]).decision
    assert decision is not None
    assert decision.auc is None


def test_every_image_that_cannot_be_read_is_named(
    bundles: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(labelled / "test", tmp_path / "data"))
    broken = sorted(data.rglob("*.png"))[::9]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=f"{len(broken)} of 24 images cannot be used") as caught:
        verify(bundles["fp32"], bundles["fp32"], [data])
    assert all(path.name in str(caught.value) for path in broken)
    assert not (bundles["fp32"] / "parity.json").exists()
    for path in broken[1:]:
        path.unlink()
    with pytest.raises(ImageError, match=f"^'{re.escape(str(broken[0]))}'"):
        verify(bundles["fp32"], bundles["fp32"], [data])
