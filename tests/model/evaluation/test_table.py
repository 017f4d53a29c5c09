"""The paper's tables: our figures beside its own, and nothing in the place of what is not known."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.errors import DataError, InputError, TrainingError
from msmamba.model.evaluation.paper import (
    ABLATIONS,
    DOUBTS,
    PEERS,
    PUBLISHED,
    PaperRow,
    Results,
    printed_results,
    read_published,
)
from msmamba.model.evaluation.table import (
    MARK,
    NO_INTERVAL,
    ablations_table,
    compare,
    paper_row,
    peer_rows,
    run_rows,
    runs_table,
)
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.networks.registry import architecture_named


@pytest.fixture(scope="module")
def run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny network without MIFA, trained from the command line."""
    path = tmp_path_factory.mktemp("runs") / "run_1"
    options = ("--no-mifa", "--image-size", "32", "--epochs", "1", "--warm-up", "0", "--batch-size", "8")
    done = CliRunner().invoke(mmdeploy, ["train", str(cells), "-o", str(path), *options, "--threads", "1"])
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Results as somebody might copy them."""
    path = tmp_path / "paper.csv"
    path.write_text(
        "dataset,network,accuracy,auc,precision\n"
        "Cells,t --no-mifa,91.25,0.987,90.5%\n"
        "cells,Vit-base,88.5,,\n"
        "other,t,1,1,1\n"
    )
    return path


def test_a_run_stands_above_its_row_of_the_paper(run: Path, published: Path) -> None:
    own, paper = run_rows(run, read_published(published), resamples=100)
    metrics = json.loads((run / "metrics.json").read_text())
    assert own.network == paper.network == "Microscopic-Mamba-t w/o MIFA"
    assert (own.data, own.split, own.images, own.image_size) == ("cells", "test", 4, 32)
    assert own.parameters == 4.299422
    assert own.own_parameters == 3_531_960
    assert own.metrics == {name: metrics["test"][name] for name in ("accuracy", "auc", "precision")}
    assert own.intervals.keys() >= own.metrics.keys()
    assert (paper.parameters, paper.macs, paper.image_size) == (4.30, None, 224)
    assert paper.metrics == {"accuracy": 0.9125, "auc": 0.987, "precision": 0.905}


def test_another_network_of_table_one_stands_above_its_row_too(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    arch = architecture_named("pvt_small", num_classes=2).to_dict()
    changed = {**config, "network": "pvt_small", "architecture": arch, "dataset": "rpe"}
    (other / "config.json").write_text(json.dumps(changed))
    own, paper = run_rows(other, resamples=100)
    assert own.network == paper.network == "PVT-small"
    assert (own.table, round(own.parameters or 0, 2), paper.parameters) == ("I", 24.49, 24.49)
    assert paper.metrics["accuracy"] == printed_results()["rpe", "PVT-small"]["accuracy"]


def test_what_the_paper_does_not_have_stays_open(run: Path) -> None:
    _, paper = run_rows(run, resamples=100)  # on a data set of ours
    assert paper.metrics == {}
    text = compare([run], resamples=100).to_text()
    assert text.splitlines()[3].split()[-5:] == ["4.30", "–", "–", "–", "–"]
    assert "–: the paper's tables, as they are known here, have no such figure." in text
    assert "95 % bootstrap" in text


def test_a_run_of_an_earlier_version_has_no_intervals(run: Path, tmp_path: Path) -> None:
    older = shutil.copytree(run, tmp_path / "older")
    (older / "predictions.csv").unlink()
    assert run_rows(older)[0].intervals == {}
    assert "No interval: the run has no predictions.csv" in compare([older]).to_text()


def test_unfinished_runs_and_other_folders_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is no run: expected a folder that 'mmdeploy train' wrote"):
        run_rows(tmp_path)
    with pytest.raises(TrainingError, match="is no run: expected a folder that 'mmdeploy train' wrote"):
        run_rows(run / "metrics.json")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "metrics.json").unlink()
    with pytest.raises(TrainingError, match="is not finished: continue it"):
        run_rows(unfinished)
    (unfinished / "metrics.json").write_text('{"test": null}')
    with pytest.raises(TrainingError, match=r"metrics\.json: is not of a run of this version"):
        run_rows(unfinished)
    another = shutil.copytree(run, tmp_path / "another")
    lines = (another / "predictions.csv").read_text().splitlines(keepends=True)
    (another / "predictions.csv").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=r"is not of the answers that metrics\.json measures: .* writes both"):
        run_rows(another)
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "predictions.csv").write_text("nothing")
    with pytest.raises(DataError, match="is not a file of predictions"):
        run_rows(broken)


def test_the_records_are_unrounded_and_the_latex_compiles_as_text(run: Path, published: Path) -> None:
    table = compare([run], published=published, peers=True, resamples=100)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == 2 + len(PEERS) == 31
    metrics = json.loads((run / "metrics.json").read_text())
    assert float(rows[0]["precision"]) == metrics["test"]["precision"]
    assert float(rows[0]["accuracy_low"]) <= float(rows[0]["accuracy"]) <= float(rows[0]["accuracy_high"])
    assert next(row for row in rows if row["network"] == "Vit-base")["accuracy"] == "0.885"
    latex = table.to_latex()
    body = latex[latex.index(r"\begin") :]
    assert r"run\_1" in body
    assert r"OA \%" in body
    assert not re.search(r"(?<!\\)[%_#$]", body)
    cells = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in cells} == {8}


def test_latex_has_no_line_end_and_no_escape_sequence_of_a_name(run: Path) -> None:
    (row, _) = run_rows(run, resamples=100)
    table = runs_table([replace(row, data="cells\n\\input{x}\x1b[31m")])
    (line,) = [each for each in table.to_latex().splitlines() if "cells" in each]
    assert r"cells\textbackslash{}u000a\textbackslash{}input\{x\}\textbackslash{}u001b[31m" in line


def test_markdown_takes_names_as_they_stand(run: Path) -> None:
    (row, _) = run_rows(run, resamples=100)
    row = replace(row, source="r*|[n](x)<b>")
    lines = runs_table([row]).to_markdown().splitlines()
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:3]} == {10}
    assert r"| r\*\|[n]\(x)\<b\> | cells (test, 4) | 32 |" in lines[2]
    assert any("95 % bootstrap interval" in line for line in lines[3:])


def test_one_patient_has_no_interval_and_it_is_said(run: Path) -> None:
    (row, _) = run_rows(run, resamples=100)
    row = replace(row, metrics={"accuracy": 0.5, "auc": None}, intervals={"accuracy": None, "auc": None})
    assert "50.00  " in runs_table([row]).to_text()
    assert NO_INTERVAL in runs_table([row]).notes
    without_value = replace(row, metrics={"auc": None})
    assert NO_INTERVAL not in runs_table([without_value]).notes


def test_ablations_are_counted_beside_the_papers_figures() -> None:
    table = ablations_table()
    cells = {line[0].removeprefix("Microscopic-Mamba-t").strip(): line[1:5] for line in table.lines}
    assert cells[""] == ["4,321,310", "4.32", "4.32", "yes"]
    assert cells["w/o MIFA"] == ["4,299,422", "4.30", "4.30", "yes"]
    assert cells["w/o parallel"] == ["8,832,530", "8.83", "8.83", "yes"]
    assert cells["w/o PSFFN"] == ["4,261,538", "4.26", "4.89", "no"]
    assert len(table.lines) == len(set(map(str, table.lines))) == len(ABLATIONS) == 8
    assert cells["w/o MIFA w/o PSFFN"] == ["4,239,650", "4.24", "4.86", "no"]


def test_networks_are_known_by_their_shape() -> None:
    row = PaperRow.of(Architecture.of_size("b", num_classes=7, psffn=False, mifa=False))
    assert row is not None
    assert row.key == "b --no-mifa --no-psffn"
    assert row.published.parameters is None
    assert row.architecture(7) == Architecture.of_size("b", num_classes=7, psffn=False, mifa=False)
    assert PaperRow.of(Architecture(depths=(1, 1), dims=(32, 64))) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dataset,network,auc\n", "has no column 'accuracy', 'precision'"),
        ("dataset,network,accuracy,auc,precision\nrpe,T,,,\n", "line 2: 'T' is no network of the paper's"),
        ("dataset,network,accuracy,auc,precision\nrpe,t,high,,\n", "line 2, accuracy: 'high' is no number"),
        ("dataset,network,accuracy,auc,precision\nrpe,t,,101,\n", "line 2, auc: 101 is neither a share nor"),
        ("dataset,network,accuracy,auc,precision\nrpe,t,nan,,\n", "line 2, accuracy: nan is neither"),
        ("dataset,network,accuracy,auc,precision\nrpe,t\n", None),
    ],
    ids=["columns", "network", "number", "range", "nan", "short-line"],
)
def test_results_that_make_no_sense_are_refused(content: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text(content)
    if message is None:
        assert read_published(path) == {("rpe", "t"): {}}
        return
    with pytest.raises(InputError, match=re.escape(message)):
        read_published(path)


def test_results_are_shares_or_per_cent(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text("dataset,network,accuracy,auc,precision\nrpe,t,88.41,0.9829,0.5%\nmhist,t,1,100%,0\n")
    assert read_published(path) == {
        ("rpe", "t"): {"accuracy": 0.8841, "auc": 0.9829, "precision": 0.005},
        ("mhist", "t"): {"accuracy": 1, "auc": 1, "precision": 0},
    }


def test_the_command_takes_runs_or_ablations(run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(mmdeploy, ["table"]).exit_code == 2
    assert runner.invoke(mmdeploy, ["table", "--ablations", str(run)]).exit_code == 2
    target = tmp_path / "table.tex"
    done = runner.invoke(mmdeploy, ["table", "--ablations", "--format", "latex", "-o", str(target)])
    assert (done.exit_code, done.output) == (0, "")
    assert target.read_text().rstrip().endswith(r"\end{tabular}")
    for name, begins in (("table.tex", "%"), ("table.md", "| "), ("table.csv", "network,")):
        done = runner.invoke(mmdeploy, ["table", str(run), "--resamples", "100", "-o", str(tmp_path / name)])
        assert (done.exit_code, done.output) == (0, "")
        assert (tmp_path / name).read_text().startswith(begins)
    shown = runner.invoke(mmdeploy, ["table", str(run), "--resamples", "100"])
    assert shown.output.count("Microscopic-Mamba-t w/o MIFA") == 2


def test_only_networks_of_the_paper_have_a_row_of_it() -> None:
    assert PaperRow("t", ("mifa",)).key in PUBLISHED
    assert PaperRow("b", ("mifa",)).key not in PUBLISHED
    assert PaperRow("b", ("mifa",)).published.classes == 8


def test_the_papers_rows_have_its_results() -> None:
    tiny, small = paper_row(PaperRow("t"), "rpe"), paper_row(PaperRow("s"), "TissueMNIST")
    assert tiny.metrics == {"accuracy": 0.8841, "auc": 0.9829, "precision": 0.8968}
    assert small.metrics == {"accuracy": 0.7301, "auc": 0.944}
    assert next(row for row in peer_rows("mhist") if row.network == "SMT-b").metrics["accuracy"] == 0.8605
    assert len(printed_results()) == 5 * (len(PEERS) + 3) + 2 * 4  # Table I; Tables II and III
    assert {network for _, network in printed_results()} == {*PUBLISHED, *(peer.name for peer in PEERS)}


def test_results_from_a_file_stand_in_place_of_the_papers(published: Path) -> None:
    results = read_published(published)
    assert paper_row(PaperRow("t"), "rpe", results).metrics == {}
    assert paper_row(PaperRow("t", ("mifa",)), "cells", results).metrics["accuracy"] == 0.9125


def not_a_share(images: dict[str, int], results: Results) -> set[tuple[str, str]]:
    """The accuracies, to two decimals of a per cent, that no whole number of test images gives."""
    return {
        (data, network)
        for (data, network), metrics in results.items()
        if data in images
        and not any(
            abs(right / images[data] - metrics["accuracy"]) < 0.5001e-4
            for right in range(int(images[data] * metrics["accuracy"]) - 1, images[data] + 1)
        )
    }


def test_doubted_accuracies_are_those_that_no_number_of_images_gives() -> None:
    images = {"rpe": 371, "mhist": 631, "malaria": 5511, "medfm-colon": 2002}
    doubted = {(doubt.data, doubt.network) for doubt in DOUBTS if doubt.figure == "accuracy"}
    assert doubted == not_a_share(images, printed_results())


def test_every_doubt_is_of_a_figure_as_it_is_printed() -> None:
    rows = [
        row for data in ("rpe", "mhist", "malaria", "tissuemnist", "medfm-colon") for row in peer_rows(data)
    ]
    rows += [
        paper_row(row, data) for data in ("rpe", "mhist", "malaria") for row in (*ABLATIONS, PaperRow("b"))
    ]
    assert {doubt for row in rows for doubt in row.doubts} == set(DOUBTS)


def test_a_doubted_figure_is_marked_with_the_reason() -> None:
    table = runs_table([paper_row(PaperRow("t"), "mhist"), *peer_rows("rpe")])
    text = table.to_text()
    assert re.search(r"Microscopic-Mamba-t +paper +mhist .* 87\.30† +0\.9349 +87\.67$", text, re.MULTILINE)
    assert re.search(r"SMT-s .* 4\.72 +83\.99† +0\.8373† ", text)
    assert "† Microscopic-Mamba-t on mhist, OA % 87.30 as printed: no share of 631 images" in text
    assert len(re.findall("^†", text, re.MULTILINE)) == 13
    rows = {row["network"]: row for row in csv.DictReader(io.StringIO(table.to_csv()))}
    assert rows["SMT-s"]["accuracy"] == "0.8399"  # a number still
    assert rows["SMT-s"]["doubted"].startswith("accuracy: no share of 371 images")
    assert rows["Twins-base"]["doubted"] == ""
    latex = table.to_latex()
    assert r"& 83.99\textsuperscript{\dag} &" in latex
    assert latex.index(r"\bottomrule") < latex.index(
        r"{\footnotesize \textsuperscript{\dag} SMT-s on rpe, OA \% 83.99"
    )
    assert MARK not in latex


def test_a_corrected_figure_is_not_doubted() -> None:
    corrected = paper_row(PaperRow("t"), "mhist", {("mhist", "t"): {"accuracy": 0.8732}})
    assert corrected.doubts == ()
    assert len(paper_row(PaperRow("t"), "mhist", {("mhist", "t"): {"accuracy": 0.873}}).doubts) == 1


def test_names_are_no_markup(run: Path, tmp_path: Path) -> None:
    odd = tmp_path / "r[" / "x]"
    odd.parent.mkdir()
    shutil.copytree(run, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "dataset": "[bold]cells[/bold]"}))
    done = CliRunner().invoke(mmdeploy, ["table", str(odd), "--resamples", "100"])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/r[/x]" in done.stdout
    assert "[bold]cells[/bold]" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_table_is_written_about_a_run_whose_name_is_no_text(run: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"r\xff")
    shutil.copytree(run, odd)
    target = tmp_path / "table.csv"
    words = ["table", str(odd), "--resamples", "100", "--format", "csv", "-o", str(target)]
    done = CliRunner().invoke(mmdeploy, words)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(target.read_text(encoding="utf-8"))))
    assert rows[0]["from"] == f"{tmp_path}/r\ufffd"


def test_predictions_without_the_split_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "predictions.csv"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if not line.startswith("test,"))
    )
    with pytest.raises(DataError, match=r"predictions\.csv: has no images of the test split"):
        run_rows(tmp_path / "run")
