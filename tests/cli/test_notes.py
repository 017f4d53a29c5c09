"""What there is to say of an artefact is said once, on standard error, by every command that runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy

SAID = "its network was trained with Pillow's resize, of a version that it does not say"


@pytest.fixture(scope="module")
def older(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as it was before the resize was msmamba's own."""
    bundle = Path(shutil.copytree(bundles["fp32"], tmp_path_factory.mktemp("older") / "b"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["resize"] = "bilinear-antialias-square"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize("name", ["infer", "eval", "verify", "bench"])
def test_the_note_on_an_older_artefact_is_told_once(
    name: str, older: Path, checkpoint: Path, labelled: Path
) -> None:
    arguments = {
        "infer": [older, labelled / "val"],
        "eval": [older, labelled, "--split", "val"],
        "verify": [older, "--against", checkpoint, "--data", labelled, "--split", "val"],
        "bench": [older, older, "--rounds", "1", "--warmup", "0", "--batch-size", "1", "--batch-size", "2"],
    }[name]
    result = CliRunner().invoke(mmdeploy, [name, *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(SAID) == 1
    assert SAID not in result.stdout
