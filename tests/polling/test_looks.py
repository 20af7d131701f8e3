"""What a plan gives to those who wait, and what it does not: which states, whose events, and as of when."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from driving import Gate, Scene

from airflow_provider_agents.api.endpoints import list_events
from airflow_provider_agents.api.errors import AuthenticationError, TemporaryError
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.polling.plan import PollStats
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import CompletionTracker
from airflow_provider_agents.runs.matching import SearchCriteria
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.patience import REFUSED_SECONDS
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import SimulatorConfig

EVENTS = "/v1/events"


class Witness:
    """Seeks for ever, or follows some events, and keeps what it is given."""

    def __init__(self, agent_id="agent-0", *, not_before=None, following=()):
        self.agent_id = agent_id
        self.criteria = None if following else SearchCriteria(not_before=not_before, ids=(), decidable_at=None)
        self.active = tuple(following)
        self.has_changed = False
        self.listings, self.updates = [], []

    def apply_listing(self, listing, _began_at):
        self.listings.append(listing)

    def apply_event(self, event):
        self.updates.append(event)

    def expire(self):
        return "expired"


def watch(scene, witness, **join):
    return scene.driver.subscribe(witness, deadline_at=scene.clock.now + timedelta(hours=9), **join)


def refused_account(path, _query):
    return 403 if path == EVENTS else None


def states(listing):
    return {event.id: event.status for event in listing.events}


def slow_down(scene, seconds):
    """From now on, each answer takes so long."""

    def slow(_request, answer):
        reply = answer()
        scene.clock.advance(seconds)
        return reply

    scene.sim.intercept(slow)


# --- as of when ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["account", "agents"])
def test_a_look_is_as_old_as_its_first_page(way):
    # A walk over many pages takes long; what began meanwhile may be on none of them.
    scene = Scene(SimulatorConfig(page_rows=10), agents=2, queue_seconds=0.0, run_seconds=9000.0)
    not_before = scene.sim.now()
    for _ in range(25):
        scene.clock.advance(10)
        scene.sim.start_scheduled_run("agent-0")
    scene.driver.rng = None
    witnesses = [Witness(agent_id, not_before=not_before) for agent_id in scene.agents]
    for witness in witnesses:
        watch(scene, witness)
    Gate(scene, refused_account if way == "agents" else lambda path, query: None).cycle()
    slow_down(scene, 5)
    scene.cycle()
    began_at = scene.clock.now - timedelta(seconds=scene.driver.at().monotonic - scene.driver.cycles[-1])
    first, second = ((witness.listings[-1].server_time - began_at).total_seconds() for witness in witnesses)
    assert len(witnesses[0].listings[-1].events) == 25
    # By agents, one after the other, in either order: four pages of the one, two of the other, five seconds each.
    assert (round(first), round(second)) in ([(0, 0)] if way == "account" else [(0, 20), (10, 0)])


# --- which state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent_id", ["agent-0", ACCOUNT])
def test_who_seeks_is_not_shown_an_older_state_after_a_newer_one(agent_id):
    scene = Scene(SimulatorConfig(), queue_seconds=20.0, run_seconds=9000.0)
    not_before = scene.sim.now()
    event_id = scene.sim.start_scheduled_run("agent-0")
    scene.clock.advance(1)
    witness = Witness(agent_id, not_before=not_before)
    watch(scene, witness)
    pending = scene.sim.row(event_id)
    scene.cycle()
    assert states(witness.listings[-1]) == {event_id: "PENDING"}
    scene.clock.advance(30)
    scene.cycle()
    assert states(witness.listings[-1]) == {event_id: "RUNNING"}
    scene.sim.corrupt(event_id, {name: pending[name] for name in ("status", "startedAt", "updatedAt")})
    scene.cycle()
    assert states(witness.listings[-1]) == {event_id: "RUNNING"}


def test_who_follows_is_not_told_an_older_state_after_a_newer_one():
    scene = Scene(SimulatorConfig(), queue_seconds=20.0, run_seconds=9000.0)
    event_id = scene.sim.start_scheduled_run("agent-0")
    pending = scene.sim.row(event_id)
    scene.clock.advance(1)
    witness = Witness(following=[ExecutionEvent.model_validate(pending)])
    watch(scene, witness)
    scene.clock.advance(30)
    scene.cycle(3)
    emitted = [event.status for event in witness.updates]
    assert emitted == ["RUNNING"]
    scene.sim.corrupt(event_id, {name: pending[name] for name in ("status", "startedAt", "updatedAt")})
    scene.cycle(5)
    assert [event.status for event in witness.updates] == emitted


# --- whose -----------------------------------------------------------------------------------------------------------


def test_an_agents_own_listing_says_whose_its_events_are_though_they_do_not():
    scene = Scene(SimulatorConfig(), queue_seconds=40.0, run_seconds=9000.0)
    scene.sim.corrupt(None, {"agentId": None})
    not_before = scene.sim.now()
    event_id = scene.sim.start_scheduled_run("agent-0")
    witness = Witness(not_before=not_before)
    watch(scene, witness)
    gate = Gate(scene)
    gate.cycle()
    assert states(witness.listings[-1]) == {event_id: "PENDING"}
    scene.clock.advance(60)
    gate.cycle()
    assert states(witness.listings[-1]) == {event_id: "RUNNING"}


@pytest.mark.parametrize("narrowed", [True, False])
def test_an_agents_own_listing_ends_the_wait_for_an_event_without_an_agent(narrowed):
    scene = Scene(SimulatorConfig(request_id="field"), agents=3, queue_seconds=0.0, run_seconds=100.0)
    scene.sim.corrupt(None, {"agentId": None})
    gate = Gate(
        scene,
        lambda path, query: 403 if path == EVENTS else 400 if not narrowed and "startedAfter" in query else None,
    )
    subscriptions = []
    for agent_id in scene.agents:
        subscriptions.append(scene.waiting(agent_id))
        scene.clock.advance(10)
    gate.cycle(2)
    assert all(subscription.following for subscription in subscriptions)
    scene.clock.advance(80)
    before = len(scene.driver.cycles)
    assert {verdict.outcome for verdict in scene.driver.wait_for(*subscriptions)} == {Outcome.COMPLETED}
    # The last of them ends ten seconds later.
    assert len(scene.driver.cycles) - before <= 4


@pytest.mark.parametrize("named", [True, False])
def test_a_run_is_not_overlooked_behind_a_page_of_others_that_wait_for_their_turn(named):
    # By `startedAt`, which it does not have yet, it stands behind all that has begun; and others queue before it.
    scene = Scene(SimulatorConfig(sort_by="startedAt", nulls="last"), queue_seconds=0.0, run_seconds=1.0)
    scene.sim.add_history("agent-0", 300, every=30.0, run_seconds=1.0)
    scene.sim.add_agent("agent-0", queue_seconds=9000.0, run_seconds=1.0)
    scene.sim.corrupt(None, {} if named else {"agentId": None})
    not_before = scene.sim.now()
    event_ids = {scene.sim.start_scheduled_run("agent-0") for _ in range(450)}
    witness = Witness(not_before=not_before)
    watch(scene, witness)
    scene.cycle()
    assert event_ids <= set(states(witness.listings[-1]))


# --- nobody else's ---------------------------------------------------------------------------------------------------


def test_who_leaves_takes_nothing_from_those_who_follow_the_same_run():
    scene = Scene(queue_seconds=0.0, run_seconds=60.0)
    submission = scene.submitted()
    deadline_at = scene.clock.now + timedelta(hours=1)
    first, second, third = (
        scene.driver.subscribe(RunTracker(submission, WaitPolicy()), deadline_at=deadline_at) for _ in range(3)
    )
    scene.cycle(2)
    assert scene.plan.stats().followed == 1
    scene.plan.unsubscribe(first)
    scene.cycle(2)
    scene.driver.wait_for(second, third)
    assert second.result == third.result
    assert second.result.outcome == Outcome.COMPLETED
    assert scene.plan.stats().followed == 0


def test_who_follows_several_runs_follows_the_rest_once_one_is_over():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=60.0)
    submission = scene.submitted()
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=300.0)
    longer = scene.sim.start_scheduled_run("agent-0")
    subscription = scene.driver.subscribe(
        RunTracker(submission, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=1)
    )
    both = {scene.sim.executions[0].event_id, longer}
    while set(subscription.following) != both:
        scene.cycle()
    assert scene.plan.stats().followed == 2
    scene.clock.advance(60)
    scene.cycle()
    assert [event.id for event in subscription.subscriber.active] == [longer]
    assert scene.plan.stats().followed == 1
    scene.plan.unsubscribe(subscription)
    assert scene.plan.stats().followed == 0


def test_a_look_that_ends_one_wait_is_given_to_the_others_too():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=1.0)
    not_before = crowd(scene, events=1)
    scene.clock.advance(60)

    class Content(Witness):
        """Has what it wants with the first look."""

        def apply_listing(self, listing, began_at):
            super().apply_listing(listing, began_at)
            return "enough"

    content, first, second = (
        Content(not_before=not_before),
        Witness(not_before=not_before),
        Witness(not_before=not_before),
    )
    subscriptions = [watch(scene, witness) for witness in (first, content, second)]
    scene.cycle()
    assert [len(witness.listings) for witness in (first, content, second)] == [1, 1, 1]
    assert [subscription.result for subscription in subscriptions] == [None, "enough", None]
    # One that leaves while its listing is read keeps nothing from the others, either.

    def leave_meanwhile(_request, answer):
        scene.plan.unsubscribe(subscriptions[0])
        return answer()

    scene.sim.intercept(leave_meanwhile)
    scene.cycle()
    assert [len(witness.listings) for witness in (first, second)] == [1, 2]


# --- nothing at all --------------------------------------------------------------------------------------------------


def test_a_cycle_that_is_given_up_says_nothing_of_those_it_did_not_get_to():
    scene = Scene(SimulatorConfig(), agents=9, queue_seconds=0.0, run_seconds=9000.0)
    submissions = [scene.submitted(agent_id).changed(request_id=None) for agent_id in scene.agents]
    scene.driver.rng = None
    # Their runs have been due for an event long since; the listings would have shown it.
    scene.clock.advance(400)
    gate = Gate(scene, lambda path, query: refused_account(path, query) or 500)
    waits = [RunTracker(submission, WaitPolicy(appear_within=300.0)) for submission in submissions]
    subscriptions = [scene.driver.subscribe(wait, deadline_at=scene.clock.now + timedelta(hours=1)) for wait in waits]
    # The account's is refused; three of the agents' listings fail, and the rest is not tried.
    assert [path == EVENTS for path, _ in gate.cycle()] == [True, False, False, False]
    gate.cycle()
    assert not any(subscription.has_ended for subscription in subscriptions)
    assert all("500" in str(subscription.outage.error) for subscription in subscriptions)
    gate.refuse = refused_account
    gate.cycle(2)
    assert all(len(subscription.following) == 1 for subscription in subscriptions)


def test_windows_that_nobody_got_to_are_told_to_those_who_follow_them():
    scene = Scene(agents=9, queue_seconds=0.0, run_seconds=9000.0)
    gate = Gate(scene, refused_account)
    subscriptions = []
    for agent_id in scene.agents:
        scene.clock.advance(200)
        subscriptions.append(scene.waiting(agent_id))
    gate.cycle(2)
    scene.driver.rng = None
    gate.refuse = lambda path, query: refused_account(path, query) or 500
    assert len(gate.cycle()) == 3
    gate.cycle()
    assert all(subscription.outage is not None and subscription.outage.polls == 2 for subscription in subscriptions)
    gate.refuse = refused_account
    gate.cycle()
    assert all(subscription.outage is None for subscription in subscriptions)


def test_each_event_that_no_narrow_listing_shows_is_searched_for():
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=100.0)
    subscriptions = []
    for agent_id in scene.agents:
        scene.clock.advance(10)
        subscriptions.append(scene.waiting(agent_id))
    gate = Gate(scene, lambda path, query: 403 if path == EVENTS else None)
    gate.cycle(2)

    def without_narrow_rows(request, answer):
        reply = answer()
        narrow = "startedAfter" in request.query
        return dataclasses.replace(reply, body=b'{"data": [], "nextToken": null}') if narrow else reply

    scene.sim.intercept(without_narrow_rows)
    scene.clock.advance(100)
    scene.cycle()
    assert {subscription.result.outcome for subscription in subscriptions if subscription.has_ended} == {
        Outcome.COMPLETED
    }
    assert all(subscription.has_ended for subscription in subscriptions)


def test_an_event_without_a_time_is_not_lost_behind_one_with_a_time():
    # Of two followed events of an agent one says nothing of its time, so the search may not end above it.
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    old = scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=1.0)
    for _ in range(450):
        scene.clock.advance(20)
        scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=9000.0)
    young = scene.sim.start_scheduled_run("agent-0")
    row = scene.sim.row(young)
    witness = Witness(
        following=[
            ExecutionEvent(id=old, status="PENDING", agentId="agent-0"),
            # As a run that has not begun, so that both are searched for.
            ExecutionEvent.model_validate({**row, "status": "PENDING", "startedAt": None}),
        ]
    )
    watch(scene, witness)
    scene.clock.advance(5)
    Gate(scene, refused_account).cycle()
    assert {event.id for event in witness.updates} == {old, young}


def test_a_key_that_is_revoked_is_told_by_the_accounts_listing():
    scene = Scene(SimulatorConfig(), agents=3, queue_seconds=0.0, run_seconds=1000.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    gate = Gate(scene, lambda path, query: 401)
    # The key is the same for all listings, so one refusal is enough.
    assert [path for path, _ in gate.cycle()] == [EVENTS]
    assert [type(subscription.outage.error) for subscription in subscriptions] == [AuthenticationError] * 3
    scene.clock.advance(REFUSED_SECONDS)
    gate.cycle()
    assert [type(subscription.error) for subscription in subscriptions] == [AuthenticationError] * 3


# --- how much, and how soon ------------------------------------------------------------------------------------------


class Ripening(Witness):
    """Seeks, and nothing can be said before a moment."""

    def __init__(self, decidable_at, **known):
        super().__init__(**known)
        self.criteria = SearchCriteria(not_before=self.criteria.not_before, ids=(), decidable_at=decidable_at)


def crowd(scene, *, events):
    """So many runs of one agent, and the moment before them."""
    not_before = scene.sim.now()
    for _ in range(events):
        scene.sim.start_scheduled_run("agent-0")
    return not_before


def test_looks_that_decide_nothing_are_given_to_a_few_and_those_that_can_to_all():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    not_before = crowd(scene, events=50)
    later = scene.clock.now + timedelta(hours=1)
    early = [Ripening(later, not_before=not_before) for _ in range(30)]
    ripe = [Ripening(scene.clock.now, not_before=not_before) for _ in range(3)]
    subscriptions = [watch(scene, witness) for witness in (*early, *ripe)]
    scene.cycle()
    assert all(len(witness.listings) == 1 for witness in ripe)
    # A look at fifty events counts as a hundred, and two thousand are enough.
    assert sum(len(witness.listings) for witness in early) == 20
    # News of how a run is getting on; who can be told how it ended is woken by that.
    assert sum(scene.driver.woken.get(subscription, 0) for subscription in subscriptions[:30]) == 20
    assert not any(scene.driver.woken.get(subscription, 0) for subscription in subscriptions[30:])


def pauses_of(scene):
    """The pauses of the next cycle."""
    pause = scene.plan.next_at(scene.driver.at()) - scene.driver.at().monotonic
    scene.clock.advance(max(pause, 1e-6))
    assert scene.plan.is_due(scene.driver.at())
    found = []
    for batch in scene.plan.cycle(scene.driver.at()):
        for flow in batch:
            answer = None
            try:
                while True:
                    step = flow.send(answer)
                    answer = None
                    if not hasattr(step, "path"):
                        found.append(step.seconds)
                        continue
                    try:
                        answer = scene.client.send_once(step)
                    except TemporaryError as error:
                        flow.throw(error)
            except StopIteration:
                pass
    return found


def test_the_loop_gets_a_turn_while_an_outage_is_told():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    not_before = crowd(scene, events=1)
    subscriptions = [watch(scene, Witness(not_before=not_before)) for _ in range(100)]
    scene.cycle()
    Gate(scene, lambda path, query: 500)
    assert pauses_of(scene) == []
    # Each counts as fifty, and two thousand are a turn.
    assert pauses_of(scene) == [0] * 2
    assert all(subscription.outage is not None for subscription in subscriptions)


@pytest.mark.parametrize(("many", "pauses"), [(19, 0), (20, 1), (100, 5)])
def test_the_loop_gets_a_turn_while_looks_are_given(many, pauses):
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    # 49 events, fifty for the look itself and one for the turn.
    not_before = crowd(scene, events=49)
    for _ in range(many):
        watch(scene, Witness(not_before=not_before))
    assert pauses_of(scene) == [0] * pauses


def test_the_loop_gets_a_turn_before_thousands_are_looked_for():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=90_000.0)
    known = ExecutionEvent.model_validate(scene.sim.row(scene.sim.start_scheduled_run("agent-0")))
    for _ in range(999):
        watch(scene, Witness(following=[known]))
    scene.cycle()
    assert pauses_of(scene) == []
    watch(scene, Witness(following=[known]))
    scene.cycle()
    assert pauses_of(scene) == [0]


def test_the_loop_gets_a_turn_while_changes_are_given_to_many_followers():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=60.0)
    runs = [scene.sim.start_scheduled_run("agent-0") for _ in range(2)]
    known = [ExecutionEvent.model_validate(scene.sim.row(run)) for run in runs]
    witnesses = [Witness(following=known) for _ in range(150)]
    for witness in witnesses:
        watch(scene, witness)
    scene.cycle()
    scene.clock.advance(60)
    assert pauses_of(scene) == [0] * 3
    ended = [{event.id for event in witness.updates if event.status == "COMPLETED"} for witness in witnesses]
    assert ended == [set(runs)] * 150


def test_a_follower_that_leaves_while_a_change_is_given_gets_nothing_more():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=60.0)
    known = ExecutionEvent.model_validate(scene.sim.row(scene.sim.start_scheduled_run("agent-0")))
    witnesses = [Witness(following=[known]) for _ in range(150)]
    subscriptions = [watch(scene, witness) for witness in witnesses]
    scene.cycle()
    for witness in witnesses:
        witness.updates.clear()
    scene.clock.advance(60)

    def leave(_event):
        scene.plan.unsubscribe(subscriptions[-1])

    witnesses[0].apply_event = leave
    scene.cycle()
    assert witnesses[-2].updates
    assert not witnesses[-1].updates


# --- what cannot be read --------------------------------------------------------------------------------------------


def test_an_unreadable_row_reaches_the_waits_for_its_agent_or_the_account():
    scene = Scene(SimulatorConfig(), agents=3, queue_seconds=0.0, run_seconds=9000.0)
    not_before = scene.sim.now()
    runs = [scene.sim.start_scheduled_run(agent_id) for agent_id in scene.agents]
    scene.sim.corrupt(runs[0], {"status": None})
    witnesses = [Witness(agent_id, not_before=not_before) for agent_id in (ACCOUNT, *scene.agents)]
    for witness in witnesses:
        watch(scene, witness)
    scene.cycle()
    shown = [{event.id: event.unreadable is not None for event in witness.listings[-1].events} for witness in witnesses]
    assert shown == [{run: run == runs[0] for run in runs}, *({run: run == runs[0]} for run in runs)]


@pytest.mark.parametrize("odd", [{"status": None}, {"id": 7}, 7])
def test_a_row_counts_as_unreadable_only_in_the_look_that_shows_it_so(odd):
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    witness = Witness(not_before=scene.sim.now())
    run = scene.sim.start_scheduled_run("agent-0")
    watch(scene, witness)
    scene.sim.corrupt(run, odd)
    scene.cycle()
    scene.sim.restore(run)
    scene.cycle(2)
    assert [[event.unreadable is None for event in listing.events] for listing in witness.listings[::2]] == [
        [False],
        [True],
    ]


@pytest.mark.parametrize(("rows", "lines"), [(5, 5), (6, 6), (9, 6)])
def test_rows_that_cannot_be_read_are_named_up_to_a_few(rows, lines, caplog):
    scene = Scene(SimulatorConfig(), agents=rows, queue_seconds=0.0, run_seconds=9000.0)
    not_before = scene.sim.now()
    for agent_id in scene.agents:
        scene.sim.start_scheduled_run(agent_id)
    scene.sim.corrupt(None, {"status": None})
    watch(scene, Witness(ACCOUNT, not_before=not_before))
    scene.cycle(3)
    first, *_ = warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == lines
    assert first.startswith("A row of a listing cannot be read, so its run counts as still running: status: ")
    if rows > 5:
        assert warnings[-1] == f"The same page has {rows - 5} other new rows that cannot be read."


def test_a_follower_is_woken_when_its_row_can_no_longer_be_read():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    run = scene.sim.start_scheduled_run("agent-0")
    (known,) = scene.client.send(list_events()).value.data
    witness = Witness(following=[known])
    subscription = watch(scene, witness)
    scene.sim.corrupt(run, {"startedAt": 7, "completedAt": 8})
    scene.cycle()
    assert scene.driver.woken[subscription] == 1
    # What was known of it is kept, so that it is found where it was.
    assert (witness.updates[-1].unreadable is None, witness.updates[-1].startedAt) == (False, known.startedAt)
    assert len(scene.cycle(5)) <= 5 * 2


def test_rows_without_an_agent_hide_no_run_and_reach_the_accounts_watcher():
    scene = Scene(SimulatorConfig(), agents=4, queue_seconds=0.0, run_seconds=9000.0)
    not_before = scene.sim.now()
    runs = [scene.sim.start_scheduled_run(agent_id) for agent_id in scene.agents]
    for nameless in (runs[1], runs[3]):
        scene.sim.corrupt(nameless, {"agentId": None})
    following = Witness(following=[ExecutionEvent.model_validate(scene.sim.row(runs[0]))])
    watch(scene, following)
    everything = Witness(ACCOUNT, not_before=not_before)
    subscription = watch(scene, everything)
    scene.cycle()
    assert set(states(everything.listings[-1])) == set(runs)
    scene.plan.unsubscribe(subscription)
    only = [Witness(agent_id, not_before=not_before) for agent_id in scene.agents]
    for witness in only:
        watch(scene, witness)
    scene.cycle()
    assert [set(states(witness.listings[-1])) for witness in only] == [{run} for run in runs]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_listing_that_is_refused_says_nothing_of_what_it_would_have_shown():
    scene = Scene(SimulatorConfig(), agents=3, queue_seconds=0.0, run_seconds=9000.0)
    submissions = [scene.submitted(agent_id).changed(request_id=None) for agent_id in scene.agents]
    scene.clock.advance(400)
    deadline_at = scene.clock.now + timedelta(hours=1)
    waits = [RunTracker(submission, WaitPolicy(appear_within=300.0)) for submission in submissions]
    subscriptions = [scene.driver.subscribe(wait, deadline_at=deadline_at) for wait in waits]
    Gate(scene, lambda path, query: 403 if path == EVENTS and "status" not in query else None).cycle()
    assert [subscription.following for subscription in subscriptions] == [
        (run.event_id,) for run in scene.sim.executions
    ]


# --- the server's clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("skew", "ahead"), [(600.0, 600), (-600.0, -600), (1.0, 0), (-1.0, 0), (3.0, 3), (2.0, 0)])
def test_how_far_the_servers_clock_is_ahead(skew, ahead):
    scene = Scene(SimulatorConfig(clock_skew=skew), agents=3, queue_seconds=0.0, run_seconds=9000.0)
    for agent_id in scene.agents:
        scene.waiting(agent_id, interval=5.0)
    scene.cycle()
    assert scene.plan.server_ahead.total_seconds() == ahead


def test_the_servers_clock_is_read_from_the_first_answer_of_a_cycle():
    scene = Scene(SimulatorConfig(), agents=5, queue_seconds=0.0, run_seconds=9000.0)
    for agent_id in scene.agents:
        scene.waiting(agent_id)
    slow_down(scene, 10)
    scene.cycle()
    # The later ones are older than the cycle by what the earlier ones took.
    assert scene.plan.server_ahead == timedelta()


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_is_too_old_for_all_who_seek_is_dropped():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=1.0)
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=1.0, schedule_every=10.0)
    watcher = scene.driver.subscribe(
        CompletionTracker.from_now(ACCOUNT, 30.0, scene.sim.now()),
        interval=5.0,
        deadline_at=scene.clock.now + timedelta(days=9),
    )
    ended = 0
    for _ in range(400):
        scene.cycle()
        ended += len(watcher.subscriber.ended())
        # What began in the last 35 seconds, and five more until the next look.
        assert scene.plan.stats().rows <= 6
    assert ended == pytest.approx(200, abs=5)


def test_trouble_is_told_as_of_the_first_failed_look():
    scene = Scene(queue_seconds=0.0, run_seconds=9000.0)
    subscription = scene.waiting()
    gate = Gate(scene)
    gate.cycle(2)
    gate.refuse = lambda path, query: 500
    gate.cycle()
    since = scene.clock.now
    assert subscription.outage is None
    gate.cycle()
    assert (subscription.outage.since, subscription.outage.polls) == (since, 2)
    gate.cycle()
    assert (subscription.outage.since, subscription.outage.polls) == (since, 3)
    gate.refuse = lambda path, query: None
    gate.cycle()
    assert subscription.outage is None
    gate.refuse = lambda path, query: 500
    gate.cycle()
    since = scene.clock.now
    gate.cycle()
    assert (subscription.outage.since, subscription.outage.polls) == (since, 2)


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_one_who_has_left_in_an_outage_hides_nothing_from_the_others(leaver):
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=9000.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    gate = Gate(scene)
    gate.cycle(2)
    gate.refuse = lambda path, query: 500
    gate.cycle()

    def leave_meanwhile(_request, answer):
        scene.plan.unsubscribe(subscriptions[leaver])
        return answer()

    scene.sim.intercept(leave_meanwhile)
    gate.cycle()
    assert subscriptions.pop(leaver).outage is None
    assert [subscription.outage.polls for subscription in subscriptions] == [2, 2]


def test_nobody_who_waits_is_nothing_to_wait_for():
    scene = Scene(queue_seconds=0.0, run_seconds=9000.0)
    subscription = scene.waiting()
    assert scene.plan.next_at(scene.driver.at()) is not None
    scene.plan.unsubscribe(subscription)
    assert scene.plan.next_at(scene.driver.at()) is None


def test_nothing_is_kept_of_agents_and_subscriptions_that_nobody_waits_for_any_more():
    scene = Scene(SimulatorConfig(), agents=3, queue_seconds=0.0, run_seconds=9000.0)
    for agent_id in scene.agents:
        scene.sim.add_history(agent_id, 20, every=700.0, run_seconds=600.0)
    gate = Gate(scene, refused_account)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    gate.cycle(2)
    assert scene.plan.stats().estimates == 6
    gate.refuse = lambda path, query: 500
    gate.cycle()
    assert scene.plan.stats().failing == 3
    for subscription in subscriptions:
        scene.plan.unsubscribe(subscription)
    assert scene.plan.stats() == PollStats()


def test_what_is_followed_no_longer_is_asked_for_no_longer():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    known = ExecutionEvent.model_validate(scene.sim.row(scene.sim.start_scheduled_run("agent-0")))

    class Fickle(Witness):
        """Follows an event until its first look."""

        def apply_listing(self, listing, began_at):
            super().apply_listing(listing, began_at)
            self.active = ()
            self.criteria = SearchCriteria(not_before=self.criteria.not_before, ids=(), decidable_at=None)
            self.has_changed = True

    fickle = Fickle(not_before=scene.sim.now())
    fickle.active = (known,)
    subscription = watch(scene, fickle)
    assert subscription.following == (known.id,)
    assert scene.plan.stats().followed == 1
    scene.cycle()
    assert scene.plan.stats().followed == 0


def test_one_who_joins_with_an_older_state_does_not_undo_what_is_known():
    scene = Scene(SimulatorConfig(), queue_seconds=20.0, run_seconds=9000.0)
    run = scene.sim.start_scheduled_run("agent-0")
    older = ExecutionEvent.model_validate(scene.sim.row(run))
    scene.clock.advance(60)
    newer = ExecutionEvent.model_validate(scene.sim.row(run))
    watch(scene, Witness(following=[newer]))
    watch(scene, Witness(following=[older]))
    # It has begun, so it is not asked for among those that have not.
    assert not any("status" in query for _, query in Gate(scene).cycle())


def test_nothing_is_due_right_after_a_cycle():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    scene.waiting()
    scene.cycle()
    assert not scene.plan.is_due(scene.driver.at())


# --- looks that take several cycles ---


def limited(scene, requests=10):
    """So many requests a minute, and five rows on a page."""
    scene.sim.config = dataclasses.replace(scene.sim.config, rate_limit=(requests, 60.0), page_rows=5)


def busy(scene, runs=100, every=5.0):
    """Let runs of the first agent begin and end; their ids."""
    started = []
    for _ in range(runs):
        started.append(scene.sim.start_scheduled_run("agent-0"))
        scene.clock.advance(every)
    return started


@pytest.mark.parametrize("sort_by", ["createdAt", "startedAt", "updatedAt"])
@pytest.mark.parametrize("agent_id", ["agent-0", ACCOUNT])
def test_a_look_over_several_cycles_shows_all_that_was_created_before_its_first_page(agent_id, sort_by):
    scene = Scene(SimulatorConfig(request_id="absent", sort_by=sort_by), queue_seconds=1.0, run_seconds=3.0)
    started = busy(scene)
    limited(scene)
    witness = Witness(agent_id)
    watch(scene, witness)
    began = scene.clock.now
    while not witness.listings:
        scene.cycle()
        started += busy(scene, 1)
    (listing,) = witness.listings
    assert began <= listing.server_time <= began + timedelta(seconds=2)
    assert {run for run in started if scene.sim.truth(run).accepted_at < listing.server_time} <= set(states(listing))
    # 20 pages, and what is PENDING once or in each part.
    assert len(scene.sim.requests) <= 20 + 2 * 4


@pytest.mark.parametrize("agent_id", ["agent-0", ACCOUNT])
def test_who_joins_while_a_look_is_under_way_is_given_a_later_one(agent_id):
    scene = Scene(SimulatorConfig(request_id="absent"), queue_seconds=1.0, run_seconds=3.0)
    busy(scene)
    limited(scene)
    first, second = Witness(agent_id), Witness(agent_id)
    watch(scene, first)
    scene.cycle()
    assert not first.listings
    scene.clock.advance(1)
    joined = scene.clock.now
    watch(scene, second)
    while not first.listings:
        scene.cycle()
    assert not second.listings
    while not second.listings:
        scene.cycle()
    assert first.listings[0].server_time < joined <= second.listings[0].server_time
    assert len(second.listings[0].events) >= 100


def test_a_look_is_begun_anew_once_those_who_waited_for_it_have_left():
    scene = Scene(SimulatorConfig(request_id="absent"), queue_seconds=1.0, run_seconds=3.0)
    busy(scene)
    limited(scene)
    gone = watch(scene, Witness())
    scene.cycle()
    scene.driver.plan.unsubscribe(gone)
    second = Witness()
    watch(scene, second)
    joined = scene.clock.now
    while not second.listings:
        scene.cycle()
    assert second.listings[0].server_time >= joined
    assert len(second.listings[0].events) >= 100


def test_a_long_wait_on_a_busy_agent_is_decided_after_a_restart_under_a_rate_limit():
    scene = Scene(SimulatorConfig(request_id="absent"), queue_seconds=1.0, run_seconds=3.0)
    submission = scene.submitted()
    (mine,) = [done.event_id for done in scene.sim.executions]
    scene.clock.advance(60)
    busy(scene, 200)
    limited(scene)
    subscription = scene.driver.subscribe(
        RunTracker(submission, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=9)
    )
    began = scene.clock.now
    scene.driver.wait_for(subscription)
    assert subscription.result.event.id == mine
    # 41 pages, ten a minute; a pause after a failure is at most twice the limit's.
    assert scene.clock.now - began < timedelta(minutes=10)


def test_a_search_that_no_narrow_listing_ends_is_continued_under_a_rate_limit():
    scene = Scene(SimulatorConfig(request_id="absent"), queue_seconds=1.0, run_seconds=3.0)
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=1500.0)
    wanted = scene.sim.start_scheduled_run("agent-0")
    event = scene.client.send(list_events()).value.data[0]
    assert event.id == wanted
    scene.sim.add_agent("agent-0", queue_seconds=1.0, run_seconds=3.0)
    scene.clock.advance(60)
    busy(scene, 300)
    limited(scene)
    Gate(scene, lambda _path, query: 400 if "startedAfter" in query or "status" in query else None)
    witness = Witness(following=[event])
    watch(scene, witness)
    began = scene.clock.now
    while not witness.updates:
        scene.cycle()
    assert witness.updates[-1].status == "COMPLETED"
    assert scene.clock.now - began < timedelta(minutes=20)
