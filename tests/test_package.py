"""What the package promises as a package: its names, its metadata, what importing it costs."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from conftest import AIRFLOW, dag_bag
from examples import NEEDS

import airflow_provider_agents
from airflow_provider_agents.simulator import ManualClock, Simulator
from airflow_provider_agents.triggers import AgentIdleTrigger, AgentRunTrigger
from airflow_provider_agents.watchers import AgentRunEventTrigger

ROOT = Path(__file__).parents[1]
SUBMISSION = {"version": 1, "agent_id": "agent-1", "taken_at": "2026-01-01T09:00:00Z"}


def loaded_by(statement, after="pass"):
    """The modules that a statement loads in a fresh interpreter, on top of what another one has loaded."""
    script = (
        f"import sys, json\n{after}\nfor name in [n for n in sys.modules if n.split('.')[0] in "
        f"('httpx', 'starlette', 'uvicorn')]: del sys.modules[name]\n"
        f"before = set(sys.modules)\n{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603 - our own interpreter and script
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_itself_imports_nothing_beyond_the_standard_library():
    loaded = loaded_by("import airflow_provider_agents; airflow_provider_agents.get_provider_info()")
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"airflow_provider_agents"}
    assert foreign == set()


def test_parsing_a_dag_loads_neither_an_http_client_nor_a_server_nor_the_simulator():
    # Airflow 3.3 itself loads httpx for its logging, so what counts is what the operators add to a loaded Airflow.
    loaded = loaded_by(
        "import airflow_provider_agents.operators",
        after="import airflow.sdk\n"
        "from airflow.providers.common.compat.sdk import BaseOperator, BaseHook\n"
        "import airflow.triggers.base",
    )
    assert "airflow_provider_agents.operators" in loaded
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & {"httpx", "httpcore", "openlineage", "starlette", "uvicorn"}
    assert not {name for name in loaded if name.startswith("airflow_provider_agents.simulator")}
    assert "airflow_provider_agents.api.client" not in loaded


def test_every_start_of_airflows_command_line_loads_only_the_definition_of_ours():
    loaded = loaded_by(
        "import airflow_provider_agents.cli; airflow_provider_agents.cli.get_agents_cli_commands()",
        after="import airflow.cli.cli_config",
    )
    ours = {name for name in loaded if name.startswith("airflow_provider_agents.")}
    assert ours == {
        f"airflow_provider_agents.{name}" for name in ("api", "api.errors", "cli", "cli.arguments", "cli.exit_codes")
    }
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"airflow_provider_agents"}
    assert foreign == set()


def test_importing_the_simulator_needs_no_server():
    loaded = loaded_by("import airflow_provider_agents.simulator")
    assert not {name.split(".")[0] for name in loaded} & {"starlette", "uvicorn", "httpx", "airflow"}


def test_the_pytest_plugin_loads_nothing_but_pytest():
    loaded = loaded_by("import airflow_provider_agents.pytest_plugin", after="import pytest")
    assert loaded == {"airflow_provider_agents", "airflow_provider_agents.pytest_plugin"}


def test_the_api_is_usable_without_airflow():
    loaded = loaded_by("import airflow_provider_agents.api.client, airflow_provider_agents.polling.blocking")
    assert "airflow" not in {name.split(".")[0] for name in loaded}


def test_the_metadata_is_valid_and_names_modules_that_exist():
    import importlib

    import airflow
    import jsonschema

    info = airflow_provider_agents.get_provider_info()
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(info, schema)
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                assert importlib.import_module(module)
    for path in info["extra-links"]:
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).name == "Agent run"
    (path,) = info["cli"]
    module, _, name = path.rpartition(".")
    assert [group.name for group in getattr(importlib.import_module(module), name)()] == ["agents"]


def test_airflow_finds_the_provider_by_its_entry_point():
    (found,) = [
        point
        for point in entry_points(group="apache_airflow_provider")
        if point.value == "airflow_provider_agents:get_provider_info"
    ]
    assert found.load()()["package-name"] == "airflow-provider-agents"
    assert version("airflow-provider-agents") == airflow_provider_agents.__version__


def test_the_triggers_paths_and_arguments_are_public_and_survive_a_round_trip():
    run = AgentRunTrigger(
        agents_conn_id="c", submission=SUBMISSION, poll_interval=5.0, deadline_at="2026-01-02T09:00:00+00:00",
        settle=30.0, appear_within=300.0, on_ambiguous="all",
    )  # fmt: skip
    idle = AgentIdleTrigger(
        agents_conn_id="c",
        agent_id="a",
        poll_interval=5.0,
        deadline_at="2026-01-02T09:00:00+00:00",
        settle=30.0,
        hold_seconds=30.0,
    )
    sensor = AgentRunTrigger(
        agents_conn_id="c", agent_id="a", event_id="e", poll_interval=5.0, timeout=60.0, settle=30.0,
        appear_within=300.0, on_ambiguous="all", end_with=["usage"],
    )  # fmt: skip
    for trigger, path in (
        (run, "airflow_provider_agents.triggers.AgentRunTrigger"),
        (idle, "airflow_provider_agents.triggers.AgentIdleTrigger"),
        (sensor, "airflow_provider_agents.triggers.AgentRunTrigger"),
        (AgentRunEventTrigger(agent_id="a"), "airflow_provider_agents.watchers.AgentRunEventTrigger"),
    ):
        serialized = trigger.serialize()
        assert serialized[0] == path
        assert type(trigger)(**json.loads(json.dumps(serialized[1]))).serialize() == serialized


@pytest.mark.parametrize("fixture", ["execute_202.json", "events_page.json"])
def test_the_simulators_answers_have_the_shape_of_the_pages_samples(fixture):
    def shape(value):
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__

    clock = ManualClock()
    sim = Simulator(clock)
    sim.add_agent("agent-123")
    headers = {"Authorization": "Bearer test-key"}
    if fixture == "execute_202.json":
        reply = sim.handle("POST", "/v1/agents/agent-123/execute", {}, headers)
    else:
        sim.add_history("agent-123", 1)
        reply = sim.handle("GET", "/v1/agents/agent-123/events", {}, headers)
    sample = json.loads((ROOT / "tests" / "fixtures" / fixture).read_text())
    assert shape(json.loads(reply.body)) == shape(sample)
    assert reply.status == (202 if fixture == "execute_202.json" else 200)


def test_the_readmes_dag_is_a_dag():
    source = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(source, names)  # noqa: S102 - our own README
    assert {task_id: task.downstream_task_ids for task_id, task in names["dag"].task_dict.items()} == {
        "run_agent": {"report"},
        "report": set(),
    }


def test_the_watchers_dag_in_the_docs_is_a_dag():
    source = (ROOT / "docs" / "watcher.md").read_text().partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(source.replace("\non_finished_run()", "\nmade = on_finished_run()"), names)  # noqa: S102 - our own page
    assert list(names["made"].task_dict) == ["note"]


@pytest.mark.parametrize("file", sorted((ROOT / "example_dags").glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_a_dag_of_its_files_name_or_says_which_airflow_it_needs(file):
    bag = dag_bag(file)
    needed = NEEDS.get(file.stem, (3, 0))
    if needed <= AIRFLOW:
        assert bag.import_errors == {}
        assert list(bag.dags) == [file.stem]
    else:
        (said,) = bag.import_errors.values()
        # Of what an older Airflow cannot import, only the file itself can say it.
        said += ast.get_docstring(ast.parse(file.read_text())) if "ImportError" in said or "NotFound" in said else ""
        assert re.search(rf"[Nn]eeds Airflow {needed[0]}\.{needed[1]}(\+| or newer)", said)


def test_airflow_lists_the_link():
    from airflow.providers_manager import ProvidersManager

    assert "airflow_provider_agents.links.AgentRunLink" in ProvidersManager().extra_links_class_names


def test_docstrings_name_arguments_and_attributes_that_exist():
    wrong = []
    for path in sorted((ROOT / "airflow_provider_agents").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            doc = ast.get_docstring(node, clean=False)
            if doc is None:
                continue
            code = set(re.findall(r"\w+", ast.get_source_segment(text, node).replace(doc, "")))
            section = ""
            for line in inspect.cleandoc(doc).splitlines():
                section = line if line and not line.startswith(" ") else section
                name = re.match(r"    (\w+):", line)
                if section in {"Args:", "Attributes:"} and name and name[1] not in code:
                    wrong.append(f"{path.name}: {node.name}: {name[1]}")
    # An attribute of its base class.
    assert wrong == ["platform.py: Simulator: executions"]
