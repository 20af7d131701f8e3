"""The simulator over real HTTP: real resets, real hangs, and the control routes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import httpx
import pytest

from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, asgi_app, mock_transport, running_server

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


@pytest.mark.parametrize(("kind", "worked"), [("reset_before", 0), ("reset_after", 1)])
def test_a_reset_breaks_the_connection_without_an_answer(http, sim, kind, worked):
    sim.faults.append(Fault(kind=kind))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        http.post("/v1/agents/a/execute")
    assert len(sim.executions) == worked
    assert http.get("/v1/agents").status_code == 200


@pytest.mark.parametrize(("kind", "worked"), [("hang_before", 0), ("hang_after", 1)])
def test_a_hang_is_ended_by_the_client_that_gives_up(http, sim, kind, worked):
    sim.faults.append(Fault(kind=kind))
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/agents/a/execute", timeout=0.2)
    assert len(sim.executions) == worked
    assert http.get("/v1/agents").status_code == 200


def test_the_control_routes_tell_the_truth_and_change_the_world(http, sim):
    request_id = http.post("/v1/agents/a/execute").json()["data"]["requestId"]
    (done,) = http.get("/_simulator/executions").json()
    assert (done["requestId"], done["eventId"]) == (request_id, sim.executions[0].event_id)
    stranger = http.post("/_simulator/runs", json={"agentId": "a"}).json()["eventId"]
    runs = {run["eventId"]: run["by"] for run in http.get("/_simulator/runs").json()}
    assert runs == {done["eventId"]: "execute", stranger: "schedule"}
    (one,) = http.get("/_simulator/runs", params={"agentId": "a", "eventId": stranger}).json()
    assert one["eventId"] == stranger
    assert http.get("/_simulator/runs", params={"id": stranger}).status_code == 400
    assert http.get("/_simulator/requests").json() == {"total": 1, "paths": {"POST /v1/agents/a/execute": 1}}
    assert http.post("/_simulator/agents", json={"agent_id": "b", "run_seconds": 3}).status_code == 200
    assert http.get("/v1/agents/b").status_code == 200
    http.post("/_simulator/faults", json={"kind": "status", "status": 418, "times": None})
    assert http.get("/v1/agents").status_code == 418
    http.delete("/_simulator/faults")
    http.patch("/_simulator/config", json={"agent_envelope": True})
    assert http.get("/v1/agents/b").json()["data"]["id"] == "b"
    http.put("/_simulator/keys", json=["new"])
    assert http.get("/v1/agents").status_code == 401


def test_the_control_routes_change_rows_and_delete_agents(http, sim):
    http.post("/v1/agents/a/execute")
    event_id = sim.executions[0].event_id

    def rows(path="/v1/events"):
        return http.get(path).json()["data"]

    honest = rows()
    http.patch("/_simulator/rows", json={"eventId": event_id, "row": {"userId": 7}, "without": ["error"]})
    (row,) = rows()
    assert (row["userId"], "error" in row) == (7, False)
    added = http.post("/_simulator/rows", json={"agentId": "a", "row": None, "age": 60}).json()["eventId"]
    assert rows() == [row, None]
    http.delete("/_simulator/rows", params={"eventId": added})
    assert rows() == [row]
    http.put("/_simulator/rows", json={"eventId": event_id})
    assert rows() == honest
    assert http.delete("/_simulator/agents", params={"agentId": "a", "keepEvents": "perhaps"}).status_code == 400
    http.delete("/_simulator/agents", params={"agentId": "a", "keepEvents": "true"})
    assert (rows(), http.get("/v1/agents/a/events").status_code) == (honest, 404)
    http.delete("/_simulator/agents", params={"agentId": "a"})
    assert rows() == []


def test_a_control_route_asks_for_a_fault_in_a_window_of_time(http):
    http.post("/_simulator/faults", json={"kind": "status", "status": 403, "times": None, "seconds": 600})
    http.post("/_simulator/faults", json={"kind": "status", "status": 400, "times": None, "after": 600})
    assert [http.get("/v1/agents").status_code for _ in range(2)] == [403, 403]


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_that_has_no_body_is_served_without_one(http, sim, status):
    sim.faults.append(Fault(kind="status", status=status))
    answer = http.get("/v1/agents")
    assert (answer.status_code, answer.content) == (status, b"")
    assert http.get("/v1/agents").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "faults", {"kind": "status", "seconds": "5"}),
        ("POST", "faults", {"kind": "status", "path": "("}),
        ("POST", "faults", {"kind": "status", "not_before": "2026-01-01T00:00:00Z"}),
        ("POST", "rows", {"agentId": "nobody", "row": {}}),
        ("POST", "rows", {"agentId": "a"}),
        ("POST", "rows", {"agentId": "a", "row": {}, "age": "old"}),
        ("PATCH", "rows", {"eventId": "nothing", "row": {}}),
        ("PATCH", "rows", {"eventId": ["a"], "row": {}}),
        ("DELETE", "rows", None),
        ("DELETE", "agents", None),
        ("POST", "faults", {"sort": "status"}),
        ("POST", "agents", {}),
        ("POST", "runs", {"agentId": "nobody"}),
        ("PATCH", "config", {"gravity": 1}),
        ("POST", "faults", "x"),
        ("POST", "faults", {"kind": "earthquake"}),
        ("POST", "faults", {"kind": "status", "status": "503"}),
        ("POST", "faults", {"kind": "status", "times": 0}),
        ("POST", "faults", {"kind": "status", "headers": {"Retry-After": 5}}),
        ("POST", "agents", {"agent_id": "b", "run_seconds": "3"}),
        ("POST", "agents", {"agent_id": "b", "schedule_every": 0}),
        ("POST", "agents", {"agent_id": ["b"]}),
        ("POST", "agents", ["b"]),
        ("POST", "runs", ["a"]),
        ("PATCH", "config", {"record_lag": "soon"}),
        ("PATCH", "config", {"sort_by": "colour"}),
        ("PUT", "keys", "abc"),
        ("PUT", "keys", [1]),
    ],
)
def test_a_control_that_makes_no_sense_is_a_400_that_says_why_and_changes_nothing(sim, method, path, body):
    async def ask():
        transport = httpx.ASGITransport(asgi_app(sim))
        async with httpx.AsyncClient(base_url="http://sim", headers=KEY, transport=transport) as api:
            return await api.request(method, f"/_simulator/{path}", json=body), await api.get("/v1/agents/a/events")

    answer, events = asyncio.run(ask())
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert events.json() == {"data": [], "nextToken": None}


def test_a_control_that_is_no_json_is_a_400(http):
    assert http.post("/_simulator/faults", content=b"{").status_code == 400


def test_as_a_transport_a_reset_and_a_hang_are_what_httpx_makes_of_them():
    sim = Simulator(ManualClock())
    sim.faults += [Fault(kind="reset_before"), Fault(kind="hang_before")]
    client = httpx.Client(base_url="http://sim", headers=KEY, transport=mock_transport(sim))
    with pytest.raises(httpx.ReadError):
        client.get("/v1/agents")
    with pytest.raises(httpx.ReadTimeout):
        client.get("/v1/agents")
    assert client.get("/v1/agents").json() == {"data": [], "nextToken": None}


def test_as_a_transport_it_serves_both_kinds_of_client():
    sim = Simulator(ManualClock())
    sim.add_agent("a/b")

    async def ask():
        async with httpx.AsyncClient(base_url="http://sim", headers=KEY, transport=mock_transport(sim)) as client:
            assert (await client.post("/v1/agents/a%2Fb/execute")).status_code == 202
            sim.faults.append(Fault(kind="hang_after"))
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/v1/agents")

    asyncio.run(ask())
    assert sim.executions[0].agent_id == "a/b"


def test_a_server_that_cannot_break_a_connection_makes_no_answer_of_it():
    sim = Simulator(ManualClock())
    sim.faults.append(Fault(kind="reset_before"))
    transport = httpx.ASGITransport(asgi_app(sim))

    async def ask():
        async with httpx.AsyncClient(base_url="http://sim", headers=KEY, transport=transport) as client:
            with pytest.raises(RuntimeError, match="cannot reset"):
                await client.get("/v1/agents")
            assert (await client.get("/v1/agents")).status_code == 200

    asyncio.run(ask())


def test_a_world_of_json_takes_lists_for_pairs(http):
    assert http.patch("/_simulator/config", json={"rate_limit": [0, 10], "queue_seconds": 2}).status_code == 200
    assert http.get("/v1/agents").status_code == 429
