"""One real Airflow, and the simulator as a server, for all tests of the whole system."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from real_airflow import QUICK_WORKERS, RealAirflow, connection_json, simulator_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def api_key():
    """A key that can be recognised wherever it should not be."""
    return f"sk-{secrets.token_hex(24)}"


@pytest.fixture(scope="session")
def simulator(tmp_path_factory, api_key):
    # None is over in the seconds in which its task is deferred: Airflow's scheduler can then take the task for killed.
    agents = (
        *("agent-123:15", "agent-prices:5", "agent-news:6", "agent-failing:6:FAILED", "agent-worker:5"),
        *("agent-cleanup:5", "agent-draft:5", "agent-invoices:5", "agent-orders:5", "agent-shop:5", "agent-weather:6"),
        *("agent-research:5", "agent-fragile:5:FAILED", "agent-east:5", "agent-west:6"),
        *("agent-hourly:2:COMPLETED:20", "agent-nightly:2:COMPLETED:20"),
    )
    options = [option for agent in agents for option in ("--agent", agent)]
    with simulator_server(tmp_path_factory.mktemp("simulator"), "--key", api_key, *options) as server:
        yield server


@pytest.fixture(scope="session")
def airflow(tmp_path_factory, simulator, api_key):
    env = {
        **QUICK_WORKERS,
        "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(
            simulator.url, api_key, run_url="https://app.example/{agent_id}/runs/{event_id}"
        ),
        "AIRFLOW_CONN_AGENTS_DOWN": connection_json("http://127.0.0.1:1", api_key),
        "AIRFLOW_CONN_AGENTS_WRONG_KEY": connection_json(simulator.url, f"wrong-{api_key}"),
    }
    dags = [ROOT / "example_dags", Path(__file__).parent / "dags"]
    # PostgreSQL, as in production: on a busy machine SQLite answers "database is locked" to a scheduler's writes.
    home = tmp_path_factory.mktemp("airflow")
    with RealAirflow(home, dags=dags, env=env, database="postgres") as running:
        yield running
