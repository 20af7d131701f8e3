"""The lives of tasks at a small scope, with a choice wherever they can take more than one course.

Real operators, records, triggers and polls, on one virtual time, against the simulator. Where a process can be killed,
an answer lost, a task cleared or another party can act, an `Order` is asked. `life_judge` says what each life is worth.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import re
import threading
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import httpx
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow_versions import let_clears_discard_state
from conftest import KEY, Killed, Store, Task, connection
from exploring import KnownState
from stage import Stage, StageLoop, StageTime

from airflow_provider_agents import clock, triggers
from airflow_provider_agents.api.errors import AgentRunError, AgentsError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.simulator import Simulator, SimulatorConfig, mock_transport
from airflow_provider_agents.testing.variables import Copies, copies_kept_in
from airflow_provider_agents.validation import TRIGGERS_END_TASKS

AGENT = "agent-1"
#: The next try after a process that died starts at a multiple of these seconds: while a long run may still be running,
#: and after its end. With multiples, deaths at many moments lead to the same state.
RETRIES = {"retry soon": 20.0, "retry late": 200.0}
#: Seconds after which the sibling and the other party start.
STARTS = {"at once": 0.0, "10 s later": 10.0, "100 s later": 100.0}
#: Seconds by which each start of a run is later than what was done before it, so that no two are equally old.
TICK = 0.01
#: Seconds after which a platform acts on a POST whose sender is gone.
LATE_POST_SECONDS = 10.0
#: Seconds until another triggerer runs the triggers of one that was killed, and until a cleared task's trigger ends.
FAILOVER_SECONDS, CANCEL_SECONDS = 30.0, 1.0


@dataclass(frozen=True)
class Shape:
    """How a run goes: its end, its length in seconds, and the seconds until its event is shown."""

    end: str
    seconds: float
    lag: float = 0.0

    def __str__(self):
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
    operator: type = ExecuteAgentOperator
    store: type = Store

    def __str__(self):
        company = " and ".join([*["a sibling"] * self.sibling, *["another party"] * self.stranger]) or "alone"
        return f"{self.wait}, {'with' if self.copies else 'without'} copy, {company}"


class Clear(NamedTuple):
    """What a task was like when a user cleared it, and whether its state was discarded."""

    runs: int
    state: str
    error: str
    discards: bool


class Life:
    """One task, from its first try to its end.

    Attributes:
        state: as Airflow has it.
        result: what the last process that ended well returned.
        error: what the last process that failed raised; None if it was killed.
        posts: the event of each run that it has started.
        clears: of each clear: how many runs were started by then, how the task had ended, and the way of the clear.
        told: of each error of a process: how many runs were started by then, the error, and whether it was in doubt.
        started_again: after its end, a clear started another run rather than finding its last one.
    """

    def __init__(self, world, name, map_index):
        self.world, self.name = world, name
        self.task = Task(retries=world.scope.tries - 1, map_index=map_index)
        self.task.store = world.scope.store()
        self.state, self.result, self.error, self.deferred, self.event = "none", None, None, None, None
        self.posts, self.clears, self.told, self.actor, self.cleared = [], [], [], None, None
        self.is_over = self.is_judgeable = self.started_again = False

    def operator(self):
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
    def is_in_doubt(self):
        """Whether its record is of a run that it cannot be sure to have started."""
        return self.task.store.get("agent_run", {}).get("submission", {}).get("in_doubt", False)

    def snapshot(self):
        """All that the next steps of this task depend on, outside of its process."""
        task, event = self.task, getattr(self.event, "payload", None)
        deferred = self.deferred.trigger.serialize() if self.deferred is not None and self.state == "deferred" else None
        tries = (self.state, task.try_number, task.max_tries, task.clear_number, self.is_over, self.cleared)
        told = [(runs, type(error).__name__, in_doubt) for runs, error, in_doubt in self.told]
        return [tries, dict(task.store), deferred, event, self.posts, self.clears, told, self.result]

    # --- what Airflow does ---

    def live(self):
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

    def _look_back(self):
        """After the end of all, a user clears the task if it ended without a verdict: does it find its run?"""
        if self.state == "success" or isinstance(self.error, AgentRunError):
            return
        end, runs = (self.state, self.error, self.result), len(self.posts)
        runs_on = bool(self.posts) and self.world.sim.truth(self.posts[-1]).ended_at > self.world.stage.clock()
        self.task.clear(keep_state=not (self.world.scope.copies and runs_on))
        self._do_try()
        self.started_again = len(self.posts) > runs
        (self.state, self.error, self.result), self.posts = end, self.posts[:runs]

    def _do_try(self):
        context = self._watched(self.task.context())
        self._process(lambda: self.operator().execute(context))
        while self.state == "deferred":
            self._wait_in_triggerer()

    def _has_next_try(self):
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

    def clear(self, how):
        """A user clears the task, and its next try starts."""
        discards = how == "clear" and self.world.scope.copies
        self.world.clears_left -= 1
        self.clears.append(Clear(len(self.posts), self.state, type(self.error).__name__, discards))
        self.task.clear(self.world.scope.tries - 1, keep_state=not discards)
        self.state, self.error = "none", None

    def _watched(self, context):
        """What a process of the task is given, which can be killed before each use of it."""
        context["task_state_store"] = _WatchedStore(self.world, self)
        push = context["ti"].xcom_push

        def watched_push(key, value):
            self.world.may_die(self, f"push of {key}")
            push(key, value)

        context["ti"].xcom_push = watched_push
        return context

    def _process(self, call):
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

    def _fail(self, state, error):
        self.state, self.error, self.result = state, error, None
        self.told.append((len(self.posts), error, self.is_in_doubt))

    def _wait_in_triggerer(self):
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
        kwargs = {"event": json.loads(json.dumps(self.event.payload)), **self.deferred.kwargs}
        context = self._watched(self.task.resumed())
        self._process(lambda: self.operator().resume_execution(self.deferred.method_name, kwargs, context))


class Triggerer:
    """The event loop that the triggers of deferred tasks share."""

    def __init__(self, world):
        self.world = world
        self.loop = StageLoop(world.stage)
        self.waiting = {}
        self.actor = world.stage.add("triggerer", self.loop.run_forever, after=math.inf)

    def close(self):
        """End all that is left, after the play."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.set_exception_handler(lambda *_: None)
        self.loop.run_until_complete(_ended(tasks))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def add(self, life):
        """Let a deferred task's trigger run. Returns what `drop` takes."""
        _, arguments = life.deferred.trigger.serialize()
        waiting = SimpleNamespace(life=life, arguments=json.dumps(arguments), task=None)
        self._call(self._start, waiting)
        return waiting

    def drop(self, waiting):
        """Airflow cancels a trigger that its task does not wait for any more, a moment later."""
        self._call(self.loop.call_later, CANCEL_SECONDS, self._end, waiting)

    def kill(self):
        """Kill this triggerer, and let the next one run its triggers; on its loop."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for waiting in self.waiting.values():
            self.loop.call_later(FAILOVER_SECONDS, self._start, waiting)

    def _call(self, function, *arguments):
        self.loop.call_soon_threadsafe(function, *arguments)
        self.world.stage.wake(self.actor)

    def _start(self, waiting):
        if waiting.life.state == "deferred" and waiting.life.event is None:
            self.waiting[waiting.life.name] = waiting
            waiting.task = self.loop.create_task(self._wait(waiting))

    def _end(self, waiting):
        waiting.task.cancel()

    async def _wait(self, waiting):
        trigger, life = triggers.AgentRunTrigger(**json.loads(waiting.arguments)), waiting.life
        # Airflow tells a trigger its task.
        trigger.task_instance = SimpleNamespace(
            try_number=life.task.try_number, dag_id="dag", task_id="run", run_id="manual", map_index=-1
        )
        async with aclosing(trigger.run()) as events:
            event = await anext(events)
        if self.waiting.get(life.name) is waiting and life.cleared is None:
            del self.waiting[life.name]
            life.event = event
            self.world.stage.wake(life.actor)


async def _ended(tasks):
    await asyncio.gather(*tasks, return_exceptions=True)


class World:
    """The platform, Airflow, the tasks, and what is still to go wrong.

    Args:
        scope: what can happen.
        order: chooses.
    """

    def __init__(self, scope, order):
        self.scope, self.order = scope, order
        self.faults_left, self.clears_left, self.odd_left = scope.faults, scope.clears, scope.odd_runs
        self.names, self._shape = {}, None
        self.stage = Stage(self.choose)
        self.sim = Simulator(
            self.stage.clock,
            api_keys=(KEY,),
            config=SimulatorConfig(
                queue_seconds=0.0,
                run_seconds=lambda _: self._draw_shape().seconds,
                end_status=lambda _: self._shape.end,
                record_lag=lambda _: self._shape.lag,
            ),
        )
        self.sim.add_agent(AGENT)
        self.copies = _WatchedCopies(self)
        self.lives = [Life(self, name, number) for number, name in enumerate("AB"[: 1 + scope.sibling])]

    # --- choices ---

    @property
    def is_over(self):
        """Whether all tasks have ended. What comes then has one order only."""
        return all(life.is_over for life in self.lives)

    def choose(self, label, options):
        """One of the options."""
        if self.is_over:
            return options[0]
        return self.order.choose(label, options, self._state)

    def clears(self):
        """The ways to clear a task that there are now."""
        if not self.clears_left:
            return []
        return ["clear", "clear, keep the state"] if self.scope.copies else ["clear"]

    def may_die(self, life, what):
        """Here a process can be killed."""
        self.saw(what)
        if self.faults_left and self.choose(f"{life.name}: {what}", ["go on", "killed"]) == "killed":
            self._kill()

    def _kill(self):
        self.faults_left -= 1
        raise Killed

    def _draw_shape(self):
        odd = self.scope.odd_shapes if self.odd_left else ()
        shapes = {str(shape): shape for shape in (*self.scope.shapes, *odd)}
        self._shape = shapes[self.choose("the run", list(shapes))]
        self.odd_left -= self._shape in odd
        return self._shape

    def _state(self):
        """All that the future depends on, with runs by their names."""
        stage = self.stage
        actors = [(actor.name, round(actor.wake_at, 6), actor.seen) for actor in stage.actors]
        runs = [(run.event_id, run.visible_at, run.ended_at, run.end_status) for run, _ in self.sim.runs()]
        lives = [life.snapshot() for life in self.lives]
        left = (
            round(stage.now, 6),
            getattr(stage.current, "name", ""),
            self.faults_left,
            self.clears_left,
            self.odd_left,
        )
        return self._named(json.dumps([left, actors, runs, lives, dict(self.copies)], default=str, sort_keys=True))

    def _named(self, text):
        return re.sub(r"(?:event|req)-[0-9a-f]+", lambda match: self.names.get(match[0], match[0]), text)

    def saw(self, text):
        """The actor whose turn it is has seen something."""
        self.stage.current.saw(self._named(text))

    @property
    def life(self):
        """The task whose turn it is; None for the triggerer."""
        return next((life for life in self.lives if life.actor is self.stage.current), None)

    # --- the platform ---

    def name_run(self, event_id, owner):
        """Give a run a name that does not depend on the order in which runs were started."""
        run = self.sim.truth(event_id)
        number = 1 + sum(name.startswith(owner) and name.endswith("event") for name in self.names.values())
        self.names |= {event_id: f"{owner}{number}event", run.request_id: f"{owner}{number}request"}
        self.stage.now += TICK

    def on_worker(self, request, respond):
        """A request of a task's process."""
        life = self.life
        what = f"{request.method} {request.url.raw_path.decode()}"
        self.saw(f"asks {what}")
        if len(self.lives) > 1 or self.scope.stranger:
            self.stage.pause(0.0)
        options = ["go on"]
        if self.faults_left:
            options += ["killed", "lost"]
            if request.method == "POST":
                options += ["killed, and the platform acts later", "lost, and the platform acted", "refused"]
        pick = self.choose(f"{life.name}: {what}", options)
        if pick == "killed":
            self._kill()
        if pick == "killed, and the platform acts later":
            self.stage.add(f"late POST of {life.name}", lambda: self._act(life, respond), after=LATE_POST_SECONDS)
            self._kill()
        self.faults_left -= pick != "go on"
        if pick == "lost":
            self.saw("lost")
            raise httpx.ReadError("lost", request=request)
        if pick == "refused":
            self.saw("refused")
            return httpx.Response(429, headers={"Retry-After": "5"}, content=b"{}")
        response = self._act(life, respond) if request.method == "POST" else respond()
        if pick == "lost, and the platform acted":
            self.saw("lost")
            raise httpx.ReadTimeout("lost", request=request)
        self.saw(f"{response.status_code} {response.headers.get('date')} {response.text}")
        return response

    def _act(self, life, respond):
        before = len(self.sim.executions)
        response = respond()
        for done in self.sim.executions[before:]:
            self.name_run(done.event_id, life.name)
            life.posts.append(done.event_id)
        return response

    def in_triggerer(self, request, respond):
        """A request of the triggerer's poll."""
        options = ["go on"]
        if self.faults_left:
            options += ["lost", "the triggerer is killed"]
        waiting = [life for life in self.lives if life.state == "deferred" and life.event is None and not life.cleared]
        ways = {f"{how}: {life.name}": (life, how) for life in waiting for how in self.clears()}
        pick = self.choose(f"triggerer: GET {request.url.raw_path.decode()}", [*options, *ways])
        self.saw(pick)
        if pick in ways:
            life, life.cleared = ways[pick]
            self.stage.wake(life.actor)
        elif pick != "go on":
            self.faults_left -= 1
            if pick == "the triggerer is killed":
                self.triggerer.loop.call_soon(self.triggerer.kill)
            raise httpx.ReadError("lost", request=request)
        response = respond()
        self.saw(f"{request.url} {response.headers.get('date')} {response.text}")
        return response

    def _other_party(self):
        self.wait_to_start()
        self.name_run(self.sim.start_scheduled_run(AGENT), "S")

    def wait_to_start(self):
        """Wait before an actor begins: not at all, within `settle`, or longer."""
        pick = self.choose(f"{self.stage.current.name} starts", list(STARTS))
        self.saw(pick)
        self.stage.pause(STARTS[pick])

    # --- the play ---

    def play(self):
        """Play it to its end.

        Raises:
            KnownState: what comes from here on is known.
        """
        with self._seams():
            self.triggerer = Triggerer(self)
            for life in self.lives:
                life.actor = self.stage.add(life.name, life.live)
            if self.scope.stranger:
                self.stage.add("another party", self._other_party)
            try:
                self.stage.play(until=lambda: self.order.is_over or all(life.is_judgeable for life in self.lives))
            finally:
                self.triggerer.close()
        if self.order.is_over:
            raise KnownState

    @contextlib.contextmanager
    def _seams(self):
        """httpx, the clock, chance, timers and Airflow's Variables; nothing of this package is replaced."""
        with contextlib.ExitStack() as seams:
            enter = seams.enter_context
            enter(mock.patch.object(httpx.Client, "_init_transport", return_value=self._transport(self.on_worker)))
            transport = self._transport(self.in_triggerer)
            enter(mock.patch.object(httpx.AsyncClient, "_init_transport", return_value=transport))
            enter(mock.patch.object(random, "uniform", lambda least, most: (least + most) / 2))
            # Its timers end requests that take too long in real time.
            enter(mock.patch.object(threading, "Timer"))
            enter(mock.patch.object(random, "sample", lambda population, k: population[:k]))
            url = connection("http://127.0.0.1:1")
            enter(mock.patch.dict(os.environ, {"AIRFLOW_CONN_AGENTS_DEFAULT": url}))
            enter(clock.replaced_by(StageTime(self.stage)))
            enter(copies_kept_in(self.copies))
            let_clears_discard_state(enter(pytest.MonkeyPatch.context()), self.scope.copies)
            yield

    def _transport(self, handle):
        platform = mock_transport(self.sim)
        return httpx.MockTransport(lambda request: handle(request, lambda: platform.handle_request(request)))


class _WatchedStore:
    """A task state store before each use of which its process can be killed."""

    def __init__(self, world, life):
        self._world, self._life = world, life

    def get(self, key, default=None):
        self._world.may_die(self._life, "read of the record")
        return self._life.task.store.get(key, default)

    def set(self, key, value, *, retention=None):
        self._world.may_die(self._life, f"write of the record: {value['phase']}")
        self._life.task.store.set(key, value, retention=retention)


class _WatchedCopies(Copies):
    """The copies of records. Before each use a process can be killed; the triggerer's writes can get lost."""

    def __init__(self, world):
        super().__init__()
        self._world = world

    def _use(self, what):
        life = self._world.life
        if life is not None:
            self._world.may_die(life, f"{what} of the copy")
        return life

    def read(self, key):
        self._use("read")
        text = super().read(key)
        self._world.saw(f"read {text}")
        return text

    def list(self, prefix):
        self._use("list")
        keys = super().list(prefix)
        self._world.saw(f"listed {keys}")
        return keys

    def write(self, key, text, description):
        if self._use("write") is None and not self._is_written():
            return
        super().write(key, text, description)

    def delete(self, key):
        self._use("delete")
        super().delete(key)

    def _is_written(self):
        world = self._world
        if not world.faults_left or world.choose("triggerer: write of the copy", ["go on", "killed"]) == "go on":
            return True
        world.faults_left -= 1
        return False
