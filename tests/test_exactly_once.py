"""Exactly once, driven at random: kills, retries, clears, time-outs and lost answers, in any order.

A state machine plays Airflow: it starts tries, kills their process anywhere (around any request, any write of the
record or of its copy, any sleep), retries, resumes from the trigger, and clears, with the record or, as Airflow 3.4
does, without it. After each step, every run that the platform was asked for must have been wanted, and every success
must be true.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from unittest import mock

import httpx
import pytest
import time_machine
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow_versions import let_clears_discard_state
from conftest import KEY, Task, connection
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from virtual_time import VirtualLoop

from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.simulator import Fault, Simulator, SimulatorConfig, mock_transport
from airflow_provider_agents.testing.variables import Copies, copies_kept_in
from airflow_provider_agents.validation import TRIGGERS_END_TASKS

#: The phases of the record that were written; a machine that never gets to one proves nothing about it.
PHASES = set()
#: The same of looks for the copy of a record.
COPIES = set()


class Killed(BaseException):
    """The process is gone: no handler of the task runs."""


class Fuse:
    """Kills after a number of steps: each request, each write and each sleep is one before it and one after it."""

    def __init__(self):
        self.left = None

    def step(self):
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                raise Killed


class BurningStore:
    def __init__(self, store, fuse):
        self._store, self._fuse = store, fuse

    def get(self, key, default=None):
        self._fuse.step()
        return self._store.get(key, default)

    def set(self, key, value, *, retention=None):
        self._fuse.step()
        self._store.set(key, value, retention=retention)
        PHASES.add(value["phase"])
        self._fuse.step()


class BurningCopies(Copies):
    def __init__(self, fuse):
        super().__init__()
        self._fuse = fuse

    def read(self, key):
        self._fuse.step()
        COPIES.add("found" if key in self else "none")
        return super().read(key)

    def write(self, key, text, description):
        self._fuse.step()
        super().write(key, text, description)
        self._fuse.step()

    def delete(self, key):
        self._fuse.step()
        super().delete(key)
        self._fuse.step()


class ExactlyOnce(RuleBasedStateMachine):
    #: Whether a clear discards the record, unless the user says otherwise.
    clears_discard_state = False

    def __init__(self):
        super().__init__()
        self.travel = time_machine.travel(datetime(2026, 1, 1, 9, tzinfo=UTC), tick=False)
        self.traveller = self.travel.start()
        self.rng = random.Random(0)
        self.sim = Simulator(
            lambda: datetime.now(UTC),
            api_keys=(KEY,),
            config=SimulatorConfig(
                record_lag=lambda rng: rng.choice([0.0, 0.0, 2.0, 20.0]),
                run_seconds=lambda rng: rng.choice([0.5, 20.0, 300.0]),
                end_status=lambda rng: rng.choice(["COMPLETED", "COMPLETED", "FAILED"]),
            ),
        )
        self.sim.add_agent("agent-1")
        self.sim.add_history("agent-1", 2)
        self.fuse = Fuse()
        transport = mock_transport(self.sim)
        handle = transport.handle_request

        def burning(request):
            self.fuse.step()
            response = handle(request)
            self.fuse.step()
            return response

        transport.handle_request = burning

        def sleep(seconds):
            self.fuse.step()
            self.advance(seconds)

        # httpx, the clock and the sleep are the seams; nothing of this package is replaced.
        self.patches = [
            mock.patch.object(httpx.Client, "_init_transport", return_value=transport),
            mock.patch.object(httpx.AsyncClient, "_init_transport", return_value=mock_transport(self.sim)),
            mock.patch.object(time, "sleep", sleep),
            mock.patch.dict("os.environ", {"AIRFLOW_CONN_AGENTS_DEFAULT": connection("http://127.0.0.1:1")}),
        ]
        self.version = pytest.MonkeyPatch()
        let_clears_discard_state(self.version, self.clears_discard_state)
        self.variables = copies_kept_in(BurningCopies(self.fuse))
        self.variables.__enter__()
        for patch in self.patches:
            patch.start()
        self.task = Task()
        self.state, self.deferred, self.result = "none", None, None
        #: Executes that were wanted: the first, and one more whenever a user clears a finished task.
        self.clears_of_the_finished = []
        #: When a user cleared a task and its state was discarded. Once its run has ended, a new one is wanted then.
        self.discards = []

    def clear(self, keep_state):
        keep_state = keep_state or not self.clears_discard_state
        self.task.clear(keep_state=keep_state)
        if not keep_state:
            self.discards.append(datetime.now(UTC))
        self.state = "none"

    def advance(self, seconds):
        self.traveller.shift(timedelta(seconds=seconds))

    def teardown(self):
        self.variables.__exit__(None, None, None)
        self.version.undo()
        for patch in self.patches:
            patch.stop()
        self.travel.stop()

    def operator(self, *, deferrable=True, timeout=120.0, end_from_trigger=False):
        return ExecuteAgentOperator(
            task_id="run",
            agent_id="agent-1",
            deferrable=deferrable,
            timeout=timeout,
            end_from_trigger=end_from_trigger and deferrable and TRIGGERS_END_TASKS,
            retries=3,
        )

    def process(self, call, fuse):
        """A process of the task, from its start until it ends or is killed."""
        self.fuse.left = fuse
        try:
            self.result = call()
        except Killed:
            self.state = "up_for_retry"
        except TaskDeferred as deferred:
            self.state, self.deferred = "deferred", deferred
        except AirflowFailException:
            self.state = "failed"
        except AgentsError:
            self.state = "up_for_retry"
        else:
            self.state = "success"
        finally:
            self.fuse.left = None

    @precondition(lambda self: self.state in {"none", "up_for_retry"})
    @rule(
        deferrable=st.booleans(),
        end_from_trigger=st.booleans(),
        fuse=st.none() | st.integers(1, 40),
        timeout=st.sampled_from([30.0, 120.0, 600.0]),
    )
    def start_a_try(self, fuse, **arguments):
        self.try_(fuse, **arguments)

    def try_(self, fuse, **arguments):
        context = self.task.context()
        context["task_state_store"] = BurningStore(self.task.store, self.fuse)
        operator = self.operator(**arguments)
        self.process(lambda: operator.execute(context), fuse)

    @precondition(lambda self: self.state == "deferred")
    @rule(fuse=st.none() | st.integers(1, 6))
    def resume(self, fuse):
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(self.advance)) as triggerer:
            event = triggerer.run(first_event(self.deferred.trigger))
        context = self.task.resumed()
        context["task_state_store"] = BurningStore(self.task.store, self.fuse)
        kwargs = {"event": event.payload, **self.deferred.kwargs}
        operator = self.operator()
        self.process(lambda: operator.resume_execution(self.deferred.method_name, kwargs, context), fuse)

    @precondition(lambda self: self.state == "deferred")
    @rule(retries_are_left=st.booleans())
    def airflow_gives_up_the_deferral(self, retries_are_left):
        with pytest.raises(Exception, match="Trigger timeout"):
            self.operator().resume_execution("__fail__", {"error": "Trigger timeout"}, self.task.resumed())
        self.state = "up_for_retry" if retries_are_left else "failed"

    # Where its trigger may end the task, a clear of the waiting task looks like one after the end.
    @precondition(lambda self: self.state == "deferred" and self.deferred.trigger.end_with is None)
    @rule(keep_state=st.booleans(), fuse=st.none() | st.integers(1, 40), deferrable=st.booleans())
    def a_user_clears_the_waiting_task_which_starts_again_at_once(self, keep_state, fuse, deferrable):
        self.clear(keep_state)
        self.try_(fuse, deferrable=deferrable)

    @precondition(lambda self: self.state in {"success", "failed"})
    @rule(keep_state=st.booleans())
    def a_user_clears_the_finished_task(self, keep_state):
        if self.state == "success":
            self.clears_of_the_finished.append(datetime.now(UTC))
        self.clear(keep_state)

    # With its state, such a task can look like one that its trigger has ended.
    @precondition(lambda self: self.state == "up_for_retry" and self.clears_discard_state)
    @rule()
    def a_user_clears_the_task_before_its_retry(self):
        self.clear(keep_state=False)

    @rule()
    def a_user_clears_another_task_of_the_dag_run(self):
        self.task.clear_number += 1

    @rule(seconds=st.sampled_from([1.0, 31.0, 400.0]))
    def time_passes(self, seconds):
        self.traveller.shift(timedelta(seconds=seconds))

    @rule(kind=st.sampled_from(["reset_before", "reset_after", "hang_before", "hang_after", "truncated", "html"]))
    def the_answer_to_the_next_post_is_lost(self, kind):
        self.sim.faults.append(Fault(kind=kind, method="POST"))

    @rule(retry_after=st.sampled_from(["1", "20", "300"]))
    def the_next_post_is_refused_for_now(self, retry_after):
        self.sim.faults.append(Fault(kind="status", status=429, method="POST", headers={"Retry-After": retry_after}))

    @rule(kind=st.sampled_from(["reset_before", "status", "garbage"]), times=st.integers(1, 7))
    def reading_fails_for_a_while(self, kind, times):
        self.sim.faults.append(Fault(kind=kind, method="GET", times=times))

    @invariant()
    def every_run_was_wanted(self):
        wanted_again = list(self.clears_of_the_finished)
        executions = self.sim.executions
        for before, after in pairwise(executions):
            run = self.sim.truth(before.event_id)
            if run.end_status == "FAILED" and run.ended_at <= after.accepted_at:
                continue  # a failed run is followed by a new one: that is what a retry is for
            if run.ended_at <= after.accepted_at and any(
                before.accepted_at <= at <= after.accepted_at for at in self.discards
            ):
                continue  # a task that was cleared without its state wants a new run, if its run has ended
            assert wanted_again, (before, after)
            assert wanted_again.pop(0) <= after.accepted_at

    @invariant()
    def every_success_is_true(self):
        if self.state == "success":
            last = self.sim.executions[-1]
            assert self.result["id"] == last.event_id
            assert self.sim.final_status(last.event_id) == "COMPLETED"


class ExactlyOnceWhereClearsDiscard(ExactlyOnce):
    """On Airflow 3.4 and later."""

    clears_discard_state = True


async def first_event(trigger):
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


# Airflow's own logging of each step is of no use here, and there are hundreds of thousands of them.
@pytest.mark.usefixtures("capsys")
@pytest.mark.parametrize("machine", [ExactlyOnce, ExactlyOnceWhereClearsDiscard])
def test_at_most_one_run_for_each_that_is_wanted_and_every_success_true(machine):
    PHASES.clear()
    COPIES.clear()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert {"submitting", "accepted", "deferred", "ended"} == PHASES
    # That no copy is there is rare: not each of these runs gets to it.
    assert ("found" in COPIES) == machine.clears_discard_state
