"""The page's routes.

| route | what |
|---|---|
| `/page`, `/page.css`, ... | the files in `static` |
| `/connections` | the ids of the connections that the user may read |
| `/connections/ID` | its agents and newest runs; 403 for a user who may not read the connection |
| `/connections/ID/usage` | what its agents have used in seven days; the same |

A page in Airflow's frame has the rights of Airflow's own pages, so a script that got into it would be a full session:
every answer forbids scripts but those of `static`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.security import get_user
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from airflow_provider_agents.api import endpoints
from airflow_provider_agents.api.flow import first_rows
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.clock import now
from airflow_provider_agents.hooks import poller_of, settings_of
from airflow_provider_agents.runs.usage import runs_between
from airflow_provider_agents.ui import access
from airflow_provider_agents.ui.questions import SharedQuestion
from airflow_provider_agents.ui.rows import agent_rows, budget_use, first_day, run_rows, usage_by_agent
from airflow_provider_agents.ui.task_links import tasks_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.ui.task_links import TaskInstanceKey

#: Seconds for which one answer of the platform serves all pages; a page asks every 10.
FRESH_SECONDS = 5.0
#: The same for what a week has used, which may take many requests. A page asks every minute.
USAGE_FRESH_SECONDS = 60.0
#: Rows of each listing that are read, one page of it.
_ROWS = 100
#: Each file that is served, with its type.
FILES = {
    "page": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "icon-dark.svg": ("icon-dark.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

User = Annotated[BaseUser, Depends(get_user)]


@dataclass(frozen=True, slots=True)
class Overview:
    """What is read of a connection, and the tasks of its runs by the event's id."""

    agents: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    tasks: dict[str, TaskInstanceKey]


async def read_overview(conn_id: str) -> Overview:
    """Read a connection's agents, its active runs and its newest runs, and look up who started them.

    Raises:
        AgentsError: the platform does not answer, or the connection is wrong.
    """
    read_at = now()
    async with poller_of(conn_id) as poller:
        agents, *listings = await asyncio.gather(
            poller.run_flow(first_rows(endpoints.list_agents(), _ROWS)),
            poller.run_flow(first_rows(endpoints.list_events(status=Status.PENDING), _ROWS)),
            poller.run_flow(first_rows(endpoints.list_events(status=Status.RUNNING), _ROWS)),
            poller.run_flow(first_rows(endpoints.list_events(), _ROWS)),
        )
    events: list[ExecutionEvent] = list(chain.from_iterable(listings))
    tasks = await run_in_threadpool(tasks_of, conn_id, list({event.id: event for event in events}.values()), now())
    return Overview(agent_rows(agents), run_rows(events, read_at), tasks)


async def read_usage(conn_id: str) -> dict[str, Any]:
    """What a connection's agents have used in seven days, as `usage_by_agent`, and of its budget, as `budget_use`.

    Raises:
        AgentsError: as `read_overview`.
    """
    settings = await settings_of(conn_id)
    async with poller_of(conn_id) as poller:
        events = await poller.run_flow(runs_between(None, first_day(now())))
    at = now()
    return {"usage": usage_by_agent(events, at), "budget": budget_use(settings.budget, events, at)}


class Questions:
    """The questions about one connection, each shared by all pages."""

    def __init__(self, conn_id: str) -> None:
        self.overview = SharedQuestion(lambda: read_overview(conn_id), FRESH_SECONDS)
        self.usage = SharedQuestion(lambda: read_usage(conn_id), USAGE_FRESH_SECONDS)


router = APIRouter(dependencies=[Depends(get_user)])


async def questions_about(conn_id: str, user: User, request: Request) -> Questions:
    """The questions about a connection that the user may read and the page may use.

    Raises:
        HTTPException: the user may not read it (403), or there is no such connection of our type (404).
    """
    if not await run_in_threadpool(access.may_read_connection, user, conn_id):
        raise HTTPException(403, "You may not read this connection.")
    known: dict[str, Questions] = request.app.state.questions
    if conn_id not in known and conn_id not in await run_in_threadpool(access.agents_connections):
        raise HTTPException(404, "There is no such connection of the type Agents.")
    # Other pages may have asked at the same time; all share what the first one has made.
    return known.setdefault(conn_id, Questions(conn_id))


AboutConnection = Annotated[Questions, Depends(questions_about)]


@router.get("/connections")
async def connections(user: User) -> JSONResponse:
    """The connections that the user may read."""

    def readable() -> list[str]:
        return [conn_id for conn_id in access.agents_connections() if access.may_read_connection(user, conn_id)]

    return JSONResponse({"connections": await run_in_threadpool(readable)})


@router.get("/connections/{conn_id}")  # noqa: FAST003 - `questions_about` takes it
async def overview(user: User, about: AboutConnection) -> JSONResponse:
    """A connection's agents and runs; links lead only to DAGs that the user may read."""
    shown = await about.overview.answer()
    value = shown.value or Overview([], [], {})
    dags = await run_in_threadpool(access.readable_dags, user, {task.dag_id for task in value.tasks.values()})
    runs = [{**run, "task": _link(value.tasks.get(run["id"]), dags)} for run in value.runs]
    return JSONResponse({"agents": value.agents, "runs": runs, "age_seconds": shown.age_seconds, "error": shown.error})


@router.get("/connections/{conn_id}/usage")  # noqa: FAST003 - the same
async def usage(about: AboutConnection) -> JSONResponse:
    """What a connection's agents have used."""
    shown = await about.usage.answer()
    value = shown.value or {"usage": {}, "budget": None}
    return JSONResponse({**value, "age_seconds": shown.age_seconds, "error": shown.error})


@router.get("/{path:path}")
async def file(path: str) -> Response:
    """A file of `static`. Whatever else is asked for is not there, for users only."""
    if path not in FILES:
        raise HTTPException(404)
    name, media_type = FILES[path]
    return Response(resources.files(__package__).joinpath("static", name).read_bytes(), media_type=media_type)


async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Add `HEADERS` to each answer, whatever its status."""
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


def create_app() -> FastAPI:
    """The page. Every route needs a user whom Airflow knows."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.questions = {}
    app.middleware("http")(add_headers)
    app.include_router(router)
    return app


def _link(task: TaskInstanceKey | None, dags: set[str]) -> dict[str, Any] | None:
    if task is None or task.dag_id not in dags:
        return None
    index = f" [{task.map_index}]" if task.map_index >= 0 else ""
    return {"name": f"{task.dag_id}.{task.task_id}{index}", "path": task.path}
