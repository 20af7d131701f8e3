"""The life of one task: its tries, as Airflow starts, resumes, retries and clears them, and what can happen in it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from conftest import Killed, Store, Task
from life_stores import WatchedStore

from airflow_provider_agents.api.errors import AgentRunError, AgentsError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from life_world import World
    from stage import Actor

AGENT = "agent-1"
#: The next try after a process that died starts at a multiple of these seconds: while a long run may still be running,
#: and after its end. With multiples, deaths at many moments lead to the same state.
RETRIES = {"retry soon": 20.0, "retry late": 200.0}


@dataclass(frozen=True)
class Shape:
    """How a run goes: its end, its length in seconds, and the seconds until its event is shown."""

    end: str
    seconds: float
    lag: float = 0.0

    def __str__(self) -> str:
        shown = f", shown after {self.lag:g} s" if self.lag else ""
        return f"{self.end} after {self.seconds:g} s{shown}"


SHORT, LONG, BAD = Shape("COMPLETED", 5.0), Shape("COMPLETED", 50.0), Shape("FAILED", 5.0)
HIDDEN = Shape("COMPLETED", 50.0, lag=25.0)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What can happen.

    Attributes:
        wait: where a task waits: `worker`, `deferred`, or `trigger`, which ends the task as well.
        copies: whether a clear discards a task's state, so that a copy of its record is kept, as from Airflow 3.4 on.
        sibling: whether another task of ours starts the same agent.
        stranger: whether another party starts one run of the agent.
        faults: how many kills and lost answers there are at most.
        clears: how many clears there are at most.
        shapes: how runs can go.
        odd_shapes: how some of them can go.
        odd_runs: how many runs have an odd shape at most.
        tries: of a task.
        operator: makes the operator, from its arguments.
        store: makes the task state store.
    """

    wait: str = "deferred"
    copies: bool = False
    sibling: bool = False
    stranger: bool = False
    faults: int = 1
    clears: int = 1
    shapes: tuple[Shape, ...] = (SHORT, LONG)
    odd_shapes: tuple[Shape, ...] = (BAD, HIDDEN)
    odd_runs: int = 1
    tries: int = 3
    operator: type[ExecuteAgentOperator] = ExecuteAgentOperator
    store: type[Store] = Store

    def __str__(self) -> str:
        company = " and ".join([*["a sibling"] * self.sibling, *["another party"] * self.stranger]) or "alone"
        return f"{self.wait}, {'with' if self.copies else 'without'} copy, {company}"


class Clear(NamedTuple):
    """What a task was like when a user cleared it, and whether its state was discarded.

    Attributes:
        runs: how many it had started.
        state: as Airflow has it.
        error: what its last process raised.
        discards: whether the clear discarded the task's state.
        has_recorded_end: its record said that its run had ended, so the clear looks like one after a success.
    """

    runs: int
    state: str
    error: str
    discards: bool
    has_recorded_end: bool


class Life:
    """One task, from its first try to its end.

    Attributes:
        actor: acts it; set when the play begins.
        state: as Airflow has it.
        result: what the last process that ended well returned.
        error: what the last process that failed raised; None if it was killed.
        posts: the event of each run that it has started.
        clears: of each clear: how many runs were started by then, how the task had ended, and the way of the clear.
        told: of each error of a process: how many runs were started by then, the error, and whether it was in doubt.
        has_recorded_end: its record says that its run has ended, although Airflow knows no verdict.
        started_again: after its end, a clear started another run rather than finding its last one.
    """

    actor: Actor

    def __init__(self, world: World, name: str, map_index: int) -> None:
        self.world, self.name = world, name
        self.task = Task(retries=world.scope.tries - 1, map_index=map_index)
        self.store = self.task.store = world.scope.store()
        self.state = "none"
        self.result: Any = None
        self.error: BaseException | None = None
        self.deferred: TaskDeferred | None = None
        self.event: Any = None
        self.posts: list[str] = []
        self.clears: list[Clear] = []
        self.told: list[tuple[int, BaseException, bool]] = []
        self.cleared: str | None = None
        self.is_over = self.is_judgeable = self.started_again = self.has_recorded_end = False

    def operator(self) -> ExecuteAgentOperator:
        wait = self.world.scope.wait
        return self.world.scope.operator(
            task_id="run",
            agent_id=AGENT,
            deferrable=wait != "worker",
            end_from_trigger=wait == "trigger" and TRIGGERS_END_TASKS,
            poll_interval=20.0,
            timeout=3600.0,
            retries=self.world.scope.tries - 1,
        )

    @property
    def is_in_doubt(self) -> bool:
        """Whether its record is of a run that it cannot be sure to have started."""
        return bool(self.store.get("agent_run", {}).get("submission", {}).get("in_doubt", False))

    @property
    def is_waiting(self) -> bool:
        """Whether it waits in the triggerer for what is still to happen."""
        return self.state == "deferred" and self.event is None and self.cleared is None

    def snapshot(self) -> list[object]:
        """All that the next steps of this task depend on, outside of its process."""
        task, event = self.task, getattr(self.event, "payload", None)
        deferred = self.deferred.trigger.serialize() if self.deferred is not None and self.state == "deferred" else None
        tries = (self.state, task.try_number, task.max_tries, task.clear_number, self.is_over, self.cleared)
        told = [(runs, type(error).__name__, in_doubt) for runs, error, in_doubt in self.told]
        return [tries, dict(self.store), deferred, event, self.posts, self.clears, told, self.result]

    # --- what Airflow does ---

    def live(self) -> None:
        """All tries, and after an end without success one more that shows what is remembered."""
        if self.name != "A":
            self.world.wait_to_start()
        while True:
            self._do_try()
            if self.state == "up_for_retry" and self.task.try_number > self.task.max_tries:
                self.state = "failed"
            if not self._has_next_try():
                break
        self.is_over = True
        if not self.world.is_over:
            self.world.stage.pause(math.inf)
        for life in self.world.lives:
            self.world.stage.wake(life.actor)
        self._look_back()
        self.is_judgeable = True

    def _look_back(self) -> None:
        """After the end of all, a user clears the task if it ended without a verdict: does it find its run?"""
        if self.state == "success" or isinstance(self.error, AgentRunError):
            return
        end, runs = (self.state, self.error, self.result), len(self.posts)
        runs_on = bool(self.posts) and self.world.sim.truth(self.posts[-1]).ended_at > self.world.stage.clock()
        self.has_recorded_end = self._record_says_ended()
        self.task.clear(keep_state=not (self.world.scope.copies and runs_on))
        self._do_try()
        self.started_again = len(self.posts) > runs
        (self.state, self.error, self.result), self.posts = end, self.posts[:runs]

    def _record_says_ended(self) -> bool:
        return bool(self.store.get("agent_run", {}).get("phase") == "ended")

    def _do_try(self) -> None:
        context = self._watched(self.task.context())
        self._process(lambda: self.operator().execute(context))
        while self.state == "deferred":
            self._wait_in_triggerer()

    def _has_next_try(self) -> bool:
        if self.state == "none":
            return True
        usual = list(RETRIES) if self.state == "up_for_retry" else ["done"]
        pick = self.world.choose(f"{self.name} is {self.state}", [*usual, *self.world.clears()])
        if pick in RETRIES:
            now, every = self.world.stage.now, RETRIES[pick]
            self.world.stage.pause((now // every + 1) * every - now)
        elif pick != "done":
            self.clear(pick)
        return pick != "done"

    def clear(self, how: str) -> None:
        """A user clears the task, and its next try starts."""
        discards = how == "clear" and self.world.scope.copies
        self.world.clears_left -= 1
        error, has_ended = type(self.error).__name__, self._record_says_ended()
        self.clears.append(Clear(len(self.posts), self.state, error, discards, has_ended))
        self.task.clear(self.world.scope.tries - 1, keep_state=not discards)
        self.state, self.error = "none", None

    def _watched(self, context: Any) -> Any:
        """What a process of the task is given, which can be killed before each use of it."""
        context["task_state_store"] = WatchedStore(self.world, self)
        push = context["ti"].xcom_push

        def watched_push(key: str, value: object) -> None:
            self.world.may_die(self, f"push of {key}")
            push(key, value)

        context["ti"].xcom_push = watched_push
        return context

    def _process(self, call: Callable[[], object]) -> None:
        self.actor.forget()
        self.world.saw(f"begins at {self.world.stage.now:g}")
        try:
            try:
                self.result = call()
            except TaskDeferred as deferred:
                self.state, self.deferred = "deferred", deferred
            else:
                self.state = "success"
            self.world.may_die(self, "the end of the process")
        except Killed:
            self.state, self.error, self.result = "up_for_retry", None, None
        except AirflowFailException as failure:
            self._fail("failed", failure.__cause__ or failure)
        except AgentsError as failure:
            self._fail("up_for_retry", failure)
        self.actor.forget()

    def _fail(self, state: str, error: BaseException) -> None:
        self.state, self.error, self.result = state, error, None
        self.told.append((len(self.posts), error, self.is_in_doubt))

    def _wait_in_triggerer(self) -> None:
        world = self.world
        self.event = self.cleared = None
        waiting = world.triggerer.add(self)
        world.stage.pause(math.inf)
        if self.cleared is None and type(self.event).__name__ == "TaskSuccessEvent":
            self.state, self.result = "success", self.event.xcoms["return_value"]
            return
        how = self.cleared or world.choose(f"{self.name} is resumed", ["resume", *world.clears()])
        if how != "resume":
            world.triggerer.drop(waiting)
            self.clear(how)
            return
        deferred = self.deferred
        assert deferred is not None
        kwargs = {"event": json.loads(json.dumps(self.event.payload)), **(deferred.kwargs or {})}
        context = self._watched(self.task.resumed())
        self._process(lambda: self.operator().resume_execution(deferred.method_name, kwargs, context))
