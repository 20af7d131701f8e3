"""The page as Airflow serves it: a metadata database, the auth manager with its users, and the simulator over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from types import SimpleNamespace

import httpx
import pytest
from conftest import KEY, connection
from metadata_database import metadata_database_in

from airflow_provider_agents.plugin import is_supported
from airflow_provider_agents.simulator import Simulator


@pytest.fixture(scope="session")
def metadata_database(tmp_path_factory):
    """An Airflow database of its own, empty."""
    if not is_supported(version("apache-airflow-core")):
        pytest.skip("the page needs Airflow 3.1.6")
    with metadata_database_in(tmp_path_factory.mktemp("metadata")):
        yield


@pytest.fixture
def users(metadata_database, monkeypatch):
    """A token for each role of Airflow's simple auth manager."""
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "s" * 64)
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    manager = create_auth_manager()
    return {
        role: manager.generate_jwt(SimpleAuthManagerUser(username=role, role=role.upper()))
        for role in ("admin", "op", "viewer")
    }


@pytest.fixture
def platform(served, monkeypatch):
    """The simulator on the real clock, and a connection to it in the environment."""
    front, url = served
    sim = Simulator(lambda: datetime.now(UTC), api_keys=(KEY,))
    front.sim = sim
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_TEST", connection(url))
    return sim


@pytest.fixture
def page(users):
    """Asks the page's routes as a user, or as nobody."""
    from airflow_provider_agents.ui.app import create_app

    app = create_app()

    async def send(method, path, user=None):
        headers = {"Authorization": f"Bearer {users[user]}"} if user else {}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow", timeout=60) as client:
            return await client.request(method, path, headers=headers)

    async def get(path, user=None):
        return await send("get", path, user)

    return SimpleNamespace(get=get, send=send, app=app)
