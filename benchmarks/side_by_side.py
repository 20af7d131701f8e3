"""What a thousand tasks that wait for one agent cost together: the CPU in all, and of the longest step.

Run it with `make side-by-side`. Time is virtual, and the platform is simulated. A step is what the poll does between
two turns of the event loop; the platform's own work is not counted. No other trigger runs in the meantime.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run as a script, so the tests' own modules must be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from driving import Driver
from sibling_worlds import Task, World, config_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_agents.api.flow import Flow

TASKS = 1000
#: Seconds from one start to the next, and how many runs of another party are among them.
WORLDS = ((0.0, 0), (0.05, 0), (0.01, 3), (0.01, 300))


class MeasuringDriver(Driver):
    """A driver that measures each step."""

    steps: list[float]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.steps = []

    def follow_all(self, batch: Iterable[Flow[None]]) -> None:
        super().follow_all([self._measured(flow) for flow in batch])

    def _measured(self, flow: Flow[None]) -> Flow[None]:
        answer: object = None
        error: Exception | None = None
        while True:
            began = time.process_time()
            try:
                step = flow.throw(error) if error is not None else flow.send(answer)
            except StopIteration:
                return
            finally:
                self.steps.append(time.process_time() - began)
            answer = error = None
            try:
                answer = yield step
            except Exception as failure:  # noqa: BLE001 - the flow is given whatever the request raised
                error = failure


def measure(gap: float, others: int) -> None:
    """Play one world and print its row."""
    starts = [number * TASKS * gap / others for number in range(others)]
    config = config_of(random.Random(1), failing=0.1, run_seconds=60.0)
    world = World(config, [Task(number * gap) for number in range(TASKS)], other_starts=starts, driver=MeasuringDriver)
    gc.disable()
    world.play()
    gc.enable()
    steps = [step for driver in world.drivers if isinstance(driver, MeasuringDriver) for step in driver.steps]
    twice = sum(times - 1 for times in world.handed_on.values())
    ended = ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(world.outcomes()).items()))
    print(
        f"| {gap:g} | {others} | {sum(steps):.1f} | {1000 * sum(steps) / TASKS:.1f} | {1000 * max(steps):.0f} "
        f"| {ended} | {twice} |"
    )


if __name__ == "__main__":
    print("| s from start to start | runs of others | CPU s | ms a task | longest step, ms | ended | event to two |")
    print("| --: | --: | --: | --: | --: | --- | --: |")
    for gap, others in WORLDS:
        measure(gap, others)
