"""`mmdeploy infer`: the images that are meant, a row for each as it is made, and the exit status."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from msmamba.cli import mmdeploy
from msmamba.errors import ImageError, InputError
from msmamba.runtime import Session, open_session
from msmamba.runtime.infer import find_images, infer


def save(path: Path, channel: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 6, 3), 40, np.uint8)
    pixels[..., channel] = 220
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Red, green and blue images at three depths, among files that are none."""
    folder = tmp_path / "slides"
    save(folder / "a red.png", 0)
    save(folder / "b" / "green.PNG", 1)
    save(folder / "b" / "c" / "blue.tif", 2)
    save(folder / ".hidden.png")
    save(folder / ".thumbnails" / "x.png")
    (folder / "Thumbs.db").write_bytes(b"x")
    return folder


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with open_session(bundle) as opened:
        yield opened


def images(*arguments: str | Path) -> list[Path]:
    return find_images(arguments).images


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_a_folder_means_the_images_below_it(slides: Path) -> None:
    assert names(images(slides), slides) == ["a red.png", "b/c/blue.tif", "b/green.PNG"]


def test_a_pattern_means_what_it_matches(slides: Path) -> None:
    assert names(images(f"{slides}/**/*.PNG"), slides) == ["b/green.PNG"]
    assert names(images(f"{slides}/b*"), slides) == ["b/c/blue.tif", "b/green.PNG"]


def test_a_file_is_taken_whatever_its_suffix(slides: Path) -> None:
    assert images(slides / "Thumbs.db") == [slides / "Thumbs.db"]
    assert images("missing.png") == [Path("missing.png")]


def test_a_name_that_no_file_can_have_stops_no_other(slides: Path) -> None:
    there, long = slides / "a.png", slides / ("n" * 300)
    assert images(there, long) == [there, long]


@pytest.mark.parametrize("pattern", ["*/*.png", "**/*.png"])
def test_a_folder_that_a_pattern_cannot_look_into_once_is_told(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flickers", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    scandir, refused = os.scandir, list[str]()

    def refuse(folder: Any) -> Any:
        if Path(folder).name == "flickers" and not refused:
            refused.append(folder)
            raise OSError(errno.EIO, os.strerror(errno.EIO), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images([f"{tmp_path}/{pattern}"])
    assert tmp_path / "open" / "a.png" in found.images
    assert found.notes == (f"passed over: folders that cannot be read, 1 ({tmp_path}/flickers)",)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    path = save(tmp_path / "cell[1].png")
    save(tmp_path / "cell1.png")
    assert images(path) == [path]


def test_every_image_comes_once_and_sorted(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(slides)
    (slides / "link.png").symlink_to("a red.png")
    found = images("b", "./b/green.PNG", slides / "b", "a red.png", "b/../a red.png", "link.png")
    assert len(found) == 3
    assert found == sorted(found)


@pytest.mark.parametrize("argument", ["", "*.gif"], ids=["folder", "pattern"])
def test_nothing_found_is_an_error(tmp_path: Path, argument: str) -> None:
    with pytest.raises(InputError, match=r"holds no image|matches nothing"):
        find_images([tmp_path / argument])


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, ["infer", *map(str, arguments)])


def test_the_table_is_aligned(bundle: Path, slides: Path) -> None:
    result = invoke(bundle, slides, "--top", 2)
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    column = header.index("class")
    assert [row[column:].split()[0] for row in rows] == ["red", "blue", "green"]
    assert [row[: column - 2].rstrip() for row in rows] == [
        str(slides / name) for name in ("a red.png", "b/c/blue.tif", "b/green.PNG")
    ]
    assert all(len(row.split()) == len(rows[1].split()) for row in rows[1:])


def test_json_is_one_object_a_line(bundle: Path, slides: Path) -> None:
    result = invoke(bundle, slides / "a red.png", slides / "Thumbs.db", "--format", "json", "--top", 3)
    bad, good = (json.loads(line) for line in result.stdout.splitlines())
    assert bad == {
        "image": str(slides / "Thumbs.db"),
        "error": f"'{slides / 'Thumbs.db'}' is not a PNG, JPEG, TIFF or BMP image that can be read",
    }
    assert good["label"] == "red"
    assert good["top"][0] == {"label": "red", "probability": good["probability"]}
    assert sum(entry["probability"] for entry in good["top"]) == pytest.approx(1)
    assert good["notes"] == []


def test_a_file_is_written_as_its_suffix_says(bundle: Path, slides: Path, tmp_path: Path) -> None:
    for name, begins in (("a.CSV", "image,label,"), ("a.jsonl", '{"image": '), ("a.txt", "image  ")):
        invoke(bundle, slides, "-o", tmp_path / name)
        assert (tmp_path / name).read_text().startswith(begins)
    invoke(bundle, slides, "-o", tmp_path / "asked.csv", "--format", "json")
    assert (tmp_path / "asked.csv").read_text().startswith("{")


def test_csv_has_a_header_and_the_same_columns_in_every_row(bundle: Path, slides: Path) -> None:
    save(slides / 'with "quotes", and\nmore.png', 1)
    result = invoke(bundle, slides, slides / "Thumbs.db", "--format", "csv", "--top", 2)
    rows = list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline="")))
    assert list(rows[0]) == ["image", "label", "probability", "label_2", "probability_2", "notes", "error"]
    by_name = {Path(row["image"]).name: row for row in rows}
    assert by_name["a red.png"]["label"] == "red"
    assert by_name['with "quotes", and\nmore.png']["label"] == "green"
    assert by_name["Thumbs.db"]["label"] == ""
    assert "is not a PNG" in by_name["Thumbs.db"]["error"]
    assert None not in by_name["Thumbs.db"]
    assert result.stdout_bytes.count(b"\r\n") == len(rows) + 1


def test_a_bad_image_stops_nothing_and_shows_in_the_exit_status(bundle: Path, slides: Path) -> None:
    (slides / "cut.png").write_bytes((slides / "a red.png").read_bytes()[:-20])
    result = invoke(bundle, slides, "--batch-size", 2)
    assert result.exit_code == 1
    *notes, error = result.stderr.splitlines()
    assert notes == [
        "note: passed over: files of other kinds, 1 Thumbs.db (read: .bmp, .jpeg, .jpg, .png, .tif, .tiff)",
        "note: passed over: hidden files, 1 (.hidden.png)",
        "note: passed over: hidden folders, 1 (.thumbnails)",
    ]
    assert error == "error: 1 of 4 images could not be classified: their rows say why"
    assert len(result.stdout.splitlines()) == 5
    assert "cut.png' is truncated or corrupt" in result.stdout


def test_the_output_file_holds_what_would_be_shown(bundle: Path, slides: Path, tmp_path: Path) -> None:
    for output_format in ("table", "json", "csv"):
        target = tmp_path / output_format
        result = invoke(bundle, slides, "--format", output_format, "-o", target)
        assert result.exit_code == 0
        assert result.stdout == ""
        assert target.read_bytes() == invoke(bundle, slides, "--format", output_format).stdout_bytes


def test_the_output_file_is_complete_when_an_image_is_bad(bundle: Path, slides: Path, tmp_path: Path) -> None:
    result = invoke(bundle, slides, slides / "Thumbs.db", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert len((tmp_path / "out").read_text().splitlines()) == 5


def test_the_output_file_is_absent_when_the_network_fails(
    session: Session, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: np.ndarray) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(session, "run", fail)
    with pytest.raises(MemoryError):
        infer(session, images(slides), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_target_is_known_before_any_work(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        infer(session, [Path("missing.png")])
    result = invoke(tmp_path / "colours.bundle", "missing.png", "-o", tmp_path / "no" / "out")
    assert result.exit_code == 1
    assert "folder does not exist" in result.stderr
    assert result.stdout == ""


def test_rows_come_out_as_they_are_made(
    session: Session, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    runs: list[int] = []
    run = session.run

    def counted(images: np.ndarray) -> np.ndarray:
        runs.append(len(shown))
        return run(images)

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            shown.extend([1] * text.count("\n"))
            return super().write(text)

    monkeypatch.setattr(session, "run", counted)
    monkeypatch.setattr("sys.stdout", Watched())
    infer(session, images(slides), batch_size=1)
    assert runs == [1, 2, 3]  # the header, then a row before each further image


def test_a_terminal_shows_the_same_rows(
    session: Session, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "300")
    infer(session, images(slides))
    for name in ("a red.png", "blue.tif", "green.PNG"):
        assert name in terminal.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_neither_commands_a_terminal_nor_forges_a_row(
    session: Session, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "n"
    awkward = ["red\x1b[31m.png", "x.png  red  1.0000\nforged.png", "=1+1.png"]
    for name in awkward:
        save(folder / name)
    (folder / "bad\x1b[2J.png").write_bytes(b"no image")
    monkeypatch.chdir(folder)
    table = invoke(bundle, ".").stdout
    assert "\x1b" not in table
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "=1+1.png",
        "bad\\u001b[2J.png",
        "red\\u001b[31m.png",
        "x.png",
    ]
    assert "x.png  red  1.0000\\u000aforged.png" in table
    rows = list(
        csv.DictReader(io.StringIO(invoke(bundle, ".", "--format", "csv").stdout_bytes.decode(), newline=""))
    )
    assert {row["image"] for row in rows} == {"'=1+1.png", *awkward[:2], "bad\x1b[2J.png"}
    lines = [json.loads(line) for line in invoke(bundle, ".", "--format", "json").stdout.splitlines()]
    assert {line["image"] for line in lines} == {*awkward, "bad\x1b[2J.png"}

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for output_format in ("table", "csv", "json"):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        infer(session, [Path(awkward[0])], output_format=output_format)
        assert "red\x1b" not in terminal.getvalue()


def test_a_name_that_is_not_utf8_is_shown_and_read(bundle: Path, tmp_path: Path) -> None:
    raw = os.fsencode(save(tmp_path / "x.png")).replace(b"x.png", b"zell\xe9.png")
    os.rename(tmp_path / "x.png", raw)  # noqa: PTH104  # Path cannot hold bytes
    for output_format in ("table", "json", "csv"):
        result = invoke(bundle, os.fsdecode(raw), "--format", output_format, "-o", tmp_path / "out")
        assert result.exit_code == 0
        assert "zell" in (tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["no-bundle", "x.png"], 1, "error: 'no-bundle' does not exist"),
        (["BUNDLE"], 2, "Missing argument"),
        (["BUNDLE", "x.png", "--format", "xml"], 2, "Invalid value for '--format'"),
        (["BUNDLE", "x.png", "--top", "0"], 2, "Invalid value for '--top'"),
    ],
    ids=["no-bundle", "no-image", "format", "top"],
)
def test_what_is_wrong_shows_in_the_exit_status(
    bundle: Path, arguments: list[Any], status: int, message: str
) -> None:
    result = invoke(*(bundle if argument == "BUNDLE" else argument for argument in arguments))
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_json_is_the_same_escaped_text_in_files_and_on_terminals(session: Session, tmp_path: Path) -> None:
    name = "\x9b31m\u202egnp.\x85\u2028red\x7f.png"  # sequences and line ends that JSON lets through
    save(tmp_path / "in" / name)
    (tmp_path / "in" / f"bad{name}").write_bytes(b"no image")
    with pytest.raises(ImageError, match="1 of 2"):
        infer(session, images(tmp_path / "in"), output_format="json", output=tmp_path / "out")
    content = (tmp_path / "out").read_text()
    assert content.isascii()
    assert len(content.splitlines()) == 2
    found = {Path(json.loads(line)["image"]).name for line in content.splitlines()}
    assert found == {name, f"bad{name}"}
