"""The command: what it serves, and what it refuses and how."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from airflow_provider_agents.simulator import ManualClock, Simulator, running_server
from airflow_provider_agents.simulator.__main__ import main

COMMAND = [sys.executable, "-m", "airflow_provider_agents.simulator"]
KEY = {"X-Api-Key": "demo-key"}
EXAMPLES = sorted((Path(__file__).parents[2] / "example_dags").glob("*.py"))


@contextlib.contextmanager
def command(*arguments):
    """The command as a process, and where it says that it listens."""
    whole = [*COMMAND, "--port", "0", *arguments]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True) as serving:  # noqa: S603 - our own
        try:
            yield serving, serving.stdout.readline().rpartition(" ")[2].strip()
        finally:
            serving.kill()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_quietly_when_told(end):
    with command() as (serving, url):
        with httpx.Client(base_url=url, headers=KEY, timeout=10) as http:
            agents = {agent["id"] for agent in http.get("/v1/agents").json()["data"]}
            events = http.get("/v1/agents/agent-failing/events").json()["data"]
        serving.send_signal(end)
        assert serving.wait(timeout=10) == 0
    of_examples = {name for file in EXAMPLES for name in re.findall(r'"(agent-[\w-]+)"', file.read_text())}
    # One example runs all agents whose ids begin alike.
    beginnings = {name for name in of_examples if name.endswith("-")}
    begun = {agent for agent in agents if agent.startswith(tuple(beginnings))}
    assert agents - begun == {*(of_examples - beginnings), "agent-failing"}
    assert len(begun) > len(beginnings)
    assert [(event["status"], bool(event["error"])) for event in events] == [("COMPLETED", False)] * 3


def test_it_names_its_key_and_its_agents_at_the_start():
    with command("--agent", "a:0", "--agent", "b:0") as (serving, _):
        lines = [serving.stdout.readline().strip() for _ in range(2)]
    assert lines == ["It accepts the key demo-key.", "Its agents are a, b."]


def test_it_does_not_print_a_key_that_was_chosen():
    with command("--key", "mine", "--agent", "a:0") as (serving, _):
        assert serving.stdout.readline().strip() == "It accepts the keys of --key."


def test_its_options_make_the_world():
    options = ["--key", "k", "--agent", "a:0:FAILED", "--queue-seconds", "0", "--record-lag", "0"]
    options += ["--config", '{"record_lag": 900, "agent_envelope": true}']
    with (
        command(*options) as (_, url),
        httpx.Client(base_url=url, headers={"X-Api-Key": "k"}, timeout=10) as http,
    ):
        assert http.get("/v1/agents/a").json()["data"]["id"] == "a"
        http.post("/v1/agents/a/execute")
        event = http.get("/v1/agents/a/events").json()["data"][0]
    assert event["status"] == "FAILED"
    assert event["error"]


def test_an_agent_may_have_a_schedule():
    options = ["--agent", "a:0:FAILED:0.1", "--queue-seconds", "0", "--record-lag", "0"]
    with command(*options) as (_, url), httpx.Client(base_url=url, headers=KEY, timeout=10) as http:
        deadline = time.monotonic() + 10
        while len(http.get("/v1/agents/a/events").json()["data"]) <= 3 and time.monotonic() < deadline:
            pass
        assert len(http.get("/v1/agents/a/events").json()["data"]) > 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "only listens on this machine"),  # noqa: S104 - the point
        (["--host", "example.org"], "only listens on this machine"),
        (["--config", '{"gravity": 1}'], "gravity"),
        (["--config", '{"record_lag": -1}'], "record_lag must be"),
        (["--config", "[1]"], "makes no simulator"),
        (["--record-lag", "nan"], "record_lag must be"),
        (["--agent", "a:soon"], "soon"),
        (["--agent", ":5"], "agent_id must be"),
        (["--agent", "a:1:COMPLETED:0"], "schedule_every must be"),
    ],
)
def test_what_it_cannot_do_is_one_line_and_status_2(capsys, arguments, words):
    assert main(["--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--port", "65536"], ["--port", "x"], ["--config", "{"]])
def test_an_argument_that_is_none_is_refused_by_name(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_it_listens_for_others_only_when_asked_to():
    # An address of nobody's: that it is tried, and cannot be had, shows that it was not refused.
    assert main(["--host", "192.0.2.1", "--port", "0"]) == 2
    assert main(["--host", "192.0.2.1", "--port", "0", "--allow-remote"]) == 1


def test_a_taken_port_is_one_line_and_status_1(capsys):
    with running_server(Simulator(ManualClock())) as url:
        port = url.rpartition(":")[2]
        assert main(["--port", port]) == 1
    assert capsys.readouterr().err == f"Cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_a_server_it_says_what_to_install(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["--port", "0"]) == 2
    assert capsys.readouterr().err == "The simulator's server needs: pip install 'airflow-provider-agents[simulator]'\n"
