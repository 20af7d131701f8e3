"""One poll cycle: for whom it is, and what a page, a failure or a refusal means in it. Pure."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.errors import AgentsError, AuthenticationError, RateLimitedError, TemporaryError
from airflow_provider_agents.api.flow import Sleep
from airflow_provider_agents.polling.planner import Demand
from airflow_provider_agents.polling.subscriptions import ACCOUNT, oldest_not_before

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from airflow_provider_agents.api.errors import PermanentError
    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.listings import AccountProgress, AgentProgress
    from airflow_provider_agents.polling.planner import Planner
    from airflow_provider_agents.polling.registry import Registry
    from airflow_provider_agents.polling.subscriptions import ClockReading, FollowedEvent, Scope, Subscription
    from airflow_provider_agents.runs.listing import Listing

log = logging.getLogger(__name__)

#: A cycle in which this many requests failed and none was answered is aborted.
_ABORT_FAILURES = 3
#: The event loop gets a turn after this many events were compared, which takes about five milliseconds. To deliver a
#: listing to a subscriber counts as `_EVENTS_A_DELIVERY` more.
_CHUNK_EVENTS, _EVENTS_A_DELIVERY = 2000, 50
#: In a cycle, at most this many events are compared for subscribers that cannot decide yet, so that their logs show
#: the state of their runs.
_EVENTS_EARLY = 2000


class Cycle:
    """One poll cycle, from its first request to its end.

    Args:
        at: when it begins.
        registry: the subscriptions that it serves.
        planner: learns what the responses show.
        expiring: subscriptions whose deadline has passed. They end after this cycle.

    Attributes:
        number: its number. It is complete for those who began to seek before.
        served: the subscriptions at its beginning.
        seeking: of them, those that seek, by agent.
        due: the followed events that are to be shown.
        failed_listings: the listings of the account that failed, by name.
        seen_agents: agents of which a listing showed a run, or whose own listing was answered.
        error: why the cycle brought nothing; None if it brought something.
    """

    def __init__(
        self, at: ClockReading, registry: Registry, planner: Planner, expiring: list[Subscription[Any]]
    ) -> None:
        self.at, self.number = at, registry.begin_cycle()
        self._registry, self._planner, self._expiring = registry, planner, expiring
        self.served = [*registry.subscriptions]
        self.seeking: dict[Scope, list[Subscription[Any]]] = {}
        for subscription in self.served:
            if subscription.criteria is not None:
                self.seeking.setdefault(subscription.subscriber.agent_id, []).append(subscription)
        self.due = registry.followed_events()
        self._shown: set[str] = set()
        self._missed: set[str] = set()
        self._refused_windows: set[str] = set()
        self._pending: AccountProgress | None = None
        self.failed_listings: set[str] = set()
        self._refused_listings: list[str] = []
        self._complete: dict[Scope, AccountProgress | AgentProgress] = {}
        self.seen_agents: set[Scope] = set()
        self._unanswered: dict[Subscription[Any], AgentsError] = {}
        self._responses = self._failures = 0
        self._refusal: PermanentError | None = None
        self._last_error: AgentsError | None = None

    # --- what is to be found out ----------------------------------------------------------------------------------

    def demand(self) -> Demand:
        """What the planner must know."""
        started = [followed for followed in self.due.values() if followed.event.startedAt is not None]
        is_queue_followed = len(started) < len(self.due)
        listed = self.listed_for()
        return Demand(
            seeking={subscription.subscriber.agent_id for subscription in listed},
            looked_up=[subscription.subscriber.agent_id for subscription in self._looked_up()],
            not_before=oldest_not_before(listed),
            started=started,
            is_queue_followed=is_queue_followed,
            followed=len(self.due),
        )

    def listed_for(self, before: int | None = None) -> list[Subscription[Any]]:
        """Subscriptions that need all that the account's listing shows, back to their `not_before`.

        Args:
            before: only those that began to seek before this cycle.
        """
        # The account is listed for its own seekers. Subscriptions that need older events use agents' listings.
        seeking = [self.seeking[ACCOUNT]] if ACCOUNT in self.seeking else self.seeking.values()
        return [
            subscription
            for subscription in itertools.chain.from_iterable(seeking)
            if subscription.criteria is not None
            and not subscription.criteria.is_named
            and (before is None or subscription.searching_since < before)
        ]

    def _looked_up(self) -> Iterator[Subscription[Any]]:
        return (
            subscription
            for subscription in itertools.chain.from_iterable(self.seeking.values())
            if subscription.is_looked_up
        )

    def requests_to_look_up(self) -> int:
        """Requests for those that still need the row of one event, if each agent is asked for its own."""
        agents = {subscription.subscriber.agent_id for subscription in self._looked_up()}
        return self._planner.requests_of_agents(agents)

    def has_sought_before(self, cycle: int) -> bool:
        """Whether a subscription that still seeks did so before another cycle."""
        return any(
            subscription.searching_since < cycle and subscription.criteria is not None
            for subscriptions in self.seeking.values()
            for subscription in subscriptions
        )

    def not_shown(self) -> Iterator[FollowedEvent]:
        """What is still to be shown, as far as it is still followed."""
        return (
            followed
            for event_id, followed in self.due.items()
            if event_id not in self._shown and followed.subscriptions
        )

    # --- how far it has come --------------------------------------------------------------------------------------

    @property
    def shown(self) -> AbstractSet[str]:
        """Ids of the events that were shown."""
        return self._shown

    @property
    def missed(self) -> AbstractSet[str]:
        """Ids of the followed events that are left for a search in their agent's whole listing."""
        return self._missed - self._shown

    @property
    def pending(self) -> AccountProgress | None:
        """The account's listing of events that are PENDING, if it was read."""
        return self._pending

    def mark_shown(self, event_ids: Iterable[str]) -> None:
        """An earlier cycle has read these events on the first pages of a listing that this cycle resumes."""
        self._shown.update(event_ids)

    def mark_missed(self, event_ids: Iterable[str]) -> None:
        """A narrow listing did not show these events, or they have none."""
        self._missed.update(event_ids)

    def mark_window_refused(self, event_ids: Iterable[str]) -> None:
        """The narrow listing of these events was refused."""
        self._refused_windows.update(event_ids)
        self.mark_missed(event_ids)

    def was_window_refused(self, event_id: str) -> bool:
        """Whether the narrow listing of this event was refused."""
        return event_id in self._refused_windows

    def mark_pending_read(self, progress: AccountProgress) -> None:
        """The account's listing of events that are PENDING was read."""
        self._pending = progress

    def mark_complete(self, agent_id: Scope, progress: AccountProgress | AgentProgress) -> None:
        """A listing has shown all that is sought in an agent, or in the account."""
        self._complete[agent_id] = progress

    def is_complete(self, agent_id: Scope) -> bool:
        """Whether a listing has shown all that is sought in an agent, or in the account."""
        return agent_id in self._complete

    # --- what a response means ------------------------------------------------------------------------------------

    def take_page(
        self, events: Iterable[ExecutionEvent], server_time: datetime | None, agent_id: Scope = ACCOUNT
    ) -> bool:
        """Deliver a page; whether each row says whose event it is.

        Args:
            events: the rows.
            server_time: the server's clock.
            agent_id: whose own listing it is.
        """
        self._responses += 1
        if agent_id is not ACCOUNT:
            self.seen_agents.add(agent_id)
        if server_time is not None and self._responses == 1:
            self._planner.compare_clocks(server_time, self.at)
        whole = True
        for event in events:
            owner = agent_id if agent_id is not ACCOUNT else event.agentId or ACCOUNT
            if owner is ACCOUNT:
                whole = False
                if not self._registry.has(ACCOUNT):
                    continue
            self._shown.add(event.id)
            self.seen_agents.add(owner)
            self._registry.deliver_row(owner, event, server_time, self.at)
        return whole

    def is_expiring(self, subscription: Subscription[Any]) -> bool:
        """Whether this is the last poll of a subscription."""
        return subscription in self._expiring

    def take_response(self, subscriptions: Iterable[Subscription[Any]], response: object) -> None:
        """The own requests of these subscribers were answered."""
        self._responses += 1
        for subscription in subscriptions:
            self.seen_agents.add(subscription.subscriber.agent_id)
            self._registry.deliver_response(subscription, response, self.at)

    def failed(self, error: AgentsError, concerned: Iterable[Subscription[Any]]) -> None:
        """A failure says something about the platform or the key, and so perhaps about other requests as well."""
        self._failures += 1
        self._last_error = error
        self.give_up(concerned)

    def refused(self, error: PermanentError, concerned: Iterable[Subscription[Any]]) -> None:
        """A refusal of one listing says nothing about any other agent, whose listing is asked for all the same."""
        self._refusal = error
        self._unanswered.update(dict.fromkeys(concerned, error))

    def listing_failed(self, name: str, error: AgentsError) -> None:
        """One of the account's listings failed. Another listing would probably fail too."""
        self.failed_listings.add(name)
        self.failed(error, self.served)

    def listing_refused(self, name: str, error: PermanentError) -> None:
        """One of the account's listings was refused: a key, or a gateway, allows the agents' own listings only."""
        # If these do not work either, they will report it.
        self.refused(error, self.seeking.get(ACCOUNT, ()))
        self._refused_listings.append(name)
        self._planner.refused(name, self.at)
        log.info("Doing without the account's listing (%s): %s", name, error)

    def give_up(self, concerned: Iterable[Subscription[Any]]) -> None:
        """The last failure counts for these subscriptions, too."""
        if self._last_error is not None:
            self._unanswered.update(dict.fromkeys(concerned, self._last_error))

    @property
    def is_aborted(self) -> bool:
        """Whether further requests are of no use for now."""
        error = self._last_error
        if isinstance(error, RateLimitedError):
            return True
        if isinstance(error, TemporaryError) and error.retry_after_seconds is not None:
            return True
        if isinstance(error, AuthenticationError) and not self._responses:
            # All subscriptions share the key.
            return True
        return self._failures >= _ABORT_FAILURES and not self._responses

    # --- the end --------------------------------------------------------------------------------------------------

    @property
    def error(self) -> AgentsError | None:
        """Why the cycle brought nothing; None if it brought something."""
        error = self._last_error or self._refusal
        return error if not self._responses or self.is_aborted else None

    def deliver_listings(self) -> Flow[None]:
        """Deliver the complete listings to the subscriptions that seek."""
        handled, early = 0, 0
        for agent_id, progress in self._complete.items():
            listing: Listing | None = None
            server_time = progress.server_time
            if server_time is None and progress.cycle < self.number:
                # The time of later pages is of no use: the listing is as old as its first page.
                server_time = progress.newest
            for subscription in self.seeking.get(agent_id, ()):
                # A subscription that began later was not shown the first pages of a listing over several cycles.
                if subscription.criteria is None or subscription.searching_since >= progress.cycle:
                    continue
                is_decidable = subscription.criteria.is_decidable(progress.at.wall, server_time)
                # Before `settle` has passed, a listing decides nothing, so it is delivered to a few subscriptions only.
                if is_decidable or early < _EVENTS_EARLY:
                    listing = listing or self._registry.complete_listing(agent_id, server_time)
                    self._registry.deliver_listing(subscription, listing, progress.at)
                    subscription.was_missed = True
                    handled += _EVENTS_A_DELIVERY + len(listing.events)
                    if not is_decidable:
                        early += _EVENTS_A_DELIVERY + len(listing.events)
                        subscription.wake()
                handled += 1
                if handled >= _CHUNK_EVENTS:
                    handled = 0
                    yield Sleep(0)
            self._registry.evict(agent_id)

    def finish(self) -> Flow[None]:
        """Report failures, and end what is past its deadline."""
        if not self._responses:
            # Everything was refused, so the refusal says nothing about the account's listing in particular.
            for name in self._refused_listings:
                self._planner.allow(name)
        handled = 0
        for subscription in itertools.chain(self._count_failures(), self._count_recoveries()):
            subscription.wake()
            handled += _EVENTS_A_DELIVERY
            if handled >= _CHUNK_EVENTS:
                handled = 0
                yield Sleep(0)
        for subscription in self._expiring:
            if not subscription.has_ended:
                self._registry.end(subscription, result=subscription.subscriber.expire())

    def _count_failures(self) -> Iterator[Subscription[Any]]:
        """Count the failed polls of each subscription; those to which that is news."""
        for subscription, error in self._unanswered.items():
            if subscription.has_ended:
                continue
            final = subscription.patience.failed(error, self.at.wall)
            if final is not None:
                self._registry.end(subscription, error=final)
                continue
            self._registry.add_failing(subscription)
            if subscription.failed(error, self.at.wall):
                yield subscription

    def _count_recoveries(self) -> Iterator[Subscription[Any]]:
        """Forget the failures of those that were answered; those to which that is news."""
        if not self._responses or not self._registry.failing:
            return
        served = set(self.served)
        for subscription in [one for one in self._registry.failing if one not in self._unanswered]:
            if subscription not in served and subscription.subscriber.agent_id not in self.seen_agents:
                # What was answered was asked for others.
                continue
            self._registry.remove_failing(subscription)
            if subscription.recovered():
                yield subscription
