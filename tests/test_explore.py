"""Every order of a small scope, and that a fault in it is found. `make explore` plays the large scope."""

from __future__ import annotations

from functools import partial

import pytest
from conftest import Store
from exploring import Explorer, Order
from life_judge import Exploration
from lives import LONG, SHORT, Scope, Shape

from airflow_provider_agents.operators import ExecuteAgentOperator


class ForgetsPosts(Store):
    """A fault made on purpose: the record is not written before the POST."""

    def set(self, key, value, *, retention=None):
        if value["phase"] != "submitting":
            super().set(key, value, retention=retention)


def explore(**scope):
    return Exploration(Scope(**{"clears": 0, "shapes": (LONG,), "odd_shapes": (), **scope}))


def kinds(exploration):
    return {fault.partition(":")[0] for fault in exploration.faults}


def test_orders_that_lead_to_one_state_are_followed_once():
    played = []

    def play(order: Order):
        done = []
        while len(done) < 2:
            done.append(order.choose("next", [name for name in "ab" if name not in done], lambda: str(sorted(done))))
        end = order.choose("end", ["well", "badly"], lambda: "both done")
        played.append((*done, end))
        return end

    explorer = Explorer(play)
    explorer.explore()
    assert len(played) == 2
    assert explorer.ends == {"well": 1, "badly": 1}
    assert (explorer.states, explorer.count_orders()) == (2, 4)


def test_a_state_that_says_too_little_is_refused():
    def play(order):
        for _ in range(3):
            order.choose("again", ["yes", "no"], lambda: "the same")

    explorer = Explorer(play)
    explorer.explore()
    with pytest.raises(RuntimeError, match="a state follows from itself"):
        explorer.count_orders()


@pytest.mark.parametrize(
    "scope",
    [
        {"wait": "worker"},
        {"wait": "deferred", "copies": True},
        {"wait": "trigger", "copies": True},
        {"wait": "deferred", "faults": 0, "sibling": True},
        {"wait": "deferred", "faults": 0, "stranger": True},
    ],
    ids=lambda scope: str(Scope(**scope)),
)
def test_in_every_order_each_run_was_wanted_and_each_end_is_true(scope):
    exploration = explore(**scope)
    assert exploration.faults == {}
    assert exploration.explorer.count_orders() >= exploration.explorer.runs > 20
    assert set(exploration.ends) <= {"succeeded with its run", "succeeded with a run that ended like its own"}


def test_a_store_that_loses_the_record_of_a_post_is_found_out():
    exploration = explore(wait="worker", store=ForgetsPosts)
    assert kinds(exploration) == {"doubled"}
    assert ["A: write of the record: accepted: killed", "A is up_for_retry: retry soon"] in exploration.faults.values()


def test_a_task_that_remembers_nothing_is_found_out():
    exploration = explore(wait="worker", tries=1, operator=partial(ExecuteAgentOperator, durable=False))
    assert kinds(exploration) == {"lost"}


def test_a_task_that_takes_any_run_for_its_own_is_found_out():
    shapes = SHORT, Shape("FAILED", 5.0, lag=25.0)
    operator = partial(ExecuteAgentOperator, exclusive=True)
    exploration = explore(faults=0, stranger=True, shapes=shapes, tries=1, operator=operator)
    assert kinds(exploration) == {"wrong"}
