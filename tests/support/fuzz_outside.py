"""What a person uses, before a platform that misbehaves: the commands, among them the probe, and the page's routes.

Ways of `make fuzz`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import quote

import httpx
from hostile_answers import KEY, TEXTS, any_value
from hostile_scene import HostileScene
from metadata_database import metadata_database_in
from own_time import OwnTime, keep_time

from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.clock import replaced_by
from airflow_provider_agents.simulator import mock_transport

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable, Generator, Iterator, Mapping

    from fastapi import FastAPI

    from airflow_provider_agents.clock import Timer
    from airflow_provider_agents.simulator import ManualClock, Simulator

CONNECTION = json.dumps({"conn_type": "agents", "password": KEY, "host": "http://127.0.0.1"})


@contextlib.contextmanager
def reached_through(sim: Simulator, **variables: str) -> Iterator[None]:
    """Let each client of the process reach a simulator, through a connection in the environment."""

    def transport_of(**settings: Any) -> Any:
        return settings.get("transport") or mock_transport(sim)

    with (
        mock.patch.dict(os.environ, {"AIRFLOW_CONN_AGENTS_DEFAULT": CONNECTION, **variables}),
        mock.patch.object(httpx.Client, "_init_transport", side_effect=transport_of),
        mock.patch.object(httpx.AsyncClient, "_init_transport", side_effect=transport_of),
    ):
        yield


# --- commands -------------------------------------------------------------------------------------------------------


def _arguments(rng: random.Random, agent_id: str) -> list[str]:
    output = rng.choice(["json", "yaml", "plain", "table"])
    times = rng.choice(["2h", "7d", "90", "2026-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "0001-01-01", "-1s", "x"])
    found = rng.choice(
        [
            ["probe", agent_id, "--yes", "--runs", "1", "--output", rng.choice(["text", "json"])],
            ["probe", agent_id, "--yes", "--runs", "2", "--output", rng.choice(["text", "json"])],
            ["list", "--output", output],
            ["check"],
            ["runs", agent_id, "--since", times, "--output", output],
            ["usage", "--since", times, "--by", rng.choice(["agent", "day", "model"]), "--output", output],
            ["usage", agent_id, "--output", output],
            ["run", agent_id, "--wait", "--timeout", "10m", "--output", output],
        ]
    )
    if rng.random() < 0.1:
        found[rng.randrange(len(found))] = rng.choice(TEXTS).replace("\0", "")
    return found


def commands(rng: random.Random, tally: Counter[str]) -> Generator[int, None, None]:
    """The commands of `airflow agents`, most of all the probe, while the answers are odd."""
    from airflow_provider_agents.__main__ import main

    while True:
        scene = HostileScene(rng, tally, rng.choice([0.02, 0.1, 0.5]))
        keep_time(scene.clock)
        scene.sim.add_history("agent-0", rng.randrange(4), every=700.0)
        given = _arguments(rng, rng.choice(scene.agents))
        out, err = io.StringIO(), io.StringIO()
        with (
            reached_through(scene.sim, _AIRFLOW_PROCESS_CONTEXT="client"),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                code: object = main(given)
            except SystemExit as ended:
                code = ended.code
        assert isinstance(code, int), code
        tally[f"command ended {ExitCode(code)}"] += 1
        _check_output(given, code, out.getvalue(), err.getvalue())
        scene.client.close()
        tally["answered to commands"] += scene.answers
        yield from range(scene.answers)


def _check_output(given: list[str], code: int, out: str, err: str) -> None:
    words = f"{given}: {code}\n{out}\n{err}"
    assert "Traceback" not in out + err, words
    # The arguments are not the platform's: argparse repeats what a person has typed.
    assert KEY in given or KEY not in out + err, words
    lines = [*out.splitlines(), *(err.splitlines() if code != ExitCode.WRONG_ARGUMENTS else [])]
    for line in lines:
        assert line.isprintable(), words
    if "json" in given and out.strip() and code != ExitCode.WRONG_ARGUMENTS and given[-1] == "json":
        json.loads(out, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


# --- the page -------------------------------------------------------------------------------------------------------

ROLES = ("admin", "op", "viewer")
#: Data of a connection is for these; the others are refused.
READERS = ("admin", "op")


class HurriedTime(OwnTime):
    """Time on an event loop with threads: what is waited for there takes a hundredth, and ends in the same order."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock, clock.advance)

    def monotonic(self) -> float:
        return self.now().timestamp()

    def loop_time(self) -> float:
        return 100 * super().loop_time()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return super().call_later(seconds / 100, callback)


def _tokens() -> dict[str, str]:
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    manager = create_auth_manager()
    return {role: manager.generate_jwt(SimpleAuthManagerUser(username=role, role=role.upper())) for role in ROLES}


def _path(rng: random.Random) -> str:
    conn_id = rng.choice(["agents_default"] * 6 + ["shop", "nowhere", rng.choice(TEXTS)])
    path = f"/connections/{quote(conn_id, safe='')}"
    path = rng.choice([path, path, f"{path}/usage", f"{path}/usage", f"{path}/", "/connections", "/page", "/page.js"])
    if rng.random() < 0.1:
        path = "/" + quote(rng.choice([*TEXTS, "../app.py", "static/page.js", "//page", "openapi.json"]), safe="/.")
    if rng.random() < 0.3:
        query = {rng.choice(["conn_id", "limit", "path", "user", ""]): str(any_value(rng))[:500] for _ in range(2)}
        path += "?" + "&".join(f"{name}={quote(text, safe='')}" for name, text in query.items())
    return path


async def _ask(rng: random.Random, app: FastAPI, tokens: Mapping[str, str]) -> int:
    role = rng.choice([*ROLES, None, "forged"])
    headers = {"Accept": rng.choice(["*/*", "text/html"]), "X-Other": "x" * rng.choice([1, 3000])}
    if role is not None:
        token = tokens.get(role, rng.choice(["x", "a.b.c", tokens["admin"][:-4] + "AAAA", "\xe4"]))
        headers["Authorization"] = f"Bearer {token}"
    method = rng.choice(["GET"] * 9 + ["POST", "HEAD", "DELETE", "OPTIONS"])
    content = json.dumps(any_value(rng)).encode() if method == "POST" else None
    path = _path(rng)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://airflow", timeout=60) as client:
        answer = await client.request(
            method,
            path,
            content=content,
            headers={name.encode(): text.encode("latin-1") for name, text in headers.items()},
        )
    words = f"{method} {path[:200]} as {role}: {answer.status_code} {answer.text[:500]}"
    assert answer.status_code < 500, words
    assert "default-src 'none'" in answer.headers["content-security-policy"], words
    assert KEY not in answer.text.replace(quote(KEY, safe=""), ""), words
    # A slash at the end is taken away by a redirect to the same host.
    assert role in ROLES or answer.status_code in {307, 401, 403, 404, 405}, words
    assert answer.headers.get("location", "http://airflow/").startswith("http://airflow/"), words
    is_data = answer.status_code == 200 and answer.headers.get("content-type") == "application/json"
    assert role in READERS or not is_data or answer.text in {"", '{"connections":[]}'}, words
    if is_data and answer.text:
        shown = json.loads(answer.text, parse_constant=_refuse)
        assert (shown.get("error") or "").isprintable(), words
    return answer.status_code


def pages(rng: random.Random, tally: Counter[str]) -> Generator[int, None, None]:
    """The page's routes: odd ids, query strings, methods and tokens, before a platform with odd answers."""
    with (
        tempfile.TemporaryDirectory() as folder,
        metadata_database_in(Path(folder)),
        mock.patch.dict(os.environ, {"AIRFLOW__API_AUTH__JWT_SECRET": "s" * 64}),
        contextlib.closing(_pages(rng, tally)) as steps,
    ):
        yield from steps


def _pages(rng: random.Random, tally: Counter[str]) -> Generator[int, None, None]:
    from airflow_provider_agents.ui.app import create_app

    tokens = _tokens()
    shop = json.dumps({"conn_type": "http", "host": "shop.example", "password": "secret-word"})
    while True:
        scene = HostileScene(rng, tally, rng.choice([0.1, 0.5, 0.9]))
        for agent_id in scene.agents:
            scene.sim.add_history(agent_id, rng.randrange(6), every=700.0)
        app = create_app()

        async def visit(app: FastAPI = app, scene: HostileScene = scene) -> None:
            for _ in range(10):
                tally[f"the page answered {await _ask(rng, app, tokens)}"] += 1
                scene.clock.advance(rng.choice([0.0, 1.0, 90.0]))

        variables = {"_AIRFLOW_PROCESS_CONTEXT": "server", "AIRFLOW_CONN_SHOP": shop}
        with reached_through(scene.sim, **variables), replaced_by(HurriedTime(scene.clock)):
            asyncio.run(visit())
        scene.client.close()
        tally["answered to the page"] += scene.answers
        yield from range(10 + scene.answers)
