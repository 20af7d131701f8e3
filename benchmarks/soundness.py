"""Whose run does each task report? The documented polling loop and this provider's, in the same simulated worlds.

Run it with `make soundness`. Time is virtual, so the whole takes minutes; every number is drawn from a fixed seed. The
figures, plots and tables of the documentation are written.

The worlds are such as the API's page allows. The simulator knows which event each request really started. A task that
fails as ambiguous hands on no event: it is counted apart.
"""

from __future__ import annotations

import heapq
import random
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

# Run as a script, so the tests' own modules must be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev"))

import evidence
from driving import wait_on_worker
from own_time import keep_time
from sibling_worlds import AGENT, Task, World

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.runs.siblings import Siblings
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import ManualClock, Simulator, SimulatorConfig, mock_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.tracker import OnAmbiguous

    #: Seconds at which something happens in a world, drawn with its random generator.
    Moments = Callable[[random.Random], list[float]]
    #: The result of each task of a world, with the world's platform.
    Results = Iterator[tuple["Result", Simulator]]
    #: A loop: plays a world of a setting, from a seed.
    Way = Callable[["Setting", int], Results]
    #: Loops with their names.
    Ways = Sequence[tuple[Way, str]]

#: The documented loop is given short runs, so it polls often; ours polls as its operator does by default.
NAIVE_POLL_SECONDS, OUR_POLL_SECONDS = 0.5, 5.0
LONE_TASKS, SIBLING_TASKS = 200, 1000
URL = "http://127.0.0.1"


@dataclass(frozen=True)
class Result:
    """What one task reported, and what was true.

    Attributes:
        own: the event of the run that the task started.
        handed_on: the event that it reported; None if it failed without one.
        succeeded: whether it reported a success.
        is_own_certain: whether it said that this success is about the run that it started.
        seconds: from the end of its own run to its verdict.
    """

    own: str
    handed_on: str | None
    succeeded: bool
    is_own_certain: bool
    seconds: float


@dataclass(frozen=True)
class Setting:
    """A kind of world.

    Attributes:
        name: in words.
        config: of the simulator, from a random generator.
        starts: when tasks start the agent, in seconds; drawn for each world.
        other_starts: seconds at which another party starts the agent.
        every: seconds between two runs of the platform's own schedule.
        on_ambiguous: of the tasks.
        exclusive: of the tasks.
        tasks: how many in all, at least.
        with_documented: whether the documented loop is measured too. Policies do not matter to it.
    """

    name: str
    config: SimulatorConfig
    starts: Moments = lambda rng: [rng.uniform(0, 10)]
    other_starts: Moments = lambda rng: []
    every: float | None = None
    on_ambiguous: OnAmbiguous = "share"
    exclusive: bool = False
    tasks: int = SIBLING_TASKS
    with_documented: bool = True


class NoSiblings(Siblings):
    """Each task is looked at alone."""

    def join(self, tracker: RunTracker, now: datetime) -> None:
        pass


# --- the worlds -------------------------------------------------------------------------------------------------------


def config(*, failing: float = 0.1, run_seconds: tuple[float, float] = (0.5, 20.0), **more: Any) -> SimulatorConfig:
    return SimulatorConfig(
        queue_seconds=0.0,
        run_seconds=lambda rng: rng.uniform(*run_seconds),
        end_status=lambda rng: "FAILED" if rng.random() < failing else "COMPLETED",
        **more,
    )


def up_to(seconds: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.uniform(0, seconds)


def lone(name: str, every: float | None = None, **more: Any) -> Setting:
    return Setting(name, config(run_seconds=(0.5, 1.0), **more), every=every, tasks=LONE_TASKS)


LONE = (
    lone("record at once, nothing else runs"),
    lone("record up to 0.3 s after the 202", record_lag=up_to(0.3)),
    lone("record up to 20 s after the 202", record_lag=up_to(20)),
    lone("record at once, own schedule", every=7.0),
    lone("late records, own schedule", every=45.0, record_lag=up_to(0.3)),
    lone(
        "late, scheduled, lagging replicas, skewed clocks",
        every=90.0,
        record_lag=up_to(5),
        replica_lag=up_to(5),
        clock_skew=240.0,
        gateway_skew=-2.0,
        sort_by="startedAt",
        created_at="appeared",
    ),
)


def at_once(number: int) -> Moments:
    return lambda rng: [0.0] * number


def spaced(number: int, seconds: float) -> Moments:
    return lambda rng: [seconds * index for index in range(number)]


def mixed(rng: random.Random) -> list[float]:
    return [rng.choice([0.0, 1.0, 5.0, 10.0]) * index for index in range(rng.randint(2, 5))]


def now_and_then(rng: random.Random) -> list[float]:
    """Another party's run in every third world."""
    return [rng.uniform(0, 30)] if rng.random() < 1 / 3 else []


GROUPS = (
    ("2 at once", at_once(2)),
    ("5 at once", at_once(5)),
    ("5, 5 s apart", spaced(5, 5.0)),
    ("10, 1 s apart", spaced(10, 1.0)),
    ("2 to 5, 0 to 10 s apart", mixed),
)


def beside(
    name: str,
    starts: Moments,
    *,
    failing: float,
    on_ambiguous: OnAmbiguous = "share",
    other_starts: Moments | None = None,
) -> Setting:
    more: dict[str, Any] = {} if other_starts is None else {"other_starts": other_starts}
    words = f"{name}, {failing:.0%} fail" + (", others' runs" if other_starts else "")
    if on_ambiguous != "share":
        words += f", {on_ambiguous}"
    # The harder reading: an event is created when it appears, so events of one moment have no order.
    platform = config(failing=failing, record_lag=up_to(5), created_at="appeared")
    with_documented = on_ambiguous == "share" and other_starts is None and failing == 0.2
    return Setting(words, platform, starts, on_ambiguous=on_ambiguous, with_documented=with_documented, **more)


SIDE_BY_SIDE = (
    beside("1 alone", at_once(1), failing=0.2),
    *(beside(name, starts, failing=failing) for name, starts in GROUPS for failing in (0.1, 0.2)),
    *(beside(name, starts, failing=0.2, other_starts=now_and_then) for name, starts in GROUPS),
    beside("5, 5 s apart", spaced(5, 5.0), failing=0.2, on_ambiguous="all"),
    beside("2 at once", at_once(2), failing=0.2, on_ambiguous="all"),
    beside("5, 5 s apart", spaced(5, 5.0), failing=0.2, on_ambiguous="fail"),
    beside("2 at once", at_once(2), failing=0.2, on_ambiguous="fail"),
    beside("2 to 5, 0 to 10 s apart", mixed, failing=0.2, on_ambiguous="all", other_starts=now_and_then),
    beside("2 to 5, 0 to 10 s apart", mixed, failing=0.2, on_ambiguous="fail", other_starts=now_and_then),
)
#: The promise of `exclusive`, kept and broken.
EXCLUSIVE = tuple(
    replace(setting, exclusive=True)
    for setting in (
        lone("record at once"),
        lone("record up to 20 s after the 202", record_lag=up_to(20)),
        lone("late, lagging replicas, skewed clocks", record_lag=up_to(5), replica_lag=up_to(5), clock_skew=240.0),
        replace(lone("record up to 5 s, others' runs", record_lag=up_to(5)), other_starts=now_and_then),
    )
)
#: Chance decides which of the triggerers waits for a task.
SPREAD = (
    *(beside(name, starts, failing=0.2) for name, starts in GROUPS),
    *(beside(name, starts, failing=0.2, other_starts=now_and_then) for name, starts in GROUPS[-1:]),
)
TRIGGERERS, READABLE_AFTER = 3, 1.0
#: The limit: a group closes only when no task starts any more.
CHAINS = (
    beside("30, 10 s apart", spaced(30, 10.0), failing=0.1),
    beside("30, 10 s apart", spaced(30, 10.0), failing=0.2),
    beside("30, 40 s apart", spaced(30, 40.0), failing=0.2),
)


# --- the loops --------------------------------------------------------------------------------------------------------


def deferred(setting: Setting, seed: int, siblings: Siblings | None = None, **more: Any) -> Results:
    """This provider's way in a triggerer, where the tasks share a poll."""
    rng = random.Random(seed)
    policy = WaitPolicy(on_ambiguous=setting.on_ambiguous, exclusive=setting.exclusive)
    tasks = [Task(start, policy=policy) for start in setting.starts(rng)]
    other_starts, offset = setting.other_starts(rng), rng.uniform(0, setting.every or 1)
    for task in tasks:
        task.process = rng.randrange(more.get("processes", 1))
    world = World(
        setting.config,
        tasks,
        other_starts=other_starts,
        seed=seed,
        siblings=siblings,
        more={"schedule_every": setting.every, "schedule_offset": offset},
        **more,
    ).play()
    for task in world.tasks:
        verdict = task.verdict
        assert verdict is not None
        assert task.own is not None
        assert task.ended_after is not None
        ended_at = world.began + timedelta(seconds=task.starts_at + task.ended_after)
        yield _result(world.sim, task.own, verdict, ended_at)


def alone(setting: Setting, seed: int) -> Results:
    """The same, with each task looked at alone."""
    return deferred(setting, seed, NoSiblings())


def not_exclusive(setting: Setting, seed: int) -> Results:
    """The same without a promise."""
    return deferred(replace(setting, exclusive=False), seed)


def not_shared(setting: Setting, seed: int) -> Results:
    """The same in several triggerers, which know nothing of each other."""
    return deferred(setting, seed, processes=TRIGGERERS)


def shared(setting: Setting, seed: int) -> Results:
    """The same in several triggerers, which read each other's starts."""
    return deferred(setting, seed, processes=TRIGGERERS, read_starts=list, readable_after=READABLE_AFTER)


def on_a_worker(setting: Setting, seed: int) -> Results:
    """This provider's way in a task that waits by itself."""
    clock, sim, rng = _platform(setting, seed)
    client = Client(Settings(api_key="test-key", base_url=URL), transport=mock_transport(sim))
    for start in setting.starts(rng):
        clock.advance(start)
        submission = client.run_flow(submit(AGENT, settle=30.0))
        own = sim.executions[-1].event_id
        tracker = RunTracker(submission, WaitPolicy(on_ambiguous=setting.on_ambiguous))
        deadline_at = clock.now + timedelta(hours=24)
        verdict = wait_on_worker(
            client, tracker, clock, clock.advance, interval=OUR_POLL_SECONDS, deadline_at=deadline_at
        )
        yield _result(sim, own, verdict, clock.now)


def documented(setting: Setting, seed: int) -> Results:
    """The polling pattern of the API's page, in Python: what its last line would see."""
    clock, sim, rng = _platform(setting, seed)
    http = httpx.Client(base_url=URL, headers={"X-Api-Key": "test-key"}, transport=mock_transport(sim))
    began, order = clock.now, count()
    due: list[tuple[float, int, str | None]] = [(start, next(order), None) for start in setting.starts(rng)]
    due += [(moment, next(order), "another party") for moment in setting.other_starts(rng)]
    heapq.heapify(due)
    while due:
        moment, _, own = heapq.heappop(due)
        clock.now = began + timedelta(seconds=moment)
        if own == "another party":
            sim.start_scheduled_run(AGENT)
            continue
        if own is None:
            http.post(f"/v1/agents/{AGENT}/execute").raise_for_status()
            own = sim.executions[-1].event_id
        rows = http.get(f"/v1/agents/{AGENT}/events", params={"limit": 1}).json()["data"]
        if rows and rows[0]["status"] in {"COMPLETED", "FAILED"}:
            succeeded = rows[0]["status"] == "COMPLETED"
            yield Result(own, rows[0]["id"], succeeded, True, _beyond(sim, own, clock.now)), sim
        else:
            heapq.heappush(due, (moment + NAIVE_POLL_SECONDS, next(order), own))


def _platform(setting: Setting, seed: int) -> tuple[ManualClock, Simulator, random.Random]:
    clock, rng = ManualClock(), random.Random(seed)
    keep_time(clock)
    sim = Simulator(clock, config=setting.config, seed=seed)
    sim.add_agent(AGENT, schedule_every=setting.every, schedule_offset=rng.uniform(0, setting.every or 1))
    sim.add_history(AGENT, 3)
    return clock, sim, rng


def _result(sim: Simulator, own: str, verdict: Verdict, ended_at: datetime) -> tuple[Result, Simulator]:
    event = verdict.event if verdict.is_end else None
    return Result(
        own,
        event.id if event is not None else None,
        verdict.outcome == "completed",
        not verdict.is_shared and len(verdict.events) == 1,
        _beyond(sim, own, ended_at),
    ), sim


def _beyond(sim: Simulator, own: str, ended_at: datetime) -> float:
    return (ended_at - sim.truth(own).ended_at).total_seconds() + sim.config.clock_skew


# --- what came of it --------------------------------------------------------------------------------------------------

COLUMNS = ("own event", "a sibling's", "another party's", "event to two", "ambiguous", "wrong success", "delay (s)")


def measure(way: Way, setting: Setting) -> dict[str, float]:
    """The row of a loop in a kind of world, as shares of the tasks; the delay is a mean."""
    totals, tasks, delay = dict.fromkeys(COLUMNS, 0), 0, 0.0
    for seed in count(7):
        if tasks >= setting.tasks:
            break
        found = list(way(setting, seed))
        results = [result for result, _ in found]
        sim = found[-1][1]
        tasks += len(results)
        delay += sum(result.seconds for result in results)
        for column, number in tally(results, sim.final_status).items():
            totals[column] += number
    shares = {column: number / tasks for column, number in totals.items()}
    return {**shares, "delay (s)": delay / tasks}


def tally(results: Sequence[Result], status: Callable[[str], str]) -> dict[str, int]:
    """How many tasks of one world fall under each column."""
    ours = {result.own for result in results}
    handed_on = [result.handed_on for result in results if result.handed_on is not None]
    successes = [result for result in results if result.succeeded]
    completed = [result for result in results if status(result.own) == "COMPLETED"]
    untrue = [each for each in successes if each.is_own_certain and status(each.own) != "COMPLETED"]
    return {
        "own event": sum(result.handed_on == result.own for result in results),
        "a sibling's": sum(result.handed_on in ours - {result.own} for result in results),
        "another party's": sum(event not in ours for event in handed_on),
        "event to two": sum(handed_on.count(event) > 1 for event in handed_on),
        "ambiguous": len(results) - len(handed_on),
        # Of runs that were shared out, no more tasks may succeed than runs COMPLETED.
        "wrong success": max(len(untrue), len(successes) - len(completed)),
    }


def cell(column: str, value: float) -> str:
    return f"{value:{len(column)}.1f}" if column == "delay (s)" else f"{value:{len(column)}.1%}"


def report(title: str, settings: Iterable[Setting], ways: Ways) -> Iterator[tuple[Setting, Way, dict[str, float]]]:
    print(f"\n{title}\n")
    print(f"| {'world':48} | {'loop':17} | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for setting in settings:
        for way, label in ways:
            if way is documented and not setting.with_documented:
                continue
            row = measure(way, setting)
            cells = " | ".join(cell(column, row[column]) for column in COLUMNS)
            print(f"| {setting.name:48} | {label:17} | {cells} |", flush=True)
            yield setting, way, row


def main() -> int:
    wrong: list[str] = []
    rows: list[evidence.Row] = []
    lone_ways: Ways = ((documented, "documented"), (on_a_worker, "ours, on a worker"), (deferred, "ours, deferred"))
    sibling_ways: Ways = ((documented, "documented"), (alone, "each alone"), (deferred, "ours, deferred"))
    exclusive_ways: Ways = ((not_exclusive, "without `exclusive`"), (deferred, "with `exclusive`"))
    spread_ways: Ways = ((not_shared, "ours, not shared"), (shared, "ours, shared starts"))
    for part, title, settings, ways in (
        ("one task", f"One task at a time, {LONE_TASKS} tasks in each world", LONE, lone_ways),
        (
            "side by side",
            f"Tasks that start one agent side by side, {SIBLING_TASKS} tasks in each world",
            SIDE_BY_SIDE,
            sibling_ways,
        ),
        ("exclusive", f"One task with `exclusive`, {LONE_TASKS} tasks in each world", EXCLUSIVE, exclusive_ways),
        ("spread", f"The same, over {TRIGGERERS} triggerers, {SIBLING_TASKS} tasks in each world", SPREAD, spread_ways),
        ("chains", f"Long chains, {SIBLING_TASKS} tasks in each world", CHAINS, sibling_ways),
    ):
        for setting, way, row in report(title, settings, ways):
            rows.append({"part": part, "world": setting.name, "loop": dict(ways)[way], **row})
            if way not in (on_a_worker, deferred, shared):
                continue
            has_others = "others' runs" in setting.name
            if settings is EXCLUSIVE and has_others:
                # The promise is broken, and nothing can detect that in time.
                continue
            is_ours_alone = settings in (SIDE_BY_SIDE, EXCLUSIVE, SPREAD) and not has_others
            if row["wrong success"] or row["event to two"] or (is_ours_alone and row["another party's"]):
                wrong.append(setting.name)
            if is_ours_alone and setting.on_ambiguous == "share" and row["ambiguous"]:
                wrong.append(setting.name)
    print("\nours: " + (f"WRONG in {', '.join(wrong)}" if wrong else "no wrong success, no event handed to two tasks"))
    evidence.save("soundness", command="make soundness", rows=rows)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
