"""What the documentation promises of itself, as far as its text shows it. `make docs` checks the rest."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from drawings import DRAWINGS, IMAGES

from airflow_provider_agents import get_provider_info
from airflow_provider_agents.api import errors
from airflow_provider_agents.payloads import XCOM_KEYS
from airflow_provider_agents.simulator.__main__ import main as simulate

ROOT = Path(__file__).parents[1]
#: These are files at the root, for the code host; `dev/docs_site.py` puts them into the site.
GENERATED = {"index.md", "contributing.md", "changelog.md", "releasing.md", "security-policy.md"}
PAGES = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
TEXT = "\n".join((ROOT / "docs" / page).read_text() for page in sorted(PAGES))


def in_the_nav():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    lines = [line for line in nav.splitlines() if not line.lstrip().startswith("#")]
    return re.findall(r"(\S+\.md)$", "\n".join(lines), re.MULTILINE)


def test_every_page_is_in_the_sites_navigation_once():
    assert sorted(in_the_nav()) == sorted(PAGES | GENERATED)


def test_every_decision_has_its_number_a_date_and_a_status_and_is_in_the_list():
    folder = ROOT / "docs/decisions"
    decisions = sorted(folder.glob("0*.md"))
    assert [file.name[:4] for file in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    statuses = dict(re.findall(r"\]\((.+?\.md)\) \|.*\| (.+?) \|$", (folder / "index.md").read_text(), re.MULTILINE))
    for file in decisions:
        line = file.read_text().splitlines()[2]
        said = re.fullmatch(rf"Decision {file.name[:4]} · decided \d{{4}}-\d\d-\d\d · status: (.+)", line)
        assert said, file.name
        assert statuses.pop(file.name) == said[1]
    assert statuses == {}


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


#: Their warnings are a command's own words, or no user of a real platform sees them.
OWN_WORDS = {"cli", "simulator", "testing"}
PACKAGE = ROOT / "airflow_provider_agents"
TREES = [
    ast.parse(file.read_text())
    for file in sorted(PACKAGE.rglob("*.py"))
    if not OWN_WORDS & set(file.relative_to(PACKAGE).parts)
]
#: Texts of fewer letters only join others, such as an error's own words.
FEWEST_LETTERS = 15


def words_of(node):
    """A text of the code with "…" for each of its placeholders; None if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[a-z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(words_of(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def text_in(call):
    """The longest text in a call's arguments, None if all are short."""
    texts = [text for arg in call.args for node in ast.walk(arg) if (text := words_of(node)) is not None]
    longest = max(texts, key=len, default="")
    return longest if len(longest.replace("…", "")) >= FEWEST_LETTERS else None


def calls_in(tree, functions):
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if re.search(functions, ast.unparse(call.func))]


def warnings_of(tree):
    for call in calls_in(tree, r"log\.(warning|error|exception)$|(^|\b_?)(say|warn)$"):
        level = ast.unparse(call.args[0]) if call.args else ""
        if level != "logging.INFO" and (text := text_in(call)) is not None:
            yield text


def texts_on_the_page():
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    return {text for row in rows for text in re.findall(r"`([^`]+)`", row) if " " in text}


def test_each_error_a_caller_can_catch_is_on_the_troubleshooting_page():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AgentsError)}
    bases = {base for kind in kinds for base in kind.__bases__} - {errors.InvalidConnectionError}
    assert sorted(kind.__name__ for kind in kinds - bases if f"`{kind.__name__}`" not in page) == []


def test_each_warning_in_a_log_is_on_the_troubleshooting_page():
    page = texts_on_the_page()
    warnings = {text for tree in TREES for text in warnings_of(tree)}
    assert sorted(text for text in warnings if not any(entry in text for entry in page)) == []


def test_an_error_that_the_page_tells_apart_by_words_is_there_with_all_its_texts():
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    kinds = {kind for row in rows for kind in re.findall(r"`(\w+Error)`(?: \(\w+\))?: `", row)}
    calls = [call for tree in TREES for call in calls_in(tree, rf"^(\w+\.)?({'|'.join(kinds)})$")]
    texts = {text for call in calls if (text := text_in(call)) is not None}
    page = texts_on_the_page()
    assert sorted(text for text in texts if not any(entry in text for entry in page)) == []


def test_the_troubleshooting_page_quotes_only_what_the_code_says():
    code = [text for tree in TREES for node in ast.walk(tree) if (text := words_of(node))]
    airflow_says = {"Listeners are not supported"}
    commands = {entry for entry in texts_on_the_page() if entry.startswith("airflow ")}
    page = texts_on_the_page() - airflow_says - commands
    assert sorted(entry for entry in page if not any(entry in text for text in code)) == []


def test_each_xcom_key_and_option_of_airflows_is_on_the_page_of_what_is_public():
    page = (ROOT / "docs/public-names.md").read_text()
    options = get_provider_info()["config"]["agents"]["options"]
    assert [name for name in (*XCOM_KEYS, *options) if f"`{name}`" not in page] == []


def test_the_pages_show_the_agents_that_the_simulator_has(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")  # no line of the help is broken
    with pytest.raises(SystemExit):
        simulate(["--help"])
    agents = re.findall(r"(agent-[\w-]+):\d", capsys.readouterr().out)
    assert re.search(r"^Its agents are (.+)\.$", text_of("tutorial.md"), re.MULTILINE)[1].split(", ") == agents
    # The newest first.
    assert re.findall(r"^(agent-[\w-]+) .+ACTIVE", text_of("command-line.md"), re.MULTILINE) == agents[::-1]


#: Words of text, at about 180 a minute; code is not counted.
MOST_WORDS = 900


def text_of(page):
    return (ROOT / "docs" / page).read_text()


def first_paragraph(page):
    return re.search(r"^# .+\n\n((?:.+\n)+)", text_of(page), re.MULTILINE)[1]


def words(page):
    return len(re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL).split())


def test_every_page_says_first_whom_it_is_for():
    # A decision record has a form of its own.
    pages = sorted(page for page in PAGES if not page.startswith("decisions/"))
    assert [page for page in pages if not re.match("(For|A reference for) anyone", first_paragraph(page))] == []


def test_a_page_can_be_read_in_five_minutes_unless_it_is_a_reference_or_evidence():
    pages = {page for page in PAGES if "reference for anyone" not in first_paragraph(page)}
    long = {page: words(page) for page in pages if not page.startswith("evidence/") and words(page) > MOST_WORDS}
    assert long == {}
