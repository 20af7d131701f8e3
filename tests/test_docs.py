"""What the documentation promises of itself, as far as its text shows it. `make docs` checks the rest."""

from __future__ import annotations

import re
from pathlib import Path

from drawings import DRAWINGS, IMAGES

ROOT = Path(__file__).parents[1]
#: These are files at the root, for the code host; `dev/docs_site.py` puts them into the site.
GENERATED = {"index.md", "contributing.md", "changelog.md"}
PAGES = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
TEXT = "\n".join((ROOT / "docs" / page).read_text() for page in sorted(PAGES))


def in_the_nav():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    lines = [line for line in nav.splitlines() if not line.lstrip().startswith("#")]
    return re.findall(r"(\S+\.md)$", "\n".join(lines), re.MULTILINE)


def test_every_page_is_in_the_sites_navigation_once():
    assert sorted(in_the_nav()) == sorted(PAGES | GENERATED)


def test_every_example_dag_is_shown_on_a_page_from_its_own_file():
    shown = set(re.findall(r'^--8<-- "example_dags/(.+\.py)"$', TEXT, re.MULTILINE))
    assert shown == {file.name for file in (ROOT / "example_dags").glob("*.py")}


def test_no_page_names_a_file_of_the_repository_that_is_not_there():
    named = set(
        re.findall(r'`((?:tests|example_dags|dev|constraints)/[\w./-]+\.\w+)`|^--8<-- "([^"]+)"', TEXT, re.MULTILINE)
    )
    assert [name for pair in sorted(named) for name in pair if name and not (ROOT / name).exists()] == []


def test_every_drawing_is_what_its_source_draws():
    drawn = {f"{name}.svg": draw().svg() for name, draw in DRAWINGS.items()}
    assert {file.name: file.read_text() for file in IMAGES.glob("*.svg")} == drawn
