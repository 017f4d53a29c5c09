"""The documentation: its commands can be given, and the check of its site finds what is wrong with one."""

from __future__ import annotations

import configparser
import inspect
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from msmamba.cli import mmdeploy

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

from make_site import faults

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: str) -> list[list[str]]:
    """The words of every command on a page: lines in blocks of code, and what is in backticks."""
    lines = re.findall(r"^(?: {4})?(mmdeploy .*)$", page, flags=re.MULTILINE)
    lines += re.findall(r"`(mmdeploy [^`]*)`", page)
    return [shlex.split(line, comments=True) for line in lines]


def unknown(words: list[str]) -> list[str]:
    """Of a command's words, the commands and options that `mmdeploy` does not know."""
    command: click.Command = mmdeploy
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return rest[:1]
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    given = [re.split(r"[=\]]", word.lstrip("["))[0] for word in rest]
    return [word for word in given if word.startswith("-") and word not in known | {"--help", "--version"}]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_and_option_is_known(page: Path) -> None:
    wrong = [(words, unknown(words)) for words in commands(page.read_text(encoding="utf-8"))]
    assert [(" ".join(words), missing) for words, missing in wrong if missing] == []


def test_what_is_not_known_is_found() -> None:
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES) > 150
    assert unknown(["mmdeploy", "life", "demo"]) == ["life"]
    assert unknown(["mmdeploy", "data", "fetch", "malaria"]) == ["fetch"]
    assert unknown(["mmdeploy", "infer", "a", "b", "[--top", "3]", "--tops=3"]) == ["--tops"]


def lost(page: str) -> list[str]:
    """What a page names and is not there: files, options of scripts, targets of make, extras."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [
        name
        for name in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./]+\.(?:py|cpp|h|md|jinja)\b", page)
        if not (ROOT / name).is_file()
    ]
    for script, words in re.findall(r"((?:benchmarks|release)/\w+\.py)([^`\n|]*)", page):
        text = (ROOT / script).read_text(encoding="utf-8") if (ROOT / script).is_file() else ""
        options = re.findall(r"(?<=\s)--[a-z][a-z-]*", words)
        found += [f"{script} {option}" for option in options if f'"{option}"' not in text]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = re.findall(r"(?:^ {4}|`)make ((?:[a-z-]+ ?)+)", page, flags=re.MULTILINE)
    found += [f"make {each}" for words in named for each in words.split() if each not in targets]
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = declared["options.extras_require"]
    for words in re.findall(r"'(?:\.|msmamba)\[([\w,-]+)\]'", page):
        found += [f"[{extra}]" for extra in words.split(",") if extra not in extras]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    assert lost(page.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_found() -> None:
    page = (
        "`tests/test_lost.py`, `make lost`, `pip install '.[slides,lost]'`\n    make docs lost\n"
        "    python benchmarks/prepare.py --rounds 3 --lost 4\n"
    )
    assert lost(page) == [
        *("tests/test_lost.py", "benchmarks/prepare.py --lost", "make lost", "make lost", "[lost]"),
    ]


def public_names() -> list[str]:
    """What the pages of the Python interface are of."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    return [
        name
        for page in pages
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]


@pytest.mark.parametrize("name", public_names())
def test_what_the_pages_of_the_interface_name_can_be_imported(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("name", public_names())
def test_no_public_name_is_a_module_s_too(name: str) -> None:
    """The site would show the module, and not what Python has under that name."""
    package = pkgutil.resolve_name(name)
    modules = {each.name for each in pkgutil.iter_modules(getattr(package, "__path__", []))}
    public = set(getattr(package, "__all__", ()))
    assert {each for each in public & modules if not inspect.ismodule(getattr(package, each))} == set()


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(
        r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    docs = ROOT / "docs"
    assert sorted(named) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))


# What stands on a page, and what is found of it.
ELSEWHERE = {
    '<script src="https://unpkg.com/a.js"></script>': "page.html loads 'https://unpkg.com/a.js'",
    '<link rel="stylesheet" href="//a.org/fonts.css">': "page.html loads '//a.org/fonts.css'",
    '<link rel="preconnect" href="https://fonts.gstatic.com">': "page.html loads 'https://fonts.gstatic.com'",
    '<img srcset="here.png 1x, http://a.org/b.png 2x">': "page.html loads 'http://a.org/b.png'",
    "<style>@import 'https://a.org/a.css';</style>": "page.html loads 'https://a.org/a.css'",
    '<p style="background: url(http://a.org/b.png)">': "page.html loads 'http://a.org/b.png'",
    '<pre class="mermaid">a --> b</pre>': "page.html has a diagram, for which Mermaid",
    '<a href="gone.html">gone</a>': "page.html links to 'gone.html', which is not there",
    '<a href="#nowhere">nowhere</a>': "page.html links to '#nowhere', a place that is not on that page",
    '<a href="other.html#nowhere">nowhere</a>': "page.html links to 'other.html#nowhere', a place",
}


@pytest.mark.parametrize("html", ELSEWHERE)
def test_what_is_wrong_with_a_site_is_found(html: str, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"")
    (tmp_path / "other.html").write_text('<h1 id="top">Other</h1>')
    (tmp_path / "page.html").write_text(html)
    (fault,) = faults(tmp_path)
    assert fault.startswith(ELSEWHERE[html])


def test_style_sheets_and_fonts_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(
        "@font-face { src: url('https://fonts.gstatic.com/a.woff2') } p { fill: url(#b) }"
    )
    assert list(faults(tmp_path)) == ["a.css loads 'https://fonts.gstatic.com/a.woff2'"]


def test_a_site_that_is_whole_has_no_faults(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "index.html").write_text('<h2 id="a b">A</h2><a href="../page.html">back</a>')
    (tmp_path / "page.html").write_text(
        '<link rel="canonical" href="https://a.org/page.html"><script src="a.js"></script>'
        '<img src="data:image/png;base64,AA"><a href="https://a.org">elsewhere</a>'
        '<a href="below/#a%20b">below</a>'
    )
    assert list(faults(tmp_path)) == []
