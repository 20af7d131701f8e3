"""The simulator over real HTTP: real resets, real hangs, and the control routes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import httpx
import pytest

from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, mock_transport, running_server

KEY = {"X-Api-Key": "test-key"}


@pytest.fixture
def sim():
    simulator = Simulator(lambda: datetime.now(UTC))
    simulator.add_agent("a", queue_seconds=0.0, run_seconds=0.0)
    return simulator


@pytest.fixture
def http(sim):
    with running_server(sim) as url, httpx.Client(base_url=url, headers=KEY, timeout=10) as client:
        yield client


def test_the_api_is_served_with_the_simulators_own_headers(http, sim):
    answer = http.post("/v1/agents/a/execute")
    assert answer.status_code == 202
    assert answer.headers.get_list("date") == [answer.headers["date"]]
    assert http.get("/v1/agents/a/events").json()["data"][0]["id"] == sim.executions[0].event_id


def test_an_encoded_slash_stays_in_its_place(http):
    assert http.get("/v1/agents/a%2Fevents").status_code == 404


def test_a_reset_breaks_the_connection_without_an_answer(http, sim):
    sim.faults.append(Fault(kind="reset_after"))
    with pytest.raises(httpx.TransportError):
        http.post("/v1/agents/a/execute")
    assert len(sim.executions) == 1
    assert http.get("/v1/agents").status_code == 200


def test_a_hang_is_ended_by_the_client_that_gives_up(http, sim):
    sim.faults.append(Fault(kind="hang_before"))
    with pytest.raises(httpx.ReadTimeout):
        http.get("/v1/agents", timeout=0.2)
    assert http.get("/v1/agents").status_code == 200


def test_the_control_routes_tell_the_truth_and_change_the_world(http, sim):
    request_id = http.post("/v1/agents/a/execute").json()["data"]["requestId"]
    (done,) = http.get("/_simulator/executions").json()
    assert (done["requestId"], done["eventId"]) == (request_id, sim.executions[0].event_id)
    stranger = http.post("/_simulator/runs", json={"agentId": "a"}).json()["eventId"]
    runs = {run["eventId"]: run["by"] for run in http.get("/_simulator/runs").json()}
    assert runs == {done["eventId"]: "execute", stranger: "schedule"}
    assert http.get("/_simulator/requests").json() == {"total": 1, "paths": {"POST /v1/agents/a/execute": 1}}
    assert http.post("/_simulator/agents", json={"agent_id": "b", "run_seconds": 3}).status_code == 200
    assert http.get("/v1/agents/b").status_code == 200
    http.post("/_simulator/faults", json={"kind": "status", "status": 418, "times": None})
    assert http.get("/v1/agents").status_code == 418
    http.delete("/_simulator/faults")
    http.patch("/_simulator/world", json={"agent_envelope": True})
    assert http.get("/v1/agents/b").json()["data"]["id"] == "b"
    http.put("/_simulator/keys", json=["new"])
    assert http.get("/v1/agents").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "faults", {"sort": "status"}),
        ("POST", "agents", {}),
        ("POST", "runs", {"agentId": "nobody"}),
        ("PATCH", "world", {"gravity": 1}),
        ("POST", "faults", "x"),
    ],
)
def test_a_control_that_makes_no_sense_is_a_400_that_says_why(http, method, path, body):
    answer = http.request(method, f"/_simulator/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_as_a_transport_a_reset_and_a_hang_are_what_httpx_makes_of_them():
    sim = Simulator(ManualClock())
    sim.faults += [Fault(kind="reset_before"), Fault(kind="hang_before")]
    client = httpx.Client(base_url="http://sim", headers=KEY, transport=mock_transport(sim))
    with pytest.raises(httpx.ReadError):
        client.get("/v1/agents")
    with pytest.raises(httpx.ReadTimeout):
        client.get("/v1/agents")
    assert client.get("/v1/agents").json() == {"data": [], "nextToken": None}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--host", "0.0.0.0"], 2, "only listens on this machine"),  # noqa: S104 - the point
        (["--world", '{"gravity": 1}'], 2, "makes no simulator"),
        (["--agent", "a:soon"], 2, "makes no simulator"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments, status, words):
    command = [sys.executable, "-m", "airflow_provider_agents.simulator", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - our own
    assert done.returncode == status
    assert words in done.stderr


def test_the_command_says_where_it_listens_and_that_a_port_is_taken(http):
    port = str(http.base_url.port)
    command = [sys.executable, "-m", "airflow_provider_agents.simulator", "--port"]
    taken = subprocess.run([*command, port], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - our own
    assert (taken.returncode, taken.stderr.strip()) == (1, f"Cannot listen on 127.0.0.1:{port}: Address already in use")
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as serving:  # noqa: S603 - our own
        try:
            said = serving.stdout.readline()
            url = said.rpartition(" ")[2].strip()
            agents = httpx.get(f"{url}/v1/agents", headers={"X-Api-Key": "demo-key"}, timeout=10).json()["data"]
        finally:
            serving.terminate()
    assert {agent["id"] for agent in agents} == {"agent-123", "agent-prices", "agent-news", "agent-failing"}
