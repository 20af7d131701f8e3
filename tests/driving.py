"""Drives a feed's plan by hand, on a clock that the test owns and against a simulator."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow_provider_agents.api.errors import AgentsError, RateLimitedError, TemporaryError
from airflow_provider_agents.feed.plan import Plan
from airflow_provider_agents.feed.tickets import At

_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


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
