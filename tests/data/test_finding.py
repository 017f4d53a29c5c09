"""Which files of folders are found, in which order, and that nothing is passed over in silence."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from msmamba.cli import mmdeploy
from msmamba.data.copies import contents_of
from msmamba.data.finding import HEAT_MAPS, Passed, class_folders, images_below, matching
from msmamba.data.published.folder import list_folder
from msmamba.errors import DataError, Note
from msmamba.model.evaluation.explanation import METHODS


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root: Path, within: Path | None = None) -> tuple[list[str], tuple[str, ...]]:
    passed = Passed()
    images = [path.relative_to(root).as_posix() for path in images_below(root, passed, within=within)]
    return images, passed.notes()


def test_images_come_before_those_of_folders_and_everything_by_name(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "a/c/d.png", "a/b.PNG", "c.tif", "a.bmp/x.jpg")
    assert found(tmp_path) == (["b.png", "c.tif", "a/b.PNG", "a/c/d.png", "a.bmp/x.jpg"], ())


def test_links_to_folders_are_read_once_under_the_real_name_where_there_is_one(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "x.png", "deeper/y.png")
    root = make(tmp_path / "root", "real/z.png")
    (root / "a link").symlink_to("../elsewhere")
    (root / "also").symlink_to("../elsewhere/deeper")
    (root / "again").symlink_to("real")
    (root / "real" / "round").symlink_to("..")
    images, notes = found(root)
    assert images == ["real/z.png", "a link/x.png", "a link/deeper/y.png"]
    assert notes == ("passed over: links to folders that are read already, 3 (again, also, real/round)",)


def test_folders_of_a_drive_that_numbers_nothing_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "c").symlink_to("a")
    stat = os.stat

    def without_number(*arguments: Any, **options: Any) -> os.stat_result:
        mode, _, *others = stat(*arguments, **options)
        return os.stat_result((mode, 0, *others))

    monkeypatch.setattr(os, "stat", without_number)
    images, notes = found(tmp_path)
    assert images == ["a/x.png", "b/y.png"]
    assert notes == ("passed over: links to folders that are read already, 1 (c)",)


def test_many_links_to_one_another_take_no_longer_than_the_folders(tmp_path: Path) -> None:
    for level in range(25):  # 2^25 ways down
        make(tmp_path / f"{level}", f"{level}.png")
        for name in "ab":
            (tmp_path / f"{level}" / name).symlink_to(f"../{level + 1}")
    images, _ = found(tmp_path / "0")
    assert len(images) == 25


def test_a_link_out_of_an_untrusted_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/x.png")
    root = make(tmp_path / "root", "z.png")
    (root / "out").symlink_to("../elsewhere")
    assert found(root)[0] == ["z.png", "out/x.png"]
    with pytest.raises(DataError, match=r"out: is a link to '.*elsewhere', outside of the source"):
        found(root, within=root)


def test_what_is_no_image_file_is_counted_and_named(tmp_path: Path) -> None:
    make(tmp_path, "a.webp", "b.WEBP", "c.jfif", "none", "Thumbs.db", ".DS_Store", "._d.png")
    make(tmp_path, *(f".hidden/{n}.png" for n in range(3)), "@eaDir/a.png/thumbnail.jpg")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    images, notes = found(tmp_path)
    assert images == []
    assert notes == (
        "passed over: files of other kinds, 1 .jfif, 2 .webp, 1 Thumbs.db, 1 other "
        "(read: .bmp, .jpeg, .jpg, .png, .tif, .tiff)",
        "passed over: hidden files, 1 (._d.png)",
        "passed over: hidden folders, 1 (.hidden)",
        "passed over: folders that programs leave, 1 (@eaDir)",
        "passed over: links that lead nowhere, 2 (gone.png, itself.png)",
        "passed over: devices, pipes and sockets, 1 (pipe.png)",
    )


def test_many_of_a_kind_are_counted_and_few_named(tmp_path: Path) -> None:
    make(tmp_path, *(f".{number}.png" for number in range(2000)))
    assert found(tmp_path) == (
        [],
        ("passed over: hidden files, 2,000 (.0.png, .1.png, .10.png, .100.png, .1000.png, … 1,995 more)",),
    )


def test_classes_may_be_called_anything_that_is_not_hidden(tmp_path: Path) -> None:
    names = ["-x", "1", "__background__", "a b", "con.png", "ß", "\udcff"]
    make(
        tmp_path,
        *(f"{name}/0.png" for name in names),
        ".git/0.png",
        "__MACOSX/0.png",
        "stray.jpg",
        "._stray.jpg",
    )
    passed = Passed()
    assert [folder.name for folder in class_folders(tmp_path, passed)] == names
    assert passed.notes() == (
        "passed over: hidden folders, 1 (.git)",
        "passed over: folders that programs leave, 1 (__MACOSX)",
        "passed over: images in no class's folder, 1 (stray.jpg)",
    )


def test_files_are_not_asked_about_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network drive each question takes a way there and back, of 300,000 files minutes."""
    make(tmp_path / "a", *(f"{number}.png" for number in range(20)))
    asked: Counter[str] = Counter()

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        asked[path.name] += 1
        return os.stat(path, follow_symlinks=follow_symlinks)  # noqa: PTH116  # what a Path does

    monkeypatch.setattr(Path, "stat", stat)
    assert len(found(tmp_path)[0]) == 20
    assert set(asked) <= {tmp_path.name, "a", "config.json", "comparison.json"}


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder '.*absent' cannot be read: no such file"):
        list(images_below(tmp_path / "absent", Passed()))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails when it is read")
def test_a_folder_of_which_nobody_can_tell_what_it_is_is_refused(tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "dataset.json").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"dataset\.json' cannot be read: input/output error"):
        [*images_below(tmp_path, Passed())]


def test_copies_are_told_by_their_bytes(tmp_path: Path) -> None:
    head, tail = bytes(range(256)) * 40, bytes(5000)
    contents = [
        *(head + b"1" + tail, head + b"2" + tail, head + b"1" + tail),
        *(head + tail + b"1", head + tail + b"2"),  # alike in the middle, and of the first ones' size
        *(b"", b""),  # of nothing there are no copies
        b"short",
    ]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert contents_of(paths) == [0, 1, 0, 3, 4, 5, 6, 7]
    paths[0].unlink()  # what cannot be read is no copy that anybody knows of
    with pytest.warns(Note, match="0' cannot be read: .*, so nobody knows whether it is a copy"):
        assert contents_of(paths) == [*range(8)]


def test_what_was_written_of_images_is_not_taken_for_images(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Results may lie among the images: gone on with, or watched, they are not read again as new ones."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    bundle, results = str(bundles["fp32"]), tmp_path / "in" / "results"
    results.parent.mkdir()
    command = ["slide", bundle, str(tmp_path), "--pixel-for-pixel", "--no-tissue", "-o", str(results)]
    assert CliRunner().invoke(mmdeploy, command).exit_code == 0
    live = ["live", bundle, str(tmp_path), "--no-page", "-o", str(tmp_path / "session")]
    assert CliRunner().invoke(mmdeploy, live).exit_code == 0
    for name in ("run", "begun", "cells/compared", "session/thumbnails"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name / "curve.png")
    for name in ("run/config.json", "run/history.jsonl", "cells/compared/comparison.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "cells/compared/results.json").write_text("{}")
    (tmp_path / "begun" / "comparison.json").write_text('{"data": {"labels": ["a", "b"]}}')
    (tmp_path / "other").mkdir()  # of another program
    (tmp_path / "other" / "session.json").write_text("{}")
    shutil.copy(tmp_path / "a.png", tmp_path / "other" / "b.png")

    assert list((results / "thumbnails").iterdir())
    passed = Passed()
    assert [path.name for path in images_below(tmp_path, passed)] == ["a.png", "b.png"]
    assert any("folders that mmdeploy has written, 5" in note for note in passed.notes())
    assert CliRunner().invoke(mmdeploy, command).exit_code == 0
    (tmp_path / "cells" / "red").mkdir()
    assert [path.name for path in class_folders(tmp_path / "cells", passed)] == ["red"]


def test_pictures_that_commands_drew_among_images_are_passed_over(tmp_path: Path) -> None:
    make(
        tmp_path / "cells",
        "red/a.png",
        "red/a.gradcam.png",
        "red/A.occlusion.png",
        "red/risk.png",
        "white/b.png",
    )
    make(tmp_path / "cells", "maps/red/a.gradcam.png", "maps/white/b.png.gradcam.png")
    make(tmp_path / "cells", "measured/metrics.json", "measured/confusion.png", "measured/risk.png")
    make(tmp_path / "cells", "bundle/manifest.json", "bundle/sensitivity.json", "bundle/sensitivity.png")
    images, notes = found(tmp_path / "cells")
    assert images == ["red/a.png", "red/risk.png", "white/b.png"]
    assert notes == (
        "passed over: folders that mmdeploy has written, 3 (bundle, maps, measured)",
        "passed over: pictures that mmdeploy has drawn, 2 (red/A.occlusion.png, red/a.gradcam.png)",
    )
    assert [folder.name for folder in class_folders(tmp_path / "cells", Passed())] == ["red", "white"]
    listing = list_folder(tmp_path / "cells")
    assert [image.origin for image in listing.images] == images
    assert listing.notes == [*notes]


def test_heat_maps_are_known_by_what_explain_calls_them() -> None:
    assert tuple(f".{method}.png" for method in METHODS) == HEAT_MAPS


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*/", "*/*.png", "**", "**/", "**/*.png", "a/**", "a/**/b/*.png", "**/b/**", "*/b/x.png"),
        *(
            ".*",
            "**/.*",
            ".hidden/*",
            "*/[bc]/?.png",
            "./a/*",
            "nowhere/*",
            "a/x.png/*",
            "*/../*.png",
            "**/**",
        ),
        *("linked/**/*.png", "*/nowhere", "a/[x", "dangling*", "[!a]*/*"),
    ],
)
@pytest.mark.parametrize("is_absolute", [False, True], ids=["relative", "absolute"])
def test_a_pattern_matches_what_glob_has_it_match(
    pattern: str, is_absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(
        tmp_path,
        "x.png",
        "a/x.png",
        "a/b/x.png",
        "a/b/c/y.png",
        "a/.z.png",
        ".hidden/x.png",
        "d/b/x.png",
        "a/[x",
    )
    (tmp_path / "linked").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    whole = f"{tmp_path}/{pattern}" if is_absolute else pattern
    passed = Passed()
    expected = glob.glob(whole, recursive=True)  # noqa: PTH207  # it is the definition, and takes absolute ones
    assert matching(whole, passed) == sorted({*map(Path, expected)} - {Path()})
    assert passed.notes() == ()


def test_links_in_a_ring_end_a_pattern(tmp_path: Path) -> None:
    make(tmp_path, "a/b/x.png")
    (tmp_path / "a" / "b" / "round").symlink_to("../..")
    assert matching(f"{tmp_path}/**/*.png", Passed()) == [tmp_path / "a" / "b" / "x.png"]


def test_what_cannot_be_looked_into_is_told_of_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/x.png", "b/c/y.png")
    (tmp_path / "link").symlink_to("b")
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if path.name == "link":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    passed = Passed()
    assert matching(f"{tmp_path}/*/*.png", passed) == [tmp_path / "a" / "x.png"]
    assert passed.notes() == (f"passed over: links that cannot be followed, 1 ({tmp_path}/link)",)


def test_a_folder_that_cannot_be_read_makes_none_of_drawings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one with images in it would be passed over as what we have drawn."""
    make(tmp_path, f"maps/a/1{HEAT_MAPS[0]}", "maps/b/image.png")
    scandir, refused = os.scandir, list[str]()

    def refuse(folder: Any) -> Any:
        if Path(folder).name == "b" and not refused:
            refused.append(folder)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    images, _ = found(tmp_path)
    assert "maps/b/image.png" in images
