"""Which rows that cannot be read are logged, and how often."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_agents import clock
from airflow_provider_agents.api.models import Agent, ExecutionEvent, Page, read_agent, read_event
from airflow_provider_agents.api.rows import FORGOTTEN_AFTER, LOGGED_ONE_BY_ONE, MOST_ROWS, WarnOnce
from airflow_provider_agents.testing.skipped_time import SkippedTime


def page(*rows):
    return Page[ExecutionEvent].of({"data": list(rows)}, read_event)


def odd(name, **fields):
    return {"id": name, "agentId": "a", "status": None, **fields}


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)

    def read():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    return read


def test_a_row_is_logged_once_with_its_reason_its_agent_and_its_event(warnings):
    once = WarnOnce()
    for _ in range(3):
        once.check(page(odd("e"), {"id": "fine", "status": "RUNNING"}))
    (line,) = warnings()
    assert "counts as still running: status: " in line
    assert line.endswith("agent=a event=e")


@pytest.mark.parametrize("second", [odd("f"), odd("e", status=[], agentId="b"), {**odd("e"), "id": 7}])
def test_another_row_is_logged_too(warnings, second):
    once = WarnOnce()
    once.check(page(odd("e")))
    once.check(page(second))
    assert len(warnings()) == 2


def test_rows_without_an_id_are_logged_once_for_each_agent_and_reason(warnings):
    once = WarnOnce()
    once.check(page(*({"agentId": agent, "createdAt": f"{n}"} for agent in ("a", "b") for n in range(3))))
    assert [line.rpartition("agent=")[2] for line in warnings()] == ["a event=unknown", "b event=unknown"]


def test_a_page_full_of_such_rows_is_counted(warnings):
    WarnOnce().check(page(*(odd(f"e-{n}") for n in range(50))))
    *named, count = warnings()
    assert len(named) == LOGGED_ONE_BY_ONE
    assert f"{50 - LOGGED_ONE_BY_ONE} other" in count


def test_what_is_remembered_is_bounded_and_does_not_repeat_itself(warnings):
    once = WarnOnce()
    for n in range(0, 2 * MOST_ROWS, 50):
        once.check(page(*(odd(f"e-{n + m}") for m in range(50))))
    assert len(warnings()) == MOST_ROWS // 50 * (LOGGED_ONE_BY_ONE + 1)
    once.check(page(odd("e-0"), odd("new")))
    assert warnings() == []
    later = SkippedTime()
    later.advance(FORGOTTEN_AFTER.total_seconds())
    with clock.replaced_by(later):
        once.check(page(odd("newer")))
    assert len(warnings()) == 1


def test_an_agent_without_an_id_is_logged(warnings):
    WarnOnce().check(Page[Agent].of({"data": [{"id": None}]}, read_agent))
    (line,) = warnings()
    assert "list of agents" in line


def test_what_is_no_page_has_no_rows(warnings):
    WarnOnce().check(read_agent({"id": None}))
    assert warnings() == []
