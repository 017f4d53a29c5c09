"""Errors become one line and an exit status, in one place."""

from __future__ import annotations

import errno
import inspect
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import msmamba
from msmamba.cli import mmdeploy
from msmamba.cli.options import check_replaces_none
from msmamba.cli.stopping import Terminated
from msmamba.errors import InputError, MsmambaError
from msmamba.runtime import open_session


def _while_waiting(stop: KeyboardInterrupt) -> RuntimeError:
    """What becomes of an interrupt that comes when a lock was just given back to be waited for."""
    error = RuntimeError("cannot release un-acquired lock")
    error.__context__ = stop
    return error


@pytest.fixture
def failing() -> Iterator[None]:
    """Adds a command that fails as it is told."""

    @mmdeploy.command("fail")
    @click.argument("how")
    def fail(how: str) -> None:
        raise {
            "ours": MsmambaError("found x, expected y: do z"),
            "system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "locked": OSError(errno.EACCES, os.strerror(errno.EACCES), "cells"),
            "missing": ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"),
            "broken": ModuleNotFoundError("No module named 'msmamba.x'", name="msmamba.x"),
            "stopped": KeyboardInterrupt(),
            "waiting": _while_waiting(KeyboardInterrupt()),
            "ended": _while_waiting(Terminated(signal.SIGTERM)),
        }[how]

    yield
    del mmdeploy.commands["fail"]


@pytest.mark.usefixtures("failing")
def test_a_package_that_is_not_installed_is_named_with_how_to_get_it() -> None:
    result = CliRunner().invoke(mmdeploy, ["fail", "missing"])
    message = "error: 'mmdeploy fail' needs torch, which is not installed: pip install 'msmamba[train]'\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", message)
    for words in (["--debug", "fail", "missing"], ["fail", "broken"]):
        assert isinstance(CliRunner().invoke(mmdeploy, words).exception, ModuleNotFoundError)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "DATA", "-o", "RUN"],
        ["compare", "DATA", "--networks", "t", "-o", "RUN"],
        ["eval", "MODEL", "DATA", "-o", "DIR"],
        ["verify", "MODEL", "--against", "OTHER", "--data", "DATA", "--report", "PAGE"],
    ],
    ids=lambda words: words[0],
)
def test_what_pictures_lack_is_said_before_the_work(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(
        mmdeploy, [str(tmp_path / word) if word.isupper() else word for word in words]
    )
    assert (result.exit_code, result.stderr) == (
        1,
        "error: pictures need Matplotlib: pip install matplotlib\n",
    )


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (
            "sklearn",
            ["train", "DATA", "-o", "RUN"],
            "accuracy and AUC need scikit-learn: pip install scikit-learn",
        ),
        (
            "sklearn",
            ["compare", "DATA", "--networks", "t", "-o", "RUN"],
            "accuracy and AUC need scikit-learn: pip install scikit-learn",
        ),
        (
            "sklearn",
            ["eval", "MODEL", "DATA"],
            "accuracy and AUC need scikit-learn: pip install scikit-learn",
        ),
        (
            "jinja2",
            ["compare", "DATA", "--networks", "t", "-o", "RUN"],
            "pages need Jinja: pip install jinja2",
        ),
        (
            "jinja2",
            ["verify", "MODEL", "--against", "OTHER", "--data", "DATA", "--report", "PAGE"],
            "pages need Jinja: pip install jinja2",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_measures_and_pages_lack_is_said_before_the_work(
    module: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(
        mmdeploy, [str(tmp_path / word) if word.isupper() else word for word in words]
    )
    assert (result.exit_code, result.stderr) == (1, f"error: {said}\n")


@pytest.mark.usefixtures("failing")
def test_an_error_is_one_line_on_standard_error() -> None:
    result = CliRunner().invoke(mmdeploy, ["fail", "ours"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: found x, expected y: do z\n")


@pytest.mark.usefixtures("failing")
def test_an_error_of_the_system_is_one_line_too() -> None:
    result = CliRunner().invoke(mmdeploy, ["fail", "system"])
    assert (result.exit_code, result.stderr) == (1, "error: no space left on device\n")
    result = CliRunner().invoke(mmdeploy, ["fail", "locked"])
    assert (result.exit_code, result.stderr) == (1, "error: 'cells' cannot be used: permission denied\n")


@pytest.mark.parametrize("arguments", [["info", "--\x1b[31m"], ["infer", "x\x1b[2J\ny", "z.png"]])
def test_what_is_wrong_is_told_without_control_characters(arguments: list[str]) -> None:
    result = CliRunner().invoke(mmdeploy, arguments)
    assert result.exit_code in (1, 2)
    assert "1b[" in result.stderr  # click itself escapes as Python does
    assert "\x1b" not in result.stderr


OUTPUTS = [["--version"], ["--help"], ["train", "--help"], ["doctor"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
def test_a_full_standard_output_is_one_line_too(words: list[str], buffered: bool) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "msmamba", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
        )
    said = "error: cannot write standard output: the disk is full: free some space\n"
    assert (run.returncode, run.stderr) == (1, said)


@pytest.mark.skipif(not hasattr(os, "pipe2"), reason="closes a pipe before the process begins, as Linux does")
@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
def test_a_closed_pipe_is_quiet(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "msmamba", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.usefixtures("failing")
def test_debug_lets_the_error_through() -> None:
    result = CliRunner().invoke(mmdeploy, ["--debug", "fail", "ours"])
    assert isinstance(result.exception, MsmambaError)


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("stopped", 130, "interrupted\n"),
        ("waiting", 130, "interrupted\n"),
        ("ended", 143, "ended by SIGTERM\n"),
    ],
)
def test_an_interrupt_exits_as_shells_expect(how: str, status: int, said: str) -> None:
    result = CliRunner().invoke(mmdeploy, ["fail", how])
    assert (result.exit_code, result.stderr) == (status, said)


def test_wrong_usage_exits_2() -> None:
    assert CliRunner().invoke(mmdeploy, ["--no-such-option"]).exit_code == 2
    assert CliRunner().invoke(mmdeploy, ["no-such-command"]).exit_code == 2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--int8"], id="no-images"),
        pytest.param(["--calib", "cells"], id="no-int8"),
        pytest.param(["--calib-seed", "0"], id="seed-of-zero"),
        pytest.param(["--max-accuracy-drop", "0"], id="limit-of-zero"),
        pytest.param(["--sensitivity"], id="sensitivity"),
    ],
)
def test_options_of_int8_go_together(options: list[str]) -> None:
    result = CliRunner().invoke(mmdeploy, ["export", "net.pth", *options, "-o", "bundle"])
    assert result.exit_code == 2
    assert "--int8 needs --calib DATA" in result.stderr


@pytest.mark.parametrize(
    "option",
    [
        ["--int8"],
        ["--calib-seed", "0"],
        ["--max-accuracy-drop", "0"],
        ["--sensitivity"],
        ["--image-size", "64"],
        ["--weights-of", "ema"],
    ],
    ids=" ".join,
)
def test_a_bundle_has_settled_its_precision(option: list[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    result = CliRunner().invoke(
        mmdeploy, ["export", str(tmp_path), *option, "--target", "tensorrt-rtx", "-o", "bundle"]
    )
    assert result.exit_code == 2
    assert f"settled {option[0]}: leave it out" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "option",
    [
        ["--sm", "8.6"],
        ["--batches", "1", "1", "4"],
        ["--no-plugin"],
        ["--version-compatible"],
        ["--hardware-compatibility", "ampere-plus"],
        ["--timing-cache", "kept"],
    ],
    ids=" ".join,
)
def test_an_option_of_engines_wants_one(option: list[str]) -> None:
    result = CliRunner().invoke(mmdeploy, ["export", "net.pth", *option, "-o", "bundle"])
    assert result.exit_code == 2
    assert f"give one, or leave {option[0]} out" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "a", ""],
        ["infer", "", "b"],
        ["train", "cells", "-o", ""],
        ["export", "a", "-o", "b", "--sm", ""],
    ],
    ids=shlex.join,
)
def test_what_is_empty_is_no_path(arguments: list[str]) -> None:
    """An unset variable of a shell; as a path it is the current folder."""
    result = CliRunner().invoke(mmdeploy, arguments)
    assert result.exit_code == 2
    assert "it is empty" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table", "--ablations", "--peers"], "leave --peers out"),
        (["table", "--ablations", "--published", "mine.csv"], "leave --published out"),
        (["info", "t", "--weights-of", "ema"], "leave --weights-of out"),
        (["bench", "a", "--seconds", "-1"], "--seconds"),
        (["export", "a", "-o", "b", "--mean", "123", "117", "104"], "--mean"),
        (["export", "a", "-o", "b", "--std", "0", "0", "0"], "--std"),
    ],
    ids=lambda value: value if isinstance(value, str) else shlex.join(value),
)
def test_what_does_nothing_or_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(mmdeploy, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_folder_that_is_no_bundle_is_not_taken_for_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(mmdeploy, ["export", str(tmp_path), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "is a folder, not a checkpoint" in result.stderr


def test_the_module_is_the_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "msmamba", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"mmdeploy, version {msmamba.__version__}\n"


def test_the_public_surface_is_this() -> None:
    assert set(msmamba.__all__) == {"__version__", "open"}
    # Written out, so that an editor shows the options and a type checker knows them.
    asked, given = inspect.signature(msmamba.open), inspect.signature(open_session)
    assert asked.parameters == given.parameters


def test_the_providers_on_the_command_line_are_those_of_the_runtime() -> None:
    from msmamba.cli import options
    from msmamba.runtime.onnxruntime_backend import PROVIDERS

    assert options.PROVIDERS == PROVIDERS


def test_the_compatibilities_on_the_command_line_are_those_of_the_builder() -> None:
    from msmamba.export.engine.build import HARDWARE_COMPATIBILITIES

    (option,) = (item for item in mmdeploy.commands["export"].params if item.name == "hardware_compatibility")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == HARDWARE_COMPATIBILITIES


WRITING = """
import signal, sys, time
import click
from msmamba.cli import main, mmdeploy
from msmamba.files import atomic_folder

@mmdeploy.command("write")
@click.argument("target")
def write(target):
    with atomic_folder(target):
        print("writing", flush=True)
        time.sleep(60)

# As a terminal starts it: what runs these tests may ignore signals, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv.pop() == "nohup" else signal.SIG_DFL)
main()
"""


def ended_by(number: int, target: Path, *, nohup: bool = False) -> tuple[int, str]:
    """Exit status and standard error of a command that a signal reached while it wrote a folder."""
    command = [sys.executable, "-c", WRITING, "write", str(target), "nohup" if nohup else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert [path.name for path in target.parent.iterdir()] == [f".{target.name}.msmamba-1.tmp"]
        process.send_signal(number)
        if nohup:
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals")
@pytest.mark.parametrize(
    ("name", "said"),
    [("SIGINT", "interrupted\n"), ("SIGTERM", "ended by SIGTERM\n"), ("SIGHUP", "ended by SIGHUP\n")],
)
def test_a_signal_ends_a_command_and_leaves_nothing(tmp_path: Path, name: str, said: str) -> None:
    number = signal.Signals[name]
    assert ended_by(number, tmp_path / "out") == (128 + number, said)
    assert list(tmp_path.iterdir()) == []


WITH_A_CHILD = """\
import os, signal, time
from msmamba.cli.stopping import Terminated, end_as_interrupted

def gone(*_):
    raise RuntimeError("a worker is gone")

end_as_interrupted()
signal.signal(signal.SIGCHLD, gone)  # as PyTorch does
begun, begins = os.pipe()
if os.fork() == 0:
    os.write(begins, b"!")
    time.sleep(60)
    os._exit(0)
os.read(begun, 1)
try:
    os.killpg(0, signal.SIGTERM)
    time.sleep(60)
except Terminated:
    os.wait()
    print("cleaned up")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals")
def test_a_signal_to_all_processes_is_no_matter_of_their_children() -> None:
    """As systemd sends it."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_CHILD],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("cleaned up\n", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals")
def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    assert ended_by(signal.SIGHUP, tmp_path / "out", nohup=True) == (143, "ended by SIGTERM\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("lymphocyte\nmonöcyte\n".encode("latin-1"), "is not text in UTF-8", id="latin-1"),
        pytest.param("\ufefflymphocyte\nmonöcyte\n".encode(), None, id="byte-order-mark"),
    ],
)
def test_a_file_of_labels_is_text_in_utf_8(content: bytes, message: str | None, tmp_path: Path) -> None:
    from msmamba.cli.options import names

    (tmp_path / "labels.txt").write_bytes(content)
    if message is None:
        assert names(str(tmp_path / "labels.txt")) == ["lymphocyte", "monöcyte"]
    else:
        with pytest.raises(InputError, match=message):
            names(str(tmp_path / "labels.txt"))


def test_a_missing_file_of_labels_is_no_label() -> None:
    from msmamba.cli.options import names

    assert names("a.b, c") == ["a.b", "c"]
    with pytest.raises(InputError, match=r"there is no file 'labels\.txt': expected one label a line"):
        names("labels.txt")


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "{}.onnx", "a.png", "-o", "a.png"],
        ["infer", "{}.onnx", ".", "-o", "./a.png"],
        ["infer", "{}.onnx", "a.png", "-o", "link.onnx"],
        ["infer", "{}.onnx", "a.png", "-o", "new", "--drift", "./new"],
        ["bench", "{}.onnx", "-o", "{}.onnx"],
        ["bench", "{}.onnx", "--plot", "a.png", "--image", "a.png"],
        ["bench", "{}.onnx", "-o", "new", "--plot", "new"],
        ["verify", "{}.onnx", "--against", "b.pth", "--data", "cells", "--report", "b.pth"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_nothing_that_a_command_is_given_is_replaced(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "a.png", "b.pth"):
        Path(name).write_text(name)
    Path("link.onnx").hardlink_to("model.onnx")
    done = CliRunner().invoke(mmdeploy, [each.format("model") for each in arguments])
    assert done.exit_code == 2
    assert "would replace" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.pth", "link.onnx", "model.onnx"]
    assert Path("a.png").read_text() == "a.png"


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "none", "--against", "none", "--data", "none", "--report"],
        ["calibrate", "none", "none", "--report"],
        ["bench", "none", "-o"],
        ["bench", "none", "--plot"],
        ["table", "none", "-o"],
        ["eval", "none", "none", "-o"],
    ],
    ids=" ".join,
)
def test_what_could_not_be_written_in_the_end_is_refused_before_the_work(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(mmdeploy, [*command, str(tmp_path / "file" / "below")])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: cannot write '{tmp_path / 'file' / 'below'}")
    assert "is a file" in done.stderr
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


@pytest.mark.parametrize("command", [["table", "none", "--published"], ["calibrate", "none"]], ids=" ".join)
def test_what_a_command_reads_it_does_not_write(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "own").touch()
    option = "-o" if "table" in command else "--report"
    done = CliRunner().invoke(mmdeploy, [*command, str(tmp_path / "own"), option, str(tmp_path / "own")])
    assert (done.exit_code, f"{option} would replace" in done.stderr) == (2, True), done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "bundle", "new.png", "-o", "bundle/model.onnx"],
        ["bench", "bundle", "-o", "bundle/manifest.json"],
        ["bench", "bundle", "--plot", "./bundle/../bundle/model.onnx"],
        ["calibrate", "bundle", "cells", "--report", "bundle/model.onnx"],
        ["calibrate", "bundle", "cells", "--report", "cells/a/1.png"],
        ["verify", "bundle", "--against", "b.pth", "--data", "cells", "--report", "cells/a/1.png"],
        ["verify", "bundle", "--against", "b.pth", "--data", "cells", "--report", "bundle/manifest.json"],
        ["table", "run", "-o", "./run/predictions.csv"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_nothing_in_a_folder_that_a_command_is_given_is_replaced(
    arguments: list[str], bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundles["fp32"], "bundle")
    Path("cells", "a").mkdir(parents=True)
    Path("cells", "a", "1.png").write_text("a picture")
    Path("run").mkdir()
    Path("run", "predictions.csv").write_text("of every image")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = CliRunner().invoke(mmdeploy, arguments)
    assert done.exit_code == 2, done.output
    assert f"would replace '{Path(arguments[-1])}'" in " ".join(done.stderr.split())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_report_in_a_bundle_may_be_written_again(bundles: dict[str, Path], tmp_path: Path) -> None:
    check = click.Command("any", callback=lambda: None)
    shutil.copytree(bundles["fp32"], tmp_path / "bundle")
    (tmp_path / "bundle" / "report.html").write_text("of yesterday")
    with click.Context(check):
        for name in ("report.html", "new.html"):
            check_replaces_none("--report", str(tmp_path / "bundle" / name), [tmp_path / "bundle"])
    assert (tmp_path / "bundle" / "report.html").read_text() == "of yesterday"
    assert not (tmp_path / "bundle" / "new.html").exists()


@pytest.mark.parametrize("columns", [60, 80])
def test_the_list_of_networks_fits_the_terminal(columns: int) -> None:
    whole, narrow = (
        CliRunner(env={"COLUMNS": each}).invoke(mmdeploy, ["networks"]).stdout
        for each in (None, str(columns))
    )
    assert max(map(len, whole.splitlines())) > columns >= max(map(len, narrow.splitlines()))
    assert {line.split()[0] for line in whole.splitlines()[3:]} <= {*narrow.split()}
