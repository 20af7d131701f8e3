"""Episodes of tasks on a platform that misbehaves: what is odd, refused, deleted or not found, and a judge.

An episode plays Airflow for a few tasks: it starts tries, waits for their triggers on one event loop, resumes and
retries. Meanwhile rows become odd, reads are refused, an agent is deleted, and for a while the connection is not found.
At the end the judge compares each task with what is true of its runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import httpx
import time_machine
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from conftest import Task, connection
from virtual_time import VirtualLoop

from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport
from airflow_provider_agents.testing.variables import Copies, copies_kept_in
from airflow_provider_agents.watchers import AgentRunEventTrigger

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence

#: No odd timestamp that is drawn falls near it: else an odd row could look like a run of that moment.
START = datetime(2026, 3, 1, 9, tzinfo=UTC)
CONNECTION = "AIRFLOW_CONN_AGENTS_DEFAULT"
#: What gateways, firewalls and maintenance pages answer. 401 means that the key is revoked, and is not among them.
REFUSALS = [301, 302, 304, 307, 400, 403, 404, 405, 410, 451]
#: The longest time, in seconds, that reads are refused, and that the connection is not found.
LONGEST_REFUSAL, LONGEST_NOT_FOUND = 10.0, 60.0
#: Fields of a task's own row that no verdict needs.
NEEDLESS = ["userId", "finalModel", "browserStepCount", "browserSessionSeconds", "error", "updatedAt", "more"]
RUN_SECONDS = 120.0
TRIES, RETRY_SECONDS = 6, 30.0
#: Levels of lists and objects in one row.
MOST_LEVELS = 180
#: An agent that only the platform's schedule starts. The watcher must report its runs, whatever becomes of the others.
BYSTANDER = "agent-of-others"
#: How long the watcher runs at least, in seconds, and how long before its end a run must have ended to be reported.
WATCH_SECONDS, REPORT_SECONDS = 400.0, 120.0


def _depth(value: object) -> int:
    levels = 0
    inner = [value]
    while inner:
        levels += 1
        inner = [one for outer in inner if isinstance(outer, dict | list) for one in _inside(outer)]
    return levels


def _inside(value: dict[Any, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


class AssetState(dict[str, Any]):
    """The state of an asset as a trigger sees it."""

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


class Attempted:
    """A task, and how far Airflow has got with it."""

    def __init__(self, agent_id: str, *, deferrable: bool, on_ambiguous: Literal["all", "fail"]) -> None:
        self.agent_id, self.deferrable, self.on_ambiguous = agent_id, deferrable, on_ambiguous
        self.task = Task()
        self.state = "none"
        self.deferred: Any = None
        self.payload: Any = None
        self.result: Any = None
        self.error: BaseException | None = None

    def operator(self) -> ExecuteAgentOperator:
        return ExecuteAgentOperator(
            task_id="run",
            agent_id=self.agent_id,
            deferrable=self.deferrable,
            settle=5.0,
            appear_within=60.0,
            timeout=3600.0,
            on_ambiguous=self.on_ambiguous,
        )

    def start(self) -> None:
        self._step(lambda: self.operator().execute(self.task.context()))

    def resume(self) -> None:
        event = self.payload
        self._step(lambda: self.operator().execute_complete(self.task.resumed(), event=event, **self.deferred.kwargs))

    def _step(self, step: Callable[[], object]) -> None:
        try:
            self.result = step()
        except TaskDeferred as deferred:
            self.state, self.deferred = "deferred", deferred
        except AirflowFailException as error:
            self.state, self.error = "failed", error
        except AgentsError as error:
            self.state, self.error = "up_for_retry", error
        else:
            self.state = "success"


class Episode:
    """A few tasks of an agent each, from their first try to their end.

    Args:
        rng: draws everything.
        any_value: draws any JSON value.
        key: of the API.
    """

    def __init__(self, rng: random.Random, any_value: Callable[[random.Random], Any], key: str) -> None:
        self.rng, self.any_value, self.key = rng, any_value, key
        self.alone = rng.random() < 0.3
        self.tasks = [
            Attempted(f"agent-{number}", deferrable=not self.alone, on_ambiguous=rng.choice(["all", "fail"]))
            for number in range(1 if self.alone else 3)
        ]
        self.config = SimulatorConfig(
            request_id=rng.choice(["absent", "field", "id"]),
            sort_by=rng.choice(["createdAt", "startedAt"]),
            nulls=rng.choice(["first", "last"]),
            record_lag=rng.choice([0.0, 2.0]),
            page_rows=rng.choice([None, 3]),
            queue_seconds=2.0,
        )
        self.clock = ManualClock(START)
        self.sim = Simulator(self.clock, config=self.config, api_keys=(key,), seed=rng.randrange(10**6))
        self.deleted: set[str] = set()
        self.output = io.StringIO()
        self.is_watched = not self.alone and rng.random() < 0.5
        self.watched: tuple[datetime, datetime] | None = None
        self.reported: set[str] = set()
        self._planned: list[tuple[datetime, int, Callable[[], object]]] = []

    # --- time ---

    def _pass_time(self, seconds: float) -> None:
        """Let time pass, and do what is planned for meanwhile."""
        ends_at = datetime.now(UTC) + timedelta(seconds=seconds)
        while self._planned and self._planned[0][0] <= ends_at:
            due, _, action = self._planned.pop(0)
            self._travel_to(due)
            action()
        self._travel_to(ends_at)

    def _travel_to(self, moment: datetime) -> None:
        now = datetime.now(UTC)
        if moment > now:
            self._traveller.shift(moment - now)
            self.clock.advance((moment - now).total_seconds())

    def _plan(self, seconds: float, action: Callable[[], object]) -> None:
        self._planned.append((START + timedelta(seconds=seconds), len(self._planned), action))
        self._planned.sort(key=lambda planned: planned[:2])

    # --- what goes wrong ---

    def _value(self) -> Any:
        while True:
            value = self.any_value(self.rng)
            # Deeper than this, the whole page is no JSON to its reader.
            if _depth(value) < MOST_LEVELS:
                return value

    def _oddity(self, *, started: bool = False) -> tuple[Any, Sequence[str]]:
        """What a row is changed to, and the fields that it lacks.

        Where only time and known ids tell runs apart, a row that loses both while tasks wait could be a new run.
        """
        rng = self.rng
        if rng.random() < 0.2 and not (started and self.config.request_id == "absent"):
            return self._value(), ()
        fields = [*NEEDLESS, "id", "agentId", "status", "requestId", "createdAt", "startedAt", "completedAt"]
        count = 1 if self.config.request_id == "absent" else rng.choice([1, 1, 2, 5])
        names = rng.sample(fields, count)
        if rng.random() < 0.25:
            return {}, names
        return {name: self._value() for name in names}, ()

    def _corrupt(self, event_id: str) -> None:
        row, without = self._oddity(started=datetime.now(UTC) > START)
        self.sim.corrupt(event_id, row, without=without)

    def _add_odd_rows(self) -> None:
        for agent in self.tasks:
            for _ in range(self.rng.randrange(6)):
                row, without = self._oddity()
                self.sim.add_row(agent.agent_id, row, without=without, age=self.rng.uniform(600, 90000))

    def _restore_own(self) -> None:
        for execution in self.sim.executions:
            self.sim.restore(execution.event_id)

    def _corrupt_own(self) -> None:
        """Odd values where no verdict needs the field; and for a while a status that is none."""
        rng = self.rng
        for done in self.sim.executions:
            row = {name: self._value() for name in rng.sample(NEEDLESS, rng.randrange(3))}
            if rng.random() < 0.3 and self.sim.truth(done.event_id).ended_at > datetime.now(UTC):
                # Without an end: an unknown status with one is the end of the run.
                row |= {"status": rng.choice([None, 7, "", [], {}, "RESTING"]), "completedAt": None}
            self.sim.corrupt(done.event_id, row)

    def _all_started(self) -> bool:
        """A start that is refused fails for good, and rightly."""
        return {done.agent_id for done in self.sim.executions}.issuperset(one.agent_id for one in self.tasks)

    def _refuse(self) -> None:
        if self._all_started():
            fault = Fault(kind="status", status=self.rng.choice(REFUSALS), method="GET", times=None)
            self.sim.add_fault(fault, seconds=self.rng.uniform(0, LONGEST_REFUSAL))

    def _delete(self) -> None:
        agent_id = self.rng.choice(self.tasks).agent_id
        if self._all_started() and agent_id not in self.deleted:
            self.sim.remove_agent(agent_id, keep_events=self.rng.random() < 0.5)
            self.deleted.add(agent_id)

    def _plan_all(self) -> None:
        rng = self.rng
        self._add_odd_rows()
        history = [run.event_id for run, _ in self.sim.runs()]
        for event_id in history:
            if rng.random() < 0.3:
                self._corrupt(event_id)
            if rng.random() < 0.2:
                self._plan(rng.uniform(10, 200), partial(self._corrupt, event_id))
            if rng.random() < 0.2:
                self._plan(rng.uniform(10, 200), partial(self.sim.restore, event_id))
        if rng.random() < 0.5:
            self._plan(rng.uniform(10, 120), self._corrupt_own)
            self._plan(rng.uniform(120, 200), self._restore_own)
        if rng.random() < 0.7:
            for _ in range(rng.randrange(1, 5)):
                self._plan(rng.uniform(20, 150), self._refuse)
        if rng.random() < 0.4:
            self._plan(rng.uniform(20, 120), self._delete)
        if rng.random() < 0.4:
            begins = rng.choice([0.0, rng.uniform(0, 130)])
            self._plan(begins, lambda: os.environ.pop(CONNECTION, None))
            self._plan(begins + rng.uniform(0, LONGEST_NOT_FOUND), lambda: os.environ.__setitem__(CONNECTION, self.url))

    # --- the play ---

    def play(self) -> list[str]:
        """Play it to its end, and judge it. Returns how often each end was seen."""
        self.url = connection("http://127.0.0.1:1", password=self.key)
        with (
            time_machine.travel(START, tick=False) as self._traveller,
            # Each process has clients of its own. httpx, the clock and the sleep are the seams.
            mock.patch.dict(os.environ, {CONNECTION: self.url}),
            mock.patch.object(time, "sleep", self._pass_time),
            copies_kept_in(Copies()),
            contextlib.redirect_stdout(self.output),
        ):
            for number, one in enumerate(self.tasks):
                end_status = "FAILED" if number == 2 else "COMPLETED"
                self.sim.add_agent(one.agent_id, run_seconds=RUN_SECONDS, end_status=end_status)
                self.sim.add_history(one.agent_id, self.rng.randrange(4), every=700.0)
            self.sim.add_agent(BYSTANDER, run_seconds=10.0, schedule_every=40.0, schedule_offset=20.0)
            with (
                mock.patch.object(httpx.Client, "_init_transport", return_value=mock_transport(self.sim)),
                mock.patch.object(httpx.AsyncClient, "_init_transport", return_value=mock_transport(self.sim)),
            ):
                self._plan_all()
                for _ in range(TRIES):
                    self._one_try()
                    if all(one.state in {"success", "failed"} for one in self.tasks):
                        break
                    self._pass_time(RETRY_SECONDS)
        return self.judge()

    def _one_try(self) -> None:
        self._pass_time(0)
        for one in self.tasks:
            if one.state in {"none", "up_for_retry"}:
                one.start()
        waiting = [one for one in self.tasks if one.state == "deferred"]
        if not waiting:
            return
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(self._pass_time)) as triggerer:
            triggerer.run(self._first_events(waiting))
        for one in waiting:
            one.resume()

    async def _first_events(self, waiting: Iterable[Attempted]) -> None:
        async def first_event(one: Attempted) -> None:
            async with aclosing(one.deferred.trigger.run()) as events:
                one.payload = (await anext(events)).payload

        watcher = None
        if self.is_watched and self.watched is None:
            watcher = asyncio.create_task(self._watch())
            self.watched = (datetime.now(UTC), datetime.now(UTC) + timedelta(seconds=WATCH_SECONDS))
        await asyncio.gather(*(first_event(one) for one in waiting))
        if watcher is not None and self.watched is not None:
            await asyncio.sleep(max(0.0, (self.watched[1] - datetime.now(UTC)).total_seconds()))
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self) -> None:
        trigger = AgentRunEventTrigger(statuses=["COMPLETED", "FAILED"], settle=5.0)
        trigger.asset_state_store = AssetState()  # type: ignore[assignment]  # as much of one as it needs
        async with aclosing(trigger.run()) as events:  # type: ignore[type-var]  # a generator
            async for event in events:
                self.reported.update(run["id"] for run in event.payload["runs"])

    def _judge_watcher(self) -> None:
        assert self.watched is not None
        first, last = self.watched[0], self.watched[1] - timedelta(seconds=REPORT_SECONDS)
        wanted = {
            run.event_id
            for run, _ in self.sim.runs()
            if run.agent_id not in self.deleted and first < run.ended_at < last
        }
        missed = [self.sim.truth(event_id) for event_id in wanted - self.reported]
        assert not missed, f"the watcher missed {len(missed)} of {len(wanted)} runs: {missed[0]}"

    def judge(self) -> list[str]:
        """Compare each task with the truth. Returns its end: the state, and whether its agent was deleted.

        Raises:
            AssertionError: a run was started twice, a task ended otherwise than its run, a report is missing, or a text
                shows the key.
        """
        text = self.output.getvalue()
        assert self.key not in text, text
        ends = []
        for one in self.tasks:
            executions = [done for done in self.sim.executions if done.agent_id == one.agent_id]
            mine = [self.sim.truth(done.event_id) for done in executions]
            for before, after in pairwise(mine):
                # A failed run is followed by a new one: that is what a retry is for.
                assert before.end_status == "FAILED", f"{one.agent_id} was started twice: {one.error}"
                assert before.ended_at <= after.accepted_at, f"{one.agent_id} was started twice: {one.error}"
            words = f"{one.agent_id}: {one.state}, {one.error}, {[run.end_status for run in mine]}"
            if one.error is not None:
                assert self.key not in str(one.error) + repr(one.error.__cause__), words
                assert str(one.error).isprintable(), words
            if one.state == "success":
                assert one.result["id"] == mine[-1].event_id, words
                assert mine[-1].end_status == "COMPLETED", words
            elif one.agent_id not in self.deleted:
                # What lasts for a minute ends no task whose run ends well.
                assert mine, words
                assert mine[-1].end_status == "FAILED", words
            ends.append(f"{one.state}{' (deleted)' if one.agent_id in self.deleted else ''}")
        if self.watched is not None:
            self._judge_watcher()
        return ends
