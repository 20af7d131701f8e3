"""A month of waiting on one event loop: are the verdicts right, and is anything left behind?

Run it with `make soak`. Time is virtual, so a month takes minutes; every number is drawn from a fixed seed.

Tasks arrive at random times, start a run each and wait for it on the poller of one of two connections. A watcher of the
whole account lives all month on the first, so that its poller does, too; the poller of the second comes and goes. Some
agents also run on the platform's own schedule. Some tasks start one agent together, some wait with `exclusive`, and the
agents of some are deleted while they wait. Meanwhile requests are refused, broken or answered with rubbish, all reads
are refused for up to a minute, the platform is down for an hour now and then, the key is rotated, and tasks are
cancelled or run into their deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import aclosing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

# Run as a script, so the tests' own modules and those beside it must be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from own_time import keep_time
from virtual_time import VirtualLoop

from airflow_provider_agents.api.client import AsyncClient
from airflow_provider_agents.api.errors import AgentsError, NoAnswerError
from airflow_provider_agents.api.flow import NoRetry, Sleep, run_flow
from airflow_provider_agents.api.responses import read_response
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.completion_stream import open_tracker, stream_completions
from airflow_provider_agents.polling.poller import SharedPoller, count_shared, shared_poller
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.polling.waits import wait_for_end
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import ManualClock, Simulator
from benchmarks.soak_process import Sample, descriptors, growth, resident_megabytes
from benchmarks.soak_weather import DAY, FIRST_CONFIG, OUTAGE_SECONDS, RETENTION_SECONDS, Transport, Weather

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from airflow_provider_agents.api.flow import Response, Step
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.submission import Submission

    Say = Callable[[str], object]

SETTLE, POLL_SECONDS = 30.0, 120.0
#: The watched connection, whose poller lives all month, and one whose poller comes and goes.
WATCHED, OTHER = "watched", "other"
#: The shares of tasks that are cancelled, that have a deadline too close, and that use the other connection.
CANCELLED, HASTY, ELSEWHERE = 0.03, 0.02, 0.1
#: The shares of tasks that start their agent together with one or two others, that wait with `exclusive`, and whose
#: agent is deleted while they wait.
TOGETHER, EXCLUSIVE, DOOMED = 0.1, 0.05, 0.02
#: Agents that one task at a time starts, and nothing else.
EXCLUSIVE_AGENTS = 20
#: What a long life may add to the process after its first tenth, in megabytes: the allocator's own fragments.
LEAK_MEGABYTES = 8.0


class Soak:
    """A platform, its tasks and its watcher for so many days.

    Args:
        runs: that tasks start, all in all.
        days: of virtual time.
        agents: on which they are spread.
        samples: of the process, taken on the way.
        say: called with a line now and then.
    """

    long_lived: SharedPoller

    def __init__(
        self, *, runs: int, days: float, agents: int = 100, seed: int = 1, samples: int = 30, say: Say = lambda _: None
    ) -> None:
        self.fds = descriptors()
        self.rng = random.Random(seed)
        self.clock, self.runs, self.days, self.say = ManualClock(), runs, days, say
        keep_time(self.clock)
        self.loop = VirtualLoop(self.clock.advance)
        self.sim = Simulator(self.clock, config=FIRST_CONFIG, api_keys=("key-0",), seed=seed)
        self.agents = [f"agent-{number}" for number in range(agents)]
        for number, agent_id in enumerate(self.agents):
            every = 3 * 3600.0 if number % 5 == 0 else None
            self.sim.add_agent(agent_id, schedule_every=every, schedule_offset=60.0 * number)
        for number in range(EXCLUSIVE_AGENTS):
            self.sim.add_agent(f"exclusive-{number}")
        self.weather = Weather(self.sim, self.rng, days)
        self.opened, self.open_transports = 0, 0
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.deleted: set[str] = set()
        #: The events of the runs that tasks have started, with the connection; and those that tasks of one were given.
        self.own: dict[str, str] = {}
        self.given: set[tuple[str, str]] = set()
        self.verdicts: Counter[str] = Counter()
        self.wanted = self.executed = self.together = self.tellings = self.scheduled = self.pollers_made = 0
        self.emitted: set[str] = set()
        self.wrong: list[str] = []
        self.untold: list[str] = []
        self.problems: list[str] = []
        self.samples: list[Sample] = []
        self.sample_count = samples

    # --- the connections ---

    async def open_client(self) -> AsyncClient:
        await asyncio.sleep(0.05)
        self.opened += 1
        return AsyncClient(Settings(api_key=self.weather.key, base_url="http://127.0.0.1"), transport=Transport(self))

    def poller_of(self, name: str) -> AbstractAsyncContextManager[SharedPoller]:
        def make(name: str) -> SharedPoller:
            self.pollers_made += 1
            return SharedPoller(name, self.open_client)

        return shared_poller(name, make)

    # --- tasks ---

    async def submitted(self, agent_id: str) -> Submission:
        """As a worker does it; a try that fails is repeated, as nothing was started then."""
        while True:
            try:
                return await run_flow(submit(agent_id, settle=SETTLE), self.apply_listing)
            except AgentsError:
                await asyncio.sleep(600.0)

    async def apply_listing(self, step: Step) -> Response[Any] | None:
        """A worker's request, without an HTTP client: 300,000 of them are not what this is about."""
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        call = step.call if isinstance(step, NoRetry) else step
        self.weather.spoil(call.method)
        headers = {"authorization": f"Bearer {self.weather.key}"}
        reply = self.sim.handle(call.method, call.path, dict(call.params), headers)
        if reply.broken is not None:
            raise NoAnswerError(f"{call.label}: {reply.broken}")
        return read_response(call, reply.status, httpx.Headers(reply.headers), reply.body)

    async def exclusive_task(self) -> None:
        agent_id = f"exclusive-{self.rng.randrange(EXCLUSIVE_AGENTS)}"
        async with self.locks[agent_id]:
            await self.task(agent_id, exclusive=True)

    async def doomed_task(self) -> None:
        agent_id = f"doomed-{self.wanted}"
        self.sim.add_agent(agent_id)
        await self.task(agent_id, deleted_after=self.rng.uniform(0, 1200))

    def delete(self, agent_id: str) -> None:
        self.deleted.add(agent_id)
        self.sim.remove_agent(agent_id, keep_events=self.rng.random() < 0.5)

    async def task(
        self, agent_id: str, *, name: str | None = None, exclusive: bool = False, deleted_after: float | None = None
    ) -> None:
        rng = self.rng
        self.wanted += 1
        submission = await self.submitted(agent_id)
        self.executed += 1
        assert submission.request_id is not None
        event_id = self.sim.event_of(submission.request_id)
        name = self.own[event_id] = name or (OTHER if rng.random() < ELSEWHERE else WATCHED)
        hasty = rng.random() < HASTY
        deadline_at = self.clock.now + timedelta(seconds=rng.uniform(60, 600) if hasty else DAY)
        tracker = RunTracker(submission, WaitPolicy(settle=SETTLE, exclusive=exclusive))

        async def wait_on_a_feed() -> Verdict:
            async with self.poller_of(name) as poller:
                return await wait_for_end(
                    poller,
                    tracker,
                    poll_interval=POLL_SECONDS,
                    deadline_at=deadline_at,
                    say=lambda level, message: None,
                )

        waiting = asyncio.ensure_future(wait_on_a_feed())
        if deleted_after is not None:
            self.loop.call_later(deleted_after, self.delete, agent_id)
        elif rng.random() < CANCELLED and not exclusive:
            # Another task could not know of the run that is still running.
            self.loop.call_later(rng.uniform(0, 600), waiting.cancel)
        try:
            verdict = await waiting
        except asyncio.CancelledError:
            self.verdicts["cancelled"] += 1
            return
        except AgentsError as error:
            if agent_id in self.deleted:
                self.verdicts["deleted"] += 1
            else:
                self.wrong.append(f"{submission.name}: {error}")
            return
        if agent_id in self.deleted and verdict.outcome not in {Outcome.COMPLETED, Outcome.FAILED}:
            self.verdicts["deleted"] += 1
            return
        self.verdicts["shared out" if verdict.is_shared else str(verdict.outcome)] += 1
        if not self.is_right(verdict, event_id, deadline_at, name):
            emitted = ", ".join(f"{event.id} {event.status}" for event in verdict.events)
            self.wrong.append(f"{submission.name}: {verdict.outcome} ({emitted}), but {self.sim.truth(event_id)}")

    def is_right(self, verdict: Verdict, event_id: str, deadline_at: datetime, name: str) -> bool:
        truth = self.sim.truth(event_id)
        if verdict.outcome == Outcome.TIMED_OUT:
            # The last look at the deadline may be an outage late, but never early.
            return self.clock.now >= deadline_at and truth.ended_at > deadline_at - timedelta(seconds=OUTAGE_SECONDS)
        ids = {event.id for event in verdict.events}
        if verdict.outcome == Outcome.AMBIGUOUS:
            # Of three, two others can end differently before ours does: from then on nothing can be told.
            return event_id in ids and {"COMPLETED", "FAILED"} <= {event.status for event in verdict.events}
        assert verdict.event is not None
        given = verdict.event.id
        if (name, given) in self.given:
            return False
        self.given.add((name, given))
        if event_id in ids and truth.ended_at <= self.sim.now() and verdict.outcome.upper() == truth.end_status:
            return True
        if verdict.is_shared:
            # Nothing distinguishes the runs that our tasks have started together.
            return given in self.own and self.is_end(verdict.event)
        # Beside another party's run: as many of our tasks may succeed as runs of ours have COMPLETED for certain.
        completed = {one for one in ids if self.has_completed(one)}
        successes = {one for one in completed if (name, one) in self.given}
        return given in completed and len(successes) <= sum(self.own.get(one) == name for one in completed)

    def has_completed(self, event_id: str) -> bool:
        truth = self.sim.truth(event_id)
        return truth.ended_at <= self.sim.now() and truth.end_status == "COMPLETED"

    def arrivals(self, later: list[float]) -> list[Coroutine[Any, Any, None]]:
        """One task, or some that start an agent together; the others are taken from the later ones."""
        drawn, agent_id = self.rng.random(), self.rng.choice(self.agents)
        if drawn < EXCLUSIVE:
            return [self.exclusive_task()]
        if drawn < EXCLUSIVE + DOOMED:
            return [self.doomed_task()]
        # Each of these makes two or three of the tasks.
        if drawn < EXCLUSIVE + DOOMED + TOGETHER / 2.5 and len(later) > 1:
            others = [later.pop(0) for _ in range(self.rng.choice([1, 2]))]
            self.together += 1 + len(others)
            return [self.task(agent_id, name=WATCHED) for _ in range(1 + len(others))]
        return [self.task(agent_id)]

    async def arrive(self) -> None:
        tasks: set[asyncio.Future[None]] = set()
        moments = sorted(self.rng.uniform(0, self.days * DAY) for _ in range(self.runs))
        while moments:
            await asyncio.sleep(max(0.0, moments.pop(0) + self.began - self.loop.time()))
            for each in self.arrivals(moments):
                tasks.add(task := asyncio.ensure_future(each))
                task.add_done_callback(tasks.discard)
        await asyncio.sleep(0)
        while tasks:
            await asyncio.wait(tasks)

    # --- the watcher ---

    async def watch(self) -> None:
        async with self.poller_of(WATCHED) as poller:
            self.long_lived = poller
            tracker = await open_tracker(poller, ACCOUNT, settle=SETTLE, checkpoint=None)
            cycles = stream_completions(poller, tracker, poll_interval=POLL_SECONDS, say=lambda level, message: None)
            async with aclosing(cycles):
                async for ended in cycles:
                    for event in ended:
                        self.tell(event)

    def tell(self, event: ExecutionEvent) -> None:
        self.tellings += 1
        if event.id in self.emitted or not self.is_end(event):
            self.wrong.append(f"told again, or wrongly: {event}")
        self.emitted.add(event.id)

    def is_end(self, event: ExecutionEvent) -> bool:
        try:
            return event.status == self.sim.final_status(event.id)
        except KeyError:
            return False

    # --- what is left ---

    async def keep_house(self) -> None:
        """Forget what is long over, once it is known to have been told, and take samples."""
        while True:
            await asyncio.sleep(self.days * DAY / self.sample_count)
            self.forget(self.sim.now() - timedelta(seconds=2 * RETENTION_SECONDS))
            self.sample()

    def forget(self, before: datetime) -> None:
        for run, _ in self.sim.runs():
            if run.ended_at < before:
                self.scheduled += run.started_by == "schedule"
                if run.event_id not in self.emitted and run.agent_id not in self.deleted:
                    self.untold.append(run.event_id)
                self.own.pop(run.event_id, None)
                self.emitted.discard(run.event_id)
                self.given -= {(WATCHED, run.event_id), (OTHER, run.event_id)}
        self.sim.forget(before)

    def sample(self) -> None:
        gc.collect()
        days = (self.loop.time() - self.began) / DAY
        waits = self.long_lived.stats().waits
        self.samples.append(Sample(days, resident_megabytes(), len(gc.get_objects()), waits, descriptors()))
        self.say(
            f"day {days:4.1f}: {self.wanted:7,} runs, {self.weather.requests:8,} requests, {waits:3} wait, "
            f"{len(asyncio.all_tasks(self.loop)):4} asyncio tasks, {descriptors()} file descriptors, "
            f"{resident_megabytes():6.1f} MB, {len(gc.get_objects()):7,} objects"
        )

    async def main(self) -> dict[str, int]:
        self.began = self.loop.time()
        around = [*self.weather.all(), asyncio.ensure_future(self.keep_house())]
        watcher = asyncio.ensure_future(self.watch())
        await self.arrive()
        for each in around:
            each.cancel()
        self.sim.faults.clear()
        # For whoever was started by a schedule last, and for a last cycle.
        await asyncio.sleep(5 * 3600.0)
        left = self.left_in_feed()
        watcher.cancel()
        await asyncio.gather(*around, watcher, return_exceptions=True)
        before = self.sim.now() - timedelta(seconds=2 * POLL_SECONDS)
        self.forget(before)
        return left

    def left_in_feed(self) -> dict[str, int]:
        """What the poller that the watcher keeps alive still holds of those who have gone."""
        stats = asdict(self.long_lived.stats())
        # What it follows, and what it remembers, may still be listed.
        listed = sum(run.ended_at > self.sim.now() - timedelta(seconds=2 * POLL_SECONDS) for run, _ in self.sim.runs())
        own = {"waits": 1, "agents": 1, "clients": 1, "scheduled": 50, "followed": listed, "rows": listed}
        return {name: count - own.get(name, 0) for name, count in stats.items() if count > own.get(name, 0)}

    def run(self) -> list[str]:
        """Live through it; what went wrong, in sentences."""
        self.loop.set_exception_handler(lambda _, context: self.problems.append(str(context)))
        try:
            in_poller = self.loop.run_until_complete(self.main())
            self.loop.run_until_complete(asyncio.sleep(60.0))
            gc.collect()
            tasks, registry = len(asyncio.all_tasks(self.loop)), count_shared(self.loop)
        finally:
            self.loop.close()
        self.left = {
            "asyncio tasks": tasks,
            "pollers in the registry": registry,
            "clients": self.open_transports,
            **{f"{name} in the poller": count for name, count in in_poller.items()},
            **{f"{name} in the closed poller": count for name, count in asdict(self.long_lived.stats()).items()},
        }
        failures = [f"{count} {name} left" for name, count in self.left.items() if count]
        failures += [f"a wrong verdict: {words}" for words in self.wrong]
        failures += [f"the loop complained: {words}" for words in self.problems]
        failures += [f"never told by the watcher: {event_id}" for event_id in self.untold]
        if self.executed != self.wanted:
            failures.append(f"{self.wanted} runs were wanted and {self.executed} started")
        if descriptors() > self.fds:
            failures.append(f"{descriptors() - self.fds} file descriptors left")
        return failures

    def report(self) -> str:
        megabytes, objects = growth(self.samples)
        verdicts = ", ".join(f"{count:,} {name}" for name, count in self.verdicts.most_common())
        faults = ", ".join(f"{count:,} {name}" for name, count in self.weather.faults.most_common())
        left = ", ".join(f"{count} {name}" for name, count in self.left.items() if count)
        lines = [
            f"{self.wanted:,} runs were wanted and {self.executed:,} started in {self.days} days: {verdicts}",
            f"wrong verdicts: {len(self.wrong)}",
            f"the watcher told of {self.tellings:,} ends, {self.scheduled:,} of them of the platform's schedule",
            f"ends that it missed: {len(self.untold)}",
            f"{self.together:,} tasks started an agent together with others; {len(self.deleted):,} agents were deleted",
            f"{self.weather.requests:,} requests; gone wrong: {faults}",
            f"{self.weather.outages} outages of an hour, {self.weather.refusals} refusals of up to a minute",
            f"{self.weather.rotations} rotations of the key, {self.pollers_made:,} pollers",
            f"left behind: {left or 'nothing'}",
            f"growth from the first tenth to the last: {megabytes:+.1f} MB, {objects:+,} objects",
        ]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # That the API fails and answers again is what is played here.
    logging.getLogger("airflow_provider_agents").setLevel(logging.ERROR)
    began = time.process_time()
    soak = Soak(runs=options.runs, days=options.days, seed=options.seed, say=lambda line: print(line, flush=True))
    failures = soak.run()
    megabytes, _ = growth(soak.samples)
    if megabytes > LEAK_MEGABYTES:
        failures.append(f"the process grew by {megabytes:.1f} MB")
    print(soak.report())
    print(f"{time.process_time() - began:.0f} seconds of CPU")
    for failure in failures[:20]:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
