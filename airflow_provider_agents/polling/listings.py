"""The request flows of one poll cycle: which listing is read, how far, and what it is good for. Pure.

A listing that a failure interrupts is resumed in a later cycle, so how far it was read is a value of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_agents.api.endpoints import list_agent_events, list_events
from airflow_provider_agents.api.errors import AuthenticationError, PermanentError, TemporaryError
from airflow_provider_agents.api.flow import Flow, PageCursor, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.polling.planner import WHOLE_LISTING
from airflow_provider_agents.polling.subscriptions import ACCOUNT, oldest_not_before
from airflow_provider_agents.runs.listing import pending_then_newest
from airflow_provider_agents.runs.matching import TOLERANCE, clock_at_least, is_before

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.flow import Response
    from airflow_provider_agents.polling.cycle import Cycle
    from airflow_provider_agents.polling.interrupted import InterruptedListings
    from airflow_provider_agents.polling.planner import Planner, StartRate, Window
    from airflow_provider_agents.polling.registry import Registry
    from airflow_provider_agents.polling.row_cache import RowCache
    from airflow_provider_agents.polling.subscriptions import ClockReading, FollowedEvent, Scope, Subscription

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class AccountProgress:
    """How far one of the account's listings was read, over one cycle or several.

    Attributes:
        at: when its first page was asked for.
        cycle: the number of the cycle in which that was. The listing is complete for those who sought before.
        rate: how many runs start, as far as the listing shows it.
        cursor: the page that comes next.
        shown: ids of the events on the pages so far.
        ended: whether everything was asked for that was to be.
        whole: whether each row says whose it is, too.
        server_time: the server's clock at the first page.
        newest: what the clock that stamps events had passed by then, as far as the first page shows.
    """

    at: ClockReading
    cycle: int
    rate: StartRate
    cursor: PageCursor = field(default_factory=PageCursor)
    shown: set[str] = field(default_factory=set)
    ended: bool = True
    whole: bool = True
    server_time: datetime | None = None
    newest: datetime | None = None

    @property
    def pages(self) -> int:
        """Pages so far."""
        return self.cursor.pages

    def is_of_use(self, cycle: Cycle) -> bool:
        """Whether to read on in this cycle."""
        return self.whole or (self.ended and ACCOUNT in cycle.seeking)

    def break_off(self) -> None:
        """Something was left out."""
        self.ended = self.whole = False

    def next_listing(self, rate: StartRate) -> AccountProgress:
        """The same progress, at the first page of the next listing."""
        return replace(self, rate=rate, cursor=PageCursor(), shown=set())


@dataclass(slots=True, eq=False)
class AgentProgress:
    """How far one agent's listings were read, over one cycle or several. Its attributes are as above.

    Attributes:
        pending: the page that comes next among its events that are PENDING.
        listed: the page that comes next among all of them.
    """

    at: ClockReading
    cycle: int
    rate: StartRate
    pending: PageCursor = field(default_factory=PageCursor)
    listed: PageCursor = field(default_factory=PageCursor)
    newest: datetime | None = None

    @property
    def pages(self) -> int:
        """Pages so far."""
        return self.pending.pages + self.listed.pages

    @property
    def server_time(self) -> datetime | None:
        """The server's clock at the first page."""
        return self.pending.server_time


@dataclass(slots=True, eq=False)
class SearchProgress:
    """How far one agent's whole listing was searched for some events, over one cycle or several.

    Attributes:
        at: when its first page was asked for.
        owner: the agent whose own listing it is; `ACCOUNT` for the account's, narrowed to the agent.
        wanted: ids of the events.
        cursor: the page that comes next.
    """

    at: ClockReading
    owner: Scope
    wanted: frozenset[str]
    cursor: PageCursor = field(default_factory=PageCursor)

    @property
    def pages(self) -> int:
        """Pages so far."""
        return self.cursor.pages


class Listings:
    """The request flows of one poll cycle. They raise nothing that the API has answered.

    Args:
        cycle: the poll cycle that they are for.
        registry: the subscriptions.
        planner: learns what the listings cost.
        interrupted: the listings that a failure has interrupted.
        rows: the rows of earlier pages.
    """

    def __init__(
        self, cycle: Cycle, registry: Registry, planner: Planner, interrupted: InterruptedListings, rows: RowCache
    ) -> None:
        self._cycle, self._registry, self._planner, self._interrupted, self._rows = (
            cycle,
            registry,
            planner,
            interrupted,
            rows,
        )

    # --- the account's listings -----------------------------------------------------------------------------------

    def list_status(self, status: Status, budget: int) -> Flow[None]:
        """All of the account's events with a status, within a budget of pages."""
        cycle = self._cycle

        def read(progress: AccountProgress) -> Flow[Any]:
            # What an earlier cycle has read of this listing counts as shown.
            cycle.mark_shown(progress.shown)

            def stop(page: Response[Page[ExecutionEvent]]) -> bool:
                progress.server_time = progress.cursor.server_time
                progress.shown.update(event.id for event in page.value.data)
                return self._take_page(progress, page, break_off=progress.pages >= budget)

            return paginate(self._rows.cached(list_events(status=status)), stop, cursor=progress.cursor)

        reading = self._interrupted.resume(
            status,
            cycle.at,
            lambda: AccountProgress(cycle.at, cycle.number, self._planner.start_rate(cycle.at)),
            read,
            # Without the server's clock, only the second listing shows when the first one began.
            is_of_use=lambda progress: progress.server_time is not None or status != Status.PENDING,
        )
        progress = yield from self._over_account(status, reading)
        if progress is not None:
            if status == Status.PENDING:
                cycle.mark_pending_read(progress)
            self._planner.measured_status(status, progress.pages, cycle.at, whole=progress.whole)

    def list_account(self, pending: AccountProgress, budget: int | None) -> Flow[None]:
        """The account's events down to the oldest that a subscription seeks.

        Below that, it is read on for the rows that are looked up, as long as it has fewer pages than the agents'
        listings that would show what is left of them.

        Args:
            pending: the progress so far, which has read the events that are PENDING.
            budget: the most pages down to the oldest that is sought; None to read only for what is looked up.
        """
        cycle = self._cycle

        def read(progress: AccountProgress) -> Flow[Any]:
            listed_for = cycle.listed_for(progress.cycle) if budget is not None else []
            not_before = oldest_not_before(listed_for)

            def stop(page: Response[Page[ExecutionEvent]]) -> bool:
                if progress.pages == 1:
                    progress.newest = clock_at_least(None, page.value.data)
                progress.rate.add(page.value.data)
                if not listed_for or any(is_before(event, not_before) for event in page.value.data):
                    self._take_page(progress, page)
                    return progress.pages >= cycle.requests_to_look_up()
                # What is still to come is known better after each page.
                too_far = budget is not None and progress.pages * progress.rate.share_missing(not_before) > budget
                return self._take_page(progress, page, break_off=too_far)

            return paginate(self._rows.cached(list_events()), stop, cursor=progress.cursor)

        reading = self._interrupted.resume(
            WHOLE_LISTING,
            cycle.at,
            lambda: pending.next_listing(self._planner.start_rate(cycle.at)),
            read,
            is_of_use=lambda progress: progress.is_of_use(cycle) and cycle.has_sought_before(progress.cycle),
        )
        progress = yield from self._over_account(WHOLE_LISTING, reading)
        if progress is None:
            return
        self._planner.measured_account(progress.rate, cycle.at)
        if budget is None:
            return
        not_before = oldest_not_before(cycle.listed_for(progress.cycle))
        for agent_id, subscriptions in cycle.seeking.items():
            if agent_id is ACCOUNT:
                is_complete = progress.ended
            else:
                # The account's listing may have ended before the moments back to which these seek.
                is_complete = progress.whole and all(
                    _reaches(not_before, subscription)
                    for subscription in subscriptions
                    if subscription.searching_since < progress.cycle
                )
            if is_complete:
                cycle.mark_complete(agent_id, progress)

    def _take_page(
        self, progress: AccountProgress, page: Response[Page[ExecutionEvent]], *, break_off: bool = False
    ) -> bool:
        """Take in a page of the account's; whether to break off here."""
        progress.whole &= self._cycle.take_page(page.value.data, page.server_time)
        if break_off and page.value.nextToken:
            progress.break_off()
            return True
        return False

    def _over_account(self, name: str, reading: Flow[T]) -> Generator[Any, Any, T | None]:
        """Read one of the account's listings to its end; None if that failed."""
        try:
            return (yield from reading)
        except (TemporaryError, AuthenticationError) as error:
            self._cycle.listing_failed(name, error)
        except PermanentError as error:
            self._cycle.listing_refused(name, error)
        return None

    # --- an agent's listings --------------------------------------------------------------------------------------

    def list_agent(self, agent_id: str, subscriptions: Sequence[Subscription[Any]]) -> Flow[None]:
        """One agent's events down to the oldest that is sought, after those that are PENDING."""
        cycle = self._cycle

        def take(page: Response[Page[ExecutionEvent]]) -> bool:
            cycle.take_page(page.value.data, page.server_time, agent_id)
            return False

        def read(progress: AgentProgress) -> Flow[Any]:
            served = [subscription for subscription in subscriptions if subscription.searching_since < progress.cycle]
            not_before = oldest_not_before(served)

            def stop(page: Response[Page[ExecutionEvent]]) -> bool:
                if progress.listed.pages == 1:
                    progress.newest = clock_at_least(None, page.value.data)
                progress.rate.add(page.value.data)
                take(page)
                # Those whose ids were shown have what they want; after everybody's, the rest is of no use.
                if all(subscription.criteria is None for subscription in served):
                    return True
                return any(is_before(event, not_before) for event in page.value.data)

            return pending_then_newest(
                lambda status: self._rows.cached(list_agent_events(agent_id, status=status)),
                stop,
                stop_pending=take,
                cursors=(progress.pending, progress.listed),
            )

        reading = self._interrupted.resume(
            ("agent", agent_id),
            cycle.at,
            lambda: AgentProgress(cycle.at, cycle.number, self._planner.start_rate(cycle.at)),
            read,
            is_of_use=lambda progress: (
                # As above.
                (progress.server_time is not None or progress.listed.pages > 0)
                and any(subscription.searching_since < progress.cycle for subscription in subscriptions)
            ),
        )
        progress = yield from self._over_agent(reading, lambda: subscriptions)
        if progress is not None:
            if self._registry.has(agent_id):
                self._planner.measured_agent(agent_id, progress.pages, progress.rate)
            cycle.mark_complete(agent_id, progress)

    def list_window(self, window: Window) -> Flow[None]:
        """A narrow listing that shows some followed events."""
        cycle, registry, wanted = self._cycle, self._registry, set(window.event_ids)
        # The account can be listed for its watchers; an agent's own listing may be refused, if it was deleted.
        owner = ACCOUNT if registry.only_account_follows(wanted) else window.agent_id

        def stop(page: Response[Page[ExecutionEvent]]) -> bool:
            cycle.take_page(page.value.data, page.server_time, owner)
            return wanted <= cycle.shown

        if owner is ACCOUNT:
            call = list_events(agent_id=window.agent_id, started_after=window.after, started_before=window.before)
        else:
            call = list_agent_events(owner, started_after=window.after, started_before=window.before)
        if cycle.is_aborted:
            cycle.give_up(registry.followers(wanted))
            return
        try:
            yield from paginate(self._rows.cached(call), stop)
        except (TemporaryError, AuthenticationError) as error:
            cycle.failed(error, registry.followers(wanted - cycle.shown))
        except PermanentError as error:
            # Perhaps only the narrowing is refused. The agent's whole listing shows that.
            log.info("A narrow listing was refused: %s", error)
            cycle.mark_window_refused(wanted)
        else:
            cycle.mark_missed(wanted - cycle.shown)

    def search(self, agent_id: str, followed: Iterable[FollowedEvent]) -> Flow[None]:
        """Followed events that no narrow listing showed, in their agent's whole one."""
        cycle, by_id = self._cycle, {one.event.id: one for one in followed}
        owner = ACCOUNT if self._registry.only_account_follows(by_id) else agent_id
        call = list_events(agent_id=agent_id) if owner is ACCOUNT else list_agent_events(agent_id)
        missing: set[str] = set()

        def still_missing(progress: SearchProgress) -> set[str]:
            return {event_id for event_id in progress.wanted if event_id in by_id and event_id not in cycle.shown}

        def read(progress: SearchProgress) -> Flow[Any]:
            missing.clear()
            missing.update(still_missing(progress))
            not_before = _created_since(by_id[event_id].event for event_id in missing)

            def stop(page: Response[Page[ExecutionEvent]]) -> bool:
                cycle.take_page(page.value.data, page.server_time, owner)
                missing.difference_update(event.id for event in page.value.data)
                return not missing or any(is_before(event, not_before) for event in page.value.data)

            return paginate(self._rows.cached(call), stop, cursor=progress.cursor)

        def reading() -> Flow[bool]:
            try:
                yield from self._interrupted.resume(
                    ("search", agent_id),
                    cycle.at,
                    lambda: SearchProgress(cycle.at, owner, frozenset(by_id)),
                    read,
                    # Another listing has other tokens.
                    is_of_use=lambda progress: progress.owner == owner and bool(still_missing(progress)),
                )
            except PermanentError as error:
                if owner is not ACCOUNT or isinstance(error, AuthenticationError):
                    raise
                # For a watcher of the account, the refusal means that the account has no such agent.
                log.info("The account's listing does not show agent %s: %s", agent_id, error)
            return True

        if (yield from self._over_agent(reading(), lambda: tuple(self._registry.followers(missing)))):
            self._registry.mark_absent(missing)

    def own_requests(self, request_flow: Flow[Any], subscriptions: Sequence[Subscription[Any]]) -> Flow[None]:
        """The own requests of subscribers whose requests are the same."""
        response = yield from self._over_agent(request_flow, lambda: subscriptions)
        if response is not None:
            self._cycle.take_response(subscriptions, response)

    def _over_agent(
        self, reading: Flow[T], concerned: Callable[[], Iterable[Subscription[Any]]]
    ) -> Generator[Any, Any, T | None]:
        """Read one agent's listing to its end; None if that failed, or the cycle is aborted."""
        cycle = self._cycle
        if cycle.is_aborted:
            cycle.give_up(concerned())
            return None
        try:
            return (yield from reading)
        except (TemporaryError, AuthenticationError) as error:
            cycle.failed(error, concerned())
        except PermanentError as error:
            cycle.refused(error, concerned())
        return None


def _reaches(not_before: datetime | None, subscription: Subscription[Any]) -> bool:
    """Whether a listing down to `not_before` shows what a subscription seeks."""
    if subscription.criteria is None:
        return True
    if subscription.criteria.is_named:
        # The listing was not read for it.
        return False
    return not_before is None or (
        subscription.criteria.not_before is not None and subscription.criteria.not_before >= not_before
    )


def _created_since(events: Iterable[ExecutionEvent]) -> datetime | None:
    """The moment since which all of some events were created; None if one of them does not say."""
    created = [event.created_by for event in events]
    known = [moment for moment in created if moment is not None]
    return min(known) - TOLERANCE if known and len(known) == len(created) else None
