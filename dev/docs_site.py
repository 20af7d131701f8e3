"""What `make docs` adds to the pages of docs/: those that stand at the repository's root for the code host.

A link has to work in both places. On the code host it is relative to the repository, on the site to the page; so what
is written for the one is rewritten for the other, and a link that leads nowhere fails the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

log = get_plugin_logger(__name__)

ROOT = Path(__file__).resolve().parents[1]
AT_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
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


def on_files(files: Files, config: Any) -> Files:
    """Add the root's files under the names that the site gives them."""
    for name, page in AT_THE_ROOT.items():
        files.append(File.generated(config, page, content=from_the_root((ROOT / name).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Mend the links of a page to the root's files."""
    return from_a_page(markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Warn, which is an error here, of what would be fetched from another host."""
    for url in _FETCHED.findall(output):
        log.warning("%s would fetch %s", page.file.src_uri, url)
    return output
