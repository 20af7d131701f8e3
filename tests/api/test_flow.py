"""Listings of more than one page: how far they are followed, and where their rows stand."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api import endpoints, flow, responses
from airflow_provider_agents.api.errors import InvalidArgumentError, PaginationError, RateLimitedError
from airflow_provider_agents.api.models import Page

EVENT = {"id": "event-1", "status": "RUNNING"}
LISTING = endpoints.list_agent_events("agent-1")


def read(call, status=200, body=b"", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return responses.read_response(call, status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


def drive(steps, pages):
    """Answer each call of a dialogue with what `pages` (a function of the params) gives."""
    asked = []
    try:
        call = next(steps)
        while True:
            asked.append(dict(call.params))
            call = steps.send(read(call, 200, pages(dict(call.params)), date="Thu, 01 Jan 2026 09:00:00 GMT"))
    except StopIteration as end:
        return end.value, asked


def rows(*ids):
    return [{"id": i, "status": "COMPLETED"} for i in ids]


def test_short_and_empty_pages_with_a_token_go_on():
    pages = {None: (rows("a"), "1"), "1": ([], "2"), "2": (rows("b"), None)}

    def page(params):
        data, token = pages[params.get("nextToken")]
        return {"data": data, "nextToken": token}

    answer, asked = drive(flow.paginate(LISTING), page)
    assert [event.id for event in answer.value] == ["a", "b"]
    assert [params.get("nextToken") for params in asked] == [None, "1", "2"]
    assert answer.server_time == datetime(2026, 1, 1, 9, tzinfo=UTC)


def test_a_token_that_comes_twice_ends_in_a_typed_error():
    with pytest.raises(PaginationError, match="same nextToken twice"):
        drive(flow.paginate(LISTING), lambda params: {"data": rows("a"), "nextToken": "again"})


def test_a_listing_without_end_ends_at_the_stated_bound():
    with pytest.raises(PaginationError, match="longer than 5 pages"):
        drive(
            flow.paginate(LISTING, max_pages=5),
            lambda params: {"data": [], "nextToken": f"{params.get('nextToken', '')}x"},
        )


def test_a_listing_of_large_pages_ends_at_the_stated_weight():
    size_bytes = read(LISTING, 200, {"data": [{**EVENT, "error": "x" * 1_000_000}], "nextToken": "1"}).size_bytes
    assert size_bytes > 1_000_000
    steps = flow.paginate(LISTING)
    next(steps)
    for number in range(flow.MAX_LISTING_BYTES // size_bytes):
        steps.send(flow.Response(Page(data=(), nextToken=str(number)), None, size_bytes))
    with pytest.raises(PaginationError, match="larger than 268,435,456 bytes"):
        steps.send(flow.Response(Page(data=(), nextToken="last"), None, size_bytes))


def test_a_walk_resumes_where_another_one_has_stopped():
    place = flow.PageCursor()
    steps = flow.paginate(LISTING, cursor=place)
    next(steps)
    for number in range(1, 4):
        steps.send(flow.Response(Page(data=(), nextToken=str(number)), datetime(2026, 1, number, tzinfo=UTC)))
    with pytest.raises(RateLimitedError):
        steps.throw(RateLimitedError("429"))
    assert (place.token, place.pages, place.is_done) == ("3", 3, False)
    answer, asked = drive(flow.paginate(LISTING, cursor=place), lambda params: {"data": rows("z"), "nextToken": None})
    assert [params.get("nextToken") for params in asked] == ["3"]
    # The rows are those of its own pages, and no older than the first page of all.
    assert [event.id for event in answer.value] == ["z"]
    assert answer.server_time == place.server_time == datetime(2026, 1, 1, tzinfo=UTC)
    assert place.is_done


@pytest.mark.parametrize("token", ["1", "2"])
def test_a_token_that_came_before_a_walk_was_resumed_ends_it_too(token):
    place = flow.PageCursor()
    for number in (1, 2):
        steps = flow.paginate(LISTING, cursor=place)
        next(steps)
        steps.send(flow.Response(Page(data=(), nextToken=str(number)), None))
        steps.close()
    with pytest.raises(PaginationError, match="same nextToken twice"):
        drive(flow.paginate(LISTING, cursor=place), lambda params: {"data": [], "nextToken": token})


def test_a_resumed_walk_is_bounded_as_a_whole():
    place = flow.PageCursor()
    for number in range(4):
        steps = flow.paginate(LISTING, max_pages=5, cursor=place)
        next(steps)
        steps.send(flow.Response(Page(data=(), nextToken=f"token {number}"), None))
        steps.close()
    with pytest.raises(PaginationError, match="longer than 5 pages"):
        drive(flow.paginate(LISTING, max_pages=5, cursor=place), lambda params: {"data": [], "nextToken": "token 4"})


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 40))
def test_the_newest_rows_are_gathered_over_as_many_pages_as_that_takes(count, page_size, total):
    ids = [f"e{n}" for n in range(total)]

    def page(params):
        start = int(params.get("nextToken", 0))
        end = start + min(page_size, int(params["limit"]))
        return {"data": rows(*ids[start:end]), "nextToken": str(end) if end < total else None}

    events, asked = drive(flow.first_rows(LISTING, count), page)
    assert [event.id for event in events] == ids[:count]
    assert len(asked) <= -(-count // page_size) + 1


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "3"])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(InvalidArgumentError, match="limit"):
        drive(flow.first_rows(LISTING, count), lambda params: {"data": []})


def test_a_walk_may_last_no_longer_than_asked():
    answer, asked = drive(
        flow.paginate(LISTING, lambda page: page.value.data[0].id == "b"),
        lambda params: {"data": rows(chr(ord("a") + len(params.get("nextToken", "")))),
                        "nextToken": params.get("nextToken", "") + "x"},
    )  # fmt: skip
    assert [event.id for event in answer.value] == ["a", "b"]
    assert len(asked) == 2


# --- the place of a row that names no time ---


def old(name, day, **fields):
    times = dict.fromkeys(("createdAt", "startedAt", "updatedAt"), f"2026-01-{day:02}T00:00:00Z")
    return {"id": name, "status": "COMPLETED", **times, **fields}


def walked(listing, *pages):
    """The rows of a walk over these pages, and the moments by which they were created."""
    steps = flow.paginate(listing)
    call = next(steps)
    try:
        for number, rows in enumerate(pages, 1):
            token = str(number) if number < len(pages) else None
            call = steps.send(read(call, 200, {"data": list(rows), "nextToken": token}))
    except StopIteration as end:
        return [(event.id, event.created_by) for event in end.value.value]
    raise AssertionError("the walk goes on")


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_row_that_names_no_time_is_dated_by_the_rows_before_it_in_its_listing(size):
    rows = [
        {"id": "first", "status": None},
        old("a", 9),
        {"id": "x", "status": None},
        old("b", 8, updatedAt="2026-01-10T00:00:00Z"),
        old("queued", 2, startedAt=None),
        {"id": "y", "status": "RUNNING", "createdAt": 7},
        old("z", 1, status=None),
    ]
    pages = [rows[start : start + size] for start in range(0, len(rows), size)]
    dates = dict(walked(LISTING, *pages))
    assert dates["first"] is None
    assert [dates[name].day for name in ("a", "x", "b", "y", "z")] == [9, 9, 8, 10, 1]


def test_a_row_of_a_listing_by_status_is_not_dated():
    # What has not begun may stand behind rows that are old.
    rows = [old("a", 9), {"id": "x", "status": None}]
    assert walked(endpoints.list_events(status="PENDING"), rows)[1] == ("x", None)
