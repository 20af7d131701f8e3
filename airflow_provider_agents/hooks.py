"""The hook: from an Airflow connection to a client, and the API's endpoints as typed methods."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote as percent_encode

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_agents import _CONN_TYPE, _EXTRAS, _HIDDEN_FIELDS, _PLACEHOLDERS, _RELABELING, validation
from airflow_provider_agents.api import endpoints, flow
from airflow_provider_agents.api.errors import AgentsError, InvalidConnectionError
from airflow_provider_agents.api.rows import WarnOnce
from airflow_provider_agents.connection import aread_settings, read_settings
from airflow_provider_agents.runs.spending import check_budget
from airflow_provider_agents.runs.usage import add_up, runs_between
from airflow_provider_agents.shared_starts import async_reader

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    # Imported where a connection is opened: the clients load httpx, and parsing a DAG must stay cheap.
    from airflow_provider_agents.api.client import AsyncClient, Client
    from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent
    from airflow_provider_agents.api.retry import RetryWindow
    from airflow_provider_agents.api.settings import Settings
    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.runs.usage import Usage

T = TypeVar("T")


def run_url_of(template: str | None, *, agent_id: str, event_id: str | None) -> str | None:
    """The page of a run: `run_url` with the ids filled in. Never raises.

    Args:
        template: `Settings.run_url`.
        agent_id: the agent.
        event_id: the run's event; None if it is not known yet.

    Returns:
        None without a template, and if it needs an id that is not known or would lead to another page.
    """
    url = template
    for name, value in (("{agent_id}", agent_id), ("{event_id}", event_id)):
        if url is None or name not in url:
            continue
        # A browser reads these as steps in the path, encoded or not.
        if not value or value in {".", ".."}:
            return None
        # Not str.format, which would let a template read attributes of objects.
        url = url.replace(name, percent_encode(value, safe="", errors="replace"))
    return url


# --- one poller per loop and connection -------------------------------------------------------------------------------


async def settings_of(conn_id: str) -> Settings:
    """A connection as the client's settings, read on an event loop.

    Raises:
        InvalidConnectionError: the connection is missing, unreadable or wrong.
    """
    settings = await aread_settings(conn_id)
    if isinstance(settings, InvalidConnectionError):
        raise settings
    return settings


async def open_client(conn_id: str) -> AsyncClient:
    """Read a connection, and make a client of it.

    Raises:
        AgentsError: there is no such connection, or none can be made with it.
    """
    from airflow_provider_agents.api.client import AsyncClient

    return await AsyncClient.open(await settings_of(conn_id))


def poller_of(conn_id: str) -> AbstractAsyncContextManager[SharedPoller]:
    """The one poller of this event loop and connection, shared by all who hold it at the same time."""
    from airflow_provider_agents.polling.poller import shared_poller

    return shared_poller(conn_id, _make_poller)


def _make_poller(conn_id: str) -> SharedPoller:
    from airflow.providers.common.compat.sdk import Stats

    from airflow_provider_agents.polling.poller import SharedPoller, siblings_of

    return SharedPoller(
        conn_id,
        lambda: open_client(conn_id),
        stats=Stats,
        siblings=siblings_of(conn_id),
        read_starts=async_reader(conn_id),
    )


# --- a run that no operator starts ------------------------------------------------------------------------------------


def check_connection_budget(settings: Settings, agent_id: str) -> flow.Flow[None]:
    """Ask a connection's budget, if there is one, before a run that no operator starts.

    Days and hours are those of Airflow's default time zone. `over` does not matter: there may be no task to skip.

    Raises:
        BudgetExceededError: there is no room for another run.
    """
    if settings.budget is not None:
        from airflow.settings import TIMEZONE

        yield from check_budget(settings.budget, agent_id, TIMEZONE, owner="connection")


def _execute(settings: Settings, agent_id: str) -> flow.Flow[Accepted]:
    yield from check_connection_budget(settings, agent_id)
    return (yield from flow.value_of(endpoints.execute_agent(agent_id)))


# --- the hook -------------------------------------------------------------------------------------------------------


class AgentsHook(BaseHook):
    """A connection to the agents platform.

    Methods that read are retried after temporary failures. `execute_agent` starts a run that costs money and cannot be
    cancelled: it is retried only where the platform cannot have acted.

    No row of a listing is left out. An unreadable row is logged, and is in the list with the fields that can be read:
    its `unreadable` says why, an event counts as RUNNING, and a replaced id begins with `no-id-`.

    The methods return models. For an XCom, return a model's `to_json()`: Airflow reads only classes on its allow list
    from an XCom.

    Args:
        agents_conn_id: the Airflow connection.

    Raises:
        InvalidArgumentError: `agents_conn_id` is not a connection's id.
        InvalidConnectionError: from the first method that needs the connection.
        AgentsError: from every method; the subclass that fits.
    """

    conn_name_attr = "agents_conn_id"
    default_conn_name = "agents_default"
    conn_type = _CONN_TYPE
    hook_name = "Agents"

    def __init__(self, agents_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.agents_conn_id = agents_conn_id
        validation.Arguments({"agents_conn_id": validation.connection_id}).check(self, parsing=True)
        self._warn_once = WarnOnce()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's extra fields, for Airflow 3.0 and 3.1; later ones read the provider's metadata."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField

        return {
            name: StringField(label, description=text, widget=BS3TextFieldWidget())
            for name, (label, text) in _EXTRAS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The form's other fields, for Airflow 3.0 and 3.1; later ones read the provider's metadata."""
        return {
            "hidden_fields": list(_HIDDEN_FIELDS),
            "relabeling": dict(_RELABELING),
            "placeholders": dict(_PLACEHOLDERS),
        }

    @cached_property
    def _settings(self) -> Settings:
        found = read_settings(self.agents_conn_id, self.get_connection)
        if isinstance(found, InvalidConnectionError):
            raise found
        return found

    def settings(self) -> Settings:
        """The connection as the client's settings, read once per hook.

        Raises:
            InvalidConnectionError: the connection is missing, unreadable or wrong.
        """
        return self._settings

    def run_url(self, *, agent_id: str, event_id: str | None) -> str | None:
        """The page of a run; None as in `run_url_of`.

        Raises:
            InvalidConnectionError: as `settings`.
        """
        return run_url_of(self.settings().run_url, agent_id=agent_id, event_id=event_id)

    def get_conn(self, warn_once: WarnOnce | None = None, window: RetryWindow | None = None) -> Client:
        """A new client; the caller closes it. After a 401 it reads the connection again, because keys are rotated.

        Args:
            warn_once: which unreadable rows were logged already; by default, those that this hook's clients logged.
            window: how long the client retries failures in a row; None for `ATTEMPTS` tries of each call.

        Raises:
            InvalidConnectionError: as `settings`.
        """
        from airflow_provider_agents.api.client import Client

        return Client(self.settings(), warn_once=warn_once or self._warn_once, window=window, renew=self._renew)

    def _renew(self) -> Settings | None:
        """The connection, read again; None if it has not changed."""
        found = read_settings(self.agents_conn_id, self.get_connection)
        if isinstance(found, InvalidConnectionError):
            # The task then fails with the 401.
            self.log.warning("The API key was refused, and the connection cannot be read again. %s", found)
            return None
        if found == self._settings:
            return None
        self.log.info("The API key was refused. The connection has changed since; the request is repeated with it.")
        self._settings = found
        return found

    def _run(self, steps: flow.Flow[T]) -> T:
        with self.get_conn() as client:
            return client.run_flow(steps)

    async def _arun(self, steps: flow.Flow[T]) -> T:
        async with poller_of(self.agents_conn_id) as poller:
            return await poller.run_flow(steps)

    def list_agents(self, limit: int = 100) -> list[Agent]:
        """The newest `limit` agents (≥ 1) of the account."""
        return self._run(flow.first_rows(endpoints.list_agents(), limit))

    async def alist_agents(self, limit: int = 100) -> list[Agent]:
        """As `list_agents`, on an event loop."""
        return await self._arun(flow.first_rows(endpoints.list_agents(), limit))

    def get_agent(self, agent_id: str) -> Agent:
        """One agent.

        Raises:
            NotFoundError: it does not exist, or the key does not own it.
        """
        return self._run(flow.value_of(endpoints.get_agent(agent_id)))

    async def aget_agent(self, agent_id: str) -> Agent:
        """As `get_agent`, on an event loop."""
        return await self._arun(flow.value_of(endpoints.get_agent(agent_id)))

    def execute_agent(self, agent_id: str) -> Accepted:
        """Start a run. It costs money and cannot be cancelled. To wait for its end, use the operator.

        Raises:
            BudgetExceededError: the connection's budget leaves no room for another run.
            NoAnswerError, ServerError, UnreadableAnswerError: the run may have started.
        """
        return self._run(_execute(self.settings(), agent_id))

    async def aexecute_agent(self, agent_id: str) -> Accepted:
        """As `execute_agent`, on an event loop."""
        return await self._arun(_execute(await settings_of(self.agents_conn_id), agent_id))

    def list_agent_events(
        self,
        agent_id: str,
        *,
        status: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 50,
    ) -> list[ExecutionEvent]:
        """An agent's newest `limit` (≥ 1) runs that match; the times need a time zone."""
        call = endpoints.list_agent_events(
            agent_id, status=status, started_after=started_after, started_before=started_before
        )
        return self._run(flow.first_rows(call, limit))

    async def alist_agent_events(
        self,
        agent_id: str,
        *,
        status: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 50,
    ) -> list[ExecutionEvent]:
        """As `list_agent_events`, on an event loop."""
        call = endpoints.list_agent_events(
            agent_id, status=status, started_after=started_after, started_before=started_before
        )
        return await self._arun(flow.first_rows(call, limit))

    def list_events(
        self,
        *,
        agent_id: str | None = None,
        status: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 50,
    ) -> list[ExecutionEvent]:
        """The account's newest `limit` (≥ 1) runs that match; the times need a time zone."""
        call = endpoints.list_events(
            agent_id=agent_id, status=status, started_after=started_after, started_before=started_before
        )
        return self._run(flow.first_rows(call, limit))

    async def alist_events(
        self,
        *,
        agent_id: str | None = None,
        status: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 50,
    ) -> list[ExecutionEvent]:
        """As `list_events`, on an event loop."""
        call = endpoints.list_events(
            agent_id=agent_id, status=status, started_after=started_after, started_before=started_before
        )
        return await self._arun(flow.first_rows(call, limit))

    def usage(self, agent_id: str | None = None, *, since: datetime, until: datetime | None = None) -> Usage:
        """What the runs of a period have used: an agent's, or the account's.

        Args:
            agent_id: the agent; None for all agents of the account.
            since: runs created from then on. The times need a time zone.
            until: runs created before; None for up to now.
        """
        return add_up(self._run(runs_between(agent_id, since, until)))

    async def ausage(self, agent_id: str | None = None, *, since: datetime, until: datetime | None = None) -> Usage:
        """As `usage`, on an event loop."""
        return add_up(await self._arun(runs_between(agent_id, since, until)))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the API accepts the connection's key, and what to do if not. Lists one agent; costs nothing."""
        from airflow_provider_agents.api.client import Client

        try:
            settings = self.settings()
            # One try: a person is waiting.
            with Client(settings, attempts=1) as client:
                client.send(endpoints.list_agents(limit=1))
        except AgentsError as error:
            return False, str(error)
        return True, f"{settings.base_url} accepts the API key."

    async def atest_connection(self) -> tuple[bool, str]:
        """As `test_connection`, on an event loop."""
        try:
            async with poller_of(self.agents_conn_id) as poller:
                await poller.run_flow(flow.value_of(endpoints.list_agents(limit=1)))
        except AgentsError as error:
            return False, str(error)
        return True, "The API accepts the API key."
