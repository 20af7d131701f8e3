"""The hook: from a connection to a client, over HTTP against the simulator."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from conftest import KEY, connection, needs_airflow

from airflow_provider_agents import get_provider_info
from airflow_provider_agents.api.errors import NotFoundError
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.simulator import Fault


@pytest.fixture
def connected(monkeypatch):
    def connect(value, conn_id="agents_default"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)
        return AgentsHook(conn_id)

    return connect


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


def test_the_usage_of_an_agent_and_of_the_account(platform):
    platform.sim.add_agent("agent-2")
    platform.sim.add_history("agent-2", 2)
    hook, since = AgentsHook(), datetime.now(UTC) - timedelta(hours=2.5)
    assert (hook.usage(since=since).runs, hook.usage("agent-1", since=since).runs) == (4, 2)
    assert hook.usage("agent-1", since=since, until=since + timedelta(hours=1)).browser_seconds == 60.0
    assert asyncio.run(hook.ausage(since=since)) == hook.usage(since=since)


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
        (connection("http://127.0.0.1:1"), "No connection to 127.0.0.1"),
        (connection("gateway.example"), "has no scheme"),
        (connection("https://gateway.example", password=""), "no API key"),
        ("{", "it is not JSON at line 1, column 2"),
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


# --- rows that cannot be read ---


def test_a_listing_leaves_no_row_out_and_says_which_cannot_be_read(platform, caplog):
    hook = AgentsHook()
    odd = platform.sim.add_row("agent-1", {"status": None})
    nameless = platform.sim.add_row("agent-1", {"id": 7})
    for events in (
        hook.list_agent_events("agent-1"),
        hook.list_events(),
        asyncio.run(hook.alist_agent_events("agent-1")),
        asyncio.run(hook.alist_events()),
    ):
        unreadable = [event for event in events if event.unreadable is not None]
        assert len(events) == 5
        assert {event.status for event in unreadable} == {"RUNNING"}
        assert sorted((event.id == odd, event.lacks_id) for event in unreadable) == [(False, True), (True, False)]
        assert nameless not in {event.id for event in events}
    # Once for the hook's own clients, and once for each time an event loop was started for it.
    assert caplog.text.count(f"event={odd}") == 3


def test_an_agent_with_odd_fields_is_listed_and_read(platform):
    platform.sim.add_agent("agent-2", name="name-2")
    platform.sim.intercept(lambda _, answer: replace(reply := answer(), body=reply.body.replace(b'"name-2"', b"7")))
    assert {agent.id: agent.name for agent in AgentsHook().list_agents()}["agent-2"] is None
    assert AgentsHook().get_agent("agent-2").to_json()["name"] == 7
