"""Hostile answers and inputs by the million, through everything that reads them: `make fuzz`.

Some go to tasks that are played from their start to their end, with a judge who knows the truth: `episodes`.

What is true of each, whatever it is: it is read, or ends in an error of this package; it costs a bounded amount of time
and memory; no error and no log line shows the key or breaks its line; and what is handed on can be kept by Airflow.
A failure prints the seed that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import logging
import random
import resource
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from fuzz_inputs import any_budget, inputs
from fuzz_outside import commands, pages
from fuzz_settings import connections, environments
from hostile_answers import (
    HEADERS,
    KEY,
    NOW,
    SUBMISSION,
    ZONES,
    Lines,
    any_value,
    check_error,
    check_kept,
    check_line,
    check_value,
    honest_event,
    hostile,
)
from hostile_scene import HostileScene, printable
from own_time import end_time, keep_time

from airflow_provider_agents.api import endpoints, flow, responses
from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.asking import IdleAgent
from airflow_provider_agents.polling.progress import state_of
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import Checkpoint, CompletionTracker
from airflow_provider_agents.runs.first_run import list_started
from airflow_provider_agents.runs.spending import check_budget
from airflow_provider_agents.runs.status import active_runs
from airflow_provider_agents.runs.submission import Submission, find_unconfirmed, submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.runs.usage import runs_between

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from airflow_provider_agents.api.flow import ApiCall
    from airflow_provider_agents.polling.subscriptions import AskingSubscriber, Subscriber

    #: Draws from the first, and counts outcomes in the second. Yields once for each answer.
    Way = Callable[[random.Random, Counter[str]], Generator[object, None, None]]

#: No answer may take longer, in seconds: ten times what the slowest ones take.
SLOWEST_SECONDS = 2.0
#: Resident memory may grow by so many bytes from a tenth of the way to the end.
GROWTH_BYTES = 150 * 1024 * 1024

# --- through what ---------------------------------------------------------------------------------------------------


def reading(rng: random.Random, tally: Counter[str]) -> Generator[None, None, None]:
    """Pure: status, headers and bytes, read as each endpoint's answer. Yields once for each answer."""
    agent = {"id": "agent-0", "name": "one", "status": "ACTIVE", "schedule": '{"times":["09:00"]}', "createdAt": None}
    accepted = {"message": "ok", "requestId": "req-1", "agentId": "agent-0"}
    while True:
        honest: list[tuple[ApiCall[Any], object]] = [
            (endpoints.list_events(), {"data": [honest_event(rng, n) for n in range(4)], "nextToken": "t"}),
            (endpoints.list_agents(), {"data": [agent] * 2, "nextToken": None}),
            (endpoints.get_agent("agent-0"), {"data": agent} if rng.random() < 0.5 else agent),
            (endpoints.execute_agent("agent-0"), {"data": accepted}),
        ]
        call, value = rng.choice(honest)
        status, headers, body = hostile(rng, 200, {"date": HEADERS["date"][0]}, json.dumps(value).encode())
        try:
            answer = responses.read_response(call, status, headers, body)
        except AgentsError as error:
            # The client has taken the key out of what is read here.
            tally[check_error(error, redacted=False)] += 1
        else:
            tally["read"] += 1
            check_value(answer.value)
        yield


def poller(rng: random.Random, tally: Counter[str]) -> Generator[int, None, None]:
    """Everybody who can wait on a poller, whose plan is driven by hand."""
    while True:
        scene = HostileScene(rng, tally, rng.choice([0.1, 0.5, 0.9]))
        trackers = []
        for _ in range(rng.randrange(20, 60)):
            while len(scene.plan.subscriptions) < 6:
                agent_id = rng.choice(scene.agents)
                deadline_at = scene.clock.now + timedelta(seconds=rng.choice([30, 600, 86400]))
                run = scene.sim.start_scheduled_run(agent_id)
                event = ExecutionEvent(id=run, status="RUNNING")
                submission = Submission(
                    agent_id=agent_id,
                    request_id=rng.choice([None, "req-1"]),
                    taken_at=scene.clock.now,
                    server_before=rng.choice([None, scene.clock.now]),
                )
                policy = WaitPolicy(settle=5.0, appear_within=60.0)
                makers: list[Callable[[], Subscriber[Any] | AskingSubscriber[Any]]] = [
                    lambda: RunTracker(submission, policy),  # noqa: B023 - called at once
                    lambda: RunTracker(Submission.for_event(event, agent_id, scene.clock.now), policy),  # noqa: B023
                    lambda: IdleAgent(agent_id, lambda *_: None),  # noqa: B023
                    lambda: CompletionTracker(
                        rng.choice([ACCOUNT, agent_id]),  # noqa: B023
                        5.0,
                        Checkpoint(watermark=scene.clock.now),  # noqa: B023
                    ),
                ]
                subscriber = rng.choice(makers)()
                trackers += [subscriber] if isinstance(subscriber, CompletionTracker) else []
                scene.driver.subscribe(subscriber, interval=rng.choice([0.5, 5.0, 60.0]), deadline_at=deadline_at)
            before = scene.answers
            scene.driver.cycle_once()
            for subscription in scene.plan.subscriptions:
                if isinstance(subscription.subscriber, RunTracker):
                    assert state_of(subscription.subscriber).isprintable()
            for tracker in trackers:
                for ended in tracker.ended():
                    check_kept(ended.to_json())
                check_kept(tracker.checkpoint().to_json())
            yield from range(scene.answers - before)
        scene.client.close()


def worker(rng: random.Random, tally: Counter[str]) -> Generator[int, None, None]:
    """The dialogues of a task on a worker."""
    while True:
        scene = HostileScene(rng, tally, rng.choice([0.1, 0.5, 0.9]))
        for _ in range(10):
            agent_id = rng.choice(scene.agents)
            before = scene.answers
            dialogue = rng.choice(
                [
                    lambda: submit(agent_id, settle=5.0, say=check_line),  # noqa: B023 - called at once
                    lambda: find_unconfirmed(SUBMISSION, settle=5.0),
                    lambda: active_runs(agent_id),  # noqa: B023
                    lambda: list_started(agent_id, NOW, None),  # noqa: B023
                    lambda: flow.first_rows(endpoints.list_agents(), 5),
                    lambda: RunTracker(SUBMISSION, WaitPolicy()).read_listing(),
                    lambda: check_budget(any_budget(rng), agent_id, rng.choice(ZONES), owner="task"),  # noqa: B023
                    lambda: runs_between(rng.choice([None, agent_id]), scene.clock.now - timedelta(days=7)),  # noqa: B023
                ]
            )()
            # Another scene may have come in between.
            keep_time(scene.clock)
            try:
                scene.client.run_flow(dialogue)
            except AgentsError as error:
                check_error(error)
            yield from range(scene.answers - before)
        scene.client.close()


def in_chunks(rng: random.Random, data: bytes) -> Iterator[bytes]:
    while data:
        size = rng.choice([1, 7, 1000, 65536])
        yield data[:size]
        data = data[size:]


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


def compressed(rng: random.Random, body: bytes) -> bytes:
    match rng.randrange(6):
        case 0:
            return gzip.compress(gzip.compress(body))
        case 1:
            return gzip.compress(body)[: rng.randrange(30)]
        case 2:
            return zlib.compress(body)
        case 3:
            return gzip.compress(body) + rng.randbytes(rng.randrange(20))
        case 4 if rng.random() < 0.01:
            return BOMB
    return gzip.compress(body)


BOMB = gzip.compress(bytes(64 * 1024 * 1024))


def transport(rng: random.Random, tally: Counter[str]) -> Generator[None, None, None]:
    """Both clients, with the network's part: encodings, chunks, odd headers, broken connections."""
    prepared: list[httpx.Response | Exception] = []

    def answer(request: httpx.Request) -> httpx.Response:
        reply = prepared.pop()
        if isinstance(reply, Exception):
            raise reply
        return reply

    settings = Settings(api_key=KEY, base_url="http://127.0.0.1")
    call = endpoints.list_events()
    mock = httpx.MockTransport(answer)
    with Client(settings, transport=mock) as client, asyncio.Runner() as runner:
        async_client = AsyncClient(settings, transport=mock)
        for number in itertools.count():
            value = {"data": [honest_event(rng, n) for n in range(3)], "nextToken": None, "key": KEY}
            status, headers, body = hostile(rng, 200, {}, json.dumps(value).encode())
            headers = printable(headers)
            if rng.random() < 0.3:
                headers["content-encoding"] = rng.choice(HEADERS["content-encoding"])
                body = compressed(rng, body) if rng.random() < 0.9 else body
            prepared.append(
                httpx.Response(status, headers=headers, stream=Chunks(in_chunks(rng, body)))
                if rng.random() < 0.97
                else rng.choice(
                    [httpx.ReadError(KEY), httpx.RemoteProtocolError(f"bad: {KEY}\n"), httpx.ReadTimeout("")]
                )
            )
            try:
                got = client.send_once(call) if number % 2 else runner.run(async_client.send_once(call))
            except AgentsError as error:
                tally[check_error(error)] += 1
            else:
                tally["read"] += 1
                check_value(got.value)
                assert KEY not in json.dumps([event.to_json() for event in got.value.data])
            yield


def tasks(rng: random.Random, tally: Counter[str]) -> Generator[int, None, None]:
    """Tasks from their first try to their end, while the platform and Airflow misbehave for a while."""
    from episodes import Episode

    while True:
        episode = Episode(rng, any_value, KEY)
        tally.update(f"task {end}" for end in episode.play())
        tally["answered to tasks"] += len(episode.sim.requests)
        yield from range(len(episode.sim.requests))


#: Each way with its share of the answers. Airflow masks each secret that it has ever read, by a pattern that grows with
#: each: so there are few connections.
WAYS: dict[Way, float] = {
    reading: 0.50,
    inputs: 0.15,
    poller: 0.14,
    worker: 0.03,
    tasks: 0.03,
    commands: 0.03,
    pages: 0.02,
    transport: 0.0985,
    connections: 0.001,
    environments: 0.0005,
}


@contextmanager
def checked_lines() -> Iterator[None]:
    handler, logger = Lines(), logging.getLogger("airflow_provider_agents")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def run(way: Way, answers: int, seed: object) -> tuple[Counter[str], float, float]:
    """Send so many answers one way.

    Returns:
        How often each outcome was seen, the seconds of all and of the slowest, as the processor counts them.
    """
    # Some ways keep a time of their own, and the next one begins with the system's.
    end_time()
    tally: Counter[str] = Counter()
    slowest, began_at = 0.0, time.process_time()
    steps = way(random.Random(f"{way.__name__}-{seed}"), tally)
    before = began_at
    with checked_lines():
        for number in range(answers):
            try:
                next(steps)
            except Exception:
                print(f"{way.__name__}: answer {number} of seed {seed}")
                raise
            now = time.process_time()
            # The first one imports what is used.
            slowest, before = max(slowest, now - before if number else 0.0), now
        steps.close()
        end_time()
    return tally, time.process_time() - began_at, slowest


def memory() -> int:
    """The most that was ever resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    total, after_a_tenth = 0, 0
    outcomes: Counter[str] = Counter()
    for part in (0.1, 0.9):
        for way, share in WAYS.items():
            count = max(1, round(arguments.answers * share * part))
            tally, seconds, slowest = run(way, count, f"{arguments.seed}-{part}")
            total += count
            outcomes.update(tally)
            print(f"{way.__name__:12} {count:>9,} answers in {seconds:6.1f} s, the slowest {slowest * 1000:6.1f} ms")
            assert slowest < SLOWEST_SECONDS
        after_a_tenth = after_a_tenth or memory()
    grown = memory() - after_a_tenth
    print(
        f"{total:,} answers; memory grew by {grown / 2**20:.0f} MB after the first tenth, to {memory() / 2**20:.0f} MB"
    )
    for outcome, count in outcomes.most_common():
        print(f"  {outcome:24} {count:>9,}")
    assert grown < GROWTH_BYTES


if __name__ == "__main__":
    # As pytest has it: what is shared with the fixtures is in conftest.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    main()
