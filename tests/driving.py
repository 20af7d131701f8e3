"""Drives a feed's plan by hand, on a clock that the test owns and against a simulator."""

from __future__ import annotations

import copy
import os
import random
from datetime import UTC, datetime, timedelta

from airflow_provider_agents.api.client import Client, Settings
from airflow_provider_agents.api.errors import AgentsError, RateLimitedError, TemporaryError
from airflow_provider_agents.feed.plan import Plan
from airflow_provider_agents.feed.tickets import At
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.verdict import Rules, Wait
from airflow_provider_agents.simulator import ManualClock, Simulator, World, mock_transport

_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


def examples(number):
    """How many examples a property is tried with: so many, or as few as the environment asks for."""
    return min(number, int(os.environ.get("TEST_EXAMPLES", number)))


class Driver:
    """A plan, and somebody who does what it asks for.

    Args:
        client: sends each call once.
        clock: our clock.
        sleep: lets seconds pass.
        rng: shuffles the errands of a stage, and takes their steps in turns.
    """

    def __init__(self, client, clock, sleep, *, rng=None, plan=None):
        self.client, self.clock, self.sleep, self.rng = client, clock, sleep, rng
        self.plan = plan if plan is not None else Plan(jitter=lambda: 1.0)
        self.woken, self.sweeps = {}, []

    def at(self):
        now = self.clock()
        return At((now - _EPOCH).total_seconds(), now)

    def join(self, subject, *, interval=5.0, deadline_at):
        def wake():
            self.woken[ticket] = self.woken.get(ticket, 0) + 1

        ticket = self.plan.join(subject, interval=interval, deadline_at=deadline_at, wake=wake, at=self.at())
        return ticket

    def sweep_once(self):
        """Sleep until something is due, and do it."""
        pause = self.plan.next_at(self.at()) - self.at().clock
        if pause > 0:
            self.sleep(max(pause, 1e-6))
        if self.plan.is_due(self.at()):
            self.sweeps.append(self.at().clock)
            for stage in self.plan.sweep(self.at()):
                self.follow_all(stage)

    def follow_all(self, stage):
        under_way = [(errand, None, None) for errand in stage]
        while under_way:
            index = self.rng.randrange(len(under_way)) if self.rng is not None else 0
            errand, answer, error = under_way.pop(index)
            try:
                step = errand.throw(error) if error is not None else errand.send(answer)
            except StopIteration:
                continue
            answer = error = None
            if hasattr(step, "path"):
                try:
                    if held := self.plan.held_seconds(self.at()):
                        raise RateLimitedError("held", retry_after_seconds=held)
                    answer = self.client.send_once(step)
                except TemporaryError as failure:
                    error = failure
                    if failure.retry_after_seconds is not None:
                        self.plan.hold(failure.retry_after_seconds, self.at())
                except AgentsError as failure:
                    error = failure
            under_way.append((errand, answer, error))

    def wait_for(self, *tickets):
        while not all(ticket.over for ticket in tickets):
            self.sweep_once()
        return [ticket.result for ticket in tickets]


class Scene:
    """A simulator, a client and a driver on one clock."""

    def __init__(self, world=None, *, agents=1, seed=1, adaptive=False, **agent):
        self.clock = ManualClock()
        self.sim = Simulator(self.clock, world=world or World(request_id="field"), seed=seed)
        self.agents = [f"agent-{number}" for number in range(agents)]
        for agent_id in self.agents:
            self.sim.add_agent(agent_id, **agent)
        transport = mock_transport(self.sim)
        self.client = Client(
            Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=transport, sleep=self.clock.advance
        )
        self.plan = Plan(jitter=lambda: 1.0, adaptive=adaptive)
        self.driver = Driver(self.client, self.clock, self.clock.advance, rng=random.Random(seed), plan=self.plan)

    def again(self):
        """The same platform and time; nobody waits, and nothing is remembered."""
        other = copy.copy(self)
        other.plan = Plan(jitter=lambda: 1.0)
        other.driver = Driver(self.client, self.clock, self.clock.advance, rng=self.driver.rng, plan=other.plan)
        return other

    def submitted(self, agent_id="agent-0"):
        return self.client.follow(submit(agent_id, settle=30.0, now=self.clock))

    def waiting(self, agent_id="agent-0", *, hours=24.0, **join):
        submission = self.submitted(agent_id)
        return self.driver.join(Wait(submission, Rules()), deadline_at=self.clock.now + timedelta(hours=hours), **join)

    def refuse_once(self, headers):
        """Answer the next request 429."""
        handle = self.sim.handle

        def refusing(*request):
            self.sim.handle = handle
            handle(*request)
            return self.sim._error(429, "slowly", headers)

        self.sim.handle = refusing

    def sweep(self, times=1):
        before = len(self.sim.requests)
        for _ in range(times):
            done = len(self.driver.sweeps)
            while len(self.driver.sweeps) == done:
                self.driver.sweep_once()
        return [request.path for request in self.sim.requests[before:]]
