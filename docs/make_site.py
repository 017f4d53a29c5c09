"""Builds the documentation's site, and looks at what was built.

    python docs/make_site.py

runs MkDocs strictly (every Markdown link and anchor, every cross-reference of the API pages), and then
reads the HTML and CSS themselves: nothing that a page loads may lie elsewhere, and no link inside of the site
may lead nowhere. Needs what `docs/requirements.txt` names, and neither msmamba nor what that imports: the
docstrings are read from the sources.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / ".venv-docs" / "package"  # `paths` of mkdocs.yml

# By tag, the attributes whose address a browser fetches by itself.
FETCHED = {
    **dict.fromkeys(("script", "iframe", "embed", "track", "input"), ("src",)),
    **dict.fromkeys(("img", "source", "audio"), ("src", "srcset")),
    "video": ("src", "poster"),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
# Of `link`, those relations that fetch nothing.
LINKS_ONLY = {"canonical", "next", "prev", "alternate", "edit", "license"}
IN_CSS = re.compile(r"""url\(\s*["']?([^"')]*)|@import\s+["']([^"']*)""")


class Page(HTMLParser):
    """What a page is made of.

    Attributes:
        fetched: addresses that a browser fetches when it shows the page.
        links: addresses that a reader may follow.
        anchors: names of places in the page.
        has_diagrams: whether there are any for Mermaid to draw, which the theme would load from unpkg.com.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.has_diagrams = False
        self._in_style = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.has_diagrams |= "mermaid" in given.get("class", "").split()
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in FETCHED.get(tag, ()):
            if name == "srcset":
                self.fetched += [part.split()[0] for part in given.get(name, "").split(",") if part.strip()]
            elif name in given:
                self.fetched.append(given[name])
        if tag == "link" and not set(given.get("rel", "").lower().split()) & LINKS_ONLY:
            self.fetched.append(given.get("href", ""))
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        self.fetched += addresses_in_css(given.get("style", ""))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += addresses_in_css(data)


def addresses_in_css(text: str) -> list[str]:
    """What a style sheet fetches."""
    return [first or second for first, second in IN_CSS.findall(text)]


def is_elsewhere(address: str) -> bool:
    """Whether an address leaves the site; one that begins with ``//`` does."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a built site, a line each."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        yield from (f"{name} loads '{address}'" for address in page.fetched if is_elsewhere(address))
        if page.has_diagrams:
            yield f"{name} has a diagram, for which Mermaid would be loaded from elsewhere"
        for address in [*page.links, *page.fetched]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name} links to '{address}', which is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name} links to '{address}', a place that is not on that page"
    for path in sorted(site.rglob("*.css")):
        for address in addresses_in_css(path.read_text(encoding="utf-8")):
            if is_elsewhere(address):
                yield f"{path.relative_to(site)} loads '{address}'"


def lay_out_package() -> None:
    """The package alone, under its name: the repository's root may have another, and holds much else."""
    package = SOURCES / "msmamba"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        link.unlink()
    rooms = [init.parent for init in ROOT.glob("*/__init__.py")]
    for part in [*rooms, *(path for path in ROOT.glob("*.py") if path.name != "setup.py")]:
        (package / part.name).symlink_to(part)


def main() -> None:
    """Builds ``site/``; exits with status 1 where anything is wrong with it."""
    lay_out_package()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"], cwd=ROOT, check=False
    )
    if built.returncode:
        sys.exit(built.returncode)
    (ROOT / "site" / "404.html").unlink()  # its links need the site at a server's root
    found = list(faults(ROOT / "site"))
    if found:
        sys.exit("\n".join([*found, f"error: {len(found)} faults in the site"]))
    print(f"the site: {ROOT / 'site' / 'index.html'}; nothing in it is loaded from elsewhere")


if __name__ == "__main__":
    main()
