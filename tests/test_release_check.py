"""What `make release-check` finds, fault by fault, and the signature; on a package of few files."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_scripts import names_in

import msmamba

ROOT = Path(__file__).parent.parent
EPOCH = 1_700_000_001  # a second that zip does not keep
INFO = "msmamba-1.2.dist-info"
LIBRARY = "msmamba/plugins/selective_scan/_native.pyd"
LICENCES = {"zig/LICENSE": b"MIT"}
METADATA = (
    "Metadata-Version: 2.4\nName: msmamba\nVersion: 1.2\nLicense-File: LICENSE\nLicense-File: zig/LICENSE\n"
    'Requires-Dist: numpy>=1.26\nRequires-Dist: Pillow>=10\nRequires-Dist: torch; extra == "train"\n'
)
TRACKED = {
    "version.py": b'"""The version."""\n\n__version__ = "1.2"\n',
    "cli/__init__.py": b"pass\n",
    "pages/frame.html.jinja": b"<html>",
    "plugins/selective_scan/native/scan.cpp": b"int a;\n",
    "setup.py": b"import setuptools\n",
    "LICENSE": b"ours\n",
    "README.md": b"# msmamba\n",
    "pyproject.toml": b"[build-system]\n",
    "tests/test_a.py": b"assert True\n",
    "CHANGELOG.md": b"# Changelog\n\n## 1.2 - 2026-11-28\n\n- Read.\n",
}
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def check() -> dict[str, Any]:
    """The names of `release/check.py`."""
    return names_in("check.py")


@pytest.fixture(scope="module")
def make(check: dict[str, Any]) -> dict[str, Any]:
    """The names of `release/wheels.py` as `check.py` has them."""
    return dict(vars(sys.modules["wheels"]))


@pytest.fixture
def source(check: dict[str, Any]) -> Any:
    return check["Source"](TRACKED, EPOCH)


@pytest.fixture(scope="module")
def windows(check: dict[str, Any]) -> Any:
    return next(platform for platform in check["PLATFORMS"] if platform.tag == "win_amd64")


def wheel_files(suffix: str = ".pyd") -> Files:
    """What a wheel holds before it is packed."""
    package = ("version.py", "cli/__init__.py", "pages/frame.html.jinja")
    return {
        **{f"msmamba/{name}": TRACKED[name] for name in package},
        f"{LIBRARY.removesuffix('.pyd')}{suffix}": b"library",
        f"{INFO}/METADATA": METADATA.encode(),
        f"{INFO}/top_level.txt": b"msmamba\n",
        f"{INFO}/entry_points.txt": b"[console_scripts]\n",
        f"{INFO}/licenses/LICENSE": TRACKED["LICENSE"],
        f"{INFO}/licenses/zig/LICENSE": LICENCES["zig/LICENSE"],
    }


def repacked(packed: bytes, change: Callable[[Files], object]) -> bytes:
    """A wheel whose files were changed after RECORD was written, with the times that it had."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        date = archive.infolist()[0].date_time
    change(held)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in held.items():
            archive.writestr(zipfile.ZipInfo(name, date), content)
    return out.getvalue()


BEFORE: dict[str, tuple[Callable[[Files], object], list[str]]] = {
    "as it should be": (lambda files: None, []),
    "a foreign file": (
        lambda files: files.update({"msmamba/setup.py": b"pass\n"}),
        ["holds msmamba/setup.py, which is not tracked"],
    ),
    "a test": (
        lambda files: files.update({"msmamba/tests/test_a.py": b"assert True\n"}),
        ["holds msmamba/tests/test_a.py, which is not tracked"],
    ),
    "no module": (
        lambda files: files.pop("msmamba/cli/__init__.py"),
        ["lacks msmamba/cli/__init__.py"],
    ),
    "no template": (
        lambda files: files.pop("msmamba/pages/frame.html.jinja"),
        ["lacks msmamba/pages/frame.html.jinja"],
    ),
    "no library": (lambda files: files.pop(LIBRARY), [f"lacks {LIBRARY}"]),
    "another module": (
        lambda files: files.update({"msmamba/cli/__init__.py": b"fail\n"}),
        ["msmamba/cli/__init__.py is not the file that is tracked"],
    ),
    "no licence of what is linked in": (
        lambda files: files.pop(f"{INFO}/licenses/zig/LICENSE"),
        [f"lacks {INFO}/licenses/zig/LICENSE"],
    ),
    "another licence": (
        lambda files: files.update({f"{INFO}/licenses/LICENSE": b"theirs\n"}),
        [f"{INFO}/licenses/LICENSE is not the file that is tracked"],
    ),
    "a licence that the metadata does not name": (
        lambda files: files.update(
            {f"{INFO}/METADATA": METADATA.replace("License-File: zig/LICENSE\n", "").encode()}
        ),
        ["its metadata names the licences ['LICENSE']"],
    ),
    "another version": (
        lambda files: files.update(
            {f"{INFO}/METADATA": METADATA.replace("Version: 1.2", "Version: 1.1").encode()}
        ),
        ["its metadata is of msmamba 1.1, expected msmamba 1.2"],
    ),
    "too large": (
        lambda files: files.update(
            {
                LIBRARY: b"".join(
                    hashlib.sha512(bytes([i, j])).digest() for i in range(190) for j in range(256)
                )
            }
        ),
        ["bytes, expected 3,000,000 at most"],
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_is_wrong_with_a_wheel_is_named(
    name: str, check: dict[str, Any], make: dict[str, Any], source: Any, windows: Any, tmp_path: Path
) -> None:
    change, found = BEFORE[name]
    files = wheel_files()
    change(files)
    (tmp_path / "a.whl").write_bytes(make["pack_wheel"](files, windows, EPOCH))
    wrong = check["wrong_wheel"](tmp_path / "a.whl", windows, source, LICENCES)
    assert len(wrong) == len(found)
    assert all(each in told for each, told in zip(found, wrong, strict=True)), wrong


AFTER: dict[str, tuple[Callable[[Files], object], list[str]]] = {
    "as it was": (lambda files: None, []),
    "a changed byte": (
        lambda files: files.update({LIBRARY: b"librarx"}),
        [f"{LIBRARY} is not as RECORD says"],
    ),
    "another size in RECORD": (
        lambda files: files.update({f"{INFO}/RECORD": files[f"{INFO}/RECORD"].replace(b",7\n", b",8\n", 1)}),
        [f"{LIBRARY} is not as RECORD says"],
    ),
    "a file of which only RECORD knows": (
        lambda files: files.update(
            {f"{INFO}/RECORD": files[f"{INFO}/RECORD"] + b"msmamba/a.py,sha256=A,1\n"}
        ),
        ["msmamba/a.py is not as RECORD says"],
    ),
    "no RECORD": (
        lambda files: files.pop(f"{INFO}/RECORD"),
        [
            f"lacks {INFO}/RECORD",
            *(f"{name} is not as RECORD says" for name in [*wheel_files(), "/RECORD", "/WHEEL"]),
        ],
    ),
    "another platform's tag": (
        lambda files: files.update(
            {f"{INFO}/WHEEL": files[f"{INFO}/WHEEL"].replace(b"win_amd64", b"win_arm64")}
        ),
        [f"{INFO}/WHEEL is not as RECORD says", "its tags are ['py3-none-win_arm64'], expected"],
    ),
}


@pytest.mark.parametrize("name", AFTER)
def test_what_was_changed_in_a_packed_wheel_is_named(
    name: str, check: dict[str, Any], make: dict[str, Any], source: Any, windows: Any, tmp_path: Path
) -> None:
    change, found = AFTER[name]
    packed = make["pack_wheel"](wheel_files(), windows, EPOCH)
    (tmp_path / "a.whl").write_bytes(repacked(packed, change))
    wrong = check["wrong_wheel"](tmp_path / "a.whl", windows, source, LICENCES)
    assert len(wrong) == len(found), wrong
    assert all(any(each in told for told in wrong) for each in found), wrong


def test_a_wheel_of_another_commit_or_with_a_name_twice_or_cut_short_is_refused(
    check: dict[str, Any], make: dict[str, Any], source: Any, windows: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(make["pack_wheel"](wheel_files(), windows, EPOCH - 86_400))
    other = ["is of another commit, by the times of its entries: make wheels"]
    assert check["wrong_wheel"](path, windows, source, LICENCES) == other
    packed = make["pack_wheel"](wheel_files(), windows, EPOCH)
    path.write_bytes(packed)
    with zipfile.ZipFile(path) as archive:
        again = archive.infolist()[0]
        content = archive.read(again)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(again.filename, again.date_time), content)
    assert check["wrong_wheel"](path, windows, source, LICENCES) == ["holds a name twice"]
    for damaged in (packed[:-30], packed[:60] + b"\xff" + packed[61:], b""):
        path.write_bytes(damaged)
        (told,) = check["wrong_wheel"](path, windows, source, LICENCES)
        assert told.startswith("cannot be read: ")


def sdist_of(files: Files, time: int = EPOCH) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"msmamba-1.2/{name}")
            entry.size, entry.mtime = len(content), time
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def sdist_files() -> Files:
    held = {name: content for name, content in TRACKED.items() if name[0] not in "tC"}
    return held | {"PKG-INFO": b"", "setup.cfg": b"", "msmamba.egg-info/SOURCES.txt": b""}


SDISTS: dict[str, tuple[Callable[[Files], object], list[str]]] = {
    "as it should be": (lambda files: None, []),
    "no native source": (
        lambda files: files.pop("plugins/selective_scan/native/scan.cpp"),
        ["lacks msmamba-1.2/plugins/selective_scan/native/scan.cpp"],
    ),
    "another native source": (
        lambda files: files.update({"plugins/selective_scan/native/scan.cpp": b"int b;\n"}),
        ["msmamba-1.2/plugins/selective_scan/native/scan.cpp is not the file that is tracked"],
    ),
    "a foreign file": (
        lambda files: files.update({"notes.txt": b""}),
        ["msmamba-1.2/notes.txt is not the file that is tracked"],
    ),
}


@pytest.mark.parametrize("name", SDISTS)
def test_what_is_wrong_with_a_source_distribution_is_named(
    name: str, check: dict[str, Any], source: Any, tmp_path: Path
) -> None:
    change, found = SDISTS[name]
    files = sdist_files()
    change(files)
    (tmp_path / "a.tar.gz").write_bytes(sdist_of(files))
    assert check["wrong_sdist"](tmp_path / "a.tar.gz", source) == found


def test_a_source_distribution_cut_short_or_of_another_commit_is_refused(
    check: dict[str, Any], source: Any, tmp_path: Path
) -> None:
    for damaged in (sdist_of(sdist_files())[:-40], b"no archive"):
        (tmp_path / "a.tar.gz").write_bytes(damaged)
        (told,) = check["wrong_sdist"](tmp_path / "a.tar.gz", source)
        assert told.startswith("cannot be read: ")
    (tmp_path / "a.tar.gz").write_bytes(sdist_of(sdist_files(), EPOCH - 1))
    other = ["is of another commit, by the times of its entries: make wheels"]
    assert check["wrong_sdist"](tmp_path / "a.tar.gz", source) == other


LINKED_IN = ("zig compiler_rt", "libc++", "libc++abi", "libunwind", "MinGW-w64")


def bill_of(
    wheel: bytes,
    version: str = "1.2",
    names: tuple[str, ...] = ("numpy", "pillow"),
    inside: tuple[str, ...] = LINKED_IN,
) -> bytes:
    subject = {
        "components": [{"name": name, "version": "1"} for name in inside],
        "name": "msmamba",
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel).hexdigest()}],
    }
    parts = [{"name": name, "version": "1"} for name in names]
    return json.dumps({"metadata": {"component": subject}, "components": parts}).encode()


def test_what_is_wrong_with_a_bill_of_materials_is_named(
    check: dict[str, Any], make: dict[str, Any], source: Any, windows: Any, tmp_path: Path
) -> None:
    packed = make["pack_wheel"](wheel_files(), windows, EPOCH)
    wheel, bill = tmp_path / "a.whl", tmp_path / "a.json"
    wheel.write_bytes(packed)
    for content, found in (
        (bill_of(packed), []),
        (bill_of(packed, "1.1"), ["is of msmamba 1.1, expected msmamba 1.2"]),
        (bill_of(b"another"), ["is of another file than a.whl"]),
        (bill_of(packed, names=("numpy",)), ["does not list pillow"]),
        (bill_of(packed, inside=LINKED_IN[:-1]), ["does not list MinGW-w64, which is linked in"]),
    ):
        bill.write_bytes(content)
        assert check["wrong_bill"](bill, wheel, windows, source) == found
    for content in (b"{", b"[]", b"{}", b'{"metadata": null, "components": []}'):
        bill.write_bytes(content)
        (told,) = check["wrong_bill"](bill, wheel, windows, source)
        assert told.startswith("is no bill of materials")


@pytest.fixture
def release(check: dict[str, Any], make: dict[str, Any], tmp_path: Path) -> Path:
    """A whole release, in which nothing but the libraries is wrong."""
    dist = tmp_path / "dist"
    dist.mkdir()
    files = {"msmamba-1.2.tar.gz": sdist_of(sdist_files())}
    for platform in check["PLATFORMS"]:
        name = make["wheel_name"]("1.2", platform)
        files[name] = make["pack_wheel"](wheel_files(platform.suffix), platform, EPOCH)
        files[make["bill_name"](name)] = bill_of(files[name])
    files["SHA256SUMS"] = make["sums_text"](files).encode()
    for name, content in files.items():
        (dist / name).write_bytes(content)
    return dist


def test_a_whole_release_has_but_the_libraries_that_are_none(
    check: dict[str, Any], source: Any, release: Path
) -> None:
    wrong = check["wrong_release"](release, source, lambda platform: LICENCES)
    assert wrong == [
        f"msmamba-1.2-py3-none-{platform.tag}.whl: the library is none: "
        "7 bytes that are no ELF, PE or Mach-O library"
        for platform in check["PLATFORMS"]
    ]


def test_a_release_of_another_version_is_all_wrong(check: dict[str, Any], release: Path) -> None:
    later = {**TRACKED, "version.py": b'__version__ = "1.3"\n'}
    wrong = check["wrong_release"](release, check["Source"](later, EPOCH), lambda platform: LICENCES)
    assert (
        wrong[0]
        == "CHANGELOG.md tells of '## 1.2 - 2026-11-28' first, expected '## 1.3 - DATE' as version.py says"
    )
    assert "there is no msmamba-1.3.tar.gz" in wrong
    assert "there is msmamba-1.2.tar.gz, which is not of version 1.3" in wrong
    assert len(wrong) == 1 + 2 * (1 + 2 * len(check["PLATFORMS"]))


def test_a_folder_that_is_not_there_or_not_a_release_is_told(
    check: dict[str, Any], source: Any, tmp_path: Path
) -> None:
    assert check["wrong_release"](tmp_path / "dist", source) == [
        f"there is no folder '{tmp_path}/dist': make wheels"
    ]
    (tmp_path / "dist").mkdir()
    wrong = check["wrong_release"](tmp_path / "dist", source)
    assert wrong[0] == f"there is no SHA256SUMS in '{tmp_path}/dist': make wheels"
    assert len(wrong) == 2 + 2 * len(check["PLATFORMS"])


def test_sums_are_compared_both_ways(check: dict[str, Any], release: Path) -> None:
    (release / "SHA256SUMS.sig").write_text("the signature has no checksum")
    assert check["wrong_sums"](release) == []
    (release / "msmamba-1.2.tar.gz").write_bytes(b"another")
    (release / "msmamba-1.2-py3-none-win_amd64.whl").unlink()
    (release / "msmamba-1.2-py3-none-win_amd64.cdx.json").unlink()
    (release / "msmamba-1.2-py3-none-win_amd64.cdx.json").mkdir()
    (release / "notes.txt").write_text("")
    with (release / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  notes.txt\n" * 2 + f"{'0' * 64}  ../notes.txt\nno sum\n")
    named = len((release / "SHA256SUMS").read_text().splitlines())
    assert check["wrong_sums"](release) == [
        f"SHA256SUMS, line {named - 2}: names notes.txt once more",
        f"SHA256SUMS, line {named - 1}: expected a checksum, two spaces and a file's name",
        f"SHA256SUMS, line {named}: expected a checksum, two spaces and a file's name",
        "there is no msmamba-1.2-py3-none-win_amd64.whl, which SHA256SUMS names",
        "msmamba-1.2-py3-none-win_amd64.cdx.json is no file",
        "msmamba-1.2.tar.gz is not the file whose checksum stands in SHA256SUMS",
        "notes.txt is not the file whose checksum stands in SHA256SUMS",
    ]


@pytest.mark.parametrize(
    ("changelog", "found"),
    [
        ("# Changelog\n\n## 1.2 - 2026-11-28\n\n- A.\n\n## 1.1 - 2026-01-01\n", []),
        ("## Unreleased\n\n- A.\n\n## 1.2 - 2026-11-28\n", []),
        ("## 1.1 - 2026-01-01\n\n## 1.2 - 2026-11-28\n", ["tells of '## 1.1 - 2026-01-01' first"]),
        (
            "## Unreleased\n\n- A.\n",
            ["tells of no version first, expected '## 1.2 - DATE' as version.py says"],
        ),
        ("## 1.2\n", ["'## 1.2' has no date, expected '## 1.2 - YEAR-MONTH-DAY'"]),
        ("## 1.2 - November\n", ["'## 1.2 - November' has no date"]),
        ("## 1.20 - 2026-11-28\n", ["tells of '## 1.20 - 2026-11-28' first"]),
    ],
)
def test_the_changelog_has_to_tell_of_the_version(
    check: dict[str, Any], changelog: str, found: list[str]
) -> None:
    wrong = check["wrong_changelog"](changelog, "1.2")
    assert len(wrong) == len(found)
    assert all(each in told for each, told in zip(found, wrong, strict=True)), wrong


def test_what_waits_for_a_release_is_counted(check: dict[str, Any]) -> None:
    unreleased = check["unreleased"]
    assert unreleased("## Unreleased\n\n- A,\n  and\n- B.\n\n## 1.2 - 2026-11-28\n\n- C.\n") == 2
    assert unreleased("## Unreleased\n\n## 1.2 - 2026-11-28\n\n- C.\n") == 0
    assert unreleased("## 1.2 - 2026-11-28\n\n- C.\n") == 0


def test_what_is_not_committed_is_named(check: dict[str, Any], tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert check["wrong_tree"](tmp_path) == []
    (tmp_path / "a b.py").write_text("")
    assert check["wrong_tree"](tmp_path) == []  # gets into nothing
    subprocess.run(["git", "add", "a b.py"], cwd=tmp_path, check=True)
    assert check["wrong_tree"](tmp_path) == ['"a b.py" is not committed']


def test_the_commit_s_own_package_is_what_the_build_packs(check: dict[str, Any]) -> None:
    """By a few files of each kind; `make release-check` compares all of them with the wheels."""
    source = check["committed"]()
    package = source.package
    assert {"msmamba/py.typed", "msmamba/version.py", "msmamba/runtime/session.py"} <= package.keys()
    assert not {"msmamba/setup.py", "msmamba/release/wheels.py", "msmamba/README.md"} & package.keys()
    assert not [name for name in package if name.endswith((".cpp", ".h"))]
    assert "plugins/selective_scan/native/vector.h" in source.compiled


@pytest.fixture(scope="module")
def signing(check: dict[str, Any]) -> dict[str, Any]:
    """The names of `release/sign.py` as `check.py` has them."""
    return dict(vars(sys.modules["sign"]))


@pytest.fixture(scope="module")
def keys(signing: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys `ours` and `theirs`, and `allowed_signers` with ours."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", folder / name]
        subprocess.run(make_key, check=True)
    (folder / "allowed_signers").write_text(signing["line_of"](folder / "ours") + "\n")
    return folder


def verified(dist: Path, keys: Path) -> bool:
    """What a user types, as docs/install.md has it."""
    page = (ROOT / "docs" / "install.md").read_text()
    (command,) = (line.strip() for line in page.splitlines() if line.startswith("    ssh-keygen -Y verify"))
    signed = command.replace("allowed_signers", str(keys / "allowed_signers"))
    return subprocess.run(signed, shell=True, cwd=dist, capture_output=True, check=False).returncode == 0


def test_a_signature_is_of_these_sums_by_this_key(signing: dict[str, Any], keys: Path, release: Path) -> None:
    signed = signing["sign"](release, keys / "ours", keys / "allowed_signers")
    assert signed == release / "SHA256SUMS.sig"
    assert [path.name for path in release.parent.iterdir()] == ["dist"]
    assert verified(release, keys)
    sums = (release / "SHA256SUMS").read_bytes()
    assert signing["may_sign"](keys / "allowed_signers", sums, signed) is None
    assert "incorrect" in signing["may_sign"](keys / "allowed_signers", sums + b"\n", signed)
    (release / "SHA256SUMS").write_bytes(sums.replace(b"a", b"b", 1))
    assert not verified(release, keys)


def test_a_release_is_signed_again_in_the_signature_s_place(
    signing: dict[str, Any], keys: Path, release: Path
) -> None:
    (release / "SHA256SUMS.sig").write_text("of an earlier release")
    signing["sign"](release, keys / "ours", keys / "allowed_signers")
    assert verified(release, keys)


def test_a_key_that_nobody_knows_signs_nothing(
    signing: dict[str, Any], keys: Path, release: Path, tmp_path: Path
) -> None:
    line = f'msmamba namespaces="msmamba-release" ssh-ed25519 {(keys / "theirs.pub").read_text().split()[1]}'
    for signers in (keys / "allowed_signers", tmp_path / "none"):
        with pytest.raises(SystemExit) as told:
            signing["sign"](release, keys / "theirs", signers)
        assert str(told.value).startswith("nobody could verify that: ")
        assert str(told.value).endswith(f"add to '{signers}', and commit: {line}")
    assert not (release / "SHA256SUMS.sig").exists()


def test_nothing_is_signed_for_another_purpose(signing: dict[str, Any], keys: Path, release: Path) -> None:
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "ours", "-n", "file", release / "SHA256SUMS"]
    subprocess.run(sign, check=True, capture_output=True)
    assert (release / "SHA256SUMS.sig").exists()
    assert not verified(release, keys)


def test_what_is_not_there_or_not_whole_is_not_signed(
    signing: dict[str, Any], keys: Path, release: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"there is no key '.*none': make one by 'ssh-keygen -t ed25519 -f "):
        signing["sign"](release, keys / "none", keys / "allowed_signers")
    (keys / "damaged").write_text("no key")
    with pytest.raises(SystemExit, match="damaged' did not sign"):
        signing["sign"](release, keys / "damaged", keys / "allowed_signers")
    assert "damaged" in capfd.readouterr().err
    (release / "msmamba-1.2.tar.gz").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"msmamba-1\.2\.tar\.gz is not the file"):
        signing["sign"](release, keys / "ours", keys / "allowed_signers")
    assert not (release / "SHA256SUMS.sig").exists()


def test_what_a_second_build_has_otherwise_is_named(
    check: dict[str, Any], make: dict[str, Any], windows: Any, release: Path, tmp_path: Path
) -> None:
    rebuild = names_in("rebuild.py")
    again = tmp_path / "again"
    shutil.copytree(release, again)
    (again / "SHA256SUMS.sig").write_text("by somebody")
    assert set(rebuild["compare"](release, again).values()) == {""}
    other = wheel_files() | {LIBRARY: b"librarx"}
    (again / "msmamba-1.2-py3-none-win_amd64.whl").write_bytes(make["pack_wheel"](other, windows, EPOCH))
    (again / "msmamba-1.2-py3-none-win_amd64.cdx.json").write_bytes(b"{}")
    (again / "msmamba-1.2.tar.gz").unlink()
    found = {name: told for name, told in rebuild["compare"](release, again).items() if told}
    assert found == {
        "msmamba-1.2-py3-none-win_amd64.cdx.json": "other bytes",
        "msmamba-1.2-py3-none-win_amd64.whl": f"other bytes in {INFO}/RECORD, {LIBRARY}",
        "msmamba-1.2.tar.gz": f"is in {release} alone",
    }


def test_the_changelog_tells_of_this_version(check: dict[str, Any]) -> None:
    assert check["wrong_changelog"]((ROOT / "CHANGELOG.md").read_text(), msmamba.__version__) == []
