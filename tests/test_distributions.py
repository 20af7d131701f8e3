"""What `make dist` refuses to release."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributions import version_of_the_package, wrong_with

import airflow_provider_agents

ROOT = Path(__file__).parents[1]
CHANGELOG = "## [Unreleased]\n\n## [1.2.0] - 2026-11-27\n"
PROJECT = 'Documentation = "https://docs.owner.org/"  # not .example any more\n'


def test_a_tag_with_its_version_in_the_changelog_and_real_addresses_may_be_released():
    assert wrong_with("v1.2.0", "1.2.0", CHANGELOG, PROJECT) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"tag": "v1.2.1"}, "The tag is v1.2.1, and the package's version is 1.2.0"),
        ({"changelog": "## [Unreleased]\n"}, "CHANGELOG.md has no heading with a date"),
        ({"changelog": "## [1.2.0]\n"}, "CHANGELOG.md has no heading with a date"),
        ({"project": 'Source = "https://code.us.example/x"'}, "the placeholder https://code.us.example/x."),
    ],
)
def test_what_users_must_not_get_is_refused_with_the_cause(change, wrong):
    (said,) = wrong_with(**{"tag": "v1.2.0", "version": "1.2.0", "changelog": CHANGELOG, "project": PROJECT, **change})
    assert wrong in said


def test_placeholders_are_in_the_project_file_alone():
    names = [name for line in wrong_with("", "", "", (ROOT / "pyproject.toml").read_text()) for name in line.split()]
    hosts = {name.rstrip(".").split("/")[2] for name in names if name.startswith("https://")}
    elsewhere = {
        file.name
        for pattern in ("*.md", "docs/**/*.md", "airflow_provider_agents/**/*.py", ".github/**/*", "mkdocs.yml")
        for file in ROOT.glob(pattern)
        if file.is_file() and any(host in file.read_text() for host in hosts)
    }
    assert elsewhere == set()


def test_the_version_is_read_without_an_import():
    assert version_of_the_package() == airflow_provider_agents.__version__
