"""Event-driven scheduling: an asset event for the runs that have ended, also runs that other parties started.

The trigger is at least once: what it has yielded is in the triggerer's memory for a moment, and a triggerer that is
killed loses its memory. So the checkpoint that is committed is one that was taken before that moment. Three rules hold
over a kill at any await:

1. The first checkpoint is committed before the first poll, so a restart never begins at a later "now".
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
from typing import TYPE_CHECKING, Any, Literal

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_agents import clock, validation
from airflow_provider_agents.api.errors import AgentsError, shown
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.hooks import poller_of
from airflow_provider_agents.payloads import Payload
from airflow_provider_agents.polling.completion_stream import open_tracker, stream_completions
from airflow_provider_agents.runs.completions import Checkpoint
from airflow_provider_agents.runs.tracker import WaitPolicy
from airflow_provider_agents.version_compat import WATCHERS_HAVE_QUEUES
from airflow_provider_agents.versioned_json import UnusableDataError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from airflow_provider_agents.polling.poller import SharedPoller


class FinishedRuns(Payload):
    """What an asset event of `AgentRunEventTrigger` carries: runs that have ended.

    Attributes:
        runs: their events as the API sent them, in the order of the ends.
    """

    kind: Literal["finished_runs"] = "finished_runs"
    runs: tuple[dict[str, Any], ...]


#: The keys of the watchers' checkpoints in an asset's state begin with this. Public: to delete the keys starts the
#: watchers anew, from then on.
CHECKPOINT_KEY = "agent_runs_checkpoint"
#: What was yielded reaches the database about a second later, or ten if a triggerer is busy. A checkpoint that counts a
#: yield as done is committed only this many seconds after the yield returned, so that what was lost is reported again.
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
#: Seconds until a watcher that was refused tries again. Airflow would not start it again, so it does not end.
_WATCH_AGAIN_SECONDS = 60.0


def _final_statuses(value: object) -> list[str]:
    """How a run has to end, each status once and in order: Airflow knows a watcher again by its arguments as JSON."""
    statuses = list(value) if isinstance(value, list | tuple | set | frozenset) else []
    if not statuses or not all(isinstance(one, str) and one for one in statuses):
        raise ValueError(f'must be a list such as ["COMPLETED", "FAILED"], got {shown(value)}.')
    never = {Status.PENDING, Status.RUNNING}.intersection(statuses)
    if never:
        raise ValueError(f"must not contain {' or '.join(sorted(never))}: no run ends so.")
    return sorted(set(statuses))


def _queue(value: Any) -> str | None:
    if value is None:
        return None
    if not WATCHERS_HAVE_QUEUES:
        raise ValueError("needs Airflow 3.4 or newer. Leave it out.")
    # 256 is the length of the column in Airflow's table of triggers.
    is_name = isinstance(value, str) and 1 <= len(value) <= 256 and value.isprintable()  # noqa: PLR2004
    if not is_name or value != value.strip():
        raise ValueError(f"must be a queue that a triggerer was given with --queues, got {shown(value)}.")
    return value  # type: ignore[no-any-return]  # it is text by now


ARGUMENTS = validation.Arguments(
    {
        "agent_id": validation.optional(validation.agent_id),
        "statuses": _final_statuses,
        "agents_conn_id": validation.connection_id,
        "poll_interval": validation.seconds_from(1.0),
        "settle": validation.optional(validation.seconds_from(0.0)),
        "queue": _queue,
    }
)


class AgentRunEventTrigger(BaseEventTrigger):
    """Reports every run that ends to an asset, also runs that other parties have started.

    For `AssetWatcher(name=..., trigger=AgentRunEventTrigger(...))`. One cycle yields one event that lists all runs
    that ended, since Airflow up to 3.3.2 holds back all but the first event of a burst; beyond 500 runs or 256 KiB the
    rest follows in further events, `poll_interval` seconds apart. Read it with `finished_runs`.

    Where it has got to is kept in the asset's state (Airflow 3.3 and later): a restart of the triggerer loses nothing
    and may repeat what was reported in the seconds before it. Before 3.3 it starts from now whenever it starts.

    Args:
        agent_id: the agent, or None for every agent of the account.
        statuses: how a run has to end to be reported.
        agents_conn_id: the connection.
        poll_interval: seconds between two polls, at least 1.
        settle: seconds within which the event of a run appears. None: the connection's value, or else 30.
        queue: the watcher runs in the triggerers with `--queues` that name this queue (Airflow 3.4 and later); in those
            without `--queues` by default.

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
        settle: float | None = None,
        queue: str | None = None,
    ) -> None:
        super().__init__()
        self.agent_id = agent_id
        self.statuses = statuses
        self.agents_conn_id = agents_conn_id
        self.poll_interval = poll_interval
        self.settle = settle
        self.queue = queue
        ARGUMENTS.check(self, parsing=True)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments, JSON types all."""
        arguments: dict[str, Any] = {
            "agent_id": self.agent_id,
            "statuses": list(self.statuses),
            "agents_conn_id": self.agents_conn_id,
            "poll_interval": self.poll_interval,
            "settle": self.settle,
        }
        if self.queue is not None:
            # Airflow reads the queue from the attribute. It knows a watcher again by these arguments, so that a queue
            # that is not among them could not be changed.
            arguments["queue"] = self.queue
        return "airflow_provider_agents.watchers.AgentRunEventTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll forever; yield one event for each cycle in which runs had ended."""
        checkpoints = _Checkpoints(self)
        checkpoint = await checkpoints.load()
        while True:
            try:
                async with poller_of(self.agents_conn_id) as poller:
                    settle = self.settle if self.settle is not None else await self._settle_of(poller)
                    tracker = await open_tracker(
                        poller, self.agent_id, settle=settle, checkpoint=checkpoint, statuses=self.statuses
                    )
                    if checkpoint is None:
                        checkpoint = tracker.checkpoint()
                        await checkpoints.commit_first(checkpoint)
                    self.log.info("Watching %s.", f"agent {self.agent_id}" if self.agent_id else "all agents")
                    cycles = stream_completions(poller, tracker, poll_interval=self.poll_interval, say=self.log.log)
                    async with aclosing(cycles):
                        async for ended in cycles:
                            if ended:
                                yield TriggerEvent(FinishedRuns(runs=tuple(run.to_json() for run in ended)).to_json())
                                checkpoints.note_yield()
                            checkpoint = tracker.checkpoint()
                            await checkpoints.commit(checkpoint)
            except AgentsError as error:
                self.log.error(  # noqa: TRY400 - its traceback would add nothing
                    "The watcher cannot continue: %s Trying again in %g seconds.", error, _WATCH_AGAIN_SECONDS
                )
            await clock.asleep(_WATCH_AGAIN_SECONDS)

    async def _settle_of(self, poller: SharedPoller) -> float:
        """The connection's `settle`, or the default."""
        settings = await poller.read_settings(interval=self.poll_interval, deadline_at=clock.now(), say=self.log.log)
        return settings.settle if settings.settle is not None else WaitPolicy().settle


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
        self._key = f"{CHECKPOINT_KEY}/{_short(*watched, trigger.statuses)}"
        self._shared_key = f"{CHECKPOINT_KEY}/{_short(*watched)}"
        # For people who read the asset's state.
        self._about = {
            "agents_conn_id": trigger.agents_conn_id,
            "agent_id": trigger.agent_id,
            "statuses": trigger.statuses,
        }
        # Checkpoints, and from which second on each may be committed.
        self._waiting: deque[tuple[float, Checkpoint]] = deque()
        self._noted: Checkpoint | None = None
        self._noted_at = self._yielded_at = -math.inf
        # From which second on a store that has failed is asked again.
        self._again_at = [-math.inf] * len(self._stores)

    async def load(self) -> Checkpoint | None:
        """The checkpoint of an earlier run of the watcher; None if there is none."""
        if not self._stores:
            self._log.warning(
                "This Airflow keeps no state of assets (3.3 and later do): watching from now on. What ends while no "
                "triggerer runs is not reported."
            )
            return None
        values = await self._read_all()
        for name in (self._key, self._shared_key):
            known = [checkpoint for value in values if (checkpoint := self._read(name, value[name])) is not None]
            if known:
                # Each is sound, so the one that has got furthest loses nothing and repeats least.
                self._noted = max(known, key=lambda checkpoint: (checkpoint.watermark, len(checkpoint.emitted)))
                if name != self._key:
                    # The other watchers still write to the shared key.
                    await self.commit_first(self._noted)
                return self._noted
        self._log.info("No checkpoint of this watcher can be read: watching from now on.")
        return None

    def _read(self, name: str, value: object) -> Checkpoint | None:
        try:
            return Checkpoint.from_json(value) if value is not None else None
        except UnusableDataError as error:
            self._log.warning("A checkpoint in the asset's state is ignored (key %s). %s", name, error)
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
            # An asset without a checkpoint proves nothing: the missing response may hold one, and to start from now
            # would lose what ended before.
            if len(values) == len(self._stores) or (found and clock.loop_time() >= ends_at):
                return [*values.values()]
            await clock.asleep(_STORE_AGAIN_SECONDS)

    async def commit_first(self, checkpoint: Checkpoint) -> None:
        """Commit the first checkpoint. A restart without one would begin at a later "now" and lose what ended before.

        Returns after some minutes in any case: a watch without a checkpoint is better than none.
        """
        ends_at = clock.loop_time() + _STORE_PATIENCE_SECONDS
        while self._stores and not await self._write(checkpoint, again_seconds=0.0) and clock.loop_time() < ends_at:
            await clock.asleep(_STORE_AGAIN_SECONDS)

    def note_yield(self) -> None:
        """A yield has returned control. What it yielded is in the triggerer's memory for a moment."""
        self._yielded_at = clock.loop_time()

    async def commit(self, checkpoint: Checkpoint) -> None:
        """Commit this checkpoint, as soon as all that it counts as reported is in Airflow's database."""
        if not self._stores:
            return
        now = clock.loop_time()
        is_news = self._noted is None or _gist(self._noted) != _gist(checkpoint)
        if is_news or now - self._noted_at >= _CHECKPOINT_EVERY_SECONDS:
            self._waiting.append((self._yielded_at + _BEHIND_SECONDS, checkpoint))
            self._noted, self._noted_at = checkpoint, now
        due = None
        while self._waiting and self._waiting[0][0] <= now:
            due = self._waiting.popleft()
        if due is None:
            return
        if not await self._write(due[1], again_seconds=_COMMIT_AGAIN_SECONDS):
            self._waiting.appendleft(due)

    async def _write(self, checkpoint: Checkpoint, *, again_seconds: float) -> bool:
        """Write a checkpoint to the state of each asset; whether one of them has it now."""
        value, now = {**checkpoint.to_json(), "watch": self._about}, clock.loop_time()
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


def _gist(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """What of a checkpoint a restart needs more than its time."""
    return set(checkpoint.open_runs), set(checkpoint.emitted)


# --- what a DAG makes of it -------------------------------------------------------------------------------------------


#: Airflow's events that are read to see what was reported before, besides those that have started the DAG run. A
#: watcher repeats what it reported in the `_BEHIND_SECONDS` before a restart of the triggerer, or in 100 seconds if the
#: asset's state was busy just then: at one event per poll that is 100 events at most, and 20 by default.
_HISTORY_EVENTS = 100


def finished_runs(triggering_events: Iterable[Any], *, history: Any = None) -> list[dict[str, Any]]:
    """The runs in the asset events that have started a DAG run, each once, in the order in which they were reported.

    With `history`, a run belongs to the first event that reports it and has started a DAG run of the same DAG, and so
    to one DAG run of each DAG. It makes no difference in which order the DAG runs execute, and how many at once. A
    retry or a clear of the task gets the same runs again.

    Args:
        triggering_events: `triggering_asset_events[asset]` of the task's context. Events of other origin are passed
            over.
        history: `inlet_events[asset]` of a task that has the asset among its inlets, to drop what an earlier event
            has reported. The 100 newest events before the DAG run's own are read.

    Returns:
        The runs' events as the API sent them.
    """
    events = list(triggering_events)
    runs = _first_reported(events)
    if history is None or not runs:
        return [run for run, _ in runs.values()]
    # Airflow 3.0 hands out all events of the asset: there is no choice among them.
    if hasattr(history, "before"):
        newest = max(event.timestamp for event in events)
        history = history.before(newest.isoformat()).ascending(ascending=False).limit(len(events) + _HISTORY_EVENTS)
    dag_id = _dag_id()
    # An event that has started no DAG run of this DAG has given it nothing: the DAG was paused, or Airflow before 3.4
    # has lost the event, as it does in a burst.
    starting_events = [
        event for event in history if any(dag_id in (None, dag_run.dag_id) for dag_run in event.created_dagruns)
    ]
    # Oldest first, so that the first event that reports a run is found, whichever order Airflow has.
    before = _first_reported(sorted(starting_events, key=lambda event: event.timestamp))
    return [
        run
        for event_id, (run, event) in runs.items()
        if event_id not in before or before[event_id][1].timestamp >= event.timestamp
    ]


def _dag_id() -> str | None:
    """The DAG of the task that asks; None outside of a task, in a test or a script."""
    try:
        from airflow.sdk import get_current_context

        task: Any = get_current_context()["ti"]
    except RuntimeError:
        return None
    dag_id: str = task.dag_id
    return dag_id


def _first_reported(events: Iterable[Any]) -> dict[str, tuple[dict[str, Any], Any]]:
    """Each run that events report, with the first of the events that does, by the run's id."""
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for event in events:
        for run in _runs_in(event):
            found.setdefault(str(run["id"]), (run, event))
    return found


def _runs_in(event: Any) -> tuple[dict[str, Any], ...]:
    """The runs that an asset event reports; none if it is no watcher's."""
    extra = getattr(event, "extra", None) or {}
    payload = extra.get("payload") if isinstance(extra, dict) else None
    if not isinstance(payload, dict) or payload.get("kind") != "finished_runs":
        return ()
    return FinishedRuns.from_json(payload).runs
