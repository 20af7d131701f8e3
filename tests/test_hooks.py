"""The hook: from a connection to a client, over HTTP against the simulator."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from conftest import KEY, connection, needs_airflow

from airflow_provider_agents import get_provider_info
from airflow_provider_agents.api.errors import InvalidConnectionError, NotFoundError
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.simulator import Fault


@pytest.fixture
def connected(monkeypatch):
    def connect(value, conn_id="agents_default"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)
        return AgentsHook(conn_id)

    return connect


def test_the_shortest_connection_is_the_key_alone(connected):
    settings = connected("agents://:KEY-0123@").settings()
    assert settings.api_key == "KEY-0123"
    assert settings.base_url == "https://api.uragents.ai"
    assert settings.timeout_seconds == 30


def test_a_uri_may_name_a_whole_base_url(connected):
    settings = connected("agents://:KEY@https%3A%2F%2Fgateway.example%2Fagents").settings()
    assert settings.base_url == "https://gateway.example/agents"


def test_a_port_of_its_own_is_part_of_the_base_url(connected):
    value = {"conn_type": "agents", "password": "KEY", "host": "https://gateway.example", "port": 8443}
    assert connected(json.dumps(value)).settings().base_url == "https://gateway.example:8443"
    value["host"] = "https://gateway.example/agents"
    assert connected(json.dumps(value)).settings().base_url == "https://gateway.example:8443/agents"
    value["host"] = ""
    assert connected(json.dumps(value)).settings().base_url == "https://api.uragents.ai:8443"
    value["host"] = "https://gateway.example:8443"
    assert connected(json.dumps(value)).settings().base_url == "https://gateway.example:8443"


def test_two_ports_that_differ_are_refused(connected):
    value = {"conn_type": "agents", "password": "KEY", "host": "https://gateway.example:8443", "port": 443}
    with pytest.raises(InvalidConnectionError, match="Leave one of the two out"):
        connected(json.dumps(value)).settings()


@pytest.mark.parametrize("host", ["gateway.example", "https://gateway.example:port", "https://[::1"])
def test_a_host_that_is_no_url_is_told_whatever_the_port(connected, host):
    value = {"conn_type": "agents", "password": "KEY", "host": host, "port": 443}
    with pytest.raises(InvalidConnectionError, match="no scheme|not a URL"):
        connected(json.dumps(value)).settings()


def test_extras_are_read_as_a_form_or_a_uri_writes_them(connected, tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    value = connection(
        "https://gateway.example", auth_header="X-Api-Key", timeout="12.5", verify=str(bundle), proxy="", run_url=None
    )
    settings = connected(value).settings()
    assert (settings.auth_header, settings.timeout_seconds, settings.verify) == ("X-Api-Key", 12.5, str(bundle))
    assert settings.proxy is None
    assert connected(connection("https://gateway.example", verify="False")).settings().verify is False
    assert connected(connection("http://gateway.example", allow_plain_http="true")).settings().allow_plain_http


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"timeout": "soon"}, "timeout must be a number"),
        ({"timeout": []}, "timeout must be a number"),
        ({"verify": 7}, "verify must be true, false"),
        ({"verify": "/no/such/file"}, "does not exist"),
        ({"allow_plain_http": "perhaps"}, "allow_plain_http must be true or false"),
        ({"auth_header": "Cookie"}, "auth_header must be one of"),
        ({"auth_header": ["X-Api-Key"]}, "auth_header must be one of"),
        ({"proxy": "nonsense"}, "proxy is not the URL"),
        ({"run_url": "javascript:alert(1)"}, "run_url must be an http"),
    ],
)
def test_an_extra_that_cannot_work_is_named(connected, extra, words):
    with pytest.raises(InvalidConnectionError, match=words):
        connected(connection("https://gateway.example", **extra)).settings()


@pytest.mark.parametrize("extra", ["[]", "{", '"text"', "7"])
def test_an_extra_that_is_no_object_is_not_taken_for_an_empty_one(connected, extra):
    value = json.dumps({"conn_type": "agents", "password": "KEY", "extra": extra})
    with pytest.raises(InvalidConnectionError, match="extra is not a JSON object|cannot be read"):
        connected(value).settings()


def test_a_schema_is_refused_rather_than_ignored(connected):
    with pytest.raises(InvalidConnectionError, match="Put a path into the host itself"):
        connected("agents://:KEY@gateway.example/path").settings()


def test_a_connection_that_is_not_there_says_how_to_make_one():
    with pytest.raises(InvalidConnectionError, match="AIRFLOW_CONN_NOT_THERE='agents://:KEY@'"):
        AgentsHook("not_there").settings()


def test_a_uri_that_airflow_cannot_read_does_not_bring_its_key_into_the_message(connected):
    with pytest.raises(InvalidConnectionError) as caught:
        connected("agents://:sk-geheim@https://a://b").settings()
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_run_url_is_filled_in_with_quoted_ids(connected):
    hook = connected(connection("https://a.example", run_url="https://app.example/{agent_id}/runs/{event_id}?x=1"))
    assert hook.run_url(agent_id="a/b", event_id="e 1") == "https://app.example/a%2Fb/runs/e%201?x=1"
    assert hook.run_url(agent_id="a", event_id=None) is None
    assert connected(connection("https://a.example")).run_url(agent_id="a", event_id="e") is None


def test_the_reading_methods_read(platform):
    hook = AgentsHook()
    platform.sim.add_agent("agent-2", status="PAUSED")
    assert [agent.id for agent in hook.list_agents()] == ["agent-2", "agent-1"]
    assert hook.get_agent("agent-2").status == "PAUSED"
    assert len(hook.list_agent_events("agent-1")) == 3
    assert len(hook.list_agent_events("agent-1", limit=2)) == 2
    assert hook.list_agent_events("agent-1", status="FAILED") == []
    after = datetime.now(UTC) - timedelta(hours=2.5)
    assert len(hook.list_events(agent_id="agent-1", started_after=after)) == 2
    assert len(hook.list_events(started_before=after)) == 1
    with pytest.raises(NotFoundError):
        hook.get_agent("agent-3")


def test_the_async_methods_do_the_same_with_the_prefix_a(platform):
    async def everything():
        hook = AgentsHook()
        return (
            [agent.id for agent in await hook.alist_agents()],
            (await hook.aget_agent("agent-1")).id,
            (await hook.aexecute_agent("agent-1")).requestId,
            len(await hook.alist_agent_events("agent-1", limit=2)),
            len(await hook.alist_events(agent_id="agent-1", status="COMPLETED")),
            await hook.atest_connection(),
        )

    agents, agent, request_id, two, three, tested = asyncio.run(everything())
    assert (agents, agent, two, three) == (["agent-1"], "agent-1", 2, 3)
    assert request_id == platform.sim.executions[0].request_id
    assert tested[0]


def test_execute_starts_a_run_and_is_not_repeated_after_a_lost_answer(platform):
    assert AgentsHook().execute_agent("agent-1").requestId == platform.sim.executions[0].request_id
    platform.sim.faults.append(Fault(kind="reset_after", method="POST"))
    with pytest.raises(Exception, match="was lost"):
        AgentsHook().execute_agent("agent-1")
    assert len(platform.executions()) == 2


def test_testing_a_good_connection_says_so_and_starts_nothing(platform):
    assert AgentsHook().test_connection() == (True, f"{platform.url} accepts the API key.")
    assert [(request.method, request.path) for request in platform.sim.requests] == [("GET", "/v1/agents")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (connection("http://127.0.0.1:1"), "no connection to 127.0.0.1"),
        (connection("gateway.example"), "has no scheme"),
        (connection("https://gateway.example", password=""), "no API key"),
        ("{", "does not exist, or cannot be read"),
    ],
)
def test_testing_a_bad_connection_says_what_to_do(connected, value, words):
    works, message = connected(value).test_connection()
    assert not works
    assert words in message


def test_testing_a_wrong_key_says_so_without_showing_it(platform, connected):
    works, message = connected(connection(platform.url, password="sk-wrong-0123")).test_connection()
    assert not works
    assert "401" in message
    assert "sk-wrong" not in message


# --- the form ---


def test_the_form_is_the_same_however_airflow_asks_for_it():
    (declared,) = get_provider_info()["connection-types"]
    behaviour = AgentsHook.get_ui_field_behaviour()
    assert behaviour["hidden_fields"] == declared["ui-field-behaviour"]["hidden-fields"]
    assert behaviour["relabeling"] == declared["ui-field-behaviour"]["relabeling"]
    assert behaviour["placeholders"] == declared["ui-field-behaviour"]["placeholders"]
    assert declared["hook-class-name"] == f"{AgentsHook.__module__}.{AgentsHook.__qualname__}"
    assert (declared["connection-type"], declared["hook-name"]) == (AgentsHook.conn_type, AgentsHook.hook_name)


def test_the_fields_of_the_form_have_no_defaults_and_are_text():
    (declared,) = get_provider_info()["connection-types"]
    for field in declared["conn-fields"].values():
        assert field["schema"] == {"type": ["string", "null"]}
        assert field["label"]
        assert field["description"]


def test_the_widgets_for_older_airflow_are_the_same_fields(monkeypatch):
    # Airflow 3.0 and 3.1 put stand-ins in the place of these two packages, which they no longer bring.
    wtforms, widgets = ModuleType("wtforms"), ModuleType("flask_appbuilder.fieldwidgets")
    wtforms.StringField = lambda label, description, widget: (label, description)
    widgets.BS3TextFieldWidget = object
    for module in (wtforms, ModuleType("flask_appbuilder"), widgets):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (declared,) = get_provider_info()["connection-types"]
    assert AgentsHook.get_connection_form_widgets() == {
        name: (field["label"], field["description"]) for name, field in declared["conn-fields"].items()
    }


@needs_airflow("3.2")
def test_airflow_lists_the_form_without_a_warning():
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.field_behaviours["agents"]["relabeling"] == {"password": "API key", "host": "Base URL"}
    assert "extra__agents__auth_header" in manager.connection_form_widgets
    assert KEY not in repr(manager.field_behaviours["agents"])
