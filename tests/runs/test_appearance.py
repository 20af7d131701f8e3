"""How long after its acceptance a run's event was first seen."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from driving import Scene, wait_on_worker

from airflow_provider_agents.runs.appearance import Appearance
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import SimulatorConfig


def looks(*looked, settle=30.0):
    appearance = Appearance(settle)
    for passed, is_shown in looked:
        appearance.look(passed, is_shown=is_shown)
    return appearance.seconds, appearance.is_slow


@pytest.mark.parametrize(
    ("looked", "seen"),
    [
        ([(3, True)], (3, False)),
        ([(-0.5, True)], (0, False)),
        ([(3, False), (8, True), (29, True)], (8, False)),
        ([(19, False), (24, True)], (24, False)),
        ([(20, False), (25, True)], (25, True)),
        ([(35, False), (60, True)], (60, True)),
        ([(3, False), (8, False)], (None, False)),
    ],
)
def test_the_first_look_that_shows_the_event_says_when_it_appeared(looked, seen):
    assert looks(*looked) == seen


@pytest.mark.parametrize("looked", [[(3600, True)], [(3, False), (31, True)]])
def test_a_first_look_after_a_long_time_without_any_says_nothing(looked):
    assert looks(*looked) == (None, False)


def scene_of(lag, **more):
    return Scene(SimulatorConfig(record_lag=lag, **more), queue_seconds=0.0, run_seconds=60.0)


def waited(scene, submission=None, policy=None):
    """A tracker after its wait, and what was logged."""
    tracker = RunTracker(submission or scene.submitted(), policy or WaitPolicy())
    said = []
    wait_on_worker(
        scene.client,
        tracker,
        scene.clock,
        scene.clock.advance,
        deadline_at=scene.clock() + timedelta(hours=1),
        say=lambda level, words: said.append((level, words)),
    )
    return tracker, [words for level, words in said if level == logging.WARNING]


@pytest.mark.parametrize("config", [{}, {"request_id": "field"}, {"date_header": False}], ids=repr)
def test_a_wait_knows_how_soon_the_event_appeared(config):
    tracker, warnings = waited(scene_of(9.0, **config))
    assert tracker.appearance.seconds == pytest.approx(10.0, abs=2.5)
    assert warnings == []


def test_a_wait_on_a_worker_warns_of_an_event_that_is_almost_late():
    _, (warning,) = waited(scene_of(26.0))
    assert "Raise settle in the connection" in warning
    assert "and settle is 30 seconds" in warning
    assert "agent=agent-0" in warning


def test_an_exclusive_run_that_ends_at_once_says_when_it_appeared():
    scene = Scene(SimulatorConfig(record_lag=3.0), queue_seconds=0.0, run_seconds=4.0)
    tracker, _ = waited(scene, policy=WaitPolicy(exclusive=True))
    assert tracker.appearance.seconds == pytest.approx(5.0, abs=2.0)


def test_nothing_is_said_where_several_events_could_be_the_runs():
    scene = scene_of(0.0)
    submission = scene.submitted()
    scene.sim.start_scheduled_run("agent-0")
    assert waited(scene, submission)[0].appearance is None


def test_nothing_is_said_of_a_run_that_was_not_seen_accepted():
    scene = scene_of(0.0)
    in_doubt = scene.submitted().changed(in_doubt=True)
    assert waited(scene, in_doubt)[0].appearance is None
    event = Submission(agent_id="agent-0", event_id=waited(scene)[0].events[0].id, taken_at=scene.clock())
    assert waited(scene, event)[0].appearance is None
