"""The platform, the tasks and all that can still go wrong, with a choice wherever there is more than one course.

Real operators, records, triggers and polls, on one virtual time, against the simulator. `life_judge` judges them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
from typing import TYPE_CHECKING, NoReturn
from unittest import mock

import httpx
import pytest
from airflow_versions import let_clears_discard_state
from conftest import KEY, Killed, connection
from exploring import KnownState
from life_stores import WatchedCopies
from life_triggerer import Triggerer
from lives import AGENT, Life
from stage import Stage, StageTime

from airflow_provider_agents import clock
from airflow_provider_agents.simulator import Simulator, SimulatorConfig, mock_transport
from airflow_provider_agents.testing.variables import copies_kept_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exploring import Order
    from lives import Scope, Shape

#: Seconds after which the sibling and the other party start.
STARTS = {"at once": 0.0, "10 s later": 10.0, "100 s later": 100.0}
#: Seconds by which each start of a run is later than what was done before it, so that no two are equally old.
TICK = 0.01
#: Seconds after which a platform acts on a POST whose sender is gone.
LATE_POST_SECONDS = 10.0


class World:
    """The platform, Airflow, the tasks, and what is still to go wrong.

    Args:
        scope: what can happen.
        order: chooses.
    """

    _shape: Shape

    def __init__(self, scope: Scope, order: Order) -> None:
        self.scope, self.order = scope, order
        self.faults_left, self.clears_left, self.odd_left = scope.faults, scope.clears, scope.odd_runs
        self.names: dict[str, str] = {}
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
        self.copies = WatchedCopies(self)
        self.lives = [Life(self, name, number) for number, name in enumerate("AB"[: 1 + scope.sibling])]

    # --- choices ---

    @property
    def is_over(self) -> bool:
        """Whether all tasks have ended. What comes then has one order only."""
        return all(life.is_over for life in self.lives)

    def choose(self, label: str, options: Sequence[str]) -> str:
        """One of the options."""
        if self.is_over:
            return options[0]
        return self.order.choose(label, options, self._state)

    def clears(self) -> list[str]:
        """The ways to clear a task that there are now."""
        if not self.clears_left:
            return []
        return ["clear", "clear, keep the state"] if self.scope.copies else ["clear"]

    def may_die(self, life: Life, what: str) -> None:
        """Here a process can be killed."""
        self.saw(what)
        if self.faults_left and self.choose(f"{life.name}: {what}", ["go on", "killed"]) == "killed":
            self._kill()

    def _kill(self) -> NoReturn:
        self.faults_left -= 1
        raise Killed

    def _draw_shape(self) -> Shape:
        odd = self.scope.odd_shapes if self.odd_left else ()
        shapes = {str(shape): shape for shape in (*self.scope.shapes, *odd)}
        self._shape = shapes[self.choose("the run", list(shapes))]
        self.odd_left -= self._shape in odd
        return self._shape

    def _state(self) -> str:
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

    def _named(self, text: str) -> str:
        return re.sub(r"(?:event|req)-[0-9a-f]+", lambda match: self.names.get(match[0], match[0]), text)

    def saw(self, text: str) -> None:
        """The actor whose turn it is has seen something."""
        self.stage.acting.saw(self._named(text))

    @property
    def life(self) -> Life | None:
        """The task whose turn it is; None for the triggerer."""
        return next((life for life in self.lives if life.actor is self.stage.current), None)

    # --- the platform ---

    def name_run(self, event_id: str, owner: str) -> None:
        """Give a run a name that does not depend on the order in which runs were started."""
        run = self.sim.truth(event_id)
        number = 1 + sum(name.startswith(owner) and name.endswith("event") for name in self.names.values())
        self.names |= {event_id: f"{owner}{number}event", run.request_id: f"{owner}{number}request"}
        self.stage.now += TICK

    def on_worker(self, request: httpx.Request, respond: Callable[[], httpx.Response]) -> httpx.Response:
        """A request of a task's process."""
        life = self.life
        assert life is not None, "no worker's request"
        what = f"{request.method} {request.url.raw_path.decode()}"
        self.saw(f"asks {what}")
        if len(self.lives) > 1 or self.scope.stranger:
            self.stage.pause(0.0)
        options = ["go on"]
        if self.faults_left:
            options += ["killed"]
            if self._is_first(what):
                options += ["lost"]
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

    def _is_first(self, what: str) -> bool:
        """Whether the actor has not asked this before: the same loss again, or a clear at the same time, is not new."""
        asked = self.stage.acting.asked
        is_first = what not in asked
        asked.add(what)
        return is_first

    def _act(self, life: Life, respond: Callable[[], httpx.Response]) -> httpx.Response:
        before = len(self.sim.executions)
        response = respond()
        for done in self.sim.executions[before:]:
            self.name_run(done.event_id, life.name)
            life.posts.append(done.event_id)
        return response

    def in_triggerer(self, request: httpx.Request, respond: Callable[[], httpx.Response]) -> httpx.Response:
        """A request of the triggerer's poll."""
        options = ["go on"]
        if self._is_first(f"GET {request.url.raw_path.decode()}") and self.faults_left:
            options += ["lost", "the triggerer is killed"]
        is_first = self._is_first(f"at {self.stage.now}")
        waiting = [life for life in self.lives if is_first and life.is_waiting]
        ways = {f"{how}: {life.name}": (life, how) for life in waiting for how in self.clears()}
        pick = self.choose(f"triggerer: GET {request.url.raw_path.decode()}", [*options, *ways])
        self.saw(pick)
        if pick in ways:
            life, how = ways[pick]
            life.cleared = how
            self.stage.wake(life.actor)
        elif pick != "go on":
            self.faults_left -= 1
            if pick == "the triggerer is killed":
                self.triggerer.loop.call_soon(self.triggerer.kill)
            raise httpx.ReadError("lost", request=request)
        response = respond()
        self.saw(f"{request.url} {response.headers.get('date')} {response.text}")
        return response

    def _other_party(self) -> None:
        self.wait_to_start()
        self.name_run(self.sim.start_scheduled_run(AGENT), "S")

    def wait_to_start(self) -> None:
        """Wait before an actor begins: not at all, within `settle`, or longer."""
        pick = self.choose(f"{self.stage.acting.name} starts", list(STARTS))
        self.saw(pick)
        self.stage.pause(STARTS[pick])

    # --- the play ---

    def play(self) -> None:
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
    def _seams(self) -> Iterator[None]:
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

    def _transport(
        self, handle: Callable[[httpx.Request, Callable[[], httpx.Response]], httpx.Response]
    ) -> httpx.MockTransport:
        platform = mock_transport(self.sim)
        return httpx.MockTransport(lambda request: handle(request, lambda: platform.handle_request(request)))
