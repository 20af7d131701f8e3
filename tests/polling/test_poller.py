"""The poller on an event loop of virtual time: who shares, who is told, and what is left when everybody has gone."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from driving import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_time import keep_time
from virtual_time import VirtualLoop

from airflow_provider_agents.api import endpoints, flow
from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.errors import (
    AuthenticationError,
    InvalidConnectionError,
    MissingConnectionError,
    RateLimitedError,
)
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.clients import OPENING_SECONDS
from airflow_provider_agents.polling.plan import Plan, PollStats
from airflow_provider_agents.polling.poller import (
    CYCLE_SECONDS,
    SIGN_OF_LIFE_SECONDS,
    PollerClosedError,
    SharedPoller,
    count_shared,
    shared_poller,
)
from airflow_provider_agents.polling.progress import LAST_POLL_SECONDS
from airflow_provider_agents.polling.waits import wait_for_end
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport

KEY = "test-key"
LATENCY = 0.05


class Transport(httpx.AsyncBaseTransport):
    """The simulator, some virtual time away; it takes a while to close, too."""

    def __init__(self, scene):
        self.scene, self.inner = scene, mock_transport(scene.sim)
        self.closing = self.closed = False

    async def handle_async_request(self, request):
        await asyncio.sleep(self.scene.latency())
        assert not self.closing, "a request on a client that was closed"
        self.scene.sent_at.append(self.scene.loop.time())
        response = await self.inner.handle_async_request(request)
        await asyncio.sleep(self.scene.latency())
        return response

    async def aclose(self):
        self.closing = True
        await asyncio.sleep(self.scene.latency())
        self.closed = True


class Scene:
    """A simulator, a connection that can be changed, and pollers on a loop of virtual time."""

    def __init__(self, *, agents=1, config=None, seed=1, plan=Plan, stats=None, **agent):
        self.clock = ManualClock()
        keep_time(self.clock)
        self.loop = VirtualLoop(self.clock.advance)
        self.sim = Simulator(
            self.clock, config=config or SimulatorConfig(request_id="field"), seed=seed, api_keys=(KEY,)
        )
        self.agents = [f"agent-{number}" for number in range(agents)]
        for agent_id in self.agents:
            self.sim.add_agent(agent_id, **{"queue_seconds": 0.0, "run_seconds": 60.0, **agent})
        self.settings = Settings(api_key=KEY, base_url="http://127.0.0.1")
        self.plan, self.stats = plan, stats
        self.transports, self.pollers, self.sent_at, self.look_ups = [], [], [], 0
        self.opening = []
        self.problems = []

    def latency(self):
        return LATENCY

    def submitted(self, agent_id="agent-0"):
        transport = mock_transport(self.sim)
        with Client(Settings(api_key=KEY, base_url="http://127.0.0.1"), transport=transport) as client:
            return client.run_flow(submit(agent_id, settle=30.0))

    async def open_client(self):
        self.look_ups += 1
        await asyncio.sleep(self.latency())
        if self.opening:
            raise self.opening.pop(0)
        self.transports.append(Transport(self))
        return AsyncClient(self.settings, transport=self.transports[-1])

    def make(self, name):
        self.pollers.append(SharedPoller(name, self.open_client, stats=self.stats, plan=self.plan()))
        return self.pollers[-1]

    def held(self):
        return shared_poller("agents_default", self.make)

    async def wait(self, agent_id="agent-0", *, submission=None, interval=5.0, tell=lambda subscription, is_news: None):
        tracker = RunTracker(submission or self.submitted(agent_id), WaitPolicy())
        async with self.held() as poller:
            return await poller.wait_for(
                tracker, interval=interval, deadline_at=self.clock.now + timedelta(hours=9), on_wake=tell
            )

    def run(self, coroutine):
        """Run to the end, and see that nothing is left behind."""
        loop = self.loop
        loop.set_exception_handler(lambda _, context: self.problems.append(context))
        try:
            result = loop.run_until_complete(coroutine)
            # What was left closing in the background may end.
            for _ in range(20):
                loop.run_until_complete(asyncio.sleep(1.0))
            gc.collect()
            left = asyncio.all_tasks(loop)
        finally:
            shared = count_shared(loop)
            loop.close()
        assert not left
        assert not shared
        assert not self.problems
        assert all(transport.closed for transport in self.transports)
        assert {poller.stats() for poller in self.pollers} <= {PollStats()}
        return result


class Stats:
    """What arrives in Airflow's statistics."""

    def __init__(self):
        self.got = []

    def incr(self, stat, count=1, *, tags=None):
        self.got.append((stat, count, tags))

    gauge = timing = incr

    def values(self, name):
        return [value for stat, value, _ in self.got if stat == name]


# --- one for all ---


def test_everybody_shares_one_client_and_one_look_up_and_the_last_one_closes_it():
    scene = Scene(agents=50)

    async def many():
        return await asyncio.gather(*(scene.wait(agent_id) for agent_id in scene.agents))

    verdicts = scene.run(many())
    assert {verdict.outcome for verdict in verdicts} == {Outcome.COMPLETED}
    assert (len(scene.pollers), len(scene.transports), scene.look_ups) == (1, 1, 1)


def test_who_comes_while_the_last_one_goes_gets_a_poller_of_its_own():
    scene = Scene(agents=2, run_seconds=10.0)

    async def main():
        first = asyncio.ensure_future(scene.wait("agent-0"))
        while not scene.pollers or scene.pollers[0].holders:
            await asyncio.sleep(LATENCY / 3)
        # It closes now, which takes a while.
        assert not first.done()
        second = asyncio.ensure_future(scene.wait("agent-1"))
        return await asyncio.gather(first, second)

    verdicts = scene.run(main())
    assert [verdict.outcome for verdict in verdicts] == [Outcome.COMPLETED] * 2
    assert len(scene.pollers) == 2


def test_one_that_is_cancelled_while_the_client_is_opened_takes_it_from_nobody():
    scene = Scene(agents=2)

    async def main():
        first, second = (asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents)
        await asyncio.sleep(1.0 + LATENCY / 2)
        assert scene.look_ups == 1
        first.cancel()
        await asyncio.sleep(LATENCY / 4)
        assert scene.pollers[0].stats().waits == 1
        verdict = await second
        return first.cancelled(), verdict.outcome

    assert scene.run(main()) == (True, Outcome.COMPLETED)
    assert len(scene.transports) == 1


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    waits=st.integers(1, 12),
    cancelled=st.sets(st.integers(0, 11)),
    faults=st.integers(0, 4),
    close_together=st.booleans(),
)
def test_joining_leaving_and_cancelling_at_any_await(seed, waits, cancelled, faults, close_together):
    rng = random.Random(seed)
    scene = Scene(agents=4, seed=seed, queue_seconds=lambda r: r.uniform(0, 4), run_seconds=lambda r: r.uniform(0, 30))
    scene.latency = lambda: rng.choice([0.0, 0.001, 0.05, 1.5])
    spread = 0.3 if close_together else 60.0
    told = dict.fromkeys(range(waits), 0)

    async def one(number):
        await asyncio.sleep(rng.uniform(0, spread))
        submission = scene.submitted(rng.choice(scene.agents))
        verdict = await scene.wait(submission=submission, interval=rng.choice([1.0, 5.0]))
        told[number] += 1
        late = scene.clock.now - verdict.event.completedAt
        assert verdict.event.requestId == submission.request_id
        # Two intervals at most, what the requests of a cycle or two take, and what the faults put off.
        assert late <= timedelta(seconds=12.0 + 60.0 * (1 + faults))
        return verdict.outcome

    async def main():
        tasks = [asyncio.ensure_future(one(number)) for number in range(waits)]
        for number in sorted(cancelled):
            if number < waits:
                asyncio.get_running_loop().call_later(rng.uniform(0, spread + 30.0), tasks[number].cancel)
        for _ in range(faults):
            kind = rng.choice(["reset_before", "html", "truncated"])
            asyncio.get_running_loop().call_later(
                spread + rng.uniform(1, 30), lambda kind=kind: scene.sim.faults.append(Fault(kind=kind))
            )
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = scene.run(main())
    for number, result in enumerate(results):
        assert (result, told[number]) == (Outcome.COMPLETED, 1) or (
            number in cancelled and isinstance(result, asyncio.CancelledError)
        )


def test_a_holder_that_is_cancelled_again_while_it_closes_leaves_nothing_open():
    scene = Scene()

    async def main():
        only = asyncio.ensure_future(scene.wait())
        await asyncio.sleep(3.0)
        only.cancel()
        while not scene.transports[0].closing:
            await asyncio.sleep(LATENCY / 7)
        only.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await only

    scene.run(main())
    assert [transport.closed for transport in scene.transports] == [True]


def test_who_joins_a_poller_that_sleeps_for_long_is_not_kept_waiting():
    scene = Scene(agents=2, run_seconds=20.0)

    async def main():
        patient = asyncio.ensure_future(scene.wait("agent-0", interval=300.0))
        await asyncio.sleep(60.0)
        verdict = await scene.wait("agent-1", interval=5.0)
        late = scene.clock.now - verdict.event.completedAt
        assert late <= timedelta(seconds=6)
        await patient

    scene.run(main())


def test_a_poller_that_is_closed_tells_those_who_still_wait():
    scene = Scene()

    async def main():
        waiting = asyncio.ensure_future(scene.wait())
        await asyncio.sleep(3.0)
        await scene.pollers[0].aclose()
        with pytest.raises(PollerClosedError, match="agents_default"):
            await waiting

    scene.run(main())


def test_a_fault_in_the_plan_is_told_to_everybody_and_the_next_wait_works():
    class Broken(Plan):
        broken = True

        def cycle(self, at):
            if self.broken:
                raise KeyError("no such thing")
            return super().cycle(at)

    scene = Scene(agents=3, plan=Broken)

    async def main():
        async with scene.held():
            results = await asyncio.gather(*(scene.wait(agent_id) for agent_id in scene.agents), return_exceptions=True)
            assert [type(result) for result in results] == [KeyError] * 3
            Broken.broken = False
            return await scene.wait()

    assert scene.run(main()).outcome == Outcome.COMPLETED
    assert len(scene.pollers) == 1


def test_who_waits_is_told_now_and_then_that_it_does():
    scene = Scene(run_seconds=3 * SIGN_OF_LIFE_SECONDS + 10)
    told = []
    scene.run(scene.wait(tell=lambda subscription, is_news: told.append(is_news)))
    # When the run was seen, on the way, and at the end.
    assert told == [True, False, False, False, True]


# --- the connection ---


def test_a_changed_key_is_read_again_and_nobody_notices():
    scene = Scene(agents=20, config=SimulatorConfig(request_id="absent"))

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(20.0)
        scene.sim.api_keys = ("the-new-key",)
        scene.settings = Settings(api_key="the-new-key", base_url="http://127.0.0.1")
        await asyncio.sleep(10.0)
        # The old client is closed as soon as nobody uses it.
        assert [transport.closed for transport in scene.transports] == [True, False]
        return await asyncio.gather(*waits)

    assert {verdict.outcome for verdict in scene.run(main())} == {Outcome.COMPLETED}
    assert scene.look_ups == 2


def test_a_key_that_stays_refused_is_an_authentication_error_for_everybody():
    scene = Scene(agents=20)

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(20.0)
        scene.sim.api_keys = ()
        async with scene.held():
            results = await asyncio.gather(*waits, return_exceptions=True)
            # What was opened to see whether the key has changed is not kept.
            assert sum(not transport.closed for transport in scene.transports) == 1
        return results

    results = scene.run(main())
    assert {type(result) for result in results} == {AuthenticationError}
    assert KEY not in str(results)


def test_a_connection_that_cannot_be_used_is_told_to_everybody_and_not_remembered():
    scene = Scene(agents=3)
    scene.opening = [InvalidConnectionError("The connection has no API key.")]

    async def main():
        results = await asyncio.gather(*(scene.wait(agent_id) for agent_id in scene.agents), return_exceptions=True)
        assert [type(result) for result in results] == [InvalidConnectionError] * 3
        return await scene.wait()

    assert scene.run(main()).outcome == Outcome.COMPLETED
    assert len(scene.pollers) == 2


@pytest.mark.parametrize(
    "error", [RuntimeError("the API server restarts"), MissingConnectionError("There is no connection.")]
)
def test_a_connection_that_cannot_be_read_for_a_while_ends_nothing(error):
    # A triggerer that starts again while Airflow's database is down is told that there is no such connection.
    scene = Scene(agents=3)
    scene.opening = [error for _ in range(4)]

    async def main():
        return await asyncio.gather(*(scene.wait(agent_id) for agent_id in scene.agents))

    assert {verdict.outcome for verdict in scene.run(main())} == {Outcome.COMPLETED}
    assert len(scene.pollers) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("no secrets backend"), MissingConnectionError("There is no connection.")]
)
def test_a_connection_that_cannot_be_read_for_good_ends_everything(error):
    scene = Scene(agents=3)
    scene.opening = [error for _ in range(100)]
    began = scene.clock.now

    async def main():
        return await asyncio.gather(*(scene.wait(agent_id) for agent_id in scene.agents), return_exceptions=True)

    assert [type(result) for result in scene.run(main())] == [type(error)] * 3
    assert timedelta(seconds=300) <= scene.clock.now - began < timedelta(seconds=600)


def test_who_only_asks_is_told_at_once_that_there_is_no_connection():
    scene = Scene()
    scene.opening = [MissingConnectionError("There is no connection.")]

    async def main():
        async with scene.held() as poller:
            with pytest.raises(MissingConnectionError):
                await poller.run_flow(flow.value_of(endpoints.list_agents()))

    scene.run(main())


# --- how fast ---


@pytest.mark.parametrize("not_after", [2, 10])
def test_never_more_requests_than_the_connection_allows(not_after):
    scene = Scene(agents=60, config=SimulatorConfig(request_id="absent"))
    scene.settings = Settings(api_key=KEY, base_url="http://127.0.0.1", max_requests_per_second=not_after)
    scene.sim.add_fault(Fault(kind="status", status=403, path="^/v1/events$", times=None))
    submissions = [scene.submitted(agent_id) for agent_id in scene.agents]

    async def main():
        return await asyncio.gather(*(scene.wait(submission=submission) for submission in submissions))

    assert {verdict.outcome for verdict in scene.run(main())} == {Outcome.COMPLETED}
    assert len(scene.sent_at) > 120
    for seconds in (1, 5, 30):
        busiest = max(sum(at <= other < at + seconds for other in scene.sent_at) for at in scene.sent_at)
        # A second's worth may go at once.
        assert busiest <= not_after * (seconds + 1) + 1


def test_when_the_server_asks_for_a_pause_nobody_asks_anything():
    scene = Scene(agents=2, run_seconds=300.0)
    refused_at = []

    def refuse_once(_request, answer):
        if refused_at:
            return answer()
        refused_at.append(scene.loop.time())
        return scene.sim.error(429, "slowly", {"Retry-After": "90"})

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(20.0)
        scene.sim.intercept(refuse_once)
        await asyncio.sleep(10.0)
        with pytest.raises(RateLimitedError) as refusal:
            await scene.pollers[0].run_flow(flow.value_of(endpoints.list_agents()))
        assert 75 < refusal.value.retry_after_seconds < 90
        return await asyncio.gather(*waits)

    scene.run(main())
    assert refused_at
    next_at = min(at for at in scene.sent_at if at > refused_at[0])
    assert next_at - refused_at[0] >= 90.0


# --- what has an end ---


class Hanging(Scene):
    """A scene in which the look-up of the connection hangs for a time."""

    hangs = True

    async def open_client(self):
        if self.hangs:
            self.look_ups += 1
            await asyncio.Event().wait()
        return await super().open_client()


def test_a_look_up_that_hangs_is_given_up_and_tried_again():
    scene = Hanging(agents=20)

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(2 * OPENING_SECONDS)
        scene.hangs = False
        return await asyncio.gather(*waits)

    assert {verdict.outcome for verdict in scene.run(main())} == {Outcome.COMPLETED}
    # All that ask share an attempt.
    assert scene.look_ups <= 4


def test_a_look_up_that_hangs_for_good_ends_the_waits_and_blocks_no_other_connection():
    hanging, other = Hanging(agents=2), Scene(agents=1)
    other.loop.close()
    other.loop, other.clock = hanging.loop, hanging.clock
    keep_time(hanging.clock)

    async def main():
        waits = [asyncio.ensure_future(hanging.wait(agent_id)) for agent_id in hanging.agents]
        began = hanging.clock.now
        async with shared_poller("another", lambda name: SharedPoller(name, other.open_client)) as poller:
            answer = await poller.run_flow(flow.value_of(endpoints.list_agents()))
        assert hanging.clock.now - began < timedelta(seconds=5)
        return answer, await asyncio.gather(*waits, return_exceptions=True)

    answer, results = hanging.run(main())
    assert answer.data
    assert [type(result) for result in results] == [TimeoutError] * 2


def test_a_client_that_does_not_close_holds_up_nothing():
    scene = Scene()

    class Stuck(Transport):
        async def aclose(self):
            self.closed = True
            await asyncio.Event().wait()

    async def open_client():
        scene.transports.append(Stuck(scene))
        return AsyncClient(scene.settings, transport=scene.transports[-1])

    scene.open_client = open_client
    assert scene.run(scene.wait()).outcome == Outcome.COMPLETED


@pytest.mark.parametrize("slow", ["pages", "look-up", "rate"])
def test_a_deadline_is_kept_whatever_a_poll_is_busy_with(slow):
    scene = (Hanging if slow == "look-up" else Scene)(run_seconds=9 * 3600.0)
    submission = scene.submitted()
    if slow == "pages":
        # A page after the other, each in good time, and none of them the last.
        scene.sim.config = replace(scene.sim.config, empty_pages=500)
        scene.latency = lambda: 40.0
    if slow == "rate":
        scene.settings = Settings(api_key=KEY, base_url="http://127.0.0.1", max_requests_per_second=0.001)
    deadline_at = scene.clock.now + timedelta(seconds=100)

    async def main():
        async with scene.held() as poller:
            verdict = await poller.wait_for(RunTracker(submission, WaitPolicy()), interval=5.0, deadline_at=deadline_at)
            # Its client closes in good time.
            scene.latency = lambda: LATENCY
            return verdict, scene.clock.now

    verdict, ended_at = scene.run(main())
    assert verdict.outcome == Outcome.TIMED_OUT
    assert timedelta(0) <= ended_at - deadline_at <= timedelta(seconds=LAST_POLL_SECONDS + 1)


def test_a_slow_agent_keeps_nobody_from_the_next_look():
    scene = Scene(agents=2, run_seconds=600.0)
    began, tokens = scene.clock.now, itertools.count()

    def endless(request, answer):
        if request.path == "/v1/events":
            return scene.sim.error(403, "no")
        if "/agent-0/" in request.path:
            page = json.dumps({"data": [], "nextToken": f"t{next(tokens)}"}).encode()
            return replace(answer(), status=200, body=page)
        return answer()

    async def main():
        slow = asyncio.ensure_future(scene.wait("agent-0"))
        well = asyncio.ensure_future(scene.wait("agent-1"))
        await asyncio.sleep(0)
        scene.sim.intercept(endless)
        scene.latency = lambda: 5.0
        verdict = await well
        took = scene.clock.now - began
        slow.cancel()
        return verdict, took

    verdict, took = scene.run(main())
    assert verdict.outcome == Outcome.COMPLETED
    assert took <= timedelta(seconds=600 + 2 * CYCLE_SECONDS)


def test_a_refused_key_is_looked_up_once_in_a_poll():
    scene = Scene(agents=40, run_seconds=9 * 3600.0)

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(20.0)
        asked = len(scene.sent_at)
        scene.sim.api_keys = ()
        results = await asyncio.gather(*waits, return_exceptions=True)
        return results, scene.look_ups - 1, len(scene.sent_at) - asked

    results, look_ups, requests = scene.run(main())
    assert {type(result) for result in results} == {AuthenticationError}
    # One in each poll, and the pauses between polls double.
    assert look_ups <= 10
    assert requests <= 20


@pytest.mark.parametrize(
    "error", [InvalidConnectionError("The connection has no API key."), RuntimeError("the database restarts")]
)
def test_a_connection_that_is_bad_while_the_key_is_refused_ends_nothing(error):
    # Somebody edits it, in more than one step.
    scene = Scene(agents=3, run_seconds=600.0)

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(20.0)
        scene.sim.api_keys = ("the-new-key",)
        scene.opening = [error]
        scene.settings = Settings(api_key="the-new-key", base_url="http://127.0.0.1")
        return await asyncio.gather(*waits)

    assert {verdict.outcome for verdict in scene.run(main())} == {Outcome.COMPLETED}


# --- what it says of itself ---


def test_the_statistics_say_what_it_costs_and_for_whom():
    stats = Stats()
    scene = Scene(agents=5, stats=stats)

    async def main():
        waits = [asyncio.ensure_future(scene.wait(agent_id)) for agent_id in scene.agents]
        await asyncio.sleep(20.0)
        scene.sim.faults.append(Fault(kind="reset_before"))
        return await asyncio.gather(*waits)

    scene.run(main())
    assert sum(stats.values("agents.poll.requests")) == len(scene.sent_at)
    assert sum(stats.values("agents.poll.failures")) == 1
    assert stats.values("agents.poll.subscribers")[0] == 5
    assert stats.values("agents.poll.subscribers")[-1] == 0
    assert all(timedelta(0) < seconds < timedelta(seconds=1) for seconds in stats.values("agents.poll.cycle"))
    assert {tags["conn_id"] for _, _, tags in stats.got} == {"agents_default"}


def test_the_pollers_own_lines_carry_no_tasks_context():
    whose = contextvars.ContextVar("whose", default="nobody's")
    seen = []

    class Listening(Stats):
        def timing(self, stat, value, *, tags=None):
            seen.append(whose.get())

    scene = Scene(stats=Listening())

    async def main():
        whose.set("the first task's")
        return await scene.wait(tell=lambda subscription, is_news: seen.append(whose.get()))

    scene.run(main())
    assert set(seen[:-1]) == {"nobody's", "the first task's"}
    assert seen.count("nobody's") >= 12


def test_the_server_clock_is_what_delays_are_measured_on():
    stats = Stats()
    scene = Scene(stats=stats, config=SimulatorConfig(request_id="field", clock_skew=240.0))

    async def main():
        async with scene.held() as poller:
            verdict = await scene.wait()
            poller.record_end(verdict.outcome, verdict.event.completedAt)

    scene.run(main())
    (delay,) = stats.values("agents.run.notice_delay")
    assert timedelta(0) <= delay < timedelta(seconds=8)
    assert ("agents.run.ended", 1, {"conn_id": "agents_default", "outcome": "completed"}) in stats.got


def test_the_seconds_until_events_appear_are_measured_and_one_slow_one_is_logged(caplog):
    stats = Stats()
    scene = Scene(agents=3, stats=stats, config=SimulatorConfig(record_lag=26.0))

    async def wait(agent_id):
        async with scene.held() as poller:
            return await wait_for_end(
                poller,
                RunTracker(scene.submitted(agent_id), WaitPolicy()),
                poll_interval=5.0,
                deadline_at=scene.clock.now + timedelta(hours=1),
                say=lambda *_: None,
            )

    async def main():
        return await asyncio.gather(*(wait(agent_id) for agent_id in scene.agents))

    scene.run(main())
    appeared = stats.values("agents.run.appeared_after")
    assert len(appeared) == 3
    assert all(timedelta(seconds=24) < seconds < timedelta(seconds=32) for seconds in appeared)
    assert caplog.text.count("Raise settle in the connection.") == 1


def test_time_is_the_tests_own():
    # Were it not, a test that waits for hours would.
    before = datetime.now(UTC)
    Scene(run_seconds=8 * 3600.0).run(asyncio.sleep(8 * 3600.0))
    assert datetime.now(UTC) - before < timedelta(minutes=1)
