"""`mmdeploy compare`: each network the whole way, killed and resumed, and one that fails stops no other."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import write_cells
from preloaded import Preloaded
from torch import Tensor, nn
from toy_network import TOYS, Toy, ToyArchitecture, ToyFamily

from msmamba.cli import mmdeploy
from msmamba.data.folders import read_training_folder
from msmamba.export.comparison.folder import ComparisonFolder
from msmamba.model.networks import family, registry
from msmamba.model.training.loop import recipe_asked

FIGURES = {"epochs": 1, "warmup_epochs": 0, "image_size": 32, "batch_size": 4}
OPTIONS = ("--epochs", "1", "--warm-up", "0", "--image-size", "32", "--batch-size", "4", "--threads", "1")

pytestmark = pytest.mark.usefixtures("threads_as_before")


class Diverging(Toy):
    """A toy whose loss is no number."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images) * torch.nan
        return logits


class Turned(nn.Module):
    """What is exported in place of a toy: its logits turned round."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return -self.network(images)


def no_form(network: nn.Module) -> nn.Module:
    """Raises what is no error of ours."""
    raise KeyError("no form")


class SpecialFamily(ToyFamily):
    """A toy of its own kind, and what is exported of it."""

    def __init__(self, name: str, network: type[Toy], form: Callable[[nn.Module], nn.Module]) -> None:
        self.name = self.title = name
        self.network_type = type(name, (network,), {})
        self.architecture_type = type(f"{name}_architecture", (ToyArchitecture,), {})
        self.form = form

    def architecture(self, name: str, **changes: Any) -> ToyArchitecture:
        return self.architecture_from(changes)

    def architecture_from(self, values: Mapping[str, Any]) -> ToyArchitecture:
        return self.architecture_type(**values)

    def architecture_of(self, state: Mapping[str, Tensor]) -> ToyArchitecture:
        state[self.name]  # raises a KeyError where it is another's
        return self.architecture_type(*state["last.weight"].shape)

    def inference_form(self, network: family.Network, image_size: int) -> nn.Module:
        return self.form(network)

    def name_of(self, arch: family.Architecture) -> str:
        return self.name

    def build(self, arch: family.Architecture) -> Toy:
        network = self.network_type(arch)
        network.register_buffer(self.name, torch.ones(()))  # by which its state dict is known
        return network


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in TOYS:
            patch.setitem(registry.NETWORKS, name, ToyFamily())
        yield


def compare(data: Path, output: Path, *arguments: str, networks: str = ",".join(TOYS)) -> Result:
    """The command, as somebody types it."""
    quick = ("--rounds", "5", "--resamples", "100")
    return CliRunner().invoke(
        mmdeploy,
        ["compare", str(data), "--networks", networks, "-o", str(output), *OPTIONS, *quick, *arguments],
    )


@pytest.fixture(scope="module")
def cells(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The spots under a name that is markup."""
    return shutil.copytree(cells, tmp_path_factory.mktemp("data") / "<b>&cells")


@pytest.fixture(scope="module")
def compared(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished comparison of two toys, and what the command said; not to be changed."""
    output = tmp_path_factory.mktemp("compared") / "toys"
    return output, compare(cells, output)


def results_of(output: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def test_each_network_goes_the_whole_way(compared: tuple[Path, Result]) -> None:
    output, done = compared
    assert done.exit_code == 0, done.output
    assert f"page: {output}/report.html" in done.stderr
    results = results_of(output)
    assert (results["split"], results["counts"]) == ("test", {"train": 16, "val": 4, "test": 4})
    entries = {entry["network"]: entry for entry in results["networks"]}
    assert list(entries) == list(TOYS)
    for name, entry in entries.items():
        metrics = json.loads((output / name / "run" / "metrics.json").read_text())
        assert entry["scores"]["metrics"]["accuracy"] == metrics["test"]["accuracy"]
        assert entry["scores"]["intervals"].keys() == {"accuracy", "auc", "precision"}
        assert entry["parity"] == {"kept": True, "images": 4, "flips": 0, **entry["parity"]}
        assert entry["latency"]["median_ms"] > 0
        assert (output / name / "fp32" / "parity.json").is_file()
    assert entries["toy_wide"]["parameters"] > entries["toy_thin"]["parameters"]
    assert results["front"]
    measured = json.loads((output / "bench.json").read_text())["benchmark"]
    assert [case["case"]["artefact"] for case in measured["results"]] == [
        str(output / name / "fp32") for name in TOYS
    ]  # one run for both


def test_the_table_is_printed_and_written(compared: tuple[Path, Result], cells: Path) -> None:
    output, done = compared
    assert [line.split()[0] for line in done.stdout.splitlines()[2:4]] == list(TOYS)
    rows = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert [row["network"] for row in rows] == list(TOYS)
    assert rows[0]["parity_kept"] == "True"
    assert (output / "results.md").read_text().startswith("| network | accuracy % |")
    again = compare(cells, output, "--format", "json")
    assert json.loads(again.stdout) == results_of(output)


def test_what_is_done_is_not_done_again(compared: tuple[Path, Result], cells: Path) -> None:
    output, _ = compared

    def made() -> dict[str, int]:
        files = [path for path in output.rglob("*") if path.is_file() and path.parent != output]
        return {str(path): path.stat().st_mtime_ns for path in [*files, output / "bench.json"]}

    before = made()
    again = CliRunner().invoke(
        mmdeploy,
        [
            "compare",
            str(cells),
            "--networks",
            ",".join(TOYS),
            "-o",
            str(output),
            "--rounds",
            "5",
            "--threads",
            "1",
        ],
    )  # of the recipe what it was begun with
    assert again.exit_code == 0, again.output
    assert made() == before
    assert again.stderr == f"page: {output}/report.html\n"


def test_networks_may_be_added_and_the_precision_changed(
    compared: tuple[Path, Result], cells: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(compared[0], tmp_path / "copy")
    done = compare(cells, output, "--fp16", networks="toy_wide")
    assert done.exit_code == 0, done.output
    assert "training" not in done.stderr
    (entry,) = results_of(output)["networks"]
    assert (entry["network"], results_of(output)["precision"]) == ("toy_wide", "fp16")
    assert (output / "toy_wide" / "fp16" / "model.onnx").is_file()


KILLED = """
import os, signal, sys
from contextlib import nullcontext
sys.path.insert(0, sys.argv[1])
from toy_network import TOYS, ToyFamily
from msmamba.export.comparison.run import compare_networks
from msmamba.export.comparison.stages import Watch
from msmamba.model.networks.registry import NETWORKS
from msmamba.model.training.loop import Hardware
from msmamba.runtime.benchmark import BenchmarkOptions

def die_at(moment):
    if moment == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)

class Killed(Watch):
    network = ""
    def on_stage(self, network, stage):
        self.network = network
    def training(self):
        return nullcontext([self])
    def working(self):
        return nullcontext(lambda step: die_at(f"{self.network} {step}".strip()))
    def on_start(self, plan):
        pass
    def on_step(self, epoch, step, loss):
        die_at(f"{self.network} step {step}")
    def on_epoch(self, epoch, is_best):
        die_at(f"{self.network} epoch")

NETWORKS.update(dict.fromkeys(TOYS, ToyFamily()))
compare_networks(
    sys.argv[2], sys.argv[3], TOYS, figures=%r, hardware=Hardware(threads=1),
    bench=BenchmarkOptions(threads=(1,), rounds=5), resamples=100, watch=Killed(),
)
"""


def test_killed_at_any_moment_it_goes_on(
    compared: tuple[Path, Result], cells: Path, tmp_path: Path, preloaded: Preloaded
) -> None:
    """The dearest of this file: four processes are killed, each a bit farther than the one before."""
    output, script = tmp_path / "killed", KILLED % FIGURES
    for moment in (
        "toy_thin step 2",
        "toy_thin writing the bundle",
        "toy_wide epoch",
        "measuring",
    ):
        done = preloaded.run(["-c", script, Path(__file__).parents[2], cells, output, moment])
        assert done.returncode == -signal.SIGKILL, f"{moment}\n{done.stdout}\n{done.stderr}"
    done = compare(cells, output)
    assert done.exit_code == 0, done.output
    assert "training" not in done.stderr
    whole, resumed = (results_of(folder)["networks"] for folder in (compared[0], output))
    for entry, other in zip(whole, resumed, strict=True):
        assert other["scores"]["metrics"] == entry["scores"]["metrics"]
        assert other["parity"] == entry["parity"]
    assert not [path for path in output.rglob(".*") if path.name.endswith(".tmp")]


def test_a_network_that_fails_stops_no_other(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some seconds: two toys are exported."""
    data = shutil.copytree(labelled, tmp_path / "labelled")
    (data / "train" / "basophil" / "0.png").write_bytes(b"broken")
    special = {
        "toy_diverging": (Diverging, lambda network: network),
        "toy_unexportable": (Toy, no_form),
        "toy_turned": (Toy, Turned),
        "toy_whole": (Toy, lambda network: network),
    }
    for name in TOYS:  # the others are toys, too
        monkeypatch.delitem(registry.NETWORKS, name)
    for name, (network, form) in special.items():
        monkeypatch.setitem(registry.NETWORKS, name, SpecialFamily(name, network, form))
    done = compare(data, tmp_path / "out", "--skip-bad", networks=",".join(special))
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 3 of 4 networks failed: toy_diverging, toy_unexportable, toy_turned: ")
    results = results_of(tmp_path / "out")
    diverged, unexported, turned, whole = results["networks"]
    assert (results["split"], results["counts"]) == ("val", {"train": 17, "val": 12})
    assert diverged["failure"]["stage"] == "training"
    assert "training diverged" in diverged["failure"]["why"]
    assert unexported["failure"] == {"stage": "export", "why": "KeyError: 'no form'"}
    assert unexported["scores"]["metrics"]["accuracy"] is not None
    assert not turned["parity"]["kept"]
    assert not turned["on_front"]
    assert whole["on_front"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'role="alert"' in page
    assert "toy_unexportable failed in export: KeyError" in page
    assert "LOST" in page
    assert "toy_turned's fp32 bundle does not answer like its network" in done.stdout


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        pytest.param(
            "t,pvt_smal,resnet",
            (),
            "no network 'pvt_smal': did you mean pvt_small.* names; there is no network 'resnet'",
            id="unknown",
        ),
        pytest.param(",", (), "no network to compare: give at least one", id="none"),
        pytest.param(
            "toy_thin,pvt_small",
            ("--image-size", "40"),
            "network 'pvt_small' cannot take them: images are 40x40; .* of 32",
            id="size",
        ),
        pytest.param("toy_thin", ("--epochs", "0"), "epochs is 0, expected at least 1", id="epochs"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_trained(
    networks: str, options: Sequence[str], message: str, cells: Path, tmp_path: Path
) -> None:
    done = compare(cells, tmp_path / "out", *options, networks=networks)
    assert done.exit_code == 1
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_network_that_takes_no_such_images_is_told_of_first(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(self: Toy, shape: tuple[int, ...]) -> None:
        raise ValueError(f"images are {shape[2]}x{shape[3]}; expected 224x224")

    monkeypatch.setattr(Toy, "check_image_shape", check)
    done = compare(cells, tmp_path / "out", networks="t,toy_thin")
    assert (done.exit_code, done.stderr) == (
        1,
        "error: network 'toy_thin' cannot take them: images are 32x32; expected 224x224\n",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        pytest.param(("--epochs", "2"), "--epochs was 1 and is 2", id="recipe"),
        pytest.param(("--seed", "1"), "the images of the test split are not those it was begun", id="split"),
        pytest.param(("--mpp", "0.5"), "--mpp was None and is 0.5", id="mpp"),
        pytest.param(("--white-level", "4095"), "--white-level was None and is 4095", id="white"),
    ],
)
def test_other_options_than_it_was_begun_with_are_refused(
    options: Sequence[str], differing: str, compared: tuple[Path, Result], cells: Path
) -> None:
    done = compare(cells, compared[0], *options)
    assert done.exit_code == 1
    assert differing in done.stderr
    assert "Give the same, or compare in a new folder" in done.stderr


def test_other_data_than_it_was_begun_with_is_refused(compared: tuple[Path, Result], labelled: Path) -> None:
    done = compare(labelled, compared[0])
    assert done.exit_code == 1
    assert (
        "data.labels was ['round', 'square'] and is ['basophil', 'eosinophil', 'lymphocyte']" in done.stderr
    )


def test_a_comparison_of_an_earlier_version_keeps_its_split(tmp_path: Path) -> None:
    cells, out = write_cells(tmp_path / "cells"), tmp_path / "out"
    for path in [*cells.rglob("*.png")]:  # one patient has more than half of the images
        patient = path.parent / f"p{max(0, int(path.stem) - 6)}"
        patient.mkdir(exist_ok=True)
        path.rename(patient / path.name)
    before = read_training_folder(cells, seed=2, dealing=1)
    recipe = recipe_asked(None, {**FIGURES, "seed": 2})
    out.mkdir()
    ComparisonFolder(out).begin(before, recipe, None, None)
    begun = json.loads((out / "comparison.json").read_text())
    assert begun.pop("dealing") == 1
    (out / "comparison.json").write_text(json.dumps(begun))
    done = compare(cells, out, "--seed", "2", networks="toy_thin")
    assert done.exit_code == 0, done.output
    counts = results_of(out)["counts"]
    assert counts == {name: len(samples) for name, samples in before.splits.items()}
    assert counts["train"] == 6  # of 24: nothing is dealt anew


def test_an_image_that_cannot_be_read_stops_it_with_a_way_on(cells: Path, tmp_path: Path) -> None:
    data, broken = shutil.copytree(cells, tmp_path / "cells"), "round/3.png"
    (data / broken).write_bytes(b"broken")
    done = compare(data, tmp_path / "out")
    assert done.exit_code == 1
    assert f"{broken}' is not a PNG" in done.stderr
    assert "give the same command again, or compare in a new folder with --skip-bad\n" in done.stderr
    done = compare(data, tmp_path / "out", "--skip-bad")
    assert f"skipped was [] and is ['{broken}']. Give the same, or compare in a new folder\n" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files have to be Unicode")
def test_images_whose_names_are_no_utf8_are_compared(cells: Path, tmp_path: Path) -> None:
    data = shutil.copytree(cells, tmp_path / "cells")
    for path in [*data.rglob("*.png")]:
        path.rename(path.with_name(f"z\udce4hl_{path.name}"))
    done = compare(data, tmp_path / "compared", networks=next(iter(TOYS)))
    assert done.exit_code == 0, done.stderr


def test_a_folder_of_something_else_is_left_alone(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = compare(cells, tmp_path, networks="toy_thin")
    assert done.exit_code == 1
    assert "holds 'thesis.tex' and is no comparison" in done.stderr
    done = compare(cells, tmp_path / "thesis.tex", networks="toy_thin")
    there = f"'{tmp_path / 'thesis.tex'}' is there and is no folder: choose another name"
    assert done.stderr == f"error: {there}\n"
    (tmp_path / "comparison.json").write_text("{}")
    done = compare(cells, tmp_path, networks="toy_thin")
    assert "comparison.json: does not say what was begun there: 'data' is missing" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.json", "thesis.tex"]


def test_an_image_that_breaks_stops_all_by_name(cells: Path, tmp_path: Path) -> None:
    data = shutil.copytree(cells, tmp_path / "cells")
    (data / "round" / "3.png").write_bytes(b"broken")
    done = compare(data, tmp_path / "out", networks="toy_thin")
    assert done.exit_code == 1
    assert "3.png" in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_damaged_bundle_and_predictions_are_made_again(
    compared: tuple[Path, Result], cells: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(compared[0], tmp_path / "copy")
    (output / "toy_thin" / "fp32" / "model.onnx").write_bytes(b"damaged")
    (output / "toy_thin" / "run" / "predictions.csv").write_text("damaged")
    (output / "bench.json").write_text("{}")
    done = compare(cells, output, networks="toy_thin")
    assert done.exit_code == 0, done.output
    (entry,) = results_of(output)["networks"]
    assert entry["scores"]["metrics"] == results_of(compared[0])["networks"][0]["scores"]["metrics"]
    assert entry["parity"]["kept"]


class Tags(html.parser.HTMLParser):
    """The tags of a page, and whether each is closed."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(compared: tuple[Path, Result]) -> None:
    page = (compared[0] / "report.html").read_text()
    tags = Tags(page)
    assert tags.open == []
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|<script|\son\w+=", page)
    sources = [
        value for tag, has in tags.found for name, value in has.items() if name in ("src", "srcset", "href")
    ]
    assert len(sources) == 4
    assert all(source and source.startswith("data:image/svg+xml;base64,") for source in sources)
    (picture,) = (has for tag, has in tags.found if tag == "img")
    assert re.match(
        r"Accuracy over latency: toy_thin [\d.]+ % in [\d.e-]+ ms; toy_wide .* On the front: toy",
        str(picture["alt"]),
    )
    assert all("scope" in has for tag, has in tags.found if tag == "th")
    regions = [has for tag, has in tags.found if has.get("role") == "region"]
    assert all(has["tabindex"] == "0" and has["aria-label"] for has in regions)


def test_names_are_no_markup(compared: tuple[Path, Result]) -> None:
    page = (compared[0] / "report.html").read_text()
    assert "<b>&cells" not in page
    assert "Which network for &lt;b&gt;&amp;cells?" in page
    assert r"\<b\>&cells: 4 images" in (compared[0] / "results.md").read_text()
