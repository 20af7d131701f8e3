"""Hostile answers, a few thousand of them. `make fuzz` sends a million."""

from __future__ import annotations

import random
from importlib.metadata import version
from pathlib import Path

import pytest
from episodes import BYSTANDER, Episode
from fuzzing import SLOWEST_SECONDS, WAYS, connections, environments, pages, run, worker
from hostile_answers import KEY, any_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_agents import clock
from airflow_provider_agents.plugin import is_supported


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6))
def test_whatever_is_answered_is_read_or_ends_in_a_typed_error(way, seed):
    if way is pages and not is_supported(version("apache-airflow-core")):
        pytest.skip("the page needs Airflow 3.1.6")
    answers = 20 if way in {connections, environments} else 150
    tally, _, slowest = run(way, answers, seed)
    assert sum(tally.values()) >= answers
    assert slowest < SLOWEST_SECONDS


def test_each_way_begins_with_the_systems_time():
    before = clock.now()
    run(worker, 20, 1)
    assert abs((clock.now() - before).total_seconds()) < 3600


def test_a_log_of_tls_keys_is_written_to_no_folder_of_the_clone():
    def files():
        return {file for file in Path(__file__).parent.rglob("*") if "__pycache__" not in file.parts}

    before = files()
    for seed in range(6):
        run(environments, 100, seed)
    assert files() <= before


def start_again(episode):
    episode.sim.handle("POST", "/v1/agents/agent-0/execute", {}, {"X-Api-Key": KEY})


def take_anothers_event(episode):
    episode.tasks[0].result = {"id": episode.sim.executions[1].event_id}


def fail_without_a_reason(episode):
    episode.tasks[0].state = "failed"


def miss_a_report(episode):
    episode.reported.difference_update(run.event_id for run, _ in episode.sim.runs() if run.agent_id == BYSTANDER)


def print_the_key(episode):
    episode.output.write(KEY)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (start_again, "agent-0 was started twice"),
        (take_anothers_event, "agent-0: success"),
        (fail_without_a_reason, "agent-0: failed"),
        (miss_a_report, "the watcher missed"),
        (print_the_key, "fuzz-0123456789"),
    ],
)
def test_the_judge_of_episodes_sees_each_kind_of_mistake(mistake, words):
    seeds = (random.Random(seed) for seed in range(100))
    episodes = (Episode(rng, any_value, KEY) for rng in seeds)
    # One that ends well: with a watcher, and an agent that is not deleted.
    episode = next(one for one in episodes if one.is_watched and one.play()[0] == "success")
    mistake(episode)
    with pytest.raises(AssertionError, match=words):
        episode.judge()
