"""The copy of a record: its key, and what is taken for a copy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_agents.runs.copies import PREFIX, RecordCopy, TaskPlace, key_of, prefix_of
from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.versioned_json import UnusableDataError

NOW = datetime(2026, 1, 1, 9, tzinfo=UTC)
PLACE = TaskPlace(dag_id="dag", run_id="manual", task_id="run")
SUBMISSION = Submission(agent_id="agent-1", request_id="req-1", taken_at=NOW, sent_at=NOW)
COPY = RecordCopy(
    place=PLACE,
    record=RunRecord(
        phase=Phase.ACCEPTED,
        agents_conn_id="agents_default",
        submission=SUBMISSION,
        attempt=Attempt(try_number=1, max_tries=3),
    ),
    written_at=NOW,
    until=NOW + timedelta(days=31),
)


def test_a_copy_survives_a_round_trip():
    assert RecordCopy.kept_under(COPY.key, COPY.to_text()) == COPY


def test_a_key_says_whose_runs_first_and_fits_airflow():
    assert COPY.key == key_of("agents_default", "agent-1", PLACE)
    assert COPY.key.startswith(prefix_of("agents_default", "agent-1"))
    assert prefix_of("agents_default", "agent-1").startswith(PREFIX)
    long = TaskPlace(dag_id="d" * 250, run_id="r" * 250, task_id="t" * 250, map_index=1000)
    assert len(key_of("c" * 200, "a" * 200, long)) <= 250


def test_every_part_of_a_place_tells_it_from_others():
    places = [
        PLACE,
        *(PLACE.model_copy(update={name: "other"}) for name in ("dag_id", "run_id", "task_id")),
        *(
            PLACE.model_copy(update=one)
            for one in ({"map_index": 0}, {"loop_index": 0}, {"map_index": 0, "loop_index": 0})
        ),
        TaskPlace(dag_id="dagmanual", run_id="", task_id="run"),
    ]
    assert len({key_of("c", "a", place) for place in places}) == len(places)


def test_the_keys_of_one_agents_copies_begin_alike_and_those_of_others_do_not():
    others = {prefix_of(conn, agent) for conn in ("c", "ca", "") for agent in ("agent", "gent", "cagent")}
    assert len(others) == 9


@pytest.mark.parametrize(
    ("update", "name"),
    [
        ({}, "dag.run"),
        ({"map_index": 3}, "dag.run[3]"),
        ({"loop_index": 0}, "dag.run in iteration 0"),
        ({"map_index": 3, "loop_index": 2}, "dag.run[3] in iteration 2"),
    ],
)
def test_a_place_has_a_name(update, name):
    assert PLACE.model_copy(update=update).name == name


@pytest.mark.parametrize("text", ["", "secret", "[]", "{}", '{"version": 2}', "\x00", '"a text"'])
def test_what_is_no_copy_is_refused_without_its_content(text):
    with pytest.raises(UnusableDataError) as refused:
        RecordCopy.kept_under("agent_run/key", text)
    assert "secret" not in str(refused.value)


def test_the_copy_of_another_task_is_refused():
    with pytest.raises(UnusableDataError, match="the one of another task"):
        RecordCopy.kept_under(
            key_of("agents_default", "agent-1", PLACE.model_copy(update={"map_index": 0})), COPY.to_text()
        )
