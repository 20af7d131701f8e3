"""The built wheel, as a user installs it: what is in it, and what Airflow finds of it, the source tree out of reach."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import needs_airflow
from packaging.metadata import Metadata

import airflow_provider_agents

ROOT = Path(__file__).parents[1]
NAME = "airflow-provider-agents"
VERSION = airflow_provider_agents.__version__
INFO = f"airflow_provider_agents-{VERSION}.dist-info"

# In one process of those that run the tests: what is built here takes ten seconds.
pytestmark = pytest.mark.xdist_group("wheel")

#: Run by the environment that has the wheel: each command of `airflow providers` in one process, which one takes four
#: seconds to start.
LISTINGS = """
import contextlib, importlib, importlib.metadata, io, json, pkgutil, sys

import airflow_provider_agents
from airflow.cli import cli_parser

parser = cli_parser.get_parser()


def listed(*command):
    args = parser.parse_args(["providers", *command, "--output", "json"])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        args.func(args)
    return json.loads(printed.getvalue())


modules = [
    module.name
    for module in pkgutil.walk_packages(airflow_provider_agents.__path__, "airflow_provider_agents.")
    if not module.name.endswith("__main__")
]
for module in modules:
    importlib.import_module(module)
print(json.dumps({
    "file": airflow_provider_agents.__file__,
    "path": sys.path,
    "version": importlib.metadata.version("airflow-provider-agents"),
    "modules": modules,
    **{name: listed(name) for name in ("list", "hooks", "triggers", "links", "behaviours", "widgets")},
    "get": listed("get", "airflow-provider-agents", "--full"),
}))
"""


def run(*command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)  # noqa: S603 - our own commands
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it alone."""
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", out, cwd=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out, cwd=unpacked)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A Python that has the wheel, and of this environment everything but the package that is developed in it."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # To install Airflow again would take a minute. The links leave out what leads to the source tree: a `.pth` file.
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix != ".pth" and "airflow_provider_agents" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    env |= {"AIRFLOW_HOME": str(home / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "NO_COLOR": "1"}
    run(python, "-m", "installer", "--no-compile-bytecode", built[1], cwd=home, env=env)
    return python, {"cwd": home, "env": env}


@pytest.fixture(scope="module")
def found(installed):
    """What Airflow's command line lists, by command."""
    python, place = installed
    return json.loads(run(python, "-W", "ignore", "-c", LISTINGS, **place).splitlines()[-1])


def files_in(archive):
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        return {
            member.name.partition("/")[2]: sdist.extractfile(member).read()
            for member in sdist.getmembers()
            if member.isfile()
        }


def test_the_wheel_holds_the_package_its_licence_and_nothing_else(built):
    names = set(files_in(built[1]))
    assert {name.partition("/")[0] for name in names} == {"airflow_provider_agents", INFO}
    assert {"airflow_provider_agents/py.typed", f"{INFO}/licenses/LICENSE"} <= names
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "airflow_provider_agents").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert source == {name for name in names if name.startswith("airflow_provider_agents/")}


def test_both_bring_the_page_and_the_plugin_that_serves_it(built):
    plugins = files_in(built[1])[f"{INFO}/entry_points.txt"].decode()
    assert "[airflow.plugins]\nagents = airflow_provider_agents.plugin:AgentsPlugin" in plugins
    for archive in built:
        names = set(files_in(archive))
        assert {f"airflow_provider_agents/ui/static/page.{kind}" for kind in ("html", "css", "js")} <= names


def test_the_sdist_holds_what_is_needed_to_build_lint_test_and_document_it(built):
    names = set(files_in(built[0]))
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "mkdocs.yml", "pyproject.toml", ".ci/run"} <= names
    rooms = ("airflow_provider_agents", "benchmarks", "constraints", "dev", "docs", "example_dags", "tests", ".github")
    made = {"__pycache__", ".mypy_cache", ".ruff_cache"}
    source = {
        str(path.relative_to(ROOT))
        for room in rooms
        for path in (ROOT / room).rglob("*")
        if path.is_file() and not made & set(path.parts)
    }
    assert source - names == set()
    assert not {name for name in names if name.startswith((".venv", ".cache", "dist/", "site/"))}


def test_no_file_of_them_names_a_place_on_this_machine(built):
    places = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local", "/root"}
    for archive in built:
        for name, content in files_in(archive).items():
            assert not {place for place in places if place.encode() in content}, name


def test_the_metadata_is_valid_and_says_what_it_needs(built):
    raw = files_in(built[1])[f"{INFO}/METADATA"]
    metadata = Metadata.from_email(raw, validate=True)
    assert (metadata.name, str(metadata.version)) == (NAME, VERSION)
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description.startswith("# airflow-provider-agents")
    needed = {requirement.name for requirement in metadata.requires_dist if requirement.marker is None}
    assert needed == {"apache-airflow", "apache-airflow-providers-common-compat", "httpx", "pydantic"}
    assert "3.11" in metadata.requires_python
    assert email.message_from_bytes(raw)["Metadata-Version"] >= "2.4"


def test_what_is_imported_is_the_wheel(found, installed):
    python, _ = installed
    assert Path(found["file"]).is_relative_to(python.parents[1])
    assert str(ROOT) not in found["path"]
    assert found["version"] == VERSION
    assert {"airflow_provider_agents.operators", "airflow_provider_agents.simulator.app"} <= set(found["modules"])


def test_airflow_lists_the_provider_with_all_that_it_brings(found):
    (listed,) = [provider for provider in found["list"] if provider["package_name"] == NAME]
    assert listed["version"] == VERSION
    (hook,) = [hook for hook in found["hooks"] if hook["package_name"] == NAME]
    assert hook == {
        "connection_type": "agents",
        "class": "airflow_provider_agents.hooks.AgentsHook",
        "conn_id_attribute_name": "agents_conn_id",
        "package_name": NAME,
        "hook_name": "Agents",
    }
    triggers = [trigger for trigger in found["triggers"] if trigger["package_name"] == NAME]
    assert {(trigger["class"], trigger["integration_name"]) for trigger in triggers} == {
        ("airflow_provider_agents.triggers", "Agents"),
        ("airflow_provider_agents.watchers", "Agents"),
    }
    info = airflow_provider_agents.get_provider_info()
    links = {link["extra_link_class_name"] for link in found["links"]}
    assert set(info.get("extra-links", ())) <= links
    (full,) = found["get"]
    assert {full["package-name"], full["name"]} == {NAME, "Agents"}


@needs_airflow("3.2")  # before, the form is not read from the metadata
def test_airflow_lists_the_connections_form(found):
    assert {"field_behaviours": "agents"} in found["behaviours"]
    widgets = {widget["connection_parameter_name"] for widget in found["widgets"] if widget["package_name"] == NAME}
    (form,) = airflow_provider_agents.get_provider_info()["connection-types"]
    assert widgets == {f"extra__agents__{name}" for name in form["conn-fields"]}


def test_the_metadata_leaves_out_nothing_that_the_wheel_brings(built):
    # A module that a later change adds must not be forgotten here.
    names = set(files_in(built[1]))
    info = airflow_provider_agents.get_provider_info()
    modules = {kind: [kind] for kind in ("operators", "sensors", "hooks")} | {"triggers": ["triggers", "watchers"]}
    for kind, expected in modules.items():
        named = [module for entry in info[kind] for module in entry["python-modules"]]
        assert named == [f"airflow_provider_agents.{module}" for module in expected]
        assert names.issuperset(f"airflow_provider_agents/{module}.py" for module in expected)
    assert ("airflow_provider_agents/links.py" in names) == ("extra-links" in info)


def test_the_command_lists_it_too(installed):
    python, place = installed
    printed = run(python, "-m", "airflow", "providers", "list", "--output", "plain", **place)
    assert re.search(rf"^{NAME}\s.*{re.escape(VERSION)}$", printed, re.MULTILINE), printed[-2000:]
