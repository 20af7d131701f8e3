"""A day of the month that `make soak` lives through."""

from __future__ import annotations

import os

from benchmarks.soak import Soak


def test_after_a_day_of_faults_and_new_keys_every_verdict_is_right_and_nothing_left():
    soak = Soak(runs=400, days=1, agents=20, seed=7, samples=3)
    assert soak.run() == []
    assert soak.executed == 400
    # Had there been no outage, it would prove little.
    assert soak.weather.outages
    assert soak.weather.rotations
    assert soak.weather.refusals
    assert soak.weather.faults.total() > 5
    assert soak.pollers_made > 10
    assert {"completed", "failed", "cancelled", "timed_out", "shared out", "deleted"} <= set(soak.verdicts)


def test_an_event_that_is_told_twice_and_a_descriptor_that_stays_open_are_seen():
    class Careless(Soak):
        def tell(self, event):
            super().tell(event)
            if self.tellings == 10:
                super().tell(event)
                self.kept = os.open(os.devnull, os.O_RDONLY)

    soak = Careless(runs=20, days=0.1, agents=20, seed=7, samples=1)
    failures = soak.run()
    os.close(soak.kept)
    assert ["told again" in failures[0], "file descriptors" in failures[-1], len(failures)] == [True, True, 2]


def test_an_event_that_is_given_to_two_tasks_is_seen():
    class Careless(Soak):
        def is_right(self, *verdict):
            # As if another task had been given its event before.
            super().is_right(*verdict)
            return super().is_right(*verdict)

    failures = Careless(runs=20, days=0.1, agents=20, seed=7, samples=1).run()
    assert any("a wrong verdict" in words for words in failures)
