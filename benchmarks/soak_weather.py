"""What goes wrong around the tasks of `make soak`: faults, refusals, outages, new keys, another kind of platform."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx

from airflow_provider_agents.simulator import Fault, SimulatorConfig, mock_transport

if TYPE_CHECKING:
    import random

    from airflow_provider_agents.simulator import Simulator
    from airflow_provider_agents.simulator.faults import FaultKind
    from benchmarks.soak import Soak

DAY = 86_400.0
OUTAGE_SECONDS = 3600.0
#: One request in so many goes wrong.
ONE_IN = 200
#: What gateways and maintenance pages answer for a while, and how long at most, in seconds.
REFUSALS, LONGEST_REFUSAL = (302, 400, 403, 404, 503), 60.0
#: The platform lists what has ended for this long; the simulator remembers it for twice that.
RETENTION_SECONDS = 3 * 3600.0
#: The platform at first.
FIRST_CONFIG = SimulatorConfig(
    request_id="absent",
    record_lag=lambda rng: rng.uniform(0, 10),
    queue_seconds=lambda rng: rng.choice([0.0, 2.0, 60.0]),
    run_seconds=lambda rng: min(rng.expovariate(1 / 600), 4 * 3600.0),
    end_status=lambda rng: rng.choice(["COMPLETED", "COMPLETED", "COMPLETED", "FAILED"]),
    retention_seconds=RETENTION_SECONDS,
    page_rows=25,
)


class Transport(httpx.AsyncBaseTransport):
    """The simulator, some virtual time away. Counts the requests, and those that are open."""

    def __init__(self, soak: Soak) -> None:
        self.soak, self.inner = soak, mock_transport(soak.sim)
        soak.open_transports += 1

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.05)
        self.soak.weather.spoil(request.method)
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        self.soak.open_transports -= 1


class Weather:
    """What goes wrong, and how often it has.

    Args:
        sim: the platform.
        rng: draws everything.
        days: how long the soak lasts.
    """

    def __init__(self, sim: Simulator, rng: random.Random, days: float) -> None:
        self.sim, self.rng, self.days = sim, rng, days
        self.key, self.outages, self.rotations, self.refusals = "key-0", 0, 0, 0
        self.requests = 0
        self.faults: Counter[str] = Counter()

    def spoil(self, method: str) -> None:
        """Let the next request go wrong now and then."""
        self.requests += 1
        if self.sim.faults or self.rng.randrange(ONE_IN):
            return
        kinds = [Fault(kind="status", status=429, headers={"Retry-After": "240"})]
        if method == "GET":
            # A lost POST is another test's concern: another party's run can be taken for the run that it did not start.
            kinds += [Fault(kind="status", status=500), Fault(kind="status", status=503)]
            odd: tuple[FaultKind, ...] = ("reset_before", "reset_after", "hang_after", "html", "truncated")
            kinds += [Fault(kind=kind) for kind in odd]
        fault = self.rng.choice(kinds)
        self.faults[str(fault.status) if fault.kind == "status" else fault.kind] += 1
        self.sim.faults.append(fault)

    def all(self) -> list[asyncio.Future[None]]:
        """All that happens meanwhile, until it is cancelled."""
        happens = [self._go_down(), self._refuse(), self._rotate_keys(), self._change_the_platform()]
        return [asyncio.ensure_future(each) for each in happens]

    async def _go_down(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(0.3, 0.7) * DAY)
            self.outages += 1
            self.sim.faults[:] = [Fault(kind=self.rng.choice(["status", "reset_before"]), method="GET", times=None)]
            await asyncio.sleep(OUTAGE_SECONDS)
            self.sim.faults.clear()

    async def _refuse(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(0.02, 0.1) * DAY)
            if self.sim.faults:
                continue
            self.refusals += 1
            fault = Fault(kind="status", status=self.rng.choice(REFUSALS), method="GET", times=None)
            self.sim.faults.append(fault)
            await asyncio.sleep(self.rng.uniform(1, LONGEST_REFUSAL))
            if fault in self.sim.faults:
                self.sim.faults.remove(fault)

    async def _rotate_keys(self) -> None:
        while True:
            await asyncio.sleep(0.4 * DAY)
            self.rotations += 1
            self.key = f"key-{self.rotations}"
            self.sim.api_keys = (self.key,)

    async def _change_the_platform(self) -> None:
        """By turns nothing tells which event is whose, and its `requestId` does."""
        for turn in range(1, 10**6):
            await asyncio.sleep(0.25 * self.days * DAY)
            self.sim.config = replace(self.sim.config, request_id="field" if turn % 2 else "absent")
