"""What `make docs` adds to the pages of docs/: those that stand at the repository's root for the code host.

A link has to work in both places. On the code host it is relative to the repository, on the site to the page; so what
is written for the one is rewritten for the other, and a link that leads nowhere fails the build.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

log = get_plugin_logger(__name__)

ROOT = Path(__file__).resolve().parents[1]
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "RELEASING.md": "releasing.md",
    # docs/security.md says what the package does about attacks.
    "SECURITY.md": "security-policy.md",
}
#: Title and Markdown of each page that was built.
_PAGES: dict[str, tuple[str, str]] = {}
#: What the site's search has beside the sections of the pages: each row of this page, found by the words in a log.
_LOOKED_UP = "troubleshooting.md"
_ENTRIES: list[dict[str, str | float]] = []
#: What a browser would fetch by itself.
_FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)


def from_the_root(text: str) -> str:
    """The Markdown of a file at the root, with links as from a page of the site's root."""
    for name, page in AT_THE_ROOT.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text.replace("](docs/", "](")


def from_a_page(text: str) -> str:
    """The Markdown of a page, with its links to the root's files as links to their pages."""
    for name, page in AT_THE_ROOT.items():
        # One step up leaves docs/, which is the site's root.
        text = re.sub(rf"(\]\((?:\.\./)*)\.\./{re.escape(name)}", rf"\1{page}", text)
    return text


def footer() -> str:
    """The version of the package and the day of its last commit, for the foot of each page."""
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "airflow_provider_agents/__init__.py").read_text("utf-8"))
    command = ["git", "log", "-1", "--format=%cs"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # A copy of the repository without its history has no day.
    day = f", {asked.stdout.strip()}" if asked.returncode == 0 else ""
    return f"Version {version[1] if version else 'unknown'}{day}"


def on_config(config: Any) -> Any:
    """Put the version into the foot of each page."""
    config.copyright = footer()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the root's files under the names that the site gives them."""
    for name, page in AT_THE_ROOT.items():
        files.append(File.generated(config, page, content=from_the_root((ROOT / name).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Rewrite the links of a page to the root's files, and remember the page for `llms-full.txt`."""
    text = from_a_page(markdown)
    _PAGES[page.file.src_uri] = (page.title or page.file.src_uri, _included(text))
    return _with_entries(text) if page.file.src_uri == _LOOKED_UP else text


def _with_entries(text: str) -> str:
    """The Markdown of a page of tables, with an anchor for each row, which `_ENTRIES` then names."""
    _ENTRIES.clear()
    lines = text.splitlines()
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        row = re.match(r"\| (.+?) \| (.+?) \|", line)
        if row is None or following.startswith("|---"):
            continue
        title, then = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace("`", "") for cell in row.groups())
        anchor = re.sub(r"\W+", "-", title.lower()).strip("-")
        _ENTRIES.append({"location": f"troubleshooting.html#{anchor}", "title": title, "text": then, "boost": 2})
        lines[number] = line.replace(row[1], f"{row[1]} {{ #{anchor} }}", 1)
    return "\n".join(lines)


def _included(text: str) -> str:
    """The Markdown of a page, with the files that it includes."""
    return re.sub(r'^--8<-- "(.+)"$', lambda found: (ROOT / found[1]).read_text("utf-8"), text, flags=re.MULTILINE)


@event_priority(-50)  # after the search has written its index, before that is copied for a site on a disk
def on_post_build(config: Any) -> None:
    """Complete the search, and write what programs read."""
    site = Path(config.site_dir)
    _complete_search(site / "search" / "search_index.json")
    _write_llms(config, site)


def _complete_search(index: Path) -> None:
    """Add each row of the troubleshooting page to the search."""
    if not _ENTRIES:
        log.warning("The search knows no row of %s.", _LOOKED_UP)
    found = json.loads(index.read_text(encoding="utf-8"))
    found["docs"] += _ENTRIES
    index.write_text(json.dumps(found, separators=(",", ":")), encoding="utf-8")


def _write_llms(config: Any, site: Path) -> None:
    """Write the list of all pages, and all pages as one text, for readers that are programs."""
    pages = [(uri, *_PAGES[uri]) for uri in _in_order(config.nav) if uri in _PAGES]
    head = f"# {config.site_name}\n\n> {config.site_description}\n\n"
    lines = "".join(f"- [{title}]({uri.removesuffix('.md')}.html){_about(text)}\n" for uri, title, text in pages)
    (site / "llms.txt").write_text(f"{head}## Pages\n\n{lines}", encoding="utf-8")
    whole = "\n\n".join(f"<!-- {uri} -->\n\n{text}" for uri, _, text in pages)
    (site / "llms-full.txt").write_text(head + whole, encoding="utf-8")


def _about(text: str) -> str:
    """The first sentence of a page, without its links; it says whom the page is for."""
    found = re.search(r"^# .+\n\n((?:.+\n)+)", text, flags=re.MULTILINE)
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", found[1]) if found else ""
    sentence = re.split(r"(?<=\.) ", " ".join(plain.split()))[0]
    return f": {sentence}" if sentence else ""


def _in_order(nav: Any) -> list[str]:
    """The pages of the navigation."""
    if isinstance(nav, str):
        return [nav]
    return [uri for part in (nav.values() if isinstance(nav, dict) else nav) for uri in _in_order(part)]


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Warn, which is an error here, of what would be fetched from another host."""
    for url in _FETCHED.findall(output):
        log.warning("%s would fetch %s", page.file.src_uri, url)
    return output
