"""The page's routes: who may see what, and what a hostile or hanging platform can do."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from conftest import KEY, connection

import airflow_provider_agents

pytestmark = pytest.mark.xdist_group("page")

DATA = ("/connections", "/connections/agents_test", "/connections/agents_test/usage")
PATHS = (*DATA, "/page", "/page.js", "/page.css", "/icon.svg", "/docs", "/nothing")


def get(page, path, user=None):
    return asyncio.run(page.get(path, user))


@pytest.mark.parametrize("path", PATHS)
def test_nobody_sees_anything_without_a_login(page, platform, path):
    answer = get(page, path)
    assert answer.status_code == 401
    assert "agents_test" not in answer.text


def test_every_route_of_the_page_asks_for_a_user(page):
    routes = {route.path.replace("{conn_id}", "agents_test") for route in page.app.routes}
    assert routes == {*DATA, "/{path:path}"}


def test_who_may_read_a_connection_sees_its_agents_and_runs(page, platform):
    platform.add_agent("agent-1", name="Prices")
    platform.add_history("agent-1", 3)
    for user in ("admin", "op"):
        assert get(page, "/connections", user).json() == {"connections": ["agents_test"]}
        shown = get(page, "/connections/agents_test", user).json()
        assert shown["error"] is None
        assert [agent["name"] for agent in shown["agents"]] == ["Prices"]
        assert len(shown["runs"]) == 3


def test_the_use_of_each_agent_is_there_by_day(page, platform):
    platform.add_agent("agent-1")
    platform.add_history("agent-1", 3)
    shown = get(page, "/connections/agents_test/usage", "op").json()
    assert (shown["error"], list(shown["usage"])) == (None, ["agent-1"])
    days = shown["usage"]["agent-1"]["days"]
    assert len(days) == 7
    assert sum(day["runs"] for day in days) == shown["usage"]["agent-1"]["week"]["runs"]


def test_a_viewer_sees_no_connection_and_is_refused_its_data(page, platform):
    assert get(page, "/connections", "viewer").json() == {"connections": []}
    for path in ("/connections/agents_test", "/connections/agents_test/usage"):
        assert get(page, path, "viewer").status_code == 403
    assert platform.requests == []


def test_an_unknown_connection_and_one_of_another_type_are_refused(page, platform, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", '{"conn_type": "http", "host": "shop.example", "password": "secret-word"}')
    for conn_id in ("nowhere", "shop"):
        assert get(page, f"/connections/{conn_id}", "admin").status_code == 404
    assert platform.requests == []


def test_a_connection_of_a_secrets_backend_is_there_once_it_is_named(page, platform, monkeypatch):
    monkeypatch.setenv("AIRFLOW__AGENTS__UI_CONNECTIONS", "agents_vault, agents_other")
    found = get(page, "/connections", "op").json()["connections"]
    assert found == ["agents_other", "agents_test", "agents_vault"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("user", [None, "viewer", "admin"])
def test_every_answer_forbids_scripts_of_others(page, platform, path, user):
    headers = get(page, path, user).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_makes_no_markup_of_text_and_has_no_inline_script():
    static = Path(airflow_provider_agents.__file__).parent / "ui" / "static"
    script, markup = (static / "page.js").read_text(), (static / "page.html").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert word not in script, word
    assert markup.count("<script") == markup.count('<script src="page.js" defer></script>') == 1
    assert not re.search(r"\son\w+=|style=|javascript:", markup)


def test_hostile_names_errors_and_ids_arrive_as_they_were_sent(page, platform):
    hostile = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
    platform.add_agent("agent-1", name=hostile, run_seconds=0.0, end_status="FAILED", error=hostile)
    platform.add_history("agent-1", 1)
    answer = get(page, "/connections/agents_test", "admin")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["agents"][0]["name"] == hostile


def test_the_key_is_in_no_answer(page, platform):
    platform.add_agent("agent-1")
    platform.add_history("agent-1", 1)
    for path in PATHS:
        assert KEY not in get(page, path, "admin").text
    platform.api_keys = ("another-key",)
    refused = get(page, "/connections/agents_test", "admin").json()
    assert KEY not in str(refused)


def test_a_refused_key_is_explained_and_not_shown(page, platform):
    platform.api_keys = ("another-key",)
    shown = get(page, "/connections/agents_test", "admin").json()
    assert "API key" in shown["error"]
    assert (shown["runs"], shown["age_seconds"]) == ([], None)


def test_only_reading_is_asked_of_the_platform(page, platform):
    platform.add_agent("agent-1")
    get(page, "/connections/agents_test", "admin")
    assert {request.method for request in platform.requests} == {"GET"}
    for method in ("post", "put", "patch", "delete"):
        assert asyncio.run(page.send(method, "/connections/agents_test", "admin")).status_code == 405


def test_pages_that_are_opened_together_ask_the_platform_once(page, platform, monkeypatch):
    monkeypatch.setattr("airflow_provider_agents.ui.app.FRESH_SECONDS", 600.0)

    async def open_all():
        return await asyncio.gather(*(page.get("/connections/agents_test", "admin") for _ in range(20)))

    assert {answer.status_code for answer in asyncio.run(open_all())} == {200}
    assert len(platform.requests) == 4  # agents, PENDING, RUNNING, and the newest runs


def test_a_platform_that_hangs_keeps_no_other_question_waiting(page, platform, monkeypatch):
    # 60 pages are open. The platform takes their questions, and answers none.
    async def steps():
        asked, taken = asyncio.Event(), []

        async def take(reader, writer):
            taken.append(asyncio.current_task())
            asked.set()
            await reader.read()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("AIRFLOW_CONN_AGENTS_TEST", connection(f"http://127.0.0.1:{port}"))
        open_pages = [asyncio.create_task(page.get("/connections/agents_test", "admin")) for _ in range(60)]
        await asyncio.wait_for(asked.wait(), 30)
        began = time.monotonic()
        answer = await page.get("/connections", "admin")
        took = time.monotonic() - began
        waiting = sum(not one.done() for one in open_pages)
        answers = await asyncio.gather(*open_pages)
        server.close()
        # Each connection is closed by the page, so that its end is seen here.
        await asyncio.wait_for(asyncio.gather(*taken), 30)
        return answer, took, waiting, answers

    monkeypatch.setattr("airflow_provider_agents.ui.questions.LIMIT_SECONDS", 3.0)
    answer, took, waiting, answers = asyncio.run(steps())
    assert (answer.status_code, waiting) == (200, 60)
    assert took < 2.0, took
    assert all("not answered within 3 seconds" in one.json()["error"] for one in answers)
