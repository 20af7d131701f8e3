"""What it costs a triggerer to wait for many runs: our trigger and dbt Cloud's, which polls for itself, side by side.

Run it with `make benchmark`, which installs `apache-airflow-providers-dbt-cloud` first (about twenty minutes). A whole
run writes its figures, plots and tables to the documentation.

Each row starts so many triggers at once in a fresh process, against servers in another one. Each run ends at a moment
of its own within the last ten of forty seconds; the moments are the same for both. Counted are the requests, the
process's CPU from the first trigger to the last event, the delay from the end of a run to its trigger's event, and the
memory. dbt Cloud's hook insists on https; it is spared that here, so its numbers are without TLS, as ours are.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev"))

import evidence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from multiprocessing.connection import Connection

    from airflow.triggers.base import BaseTrigger, TriggerEvent
    from starlette.requests import Request

INTERVAL = 5.0
FIRST_END, LAST_END = 30.0, 40.0
#: The seconds after the first trigger's start between which nothing starts or ends: what it costs to wait.
STEADY = (12.5, 27.5)
#: Our runs began within this time before they are waited for, and are past the time in which they are inferred.
BEGAN_WITHIN = (60.0, 3600.0)
EIGHT_HOURS = 8 * 3600.0
ALL_RUNS = [100, 1000, 10000]


# --- the servers, in a process of their own ---------------------------------------------------------------------------


def serve_agents(scene: evidence.Figures, pipe: Connection[Any, Any]) -> None:
    """The simulated platform, with runs that end as told; sends its address and the runs' submissions."""
    from airflow_provider_agents.simulator import Simulator, SimulatorConfig, running_server

    rng = random.Random(1)
    start = datetime.now(UTC)
    shift = [0.0]
    # Several runs of one agent at a time can only be told apart if the events name their requests.
    config = SimulatorConfig(queue_seconds=0.0, request_id="absent" if scene["agents"] == scene["runs"] else "field")
    sim = Simulator(lambda: datetime.now(UTC) + timedelta(seconds=shift[0]), config=config)
    began_ago = sorted((rng.uniform(*scene["began_within"]) for _ in range(scene["runs"])), reverse=True)
    shift[0] = -max(began_ago[0], scene["others"] and EIGHT_HOURS) - 1
    durations: dict[str, float] = {}
    for number in range(scene["agents"]):
        sim.add_agent(f"agent-{number}", run_seconds=lambda _: durations["next"])
    for number in range(scene["others"] // 2000):
        sim.add_agent(
            f"other-{number}",
            run_seconds=60.0,
            schedule_every=EIGHT_HOURS / 2000,
            schedule_offset=rng.uniform(0, EIGHT_HOURS / 2000),
        )
    submissions = []
    for number, ago in enumerate(began_ago):
        shift[0] = -ago - (datetime.now(UTC) - start).total_seconds()
        durations["next"] = ago + scene["ends"][number]
        agent_id = f"agent-{number % scene['agents']}"
        at = sim.now()
        reply = sim.handle("POST", f"/v1/agents/{agent_id}/execute", {}, {"x-api-key": "test-key"})
        submissions.append(
            {
                "agent_id": agent_id,
                "request_id": json.loads(reply.body)["data"]["requestId"],
                "taken_at": at.isoformat(),
                "sent_at": at.isoformat(),
                "server_before": at.replace(microsecond=0).isoformat(),
                "server_after": at.replace(microsecond=0).isoformat(),
            }
        )
    sim.requests.clear()
    with running_server(sim) as url:
        pipe.send((url, submissions))
        # The runs end so many seconds after this moment, on both sides.
        go = pipe.recv()
        shift[0] = -(go - start.timestamp())
        pipe.recv()
        pipe.send(len(sim.requests))
        pipe.recv()


def serve_dbt(scene: evidence.Figures, pipe: Connection[Any, Any]) -> None:
    """One endpoint of dbt Cloud's: how a run is."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from airflow_provider_agents.simulator.app import listen, url_of

    counts = {"requests": 0, "go": time.time()}

    async def run(request: Request) -> JSONResponse:
        counts["requests"] += 1
        over = time.time() - counts["go"] >= scene["ends"][int(request.path_params["run"])]
        return JSONResponse({"data": {"status": 10 if over else 3}})

    listening = listen("127.0.0.1", 0)
    app = Starlette(routes=[Route("/api/v2/accounts/1/runs/{run}/", run)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))

    async def main() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        pipe.send((url_of(listening), None))
        counts["go"] = await asyncio.to_thread(pipe.recv)
        await asyncio.to_thread(pipe.recv)
        pipe.send(counts["requests"])
        server.should_exit = True
        await serving

    asyncio.run(main())


# --- the triggerer, in a fresh process --------------------------------------------------------------------------------


def our_triggers(scene: evidence.Figures, url: str, submissions: Sequence[dict[str, str]]) -> Sequence[BaseTrigger]:
    # A triggerer lives for weeks, so what is imported once is no cost of waiting. dbt Cloud's comes with its trigger.
    from airflow.providers.common.compat.connection import get_async_connection  # noqa: F401
    from airflow.providers.common.compat.sdk import Stats  # noqa: F401

    import airflow_provider_agents.api.client
    import airflow_provider_agents.polling.poller  # noqa: F401
    from airflow_provider_agents.triggers import AgentRunTrigger

    os.environ["AIRFLOW_CONN_AGENTS_DEFAULT"] = json.dumps({"conn_type": "agents", "host": url, "password": "test-key"})
    deadline_at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    return [
        AgentRunTrigger(
            agents_conn_id="agents_default",
            submission=submission,
            poll_interval=INTERVAL,
            deadline_at=deadline_at,
            settle=30.0,
            appear_within=300.0,
            exclusive=False,
            on_ambiguous="all",
        )
        for submission in submissions
    ]


def idle_triggers(scene: evidence.Figures, url: str, submissions: Sequence[dict[str, str]]) -> Sequence[BaseTrigger]:
    """Ours, but all they do is wait: what a trigger and its task take by themselves."""
    from airflow_provider_agents.triggers import AgentRunTrigger

    class IdleTrigger(AgentRunTrigger):
        async def run(self) -> AsyncIterator[TriggerEvent]:
            await asyncio.Event().wait()
            yield None  # type: ignore[misc]  # never reached: only for a generator

    with mock.patch("airflow_provider_agents.triggers.AgentRunTrigger", IdleTrigger):
        return our_triggers(scene, url, submissions)


def dbt_triggers(scene: evidence.Figures, url: str, _: object) -> Sequence[BaseTrigger]:
    from airflow.providers.dbt.cloud.hooks.dbt import DbtCloudHook
    from airflow.providers.dbt.cloud.triggers.dbt import DbtCloudRunJobTrigger

    as_it_is = DbtCloudHook.get_request_url_params

    def plain_http(tenant: str, endpoint: str | None, *args: Any, **kwargs: Any) -> tuple[str, Any]:
        address, params = as_it_is(tenant, endpoint, *args, **kwargs)
        return address.replace("https://", "http://"), params

    DbtCloudHook.get_request_url_params = staticmethod(plain_http)
    os.environ["AIRFLOW_CONN_DBT_CLOUD_DEFAULT"] = json.dumps(
        {"conn_type": "dbt_cloud", "host": url.removeprefix("http://"), "login": "1", "password": "test-key"}
    )
    return [
        DbtCloudRunJobTrigger(
            conn_id="dbt_cloud_default",
            run_id=number,
            account_id=1,
            poll_interval=INTERVAL,
            end_time=time.time() + 86400,
        )
        for number in range(scene["runs"])
    ]


def resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - one read
        return int(file.read().split()[1]) * resource.getpagesize()


class Collector:
    """The CPU seconds of the garbage collector: a full collection falls into one window and not into another."""

    def __init__(self) -> None:
        self.cpu = self._began = 0.0
        gc.callbacks.append(self._collect)

    def _collect(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self.cpu += time.process_time() - self._began


class Flow:
    """How long the steps on a loop take: the longest one, and the longest without the garbage collector's part."""

    def __init__(self) -> None:
        self.longest = self.own = self._collecting = self._began = 0.0

    def _collect(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._collecting += time.perf_counter() - self._began

    def listen(self) -> None:
        step = asyncio.Handle._run  # noqa: SLF001 - asyncio has no other place to time each step
        gc.callbacks.append(self._collect)

        def timed(handle: asyncio.Handle) -> None:
            collected, began = self._collecting, time.perf_counter()
            step(handle)
            took = time.perf_counter() - began
            self.longest = max(self.longest, took)
            self.own = max(self.own, took - (self._collecting - collected))

        asyncio.Handle._run = timed  # type: ignore[assignment,method-assign]  # noqa: SLF001 - as above


def wait_for_all(
    triggers: Sequence[BaseTrigger], go: float, ends: Sequence[float], steps: Flow, listen: bool, idle: bool
) -> tuple[list[float | None], int, float, float, float]:
    """Run triggers as a triggerer does; when each event came, and what it took."""

    async def one(number: int, trigger: BaseTrigger) -> float | None:
        async for event in trigger.run():
            if event.payload.get("status") == "error":
                # dbt Cloud's trigger gives up at once if a request of its times out.
                return None
            assert {"completed", "success"} & {event.payload.get("outcome"), event.payload.get("status")}, event.payload
            return time.time() - go - ends[number]
        raise AssertionError("the trigger ended without an event")

    async def main() -> tuple[list[float | None], int, float, float, float]:
        if listen:
            # To time each step costs more CPU than our cycles do, so it is a run of its own.
            steps.listen()
        before, cpu = resident(), time.process_time()
        tasks = [asyncio.create_task(one(number, trigger)) for number, trigger in enumerate(triggers)]
        await asyncio.sleep(STEADY[0])
        collector = Collector()
        waiting, settled, began = resident() - before, time.process_time(), time.time()
        await asyncio.sleep(STEADY[1] - STEADY[0])
        cycles = (time.time() - began) / INTERVAL
        steady, collecting = (time.process_time() - settled) / cycles, collector.cpu / cycles
        if idle:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return [0.0], waiting, 0.0, steady, collecting
        delays = await asyncio.gather(*tasks)
        return delays, waiting, time.process_time() - cpu, steady, collecting

    return asyncio.run(main())


def child(side: str, scene: evidence.Figures) -> None:
    """One measurement; prints it as JSON."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve_dbt if side == "dbt" else serve_agents, args=(scene, theirs), daemon=True)
    server.start()
    url, submissions = pipe.recv()
    # What a triggerer has imported before its first trigger.
    import airflow.jobs.triggerer_job_runner  # noqa: F401

    output = os.dup(1)
    # Both log to the standard output, as a triggerer does to a file.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    triggers = {"ours": our_triggers, "idle": idle_triggers, "dbt": dbt_triggers}[side](scene, url, submissions)
    go = time.time()
    pipe.send(go)
    steps = Flow()
    found, waiting, cpu, cycle_cpu, cycle_gc = wait_for_all(
        triggers, go, scene["ends"], steps, listen=scene["listen"], idle=side == "idle"
    )
    failed = found.count(None)
    delays = [delay for delay in found if delay is not None]
    pipe.send(None)
    requests = pipe.recv()
    pipe.send(None)
    result = {
        "requests": requests,
        "cpu_s": cpu,
        "cycle_cpu_s": cycle_cpu,
        "cycle_gc_s": cycle_gc,
        "memory_kb": waiting / 1024,
        "mean_delay_s": statistics.fmean(delays) if delays else 0.0,
        "worst_delay_s": max(delays, default=0.0),
        "failed": failed,
        "delays_s": evidence.spread(delays) if delays else [],
        "step_gc_ms": steps.longest * 1e3,
        "step_ms": steps.own * 1e3,
    }
    os.write(output, json.dumps(result).encode() + b"\n")
    server.join(timeout=10)
    server.kill()


# --- the table --------------------------------------------------------------------------------------------------------


def measure(side: str, scene: evidence.Figures, *, listen: bool = False) -> evidence.Row:
    command = [sys.executable, __file__, "--child", side]
    scene = {**scene, "listen": listen}
    done = subprocess.run(command, input=json.dumps(scene), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: evidence.Row = json.loads(done.stdout.splitlines()[-1])
    return found


def scene_of(runs: int, agents: int, *, others: int = 0) -> evidence.Figures:
    rng = random.Random(runs)
    return {
        "runs": runs,
        "agents": agents,
        "others": others,
        "began_within": (EIGHT_HOURS - 600, EIGHT_HOURS - 60) if others else BEGAN_WITHIN,
        "ends": [rng.uniform(FIRST_END, LAST_END) for _ in range(runs)],
    }


STEPS = ("step_ms", "step_gc_ms")


def measure_row(trigger: str, runs: int, agents: int, *, others: int = 0) -> evidence.Row:
    """One row of the figures; prints the line of its table."""
    side = "dbt" if trigger == "dbt Cloud" else "ours"
    found = measure(side, scene_of(runs, agents, others=others))
    row = {"trigger": trigger, "runs": runs, "agents": agents, "others": others, **found}
    # What the longest step takes is measured apart.
    return {name: value for name, value in row.items() if name not in STEPS}


def further(runs: int, row: evidence.Row, first_run_kb: float) -> evidence.Row:
    """What the runs take beyond triggers that only wait."""
    scene = scene_of(runs, runs)
    idle, listened = measure("idle", scene, listen=True), measure("ours", scene, listen=True)
    return {
        "runs": runs,
        "kb": (row["memory_kb"] - idle["memory_kb"] - first_run_kb) / runs,
        **{name: listened[name] for name in STEPS},
        "idle_step_ms": idle["step_gc_ms"],
    }


def growth(ours: Mapping[tuple[int, int], evidence.Row]) -> dict[str, float]:
    """The CPU of a run and poll cycle, without the garbage collector: 10,000 runs over 1,000."""
    ratios = {}
    for name, *agents in (("one agent", 1, 1), ("100 agents", 100, 100), ("an agent each", 10000, 1000)):
        rows = ours[10000, agents[0]], ours[1000, agents[1]]
        many, few = (row["cycle_cpu_s"] - row["cycle_gc_s"] for row in rows)
        ratios[name] = many / few / 10
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", choices=("ours", "idle", "dbt"), help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, nargs="*", default=ALL_RUNS, help="how many runs to wait for")
    parser.add_argument("--without-dbt", action="store_true", help="only ours")
    parser.add_argument("--busy", action="store_true", help="the machine does other work: save the rows apart")
    options = parser.parse_args()
    if options.child:
        child(options.child, json.load(sys.stdin))
        return
    if not options.without_dbt and importlib.util.find_spec("airflow.providers.dbt") is None:
        sys.exit("dbt Cloud's provider is missing: run `make benchmark`, or give --without-dbt.")
    print(f"Every {INTERVAL:g} s, runs that end {FIRST_END:g} to {LAST_END:g} s after they are first waited for.\n")
    rows: list[evidence.Row] = []

    def add(trigger: str, runs: int, agents: int, *, others: int = 0) -> None:
        rows.append(measure_row(trigger, runs, agents, others=others))
        print(evidence.waits({"rows": rows}).splitlines()[-1], flush=True)

    print(evidence.waits({"rows": []}))
    for runs in options.runs:
        if not options.without_dbt:
            add("dbt Cloud", runs, runs)
        for agents in sorted({1, 100, runs}):
            add("ours", runs, agents)
    ours = {(row["runs"], row["agents"]): row for row in rows if row["trigger"] == "ours"}
    add("ours", 20, 20, others=100_000)
    if options.busy:
        evidence.save("triggerer_busy", command="benchmarks/triggerer.py --busy --runs 1000", rows=rows)
        return

    alone = measure("ours", scene_of(1, 1))["memory_kb"] - measure("idle", scene_of(1, 1))["memory_kb"]
    more: evidence.Figures = {
        "first_run_kb": alone,
        "further": [further(runs, ours[runs, runs], alone) for runs in options.runs],
    }
    more["growth"] = growth(ours) if {1000, 10000} <= set(options.runs) else {}
    print(f"\n{evidence.growth(more)}")
    if options.runs == ALL_RUNS and not options.without_dbt:
        evidence.save("triggerer", command="make benchmark", rows=rows, **more)


if __name__ == "__main__":
    main()
