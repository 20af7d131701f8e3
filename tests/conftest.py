"""What several tests share: the simulator over HTTP on a time of its own, and a task's context without an Airflow."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import time_machine
from hypothesis import settings
from virtual_time import VirtualLoop, count_requests

from airflow_provider_agents.api.client import AsyncClient
from airflow_provider_agents.simulator import Simulator, running_server

# Airflow's own examples bring a listener, with which it refuses tasks that end in their trigger.
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"

KEY = "test-key"
#: The minor release of Airflow that the tests run with.
AIRFLOW = tuple(int(part) for part in version("apache-airflow-core").split(".")[:2])

# A busy machine is slow now and then; what takes too long on purpose is no property of the code.
settings.register_profile("patient", settings.default, deadline=None)
# For mutants: what kills one today kills it tomorrow.
settings.register_profile("same", settings.get_profile("patient"), derandomize=True, database=None)
settings.load_profile(os.environ.get("TEST_PROFILE", "patient"))


def pytest_collection_modifyitems(items):
    """What starts a real Airflow comes first: it takes longest, and the rest runs beside it."""
    items.sort(key=lambda item: item.get_closest_marker("system") is None)


def needs_airflow(minor):
    """Skip a test of what came with a newer Airflow; what an older one does instead has a test of its own."""
    wanted = tuple(int(part) for part in minor.split("."))
    return pytest.mark.skipif(wanted > AIRFLOW, reason=f"needs Airflow {minor}")


def dag_bag(file):
    """What Airflow makes of a DAG file."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # where it was before Airflow 3.2
        from airflow.models.dagbag import DagBag

    return DagBag(file)


class Store(dict):
    """A task state store as a task sees it: JSON in, JSON out, and it survives a try."""

    def __init__(self):
        super().__init__()
        self.retentions = {}

    def set(self, key, value, *, retention=None):
        assert value is not None
        self[key] = json.loads(json.dumps(value))
        self.retentions[key] = retention

    def delete(self, key):
        self.pop(key, None)


class Task:
    """What stays the same over the tries of one task instance; each `context()` is the next try's."""

    def __init__(self, *, store=True, retries=3):
        self.store = Store() if store else None
        self.try_number, self.max_tries, self.xcoms = 0, retries, {}

    def context(self):
        # Airflow deletes a task's XComs before each try.
        self.try_number += 1
        self.xcoms = {}
        return self.resumed()

    def resumed(self):
        ti = SimpleNamespace(
            try_number=self.try_number,
            max_tries=self.max_tries,
            xcom_push=lambda key, value: self.xcoms.__setitem__(key, json.loads(json.dumps(value))),
        )
        context = {"ti": ti}
        if self.store is not None:
            context["task_state_store"] = self.store
        return context

    def clear(self):
        self.max_tries = self.try_number + 3


@pytest.fixture
def task():
    return Task()


@pytest.fixture
def logged(capsys, caplog):
    """What was logged so far: Airflow writes with structlog to the standard output, and before 3.1 with logging."""
    return lambda: capsys.readouterr().out or caplog.text


class Platform:
    """The simulator behind real HTTP on this machine, on a time that only moves when somebody sleeps."""

    def __init__(self, sim, traveller):
        self.sim, self.traveller = sim, traveller
        self.slept = []

    def pass_time(self, seconds):
        self.slept.append(seconds)
        self.traveller.shift(timedelta(seconds=seconds))

    def executions(self):
        return [done.event_id for done in self.sim.executions]


@pytest.fixture
def platform(monkeypatch):
    """The connection `agents_default` to a simulator; a sleep of the test's own thread takes no time."""
    real_sleep, new_event_loop, main = time.sleep, asyncio.events.new_event_loop, threading.main_thread()

    with time_machine.travel(datetime(2026, 1, 1, 9, tzinfo=UTC), tick=False) as traveller:
        sim = Simulator(lambda: datetime.now(UTC), api_keys=(KEY,))
        sim.add_agent("agent-1")
        sim.add_history("agent-1", 3)
        platform = Platform(sim, traveller)

        def sleep(seconds):
            (platform.pass_time if threading.current_thread() is main else real_sleep)(seconds)

        def new_loop():
            # The server's loop, in its own thread, is a real one.
            return VirtualLoop(platform.pass_time) if threading.current_thread() is main else new_event_loop()

        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(asyncio.events, "new_event_loop", new_loop)
        count_requests(monkeypatch, AsyncClient)
        with running_server(sim) as url:
            platform.url = url
            monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(url))
            yield platform


def connection(url, password=KEY, **extra):
    """A connection as the value of an environment variable."""
    return json.dumps({"conn_type": "agents", "host": url, "password": password, "extra": extra})
