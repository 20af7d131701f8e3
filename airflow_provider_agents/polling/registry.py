"""Which subscription seeks in which agent, and which follows which event. Delivers what a page shows. Pure.

There are two kinds of subscribers:

- A subscriber that still *seeks* its run needs a complete listing: every event of its agent that was created since
  a certain moment, and those that are PENDING, in an order in which nothing slips through.
- A subscriber that *follows* events it knows needs each change of these events, and no more.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.flow import Flow, Sleep
from airflow_provider_agents.polling.subscriptions import ACCOUNT, AskingSubscriber, FollowedEvent, oldest_not_before
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.matching import is_young
from airflow_provider_agents.runs.status import is_terminal, newer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.subscriptions import ClockReading, Scope, Subscription

#: Between two turns of the event loop, this many followers of changed events are served. Each takes microseconds; to
#: end a wait takes some tenths of a millisecond if a thousand events could be its run.
_DELIVERED_AT_ONCE = 100


class Registry:
    """All subscriptions of a connection.

    Args:
        on_leave: called with each subscription that ends or is removed.
    """

    def __init__(self, on_leave: Callable[[Subscription[Any]], None]) -> None:
        self._on_leave = on_leave
        self._subscriptions: dict[Subscription[Any], None] = {}
        self._agents: Counter[Scope] = Counter()
        # Whose last poll failed, and who was not answered yet.
        self._failing: dict[Subscription[Any], None] = {}
        self._asking: dict[Subscription[Any], AskingSubscriber[Any]] = {}
        # A subscription is in `_seekers` and `_by_sought_id`, or in the subscriptions of followed events.
        self._seekers: dict[Scope, dict[Subscription[Any], None]] = {}
        self._by_sought_id: dict[str, dict[Subscription[Any], None]] = {}
        self._followed: dict[str, FollowedEvent] = {}
        # What earlier responses showed of the agents in which something is sought.
        self._stores: dict[Scope, dict[str, ExecutionEvent]] = {}
        # Followed events that have changed, each with its state before. Their followers do not know it yet.
        self._changed: deque[tuple[FollowedEvent, ExecutionEvent]] = deque()
        # Followed events that a search in their agent's whole listing did not show, until they are shown.
        self._absent: set[str] = set()
        self._cycle = 0

    @property
    def subscriptions(self) -> Collection[Subscription[Any]]:
        """All of them."""
        return self._subscriptions.keys()

    def counts(self) -> dict[str, int]:
        """How much is held, by the names of `PollStats`."""
        return {
            "waits": len(self._subscriptions),
            "failing": len(self._failing),
            "sought_ids": len(self._by_sought_id),
            "followed": len(self._followed),
            "rows": sum(len(store) for store in self._stores.values()),
        }

    @property
    def scopes(self) -> set[Scope]:
        """What is waited for, or of which anything is remembered."""
        return set().union(self._agents, self._seekers, self._stores)

    def has(self, agent_id: Scope) -> bool:
        """Whether a subscription is for this agent, or for the whole account."""
        return agent_id in self._agents

    def begin_cycle(self) -> int:
        """The number of the poll cycle that begins."""
        self._cycle += 1
        return self._cycle

    # --- subscriptions ------------------------------------------------------------------------------------------

    def add(self, subscription: Subscription[Any], *, answered: bool) -> None:
        """Add a subscription, for the next poll cycle.

        Args:
            subscription: a new one.
            answered: whether the platform has answered a request for its subscriber before.
        """
        self._subscriptions[subscription] = None
        if not answered:
            self._failing[subscription] = None
        if isinstance(subscription.subscriber, AskingSubscriber):
            self._asking[subscription] = subscription.subscriber
        self._agents[subscription.subscriber.agent_id] += 1
        self._index(subscription)

    def remove(self, subscription: Subscription[Any]) -> None:
        """Remove a subscription. May be repeated; nothing is delivered afterwards."""
        if subscription not in self._subscriptions:
            return
        subscription.has_ended = True
        del self._subscriptions[subscription]
        self._failing.pop(subscription, None)
        self._asking.pop(subscription, None)
        self._unindex(subscription)
        agent_id = subscription.subscriber.agent_id
        self._agents[agent_id] -= 1
        if not self._agents[agent_id]:
            del self._agents[agent_id]
        self._on_leave(subscription)

    def end(self, subscription: Subscription[Any], *, result: Any = None, error: Exception | None = None) -> None:
        """End a subscription with a result or an error."""
        if subscription.has_ended:
            return
        subscription.result, subscription.error = result, error
        self.remove(subscription)
        subscription.wake()

    def _index(self, subscription: Subscription[Any]) -> None:
        subscriber = subscription.subscriber
        subscription.criteria = criteria = subscriber.criteria
        subscription.searching_since = self._cycle
        if criteria is not None:
            self._seekers.setdefault(subscriber.agent_id, {})[subscription] = None
            self._stores.setdefault(subscriber.agent_id, {})
            for name in criteria.ids:
                self._by_sought_id.setdefault(name, {})[subscription] = None
        self._follow(subscription)

    def _follow(self, subscription: Subscription[Any]) -> None:
        active, agent_id = subscription.subscriber.active, subscription.subscriber.agent_id
        before, subscription.following = subscription.following, tuple(event.id for event in active)
        for event in active:
            followed = self._followed.get(event.id)
            if followed is None:
                followed = self._followed[event.id] = FollowedEvent(agent_id or event.agentId or None, event)
            else:
                followed.event = newer_of(followed.event, event)
                followed.agent_id = followed.agent_id or agent_id
            followed.subscriptions[subscription] = None
        if before:
            self._unfollow(subscription, set(before).difference(subscription.following))

    def _unfollow(self, subscription: Subscription[Any], event_ids: Iterable[str]) -> None:
        for followed in self.followed(event_ids):
            followed.subscriptions.pop(subscription, None)
            self._drop_unless_followed(followed)

    def _drop_unless_followed(self, followed: FollowedEvent) -> None:
        if not followed.subscriptions:
            self._followed.pop(followed.event.id, None)
            self._absent.discard(followed.event.id)

    def _reindex(self, subscription: Subscription[Any]) -> None:
        subscription.subscriber.has_changed = False
        criteria, before = subscription.subscriber.criteria, subscription.criteria
        if criteria is not None and before is not None and criteria.ids == before.ids:
            # It still seeks, so what was read for it is kept.
            subscription.criteria = criteria
            self._follow(subscription)
        else:
            self._unindex(subscription)
            self._index(subscription)

    def _unindex(self, subscription: Subscription[Any]) -> None:
        if subscription.criteria is not None:
            agent_id = subscription.subscriber.agent_id
            del self._seekers[agent_id][subscription]
            if not self._seekers[agent_id]:
                del self._seekers[agent_id], self._stores[agent_id]
            for name in subscription.criteria.ids:
                del self._by_sought_id[name][subscription]
                if not self._by_sought_id[name]:
                    del self._by_sought_id[name]
            subscription.criteria = None
        self._unfollow(subscription, subscription.following)
        subscription.following = ()

    @property
    def asking(self) -> Mapping[Subscription[Any], AskingSubscriber[Any]]:
        """Those with requests of their own."""
        return self._asking

    # --- failures -----------------------------------------------------------------------------------------------

    @property
    def failing(self) -> AbstractSet[Subscription[Any]]:
        """Whose last poll failed, and who was not answered yet."""
        return self._failing.keys()

    def add_failing(self, subscription: Subscription[Any]) -> None:
        """The poll for a subscription failed."""
        self._failing[subscription] = None

    def remove_failing(self, subscription: Subscription[Any]) -> None:
        """The poll for a subscription was answered."""
        del self._failing[subscription]

    # --- followed events ----------------------------------------------------------------------------------------

    def followed_events(self) -> dict[str, FollowedEvent]:
        """All followed events, by id."""
        return dict(self._followed)

    def followed(self, event_ids: Iterable[str]) -> Iterator[FollowedEvent]:
        """Those of some events that are followed."""
        for event_id in event_ids:
            followed = self._followed.get(event_id)
            if followed is not None:
                yield followed

    def only_account_follows(self, event_ids: Iterable[str]) -> bool:
        """Whether only subscribers of the whole account follow these events."""
        return all(
            subscription.subscriber.agent_id is ACCOUNT
            for followed in self.followed(event_ids)
            for subscription in followed.subscriptions
        )

    def followers(self, event_ids: Iterable[str]) -> Iterator[Subscription[Any]]:
        """The followers of some events, except those of the whole account: one agent's failure is not theirs."""
        for followed in self.followed(event_ids):
            yield from (
                subscription
                for subscription in tuple(followed.subscriptions)
                if subscription.subscriber.agent_id is not ACCOUNT
            )

    def mark_absent(self, event_ids: Iterable[str]) -> None:
        """A search in the agent's whole listing did not show these followed events."""
        self._absent.update(event_ids)

    # --- delivery -----------------------------------------------------------------------------------------------

    def deliver_row(self, owner: Scope, event: ExecutionEvent, server_time: datetime | None, at: ClockReading) -> None:
        """Deliver a row of a page to its followers and to those who seek its id, and keep it for the other seekers.

        Args:
            owner: whose event it is; `ACCOUNT` if the row does not say.
            event: the row.
            server_time: the server's clock.
            at: when the poll cycle began.
        """
        followed = self._followed.get(event.id)
        if followed is not None:
            followed.misses = 0
            self._absent.discard(event.id)
            if event is not followed.event:
                self._update(followed, event)
        store = self._stores.get(owner)
        if store is not None:
            store[event.id] = newer_of(store.get(event.id), event)
            for name in (event.id, event.requestId):
                if name is not None and name in self._by_sought_id:
                    self._match_id(owner, name, Listing((event,), server_time), at)
        everything = self._stores.get(ACCOUNT)
        if everything is not None:
            everything[event.id] = newer_of(everything.get(event.id), event)

    def _match_id(self, owner: Scope, name: str, listing: Listing, at: ClockReading) -> None:
        for subscription in tuple(self._by_sought_id.get(name, ())):
            if subscription.subscriber.agent_id == owner and subscription.criteria is not None:
                self.deliver_listing(subscription, listing, at)

    def _update(self, followed: FollowedEvent, event: ExecutionEvent) -> None:
        before, followed.event = followed.event, newer_of(followed.event, event)
        if followed.event is not before:
            self._changed.append((followed, before))

    def deliver_changes(self) -> Flow[None]:
        """Give the followed events that have changed to their followers, in small steps."""
        handled = 0
        while self._changed:
            followed, before = self._changed.popleft()
            for subscription in tuple(followed.subscriptions):
                # Between two steps, it may have ended.
                if subscription in followed.subscriptions:
                    self._deliver_change(subscription, followed, before)
                handled += 1
                if handled % _DELIVERED_AT_ONCE == 0:
                    yield Sleep(0)
            self._drop_unless_followed(followed)

    def _deliver_change(self, subscription: Subscription[Any], followed: FollowedEvent, before: ExecutionEvent) -> None:
        latest = followed.event
        result = subscription.subscriber.apply_event(latest)
        if result is not None:
            self.end(subscription, result=result)
            return
        if is_terminal(latest):
            followed.subscriptions.pop(subscription, None)
        if (latest.status, latest.unreadable) != (before.status, before.unreadable):
            subscription.wake()

    def complete_listing(self, agent_id: Scope, server_time: datetime | None) -> Listing:
        """All that was shown of an agent in which something is sought, and the followed events that are absent."""
        return Listing(tuple(self._stores[agent_id].values()), server_time, frozenset(self._absent))

    def deliver_listing(self, subscription: Subscription[Any], listing: Listing, began: ClockReading) -> None:
        """Give a listing to a subscriber that seeks."""
        result = subscription.subscriber.apply_listing(listing, began.wall)
        if result is not None:
            self.end(subscription, result=result)
        elif subscription.subscriber.has_changed:
            self.refresh(subscription)

    def deliver_response(self, subscription: Subscription[Any], response: Any, at: ClockReading) -> None:
        """Give a subscriber the response to its own requests.

        Args:
            subscription: the subscriber's.
            response: what its flow has returned.
            at: when the poll cycle began.
        """
        subscriber = self._asking.get(subscription)
        if subscriber is None:
            return  # It has ended meanwhile.
        result = subscriber.apply_response(response, at.wall)
        if result is not None:
            self.end(subscription, result=result)
            return
        before = set(subscription.following)
        self._follow(subscription)
        if before != set(subscription.following):
            subscription.wake()

    def refresh(self, subscription: Subscription[Any]) -> None:
        """A subscriber may seek or follow something else than before."""
        if subscription.subscriber.has_changed:
            self._reindex(subscription)
        subscription.wake()

    def evict(self, agent_id: Scope) -> None:
        """Drop events that are too old for all who still seek, and rows that were malformed in this cycle."""
        store = self._stores.get(agent_id)
        if store:
            not_before = oldest_not_before(self._seekers[agent_id])
            for event in [
                event for event in store.values() if event.unreadable is not None or not is_young(event, not_before)
            ]:
                del store[event.id]
