"""`--weights-of`: the weights or their moving average, chosen on the command line, kept in what is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from msmamba.cli import mmdeploy
from msmamba.errors import ArtefactError, Note
from msmamba.export.proof.verify import verify
from msmamba.model import MicroscopicMamba
from msmamba.runtime import Manifest

DESCRIBED = ["--labels", "basophil,eosinophil,lymphocyte", "--size", "32"]
DESCRIBED += ["--mean", "0.6", "0.5", "0.7", "--std", "0.2", "0.25", "0.15"]
TAKEN = "holds the weights and their moving average, and the weights are taken: choose with --weights-of ema"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def both(make_network: Callable[..., MicroscopicMamba], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose average answers with the first class, whatever the image, and its weights do not."""
    state = make_network(depths=(1, 1), dims=(32, 64)).state_dict()
    average = {name: value.clone() for name, value in state.items()}
    average["head.weight"].zero_()
    average["head.bias"].copy_(torch.tensor([9.0, 0.0, 0.0]))
    path = tmp_path_factory.mktemp("both") / "best.pth"
    torch.save({"model": state, "ema": average}, path)
    return path


@pytest.fixture(scope="module")
def of_average(both: Path) -> Path:
    """The bundle of the average."""
    bundle = both.parent / "average"
    result = command("export", both, "-o", bundle, "--weights-of", "ema", *DESCRIBED)
    assert result.exit_code == 0, result.stderr
    return bundle


def correct_of_first_class(result: Result) -> float:
    assert result.exit_code == 0, result.stderr
    classes = json.loads(result.stdout)["metrics"]["classes"]
    return float(next(row["recall"] for row in classes if row["label"] == "basophil"))


def test_eval_measures_those_that_are_asked_for(both: Path, of_average: Path, labelled: Path) -> None:
    arguments = ["eval", both, labelled, "--split", "val", "--format", "json", "--threads", "1", *DESCRIBED]
    average = command(*arguments, "--weights-of", "ema")
    assert correct_of_first_class(average) == 1
    weights = command(*arguments, "--weights-of", "model")
    figures = [json.loads(result.stdout)["metrics"] for result in (average, weights)]
    assert figures[0] != figures[1]
    with pytest.warns(Note, match=TAKEN):
        assert json.loads(command(*arguments).stdout)["metrics"] == figures[1]
    exported = command("eval", of_average, labelled, "--split", "val", "--weights-of", "ema")
    assert (exported.exit_code, exported.stderr) == (
        1,
        f"error: {of_average} is exported already, which settled its weights: leave --weights-of out\n",
    )


def test_the_bundle_says_which_it_has_and_verify_takes_the_same(
    both: Path, of_average: Path, labelled: Path
) -> None:
    manifest = Manifest.from_json((of_average / "manifest.json").read_bytes())
    assert manifest.weights_of == "ema"
    arguments = ["verify", of_average, "--against", both, "--data", labelled, "--split", "val"]
    taken = command(*arguments)
    assert taken.exit_code == 0, taken.stderr
    assert command(*arguments, "--weights-of", "ema").exit_code == 0
    other = command(*arguments, "--weights-of", "model")
    assert other.exit_code == 1
    assert "has its checkpoint's weights of 'ema', not of 'model': leave --weights-of out" in other.stderr


def test_bundles_of_other_weights_are_no_references(of_average: Path, labelled: Path, tmp_path: Path) -> None:
    manifest = Manifest.from_json((of_average / "manifest.json").read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    for name in manifest.files:
        (other / name).write_bytes((of_average / name).read_bytes())
    (other / "manifest.json").write_text(replace(manifest, weights_of="model").to_json())
    with pytest.raises(ArtefactError, match="differ in weights_of"):
        verify(of_average, other, [labelled], split="val")
    (other / "manifest.json").write_text(replace(manifest, weights_of="").to_json())  # of earlier versions
    assert verify(of_average, other, [labelled], split="val").passed


@pytest.mark.filterwarnings("ignore:its network was trained with Pillow's resize:msmamba.errors.Note")
def test_other_commands_take_the_choice_and_refuse_another(
    both: Path, labelled: Path, tmp_path: Path
) -> None:
    for weights in ("model", "ema"):
        assert command("info", both, "--image-size", "32", "--weights-of", weights).exit_code == 0
        maps = [
            "explain",
            both,
            labelled / "val" / "basophil" / "0.png",
            "-o",
            tmp_path / weights,
            *DESCRIBED,
        ]
        result = command(*maps, "--weights-of", weights)
        assert result.exit_code == 0, result.stderr
    assert command("info", both, "--weights-of", "best").exit_code == 2
