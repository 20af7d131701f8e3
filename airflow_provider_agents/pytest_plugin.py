"""The pytest plugin: one fixture, `agents_simulator`.

Every pytest of an environment with this package loads this module, whether or not it has to do with agents. So it
imports nothing else, and everything is loaded by the first test that asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_agents.testing import AgentsSimulator


@pytest.fixture
def agents_simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentsSimulator]:
    """The agents platform, simulated: the connection `agents_default` leads to it, and waits take no time."""
    from airflow_provider_agents.testing import simulated_agents

    with simulated_agents(monkeypatch) as simulator:
        yield simulator
