"""The watcher, over HTTP against the simulator: what it reports, what survives a kill, and what a DAG makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.triggers.base import BaseEventTrigger
from conftest import KEY, change, connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.runs.completions import MOST_RUNS_AT_ONCE
from airflow_provider_agents.version_compat import WATCHERS_HAVE_QUEUES
from airflow_provider_agents.versioned_json import UnusableDataError
from airflow_provider_agents.watchers import CHECKPOINT_KEY, AgentRunEventTrigger, finished_runs


class AssetState(dict):
    """The state of an asset as a trigger sees it."""

    async def aget(self, key, default=None):
        return self.get(key, default)

    async def aset(self, key, value):
        self[key] = json.loads(json.dumps(value))

    @property
    def checkpoints(self):
        return [value for key, value in self.items() if key.startswith(CHECKPOINT_KEY)]


def accessors(**states):
    """The state of several assets as a trigger sees it."""
    return SimpleNamespace(_by_name=states, _by_uri={})


def triggers(state, *watchers):
    """The triggers of some watchers, as a triggerer makes them from the database."""
    for arguments in watchers:
        _, kwargs = AgentRunEventTrigger(**arguments).serialize()
        trigger = AgentRunEventTrigger(**json.loads(json.dumps(kwargs)))
        trigger.asset_state_store = state
        yield trigger


def watch_all(seconds, state, *watchers, then=lambda: None):
    """Watch for so many virtual seconds, and stop as a triggerer stops; what each reported, a list for each event."""
    reported = [[] for _ in watchers]

    async def listen(trigger, into):
        async with aclosing(trigger.run()) as events:
            async for event in events:
                # One by one: what was reported before the end must be seen.
                into.append([run["id"] for run in event.payload["runs"]])

    async def listen_all():
        async with asyncio.TaskGroup() as group:
            for trigger, into in zip(triggers(state, *watchers), reported, strict=True):
                group.create_task(listen(trigger, into))

    async def main():
        asyncio.get_running_loop().call_later(1.0, then)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listen_all(), seconds)

    asyncio.run(main())
    return reported


def watch(platform, seconds, *, state=None, then=lambda: None, **arguments):
    """The same for one watcher."""
    (reported,) = watch_all(seconds, state, arguments, then=then)
    return reported


def flat(emitted):
    return [event_id for ids in emitted for event_id in ids]


def test_what_ends_in_one_cycle_is_one_event(platform):
    platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=3.0)
    started = []
    emitted = watch(
        platform,
        60,
        state=AssetState(),
        then=lambda: started.extend(platform.sim.start_scheduled_run("agent-2") for _ in range(5)),
    )
    assert [sorted(ids) for ids in emitted] == [sorted(started)]


@pytest.mark.parametrize(("statuses", "emitted"), [(["COMPLETED"], 0), (["FAILED"], 1), (("FAILED", "COMPLETED"), 1)])
def test_only_the_ends_that_are_wanted_are_told(platform, statuses, emitted):
    platform.sim.add_agent("agent-1", run_seconds=3.0, end_status="FAILED")
    platform.sim.start_scheduled_run("agent-1")
    assert len(watch(platform, 60, state=AssetState(), statuses=statuses)) == emitted


def test_only_the_agent_that_is_wanted_is_told(platform):
    platform.sim.add_agent("agent-2", run_seconds=3.0)
    platform.sim.start_scheduled_run("agent-1")
    mine = platform.sim.start_scheduled_run("agent-2")
    assert flat(watch(platform, 60, state=AssetState(), agent_id="agent-2")) == [mine]


def test_an_unreadable_row_keeps_no_watcher_from_starting_and_is_reported_later(platform, caplog):
    platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=3.0)
    odd, state = platform.sim.start_scheduled_run("agent-1"), AssetState()
    platform.sim.corrupt(odd, {"status": None})
    fine = []
    emitted = watch(platform, 300, state=state, then=lambda: fine.append(platform.sim.start_scheduled_run("agent-2")))
    assert flat(emitted) == fine
    assert caplog.text.count(f"agent=agent-1 event={odd}") == 1
    platform.advance(3600)
    platform.sim.restore(odd)
    assert flat(watch(platform, 60, state=state)) == [odd]


def test_the_first_look_ever_replays_nothing(platform):
    state = AssetState()
    assert watch(platform, 60, state=state) == []
    assert state.checkpoints


def test_a_restart_loses_nothing_and_the_cursor_moves_late(platform):
    state = AssetState()
    watch(platform, 30, state=state)
    first = platform.sim.start_scheduled_run("agent-1")
    # Ends after some 7 s; the triggerer dies before that was kept for certain.
    emitted = flat(watch(platform, 12, state=state))
    assert emitted == [first]
    assert all(first not in checkpoint.get("emitted", ()) for checkpoint in state.checkpoints)
    second = platform.sim.start_scheduled_run("agent-1")
    platform.advance(3600)
    # The repetition can be told by its id.
    assert flat(watch(platform, 60, state=state)) == [first, second]
    platform.advance(3600)
    assert watch(platform, 60, state=state) == []


def test_the_cursor_is_written_when_there_is_news_and_else_rarely(platform):
    writes = []

    class Counting(AssetState):
        async def aset(self, key, value):
            writes.append(key)
            await super().aset(key, value)

    watch(platform, 1000, state=Counting())
    assert 2 <= max(writes.count(key) for key in writes) <= 6


def test_a_refused_key_ends_no_watch(platform, monkeypatch, logged):
    state = AssetState()
    watch(platform, 30, state=state)
    platform.sim.start_scheduled_run("agent-1")
    platform.sim.api_keys = ("another",)

    def mend():
        asyncio.get_running_loop().call_later(900.0, lambda: setattr(platform.sim, "api_keys", (KEY,)))

    assert len(flat(watch(platform, 1200, state=state, then=mend))) == 1
    assert "The watcher cannot continue" in logged()


def test_a_wrong_connection_is_said_and_tried_again(platform, monkeypatch, logged):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection("no-scheme.example"))
    assert watch(platform, 200) == []
    assert logged().count("The watcher cannot continue") == 4


@pytest.mark.parametrize("extra", [{"settle": 120}, {}], ids=repr)
def test_a_watcher_without_settle_takes_the_connections(platform, monkeypatch, extra):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, **extra))
    change(platform, record_lag=100.0)
    state = AssetState()
    watch(platform, 30, state=state)
    hidden = platform.sim.start_scheduled_run("agent-1")
    # Without the longer settle, the watermark passes the run before its event appears.
    assert flat(watch(platform, 600, state=state)) == ([hidden] if extra else [])


def test_a_watcher_is_known_again_by_its_arguments():
    one = AgentRunEventTrigger(statuses=("FAILED", "COMPLETED"), poll_interval=5)
    path, kwargs = one.serialize()
    again = AgentRunEventTrigger(**json.loads(json.dumps(kwargs)))
    assert again.serialize() == (path, kwargs)
    other = AgentRunEventTrigger(statuses=["COMPLETED", "FAILED"], poll_interval=5.0)
    assert BaseEventTrigger.hash(*one.serialize()) == BaseEventTrigger.hash(*other.serialize())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"agent_id": " "}, "agent"),
        ({"statuses": "COMPLETED"}, "must be a list"),
        ({"statuses": []}, "must be a list"),
        ({"statuses": [None]}, "must be a list"),
        ({"statuses": ["RUNNING", "COMPLETED"]}, "must not contain RUNNING: no run ends so"),
        ({"poll_interval": 0.1}, "poll_interval"),
        ({"poll_interval": float("nan")}, "poll_interval"),
        ({"settle": -1}, "settle"),
        ({"settle": 1e300}, "settle"),
        ({"settle": True}, "settle"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AgentRunEventTrigger(**wrong)


@pytest.mark.skipif(not WATCHERS_HAVE_QUEUES, reason="needs Airflow 3.4")
def test_a_queue_goes_to_airflow_and_makes_another_watcher():
    from airflow.serialization.encoders import encode_trigger

    plain, trigger = AgentRunEventTrigger(), AgentRunEventTrigger(queue="agents")
    assert encode_trigger(trigger)["queue"] == "agents"
    assert "queue" not in encode_trigger(plain)
    # Airflow keeps a watcher that it knows, with the queue that the watcher had.
    assert BaseEventTrigger.hash(*trigger.serialize()) != BaseEventTrigger.hash(*plain.serialize())
    assert AgentRunEventTrigger(**trigger.serialize()[1]).queue == "agents"


@pytest.mark.skipif(not WATCHERS_HAVE_QUEUES, reason="needs Airflow 3.4")
@pytest.mark.parametrize("wrong", ["", " ", 7, "q" * 257])
def test_a_queue_that_is_no_name_is_refused(wrong):
    with pytest.raises(InvalidArgumentError, match="queue of AgentRunEventTrigger must be a queue that a triggerer"):
        AgentRunEventTrigger(queue=wrong)


@pytest.mark.skipif(WATCHERS_HAVE_QUEUES, reason="Airflow 3.4 has queues of watchers")
def test_a_queue_is_refused_before_airflow_3_4():
    with pytest.raises(InvalidArgumentError, match=r"queue of AgentRunEventTrigger needs Airflow 3\.4 or newer\."):
        AgentRunEventTrigger(queue="agents")


# --- what survives a kill ---


class Failing(AssetState):
    """Reads, or writes, that fail at first: so many times, or for ever."""

    def __init__(self, state=(), *, reads=0, writes=0):
        super().__init__(state)
        self.reads, self.writes = reads, writes

    async def aget(self, key, default=None):
        self.reads -= 1
        if self.reads >= 0:
            raise RuntimeError("the API server restarts")
        return await super().aget(key, default)

    async def aset(self, key, value):
        self.writes -= 1
        if self.writes >= 0:
            raise RuntimeError("the API server restarts")
        await super().aset(key, value)


class Hanging(Failing):
    """The same, but instead of failing a request gets no answer."""

    async def aget(self, key, default=None):
        return await self._or_hang(super().aget(key, default))

    async def aset(self, key, value):
        await self._or_hang(super().aset(key, value))

    async def _or_hang(self, request):
        try:
            return await request
        except RuntimeError:
            await asyncio.Event().wait()


@pytest.mark.parametrize("kind", [Failing, Hanging])
def test_a_state_that_cannot_be_used_for_a_while_loses_nothing(platform, logged, kind):
    state = AssetState()
    watch(platform, 30, state=state)
    missed = platform.sim.start_scheduled_run("agent-1")
    platform.advance(600)
    assert flat(watch(platform, 300, state=kind(state, reads=3, writes=1000))) == [missed]
    said = logged()
    assert said.count("The state of the asset cannot be read") == 3
    assert "checkpoint could not be committed" in said


@pytest.mark.parametrize("kind", [Failing, Hanging])
def test_nothing_is_reported_before_the_first_checkpoint_is_committed(platform, kind):
    state = kind(writes=5)
    platform.sim.start_scheduled_run("agent-1")
    seen = []

    def note(reported):
        seen.append((bool(reported), bool(state.checkpoints)))

    reported = watch(platform, 400, state=state, then=lambda: note(False))
    assert len(flat(reported)) == 1
    assert seen == [(False, False)]
    assert state.checkpoints


def test_a_watch_without_a_first_checkpoint_goes_on_after_some_minutes(platform):
    state = Failing(writes=10_000)
    platform.sim.start_scheduled_run("agent-1")
    assert flat(watch(platform, 200, state=state)) == []
    platform.sim.start_scheduled_run("agent-1")
    assert len(flat(watch(platform, 400, state=state))) == 1


@pytest.mark.parametrize("seconds", [1.5, 3.0, 6.0, 12.0, 20.0])
def test_a_kill_soon_after_the_first_start_loses_nothing_that_ended_since(platform, seconds):
    platform.sim.add_agent("soon", queue_seconds=0.0, run_seconds=2.0)
    platform.sim.add_agent("later", queue_seconds=0.0, run_seconds=20.0)
    started, state = [], AssetState()

    def start():
        started.extend(platform.sim.start_scheduled_run(agent_id) for agent_id in ("soon", "later"))

    emitted = flat(watch(platform, seconds, state=state, then=start))
    platform.advance(60)
    assert set(started) <= {*emitted, *flat(watch(platform, 60, state=state))}


def test_an_airflow_without_asset_state_starts_from_now_and_says_so(platform, logged):
    platform.sim.start_scheduled_run("agent-1")
    platform.advance(100)
    assert watch(platform, 60) == []
    assert "keeps no state of assets" in logged()


def test_a_checkpoint_that_cannot_be_read_starts_from_now_and_says_so(platform, logged):
    state = AssetState()
    watch(platform, 30, state=state)
    assert watch(platform, 60, state=AssetState(dict.fromkeys(state, "nonsense"))) == []
    assert "The watcher's checkpoint cannot be read" in logged()


ONE = {"agent_id": "agent-1"}


@pytest.mark.parametrize(
    "watchers",
    [
        pytest.param([ONE, {"agent_id": "agent-2"}], id="two agents"),
        pytest.param([ONE, {}], id="an agent and the account"),
        pytest.param([ONE, {**ONE, "statuses": ["FAILED"]}], id="two statuses"),
        pytest.param([ONE, {**ONE, "agents_conn_id": "other"}], id="two connections"),
        pytest.param([ONE, {**ONE, "poll_interval": 60.0}], id="two intervals"),
    ],
)
def test_watchers_of_one_asset_lose_nothing_of_each_other(platform, monkeypatch, watchers):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", connection(platform.url))
    sim, state = platform.sim, AssetState()
    runs = {}

    def start():
        for agent_id in ("agent-1", "agent-2"):
            for status in ("COMPLETED", "FAILED"):
                sim.add_agent(agent_id, queue_seconds=0.0, run_seconds=1200.0, end_status=status)
                runs[agent_id, status] = sim.start_scheduled_run(agent_id)

    watch_all(600, state, *watchers, then=start)
    platform.advance(1200)
    for wanted, reported in zip(watchers, watch_all(300, state, *watchers), strict=True):
        statuses, agent_id = wanted.get("statuses", ["COMPLETED"]), wanted.get("agent_id")
        assert sorted(flat(reported)) == sorted(
            run for (owner, status), run in runs.items() if status in statuses and agent_id in (owner, None)
        )


@pytest.mark.parametrize(
    ("before", "after"), [("b", "ab"), ("b", "bc"), ("ab", "a"), ("ab", "b"), ("ab", "bc"), ("ab", "ab")]
)
def test_an_asset_that_comes_or_goes_loses_nothing(platform, before, after):
    states = {name: AssetState() for name in "abc"}
    watch(platform, 60, state=accessors(**{name: states[name] for name in before}))
    platform.advance(60)
    missed = platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    assert flat(watch(platform, 60, state=accessors(**{name: states[name] for name in after}))) == [missed]


def test_the_checkpoint_that_has_got_furthest_is_resumed(platform):
    old, new = AssetState(), AssetState()
    watch(platform, 30, state=accessors(old=old, new=new))
    platform.sim.start_scheduled_run("agent-1")
    watch(platform, 100, state=new)
    platform.advance(600)
    # The other one would report the run once more.
    assert watch(platform, 60, state=accessors(old=old, new=new)) == []


def test_an_asset_whose_state_does_not_answer_is_waited_for_and_then_done_without(platform):
    known = AssetState()
    watch(platform, 30, state=known)
    missed = platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    broken = Failing(reads=10_000, writes=10_000)
    assert flat(watch(platform, 200, state=accessors(known=known, broken=broken))) == []
    assert flat(watch(platform, 600, state=accessors(known=known, broken=broken))) == [missed]


def test_nothing_is_started_from_now_while_a_state_does_not_answer(platform):
    known = AssetState()
    watch(platform, 30, state=known)
    missed = platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    broken = Failing(known, reads=10_000)
    assert flat(watch(platform, 3600, state=accessors(empty=AssetState(), broken=broken))) == []
    broken.reads = 0
    assert flat(watch(platform, 60, state=accessors(empty=AssetState(), broken=broken))) == [missed]


@pytest.mark.parametrize(
    "changed",
    [{"statuses": ["COMPLETED", "FAILED"]}, {"poll_interval": 17.0}, {"settle": 5.0}, {"settle": 300.0}],
    ids=repr,
)
def test_a_watcher_whose_arguments_change_loses_nothing(platform, changed):
    state = AssetState()
    watch(platform, 60, state=state)
    platform.advance(60)
    missed = platform.sim.start_scheduled_run("agent-1")
    platform.advance(600)
    # A kill right after the change loses nothing either.
    emitted = flat(watch(platform, 0.5, state=state, **changed)) + flat(watch(platform, 100, state=state, **changed))
    assert emitted == [missed]


def test_runs_that_ended_in_a_long_downtime_come_in_bounded_events_seconds_apart(platform):
    sim, state = platform.sim, AssetState()
    sim.add_agent("busy", queue_seconds=0.0, run_seconds=3.0)
    watch(platform, 60, state=state)
    platform.advance(1300 * 12)
    sim.add_history("busy", 1290, every=12.0, run_seconds=3.0)
    emitted = watch(platform, 60, state=state)
    assert len(flat(emitted)) == len(set(flat(emitted))) == 1290
    assert [len(ids) for ids in emitted] == [MOST_RUNS_AT_ONCE, MOST_RUNS_AT_ONCE, 1290 - 2 * MOST_RUNS_AT_ONCE]
    assert watch(platform, 60, state=state) == []


def test_a_run_that_vanishes_is_given_up_once_and_the_log_names_it(platform, logged):
    sim, state = platform.sim, AssetState()
    sim.add_agent("gone", queue_seconds=0.0, run_seconds=36_000.0)
    sim.add_agent("other", queue_seconds=0.0, run_seconds=3.0)
    lost, others = sim.start_scheduled_run("gone"), []

    def play():
        sim.remove_agent("gone")
        for minutes in range(10, 240, 10):
            asyncio.get_running_loop().call_later(
                60.0 * minutes, lambda: others.append(sim.start_scheduled_run("other"))
            )

    emitted = flat(watch(platform, 4 * 3600, state=state, then=play, poll_interval=30.0))
    assert emitted == others
    assert watch(platform, 4 * 3600, state=state, poll_interval=30.0) == []
    (line,) = [line for line in logged().splitlines() if "gives it up" in line]
    assert f"agent=gone event={lost}" in line


def test_a_rate_limit_delays_what_ended_during_a_downtime_and_loses_nothing(platform):
    sim, state = platform.sim, AssetState()
    sim.add_agent("busy", queue_seconds=0.0, run_seconds=3.0)
    watch(platform, 60, state=state)
    platform.advance(400 * 12)
    sim.add_history("busy", 390, every=12.0, run_seconds=3.0)
    sim.config = dataclasses.replace(sim.config, rate_limit=(10, 60.0), page_rows=10)
    emitted = flat(watch(platform, 1200, state=state))
    assert len(emitted) == len(set(emitted)) == 390


@pytest.mark.parametrize("retry_after", ["seconds", "absent"])
def test_a_watcher_starts_though_a_rate_limit_keeps_it_from_listing_all_active_runs(platform, retry_after):
    sim = platform.sim
    sim.add_agent("busy", queue_seconds=0.0, run_seconds=1200.0)
    started = [sim.start_scheduled_run("busy") for _ in range(40)]
    sim.config = dataclasses.replace(sim.config, rate_limit=(6, 60.0), page_rows=4, retry_after=retry_after)
    assert sorted(flat(watch(platform, 3600, state=AssetState()))) == sorted(started)


class Slow(AssetState):
    """Each request takes a few seconds, before it has its effect and after it."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    async def aget(self, key, default=None):
        await asyncio.sleep(self.rng.uniform(0, 2))
        return await super().aget(key, default)

    async def aset(self, key, value):
        await asyncio.sleep(self.rng.uniform(0, 3))
        await super().aset(key, value)
        await asyncio.sleep(self.rng.uniform(0, 3))


class Airflow:
    """What of a triggerer and its database matters: a yield is stored some seconds late, and a kill loses what was not.

    Args:
        rng: draws how late.
    """

    def __init__(self, rng):
        self.rng, self.stored = rng, []

    def run(self, seconds, state, then):
        """A triggerer's life until it is killed."""

        async def listen():
            queue, loop = [], asyncio.get_running_loop()

            def store(ids):
                queue.remove(ids)
                self.stored.extend((run, datetime.now(UTC)) for run in ids)

            (trigger,) = triggers(state, {})
            async with aclosing(trigger.run()) as events:
                async for event in events:
                    # Airflow logs the event before it queues it.
                    await asyncio.sleep(self.rng.uniform(0, 4))
                    ids = [run["id"] for run in event.payload["runs"]]
                    queue.append(ids)
                    loop.call_later(self.rng.uniform(0, 10), store, ids)

        async def main():
            for at, call in then:
                asyncio.get_running_loop().call_later(at, call)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listen(), seconds)

        asyncio.run(main())
        return datetime.now(UTC)


@pytest.mark.parametrize("seed", range(12))
def test_over_kills_every_run_arrives_and_only_the_last_seconds_are_repeated(platform, seed):
    rng = random.Random(seed)
    sim, airflow = platform.sim, Airflow(rng)
    for number, seconds in enumerate((1.0, 20.0, 300.0)):
        sim.add_agent(f"runs-{number}", queue_seconds=0.0, run_seconds=seconds)
    states, started, kills = {name: Slow(rng) for name in "abc"}, [], []

    def start():
        started.append(sim.start_scheduled_run(f"runs-{rng.randrange(3)}"))

    fed = {"a"}
    # The first life begins with nothing: what ends before the watcher has asked what time it is does not count.
    kills.append(airflow.run(30.0, accessors(a=states["a"]), [(rng.uniform(20, 30), start) for _ in range(3)]))
    for _ in range(12):
        # Another deployment: assets come and go, but for one that was fed until now.
        stays = max(fed, key=lambda name: [checkpoint["watermark"] for checkpoint in states[name].checkpoints])
        fed = {stays, *rng.sample("abc", rng.randrange(3))}
        life = rng.choice([0.5, 3.0, 8.0, 40.0, 120.0])
        then = [(rng.uniform(0, life), start) for _ in range(rng.randrange(6))]
        kills.append(airflow.run(life, accessors(**{name: states[name] for name in fed}), then))
        for _ in range(rng.randrange(3)):
            platform.advance(rng.uniform(0, 100))
            start()
    airflow.run(900.0, accessors(**{name: states[name] for name in fed}), [])
    arrived = [run for run, _ in airflow.stored]
    assert set(arrived) == set(started)
    for run in started:
        times = [at for one, at in airflow.stored if one == run]
        for at, again in itertools.pairwise(times):
            # 15 s after the yield returned, at the next cycle, with a state that takes up to 12 s.
            assert any(at <= kill <= again and (kill - at).total_seconds() <= 15 + 5 + 2 * 12 for kill in kills)


# --- what a DAG's task is given ---


def asset_event(*ids, second=0, dag_ids=("dag",), **payload):
    payload = {"kind": "finished_runs", "version": 1, "runs": [{"id": one} for one in ids], **payload}
    return SimpleNamespace(
        extra={"from_trigger": True, "payload": payload},
        timestamp=datetime(2026, 1, 1, tzinfo=UTC) + second * SECOND,
        created_dagruns=[SimpleNamespace(dag_id=dag_id) for dag_id in dag_ids],
    )


SECOND = timedelta(seconds=1)


@dataclasses.dataclass(frozen=True)
class History:
    """The events of an asset as a task finds them in `inlet_events[asset]`, with Airflow's choice among them."""

    events: tuple
    newest_first: bool = False

    def __iter__(self):
        return iter(self.events[::-1] if self.newest_first else self.events)

    def before(self, timestamp):
        until = datetime.fromisoformat(timestamp)
        return dataclasses.replace(self, events=tuple(event for event in self.events if event.timestamp <= until))

    def ascending(self, ascending=True):
        return dataclasses.replace(self, newest_first=not ascending)

    def limit(self, count):
        return dataclasses.replace(self, events=self.events[-count:] if self.newest_first else self.events[:count])


def ids_of(runs):
    return [run["id"] for run in runs]


def test_the_runs_of_several_events_are_each_given_once():
    events = [asset_event("a", "b"), asset_event("b", "c"), SimpleNamespace(extra={"by": "a person"})]
    assert ids_of(finished_runs(iter(events))) == ["a", "b", "c"]
    assert finished_runs([SimpleNamespace(extra=None)]) == []
    assert finished_runs([], history=History(tuple(events[:2]))) == []


@pytest.mark.parametrize("kind", [History, tuple], ids=["with a choice of events", "all events (Airflow 3.0)"])
def test_what_an_earlier_event_has_reported_is_left_out(kind):
    first, second, third = asset_event("a", "b"), asset_event("b", "c", second=1), asset_event("b", "c", second=2)
    by_hand = SimpleNamespace(extra={}, timestamp=third.timestamp, created_dagruns=[])
    history = kind((first, second, third, by_hand))
    assert ids_of(finished_runs([first], history=history)) == ["a", "b"]
    assert ids_of(finished_runs([second], history=history)) == ["c"]
    assert ids_of(finished_runs([third, by_hand], history=history)) == []
    assert ids_of(finished_runs([first, second, third], history=history)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("dag_ids", "ids"), [((), ["a"]), (("other",), ["a"]), (("dag", "other"), [])], ids=["none", "another's", "own"]
)
def test_only_an_event_that_has_started_a_dag_run_of_the_dag_counts(dag_ids, ids):
    from airflow.sdk.definitions._internal.contextmanager import _CURRENT_CONTEXT

    again = asset_event("a", second=1)
    history = History((asset_event("a", dag_ids=dag_ids), again))
    _CURRENT_CONTEXT.append({"ti": SimpleNamespace(dag_id="dag")})
    try:
        assert ids_of(finished_runs([again], history=history)) == ids
    finally:
        _CURRENT_CONTEXT.pop()


@pytest.mark.parametrize(("between", "ids"), [(99, []), (100, ["a"])])
def test_the_hundred_events_before_the_own_ones_are_read_and_no_more(between, ids):
    others = [asset_event(f"other-{number}", second=number) for number in range(1, between + 1)]
    again = asset_event("a", second=between + 1)
    history = History((asset_event("a"), *others, again, asset_event("later", second=between + 2)))
    assert ids_of(finished_runs([again], history=history)) == ids


@st.composite
def deliveries(draw):
    """Asset events in the order of their times, and DAG runs: (own events, events there at the task's first try)."""
    count = draw(st.integers(1, 12))
    runs = st.lists(st.sampled_from("abcdef"), max_size=4)
    events = tuple(asset_event(*draw(runs), second=number) for number in range(count))
    # Airflow 3.4 starts a DAG run for each event, Airflow before 3.4 one for some events in a row.
    ends = draw(st.sets(st.integers(1, count))) if draw(st.booleans()) else set(range(1, count))
    dag_runs = [slice(*pair) for pair in itertools.pairwise(sorted({0, *ends, count}))]
    seen = [draw(st.integers(own.stop, count)) for own in dag_runs]
    order = draw(st.permutations(range(len(dag_runs))))
    return events, [(dag_runs[number], seen[number]) for number in order]


@given(deliveries())
def test_each_run_is_given_to_one_dag_run_in_whatever_order_they_execute(delivery):
    events, dag_runs = delivery
    tries = [[ids_of(finished_runs(events[own], history=History(events[:seen]))) for own, seen in dag_runs]]
    # A retry or a clear, at any later time.
    tries.append([ids_of(finished_runs(events[own], history=History(events))) for own, _ in dag_runs])
    assert tries[0] == tries[1]
    all_runs = {run["id"] for event in events for run in event.extra["payload"]["runs"]}
    assert sorted(itertools.chain(*tries[0])) == sorted(all_runs)


def test_an_event_of_another_version_is_refused():
    with pytest.raises(UnusableDataError):
        finished_runs([asset_event("a", version=2)])


def test_time_in_these_tests_is_their_own(platform):
    before = datetime.now(UTC)
    watch(platform, 300)
    assert (datetime.now(UTC) - before).total_seconds() >= 300
