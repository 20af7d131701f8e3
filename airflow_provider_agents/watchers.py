"""Event-driven scheduling: an asset event for the runs that have ended, whoever started them.

The trigger is at least once: what it has yielded is in the triggerer's memory for a moment, and a triggerer that is
killed loses its memory. So the checkpoint that is committed is one that was taken before that moment. Three rules hold
over a kill at any await:

1. The first checkpoint is committed before the first look, so a restart never begins at a later "now".
2. A checkpoint is committed `_BEHIND_SECONDS` after the last yield that it counts as done has returned control.
3. Each watcher has a checkpoint of its own. It is kept in every asset that the watcher feeds, and the most advanced one
   is read: all of them are sound, so assets may come and go.

The class path is stored in users' databases: it is public.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from base64 import urlsafe_b64encode
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_agents import clock, validation
from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.feed.tickets import ACCOUNT
from airflow_provider_agents.feed.waits import open_journal, sweeps_of
from airflow_provider_agents.hooks import feed_of
from airflow_provider_agents.runs.journal import Cursor
from airflow_provider_agents.triggers import Payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence


class FinishedRuns(Payload):
    """What an asset event of `AgentRunEventTrigger` carries: runs that have ended.

    Attributes:
        runs: their events as the API sent them, in the order of the ends.
    """

    kind: Literal["finished_runs"] = "finished_runs"
    runs: tuple[dict[str, Any], ...]


#: The keys of the watchers' checkpoints in an asset's state begin with this. Public: to delete the keys starts the
#: watchers anew, from then on.
CURSOR_KEY = "agent_runs_cursor"
#: What was yielded reaches the database about a second later, or ten if a triggerer is busy. A checkpoint that counts a
#: yield as done is committed only this many seconds after the yield returned, so that what was not kept is told again.
_BEHIND_SECONDS = 15.0
#: A checkpoint in which nothing but its time has changed is committed this often, in seconds. A restart lists again
#: what has happened since.
_CHECKPOINT_EVERY_SECONDS = 300.0
#: Seconds until a request to an asset's state is given up. An answer takes 10 ms, or 15 s where a triggerer starts
#: hundreds of triggers at once. Airflow sets no limit of its own.
_STORE_SECONDS = 30.0
#: Seconds until an asset's state that could not be read, or the first checkpoint that could not be committed, is tried
#: again.
_STORE_AGAIN_SECONDS = 5.0
#: Seconds until a later checkpoint that could not be committed is tried again: a state that hangs must not hold up the
#: watch most of the time.
_COMMIT_AGAIN_SECONDS = 60.0
#: For this many seconds a watcher waits for the state of all its assets before it does without some of them.
_STORE_PATIENCE_SECONDS = 300.0
#: Seconds until a watcher that was refused tries again. Nobody would start it again, so it does not end.
_WATCH_AGAIN_SECONDS = 60.0


def _final_statuses(value: object) -> list[str]:
    """How a run has to end, each status once and in order: Airflow knows a watcher again by its arguments as JSON."""
    statuses = list(value) if isinstance(value, list | tuple | set | frozenset) else []
    if not statuses or not all(isinstance(one, str) and one for one in statuses):
        raise ValueError(f'must be a list such as ["COMPLETED", "FAILED"], got {validation.shown(value)}.')
    never = {Status.PENDING, Status.RUNNING}.intersection(statuses)
    if never:
        raise ValueError(f"must not contain {' or '.join(sorted(never))}: no run ends so.")
    return sorted(set(statuses))


ARGUMENTS = validation.Arguments(
    {
        "agent_id": validation.optional(validation.agent_id),
        "statuses": _final_statuses,
        "agents_conn_id": validation.connection_id,
        "poll_interval": validation.seconds_from(1.0),
        "settle": validation.seconds_from(0.0),
    }
)


class AgentRunEventTrigger(BaseEventTrigger):
    """Tells an asset of every run that ends, whoever has started it.

    For `AssetWatcher(name=..., trigger=AgentRunEventTrigger(...))`. One sweep yields one event that lists all runs
    that ended, since Airflow up to 3.3.2 holds back all but the first event of a burst; beyond 500 runs or 256 KiB the
    rest follows in further events, `poll_interval` seconds apart. Read it with `finished_runs`.

    Where it has got to is kept in the asset's state (Airflow 3.3 and later): a restart of the triggerer loses nothing
    and may repeat what was told in the seconds before it. Before 3.3 it starts from now whenever it starts.

    Args:
        agent_id: the agent, or None for every agent of the account.
        statuses: how a run has to end to be told.
        agents_conn_id: the connection.
        poll_interval: seconds between two looks, at least 1.
        settle: seconds within which the event of a run appears.

    Raises:
        InvalidArgumentError: an argument cannot be used.
    """

    def __init__(
        self,
        *,
        agent_id: str | None = None,
        statuses: Sequence[str] = ("COMPLETED",),
        agents_conn_id: str = "agents_default",
        poll_interval: float = 5.0,
        settle: float = 30.0,
    ) -> None:
        super().__init__()
        self.agent_id = agent_id
        self.statuses = statuses
        self.agents_conn_id = agents_conn_id
        self.poll_interval = poll_interval
        self.settle = settle
        ARGUMENTS.check(self, parsing=True)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments, JSON types all."""
        return (
            "airflow_provider_agents.watchers.AgentRunEventTrigger",
            {
                "agent_id": self.agent_id,
                "statuses": list(self.statuses),
                "agents_conn_id": self.agents_conn_id,
                "poll_interval": self.poll_interval,
                "settle": self.settle,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look for ever; yield one event for each sweep in which runs had ended."""
        checkpoints = _Checkpoints(self)
        cursor = await checkpoints.load()
        while True:
            try:
                async with feed_of(self.agents_conn_id) as feed:
                    journal = await open_journal(
                        feed, self.agent_id or ACCOUNT, settle=self.settle, cursor=cursor, statuses=self.statuses
                    )
                    if cursor is None:
                        cursor = journal.cursor()
                        await checkpoints.commit_first(cursor)
                    self.log.info("Watching %s.", f"agent {self.agent_id}" if self.agent_id else "all agents")
                    sweeps = sweeps_of(feed, journal, poll_interval=self.poll_interval, say=self.log.log)
                    async with aclosing(sweeps):
                        async for ended in sweeps:
                            if ended:
                                yield TriggerEvent(FinishedRuns(runs=tuple(run.to_json() for run in ended)).to_json())
                                checkpoints.note_yield()
                            cursor = journal.cursor()
                            await checkpoints.commit(cursor)
            except AgentsError as error:
                self.log.error(  # noqa: TRY400 - its traceback would say no more
                    "The watch cannot go on: %s Trying again in %g seconds.", error, _WATCH_AGAIN_SECONDS
                )
            await clock.asleep(_WATCH_AGAIN_SECONDS)


def _stores_of(trigger: BaseEventTrigger) -> list[Any]:
    """The state of each asset that a trigger feeds; none before Airflow 3.3."""
    accessors = getattr(trigger, "asset_state_store", None)
    if accessors is None:
        return []
    found = {**getattr(accessors, "_by_uri", {}), **getattr(accessors, "_by_name", {})}
    return [found[name] for name in sorted(found)] or [accessors]


def _short(*names: object) -> str:
    """A short name for names of any length: 64 bits, so two of a million names are the same in one case of 10⁷."""
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).digest()
    return urlsafe_b64encode(digest).decode().rstrip("=")


class _Checkpoints:
    """Where a watcher has got to, in the state of its assets.

    Two keys are written. One is of this watcher alone. The other is of all watchers that watch the same agent (or
    account) through the same connection: a watcher whose `statuses` have changed resumes there.

    Args:
        trigger: the watcher.
    """

    def __init__(self, trigger: AgentRunEventTrigger) -> None:
        self._stores, self._log = _stores_of(trigger), trigger.log
        watched = (trigger.agents_conn_id, trigger.agent_id)
        self._key = f"{CURSOR_KEY}/{_short(*watched, trigger.statuses)}"
        self._shared_key = f"{CURSOR_KEY}/{_short(*watched)}"
        # For people who look at the asset's state.
        self._about = {
            "agents_conn_id": trigger.agents_conn_id,
            "agent_id": trigger.agent_id,
            "statuses": trigger.statuses,
        }
        # Checkpoints, and from which second on each may be committed.
        self._waiting: deque[tuple[float, Cursor]] = deque()
        self._noted: Cursor | None = None
        self._noted_at = self._yielded_at = -math.inf
        # From which second on a store that has failed is asked again.
        self._again_at = [-math.inf] * len(self._stores)

    async def load(self) -> Cursor | None:
        """The checkpoint of an earlier run of the watcher; None if there is none."""
        if not self._stores:
            self._log.warning(
                "This Airflow keeps no state of assets (3.3 and later do): watching from now on. What ends while no "
                "triggerer runs is not told."
            )
            return None
        values = await self._read_all()
        for name in (self._key, self._shared_key):
            cursors = [Cursor.from_json(value[name]) for value in values if value[name] is not None]
            known = [cursor for cursor in cursors if cursor is not None]
            if len(known) < len(cursors):
                self._log.warning("A checkpoint in the asset's state (key %s) cannot be read and is ignored.", name)
            if known:
                # Each is sound, so the one that has got furthest loses nothing and repeats least.
                self._noted = max(known, key=lambda cursor: (cursor.floor, len(cursor.told)))
                if name != self._key:
                    # The other watchers go on writing to the shared key.
                    await self.commit_first(self._noted)
                return self._noted
        self._log.info("No checkpoint of this watcher can be read: watching from now on.")
        return None

    async def _read_all(self) -> list[dict[str, Any]]:
        """The values of both keys in each asset's state."""
        values: dict[int, dict[str, Any]] = {}
        ends_at = clock.loop_time() + _STORE_PATIENCE_SECONDS
        while True:
            for number, store in enumerate(self._stores):
                if number in values:
                    continue
                try:
                    async with clock.timeout(_STORE_SECONDS):
                        values[number] = {key: await store.aget(key) for key in (self._key, self._shared_key)}
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the watch
                    self._log.warning("The state of the asset cannot be read (%s); trying again.", _words(error))
            found = [value for value in values.values() if value[self._key] is not None]
            # An asset without a checkpoint says nothing: the missing answer may hold one, and to start from now would
            # lose what ended before.
            if len(values) == len(self._stores) or (found and clock.loop_time() >= ends_at):
                return [*values.values()]
            await clock.asleep(_STORE_AGAIN_SECONDS)

    async def commit_first(self, cursor: Cursor) -> None:
        """Commit the first checkpoint. A restart without one would begin at a later "now" and lose what ended before.

        Returns after some minutes in any case: a watch without a checkpoint is better than none.
        """
        ends_at = clock.loop_time() + _STORE_PATIENCE_SECONDS
        while self._stores and not await self._write(cursor, again_seconds=0.0) and clock.loop_time() < ends_at:
            await clock.asleep(_STORE_AGAIN_SECONDS)

    def note_yield(self) -> None:
        """A yield has returned control. What it yielded is in the triggerer's memory for a moment."""
        self._yielded_at = clock.loop_time()

    async def commit(self, cursor: Cursor) -> None:
        """Commit this checkpoint, as soon as all that it counts as told is in Airflow's database."""
        if not self._stores:
            return
        now = clock.loop_time()
        is_news = self._noted is None or _gist(self._noted) != _gist(cursor)
        if is_news or now - self._noted_at >= _CHECKPOINT_EVERY_SECONDS:
            self._waiting.append((self._yielded_at + _BEHIND_SECONDS, cursor))
            self._noted, self._noted_at = cursor, now
        due = None
        while self._waiting and self._waiting[0][0] <= now:
            due = self._waiting.popleft()
        if due is None:
            return
        if not await self._write(due[1], again_seconds=_COMMIT_AGAIN_SECONDS):
            self._waiting.appendleft(due)

    async def _write(self, cursor: Cursor, *, again_seconds: float) -> bool:
        """Write a checkpoint to the state of each asset; whether one of them has it now."""
        value, now = {**cursor.to_json(), "watch": self._about}, clock.loop_time()
        ready = [number for number, again_at in enumerate(self._again_at) if again_at <= now]
        written = await asyncio.gather(*(self._write_to(self._stores[number], value) for number in ready))
        for number, is_written in zip(ready, written, strict=True):
            if not is_written:
                self._again_at[number] = clock.loop_time() + again_seconds
        return any(written)

    async def _write_to(self, store: Any, value: dict[str, Any]) -> bool:
        try:
            async with clock.timeout(_STORE_SECONDS):
                await store.aset(self._key, value)
                await store.aset(self._shared_key, value)
        except Exception as error:  # noqa: BLE001 - the same
            # An older checkpoint repeats, and loses nothing. There will be another one.
            self._log.warning("The watcher's checkpoint could not be committed (%s); trying again.", _words(error))
            return False
        return True


def _words(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"


def _gist(cursor: Cursor) -> tuple[Any, ...]:
    """What of a checkpoint a restart needs more than its time."""
    return set(cursor.followed), set(cursor.told)


# --- what a DAG makes of it -------------------------------------------------------------------------------------------


#: What `finished_runs` remembers is kept in an asset's state under keys that begin with this.
REMEMBERED_KEY = "agent_runs_seen"
#: Airflow warns of values beyond 64 KB. This is room for 1,800 runs if each was given to a DAG run of its own, and for
#: 5,400 if one DAG run was given all of them.
_REMEMBERED_BYTES = 60_000
#: JSON around the name of a DAG run and the names of its runs, in bytes.
_FRAME_BYTES = 10


def finished_runs(triggering_events: Iterable[Any], *, remembered: Any = None) -> list[dict[str, Any]]:
    """The runs in the asset events that have started a DAG run, each once, in the order in which they were told.

    With `remembered`, a run that an earlier DAG run of the same task was given is left out. A retry or a clear of the
    task gets the same runs again. Other tasks, and other DAGs on the same asset, have a memory of their own.

    Args:
        triggering_events: `triggering_asset_events[asset]` of the task's context. Events of other origin are passed
            over.
        remembered: a state store, to drop what an earlier DAG run was given already: with Airflow 3.3 and later
            `asset_state_store[asset]` of a task that has the asset among its inlets. It keeps at most 60 KB for each
            task, which is 1,800 runs or more.

    Returns:
        The runs' events as the API sent them.
    """
    events = list(triggering_events)
    runs: dict[str, dict[str, Any]] = {}
    for event in events:
        extra = getattr(event, "extra", None) or {}
        payload = extra.get("payload") if isinstance(extra, dict) else None
        if isinstance(payload, dict) and payload.get("kind") == "finished_runs":
            for run in FinishedRuns.from_json(payload).runs:
                runs.setdefault(str(run["id"]), run)
    if remembered is None or not runs:
        return list(runs.values())
    key, dag_run = _consumer(events, runs)
    memory = _Remembered.from_json(remembered.get(key))
    given = memory.owners()
    news = {name: run for name, run in ((_short(event_id), run) for event_id, run in runs.items())
            if given.get(name, dag_run) == dag_run}  # fmt: skip
    if any(name not in given for name in news):
        remembered.set(key, memory.with_runs(dag_run, news).model_dump(mode="json"))
    return list(news.values())


def _consumer(events: Iterable[Any], event_ids: Iterable[str]) -> tuple[str, str]:
    """Who asks: the key of the task's memory, and a short name of its DAG run."""
    try:
        from airflow.sdk import get_current_context

        task: Any = get_current_context()["ti"]
    except RuntimeError:
        # Outside of a task, in a test or a script: a DAG run is known by the events that have started it.
        timestamps = sorted(str(getattr(event, "timestamp", "")) for event in events)
        return f"{REMEMBERED_KEY}/{_short()}", _short(timestamps, sorted(event_ids))
    return f"{REMEMBERED_KEY}/{_short(task.dag_id, task.task_id, task.map_index)}", _short(task.run_id)


class _Remembered(BaseModel):
    """Which DAG run was given which runs, the latest DAG run last. All names in it are short ones of one length."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    #: A DAG run, and its runs in one text: that takes half of the bytes of a list.
    given: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what was stored. If it is something else, nothing is remembered: that repeats, and loses nothing."""
        try:
            return cls.model_validate(value)
        except ValidationError:
            return cls()

    def owners(self) -> dict[str, str]:
        """The DAG run that was given each run."""
        return {run: dag_run for dag_run, runs in self.given for run in _names_in(runs)}

    def with_runs(self, dag_run: str, runs: Iterable[str]) -> _Remembered:
        """The same with what a DAG run is given now, and without the oldest that no longer fit."""
        given = {owner: _names_in(names) for owner, names in self.given}
        given[dag_run] = [*dict.fromkeys([*given.pop(dag_run, ()), *runs])]
        kept, left = list[tuple[str, str]](), _REMEMBERED_BYTES
        for owner, names in reversed(given.items()):
            left -= len(owner) + _FRAME_BYTES
            fitting = names[-(left // _NAME_LETTERS) :] if left >= _NAME_LETTERS else []
            if not fitting:
                break
            kept.append((owner, "".join(fitting)))
            left -= len(fitting) * _NAME_LETTERS
        return _Remembered(given=tuple(reversed(kept)))


_NAME_LETTERS = len(_short())


def _names_in(text: str) -> list[str]:
    return [text[start : start + _NAME_LETTERS] for start in range(0, len(text), _NAME_LETTERS)]
