"""A platform whose answers are changed on their way, for the ways of `make fuzz` that need a whole one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from driving import Scene
from hostile_answers import KEY, check_error, check_value, hostile

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.simulator import Reply, SimulatorConfig, mock_transport

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable

    from airflow_provider_agents.api.flow import ApiCall, Response
    from airflow_provider_agents.simulator import IncomingRequest


class HostileScene(Scene):
    """The simulator behind somebody who changes what it answers."""

    def __init__(self, rng: random.Random, tally: Counter[str], share: float) -> None:
        super().__init__(
            SimulatorConfig(
                request_id=rng.choice(["field", "id", "absent"]),
                sort_by=rng.choice(["createdAt", "startedAt"]),
                nulls=rng.choice(["first", "last"]),
                record_lag=rng.choice([0.0, 3.0]),
                page_rows=rng.choice([None, 3]),
                endless_tokens=rng.random() < 0.02,
            ),
            agents=3,
            seed=rng.randrange(10**6),
            queue_seconds=2.0,
            run_seconds=30.0,
        )
        self.fuzz, self.tally, self.share, self.answers = rng, tally, share, 0

        def spoilt(_: IncomingRequest, answer: Callable[[], Reply]) -> Reply:
            self.answers += 1
            reply = answer()
            if rng.random() >= self.share:
                return reply
            # A refused key ends everything at once, so there is less of it.
            status, headers, body = hostile(rng, reply.status, dict(reply.headers), reply.body)
            return Reply(status if status != 401 or rng.random() < 0.1 else 503, printable(headers), body)

        self.sim.intercept(spoilt)
        self.sim.api_keys = (KEY,)
        tallied = CountingClient(
            Settings(api_key=KEY, base_url="http://127.0.0.1"),
            transport=mock_transport(self.sim),
        )
        tallied.tally = tally
        self.client.close()
        self.client = self.driver.client = tallied


def printable(headers: dict[str, str]) -> dict[str, str]:
    """As httpx takes them."""
    return {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}


class CountingClient(Client):
    tally: Counter[str]

    def send_once(self, call: ApiCall[Any]) -> Response[Any]:
        try:
            answer = super().send_once(call)
        except AgentsError as error:
            self.tally[check_error(error)] += 1
            raise
        self.tally["read"] += 1
        check_value(answer.value)
        return answer
