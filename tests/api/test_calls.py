"""What is asked of the API and how its answers are read: pure, so that each is one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api import calls
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    PaginationError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    TemporaryError,
    UnreadableAnswerError,
)
from airflow_provider_agents.api.models import Page

EVENT = {"id": "event-1", "status": "RUNNING"}
LISTING = calls.list_agent_events("agent-1")


def read(call, status=200, body=b"", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return calls.read_answer(call, status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


@pytest.mark.parametrize(
    ("agent_id", "path"),
    [
        ("agent-1", "/v1/agents/agent-1/execute"),
        ("a/b", "/v1/agents/a%2Fb/execute"),
        ("a?b#c d", "/v1/agents/a%3Fb%23c%20d/execute"),
        ("50%", "/v1/agents/50%25/execute"),
        ("ä", "/v1/agents/%C3%A4/execute"),
    ],
)
def test_an_agent_id_is_quoted_into_its_place_in_the_path(agent_id, path):
    assert calls.execute_agent(agent_id).path == path


@pytest.mark.parametrize("agent_id", ["", "..", "../x", "a/../b", "a\\..\\b", ".", " a", "a ", "a\nb", None, 7, b"a"])
def test_what_cannot_name_an_agent_is_refused_before_anything_is_sent(agent_id):
    with pytest.raises(InvalidArgumentError, match="agent_id"):
        calls.execute_agent(agent_id)


@given(st.text(min_size=1))
def test_no_agent_id_reaches_another_endpoint(agent_id):
    try:
        path = calls.get_agent(agent_id).path
    except InvalidArgumentError:
        return
    prefix, _, rest = path.rpartition("/")
    assert prefix == "/v1/agents"
    assert not set(rest) & set("/?#\\ ")
    assert rest not in {"", ".", ".."}


def test_only_an_execute_must_not_be_repeated():
    assert not calls.execute_agent("a").repeatable
    assert all(c.repeatable for c in (calls.get_agent("a"), calls.list_agents(), LISTING, calls.list_events()))


def test_filters_become_the_query_that_the_api_documents():
    after = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    call = calls.list_events(agent_id="a", status="FAILED", started_after=after, started_before=after, limit=7)
    assert call.params == (
        ("agentId", "a"),
        ("status", "FAILED"),
        ("startedAfter", "2026-01-02T03:04:05.678Z"),
        ("startedBefore", "2026-01-02T03:04:05.678Z"),
        ("limit", "7"),
    )


@pytest.mark.parametrize("limit", [0, -1, 201, 1.5, True, "5", None])
def test_a_limit_that_the_api_refuses_is_refused_first(limit):
    with pytest.raises(InvalidArgumentError, match="limit"):
        calls.list_agent_events("a", limit=limit)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(InvalidArgumentError, match="time zone"):
        calls.list_events(started_after=datetime(2026, 1, 1))  # noqa: DTZ001 - the point


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRejectedError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (408, ServerError),
        (409, RequestRejectedError),
        (429, RateLimitedError),
        (500, ServerError),
        (501, RequestRejectedError),
        (503, ServerError),
        (302, RequestRejectedError),
    ],
)
def test_each_status_has_its_error_that_names_the_call_and_the_status(status, error):
    with pytest.raises(error, match=f"^{status}: .*Request: listing the events of agent agent-1[.]$"):
        read(LISTING, status)


@pytest.mark.parametrize(
    "body",
    [
        {"message": "the plan is used up"},
        {"error": "the plan is used up"},
        {"error": {"message": "the plan is used up"}},
        {"detail": "the plan is used up"},
    ],
)
def test_what_an_error_body_says_is_passed_on(body):
    with pytest.raises(RequestRejectedError, match="The server says: the plan is used up"):
        read(LISTING, 402, body)


def test_a_byte_order_mark_hides_neither_a_page_nor_the_words_of_an_error():
    mark = b"\xef\xbb\xbf"
    assert read(LISTING, 200, mark + json.dumps({"data": [EVENT]}).encode()).value.data[0].id == "event-1"
    with pytest.raises(RequestRejectedError, match="The server says: no"):
        read(LISTING, 402, mark + b'{"message": "no"}')


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (LISTING, "Check the agent's id"),
        (calls.execute_agent("agent-1"), "Check the agent's id"),
        (calls.list_agents(), "Check the connection's host"),
        (calls.list_events(), "Check the connection's host"),
    ],
)
def test_a_404_names_the_agent_only_where_one_was_asked_for(call, words):
    with pytest.raises(NotFoundError, match=f"404: .*{words}") as caught:
        read(call, 404)
    assert ("agent's id" in str(caught.value)) == (call.path not in {"/v1/agents", "/v1/events"})


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1, {", b'{"error": 7}', b"[]", b"\xff\xfe"])
def test_an_error_body_of_any_shape_is_an_error_of_its_status(body):
    with pytest.raises(ServerError):
        read(LISTING, 502, body)


def test_words_of_the_server_cannot_forge_log_lines():
    with pytest.raises(RequestRejectedError) as caught:
        read(LISTING, 400, {"message": "x\n2026-01-01 INFO all is well\x1b[2J" + "y" * 10_000})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_redirect_names_its_target_and_is_not_followed():
    with pytest.raises(RequestRejectedError, match="redirects to 'https://elsewhere.example/'"):
        read(LISTING, 301, location="https://elsewhere.example/")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>sign in</html>",
        b'{"data": [{"id"',
        b"null",
        b"[]",
        b'"data"',
        b"7",
        {"data": None},
        {"data": {}},
        {"data": [], "nextToken": {"page": 2}},
        {"data": [], "nextToken": True},
        {"data": [], "nextToken": "x" * 5000},
        b'{"data": [{"id": "e", "status": "RUNNING", "browserStepCount": NaN}]}',
        b"[" * 100_000,
        b"\x00",
    ],
)
def test_a_success_that_is_no_page_of_events_is_unreadable(body):
    with pytest.raises(UnreadableAnswerError) as caught:
        read(LISTING, 200, body)
    assert caught.value.status_code == 200


@pytest.mark.parametrize("opening", [b"[", b'{"data":', b'{"data":[{"id":"e","status":"RUNNING","error":['])
def test_what_is_nested_without_end_is_unreadable(opening):
    with pytest.raises(UnreadableAnswerError):
        read(LISTING, 200, opening * 100_000)


@pytest.mark.parametrize("zone", ["Z", "+23:59", "-23:59"])
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999999", "1969-12-31T23:59:59"])
def test_a_moment_at_the_ends_of_the_calendar_is_none(moment, zone):
    event = {**EVENT, "createdAt": f"{moment}{zone}", "completedAt": f"{moment}{zone}"}
    (read_event,) = read(LISTING, 200, {"data": [event]}).value.data
    assert (read_event.createdAt, read_event.completedAt) == (None, None)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "true", '"nan"', "[]", "{}"])
def test_a_number_that_nothing_can_keep_does_not_hide_how_a_run_ended(number):
    body = f'{{"data": [{{"id": "e", "status": "COMPLETED", "browserStepCount": {number}}}]}}'.encode()
    (event,) = read(LISTING, 200, body).value.data
    assert (event.status, event.browserStepCount) == ("COMPLETED", None)


def test_an_unreadable_answer_names_the_place_in_it():
    with pytest.raises(UnreadableAnswerError, match="nextToken"):
        read(LISTING, 200, {"data": [EVENT], "nextToken": [2]})


@pytest.mark.parametrize("row", [None, 7, [], {}, {"id": 7, "status": "RUNNING"}, {"id": "e", "status": None}])
@pytest.mark.parametrize("call", [LISTING, calls.list_events()])
def test_a_row_that_cannot_be_read_leaves_the_rest_of_its_page_readable(call, row):
    first, odd, last = read(call, 200, {"data": [EVENT, row, EVENT], "nextToken": "next"}).value.data
    assert (first.id, first.unreadable, last.unreadable) == ("event-1", None, None)
    assert odd.unreadable is not None


@pytest.mark.parametrize(
    ("sent", "token"),
    [(7, "7"), ("7", "7"), (0, None), ("", None), (False, None), ([], None), ({}, None), (None, None)],
)
def test_a_number_is_a_token_and_an_empty_value_is_none(sent, token):
    assert read(LISTING, 200, {"data": [], "nextToken": sent}).value.nextToken == token


@pytest.mark.parametrize("odd", [7, None, [], {"id": "r"}, "", "two\nlines"])
def test_an_accepted_run_is_accepted_whatever_its_body_says(odd):
    accepted = read(calls.execute_agent("a"), 202, {"data": {"requestId": odd, "agentId": 7, "message": [odd]}}).value
    assert (accepted.requestId, accepted.agentId, accepted.message) == (None, None, None)


@given(st.integers(200, 599), st.binary(max_size=200) | st.builds(lambda x: json.dumps(x).encode(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "id", "status"]), inner),
)), st.dictionaries(st.sampled_from(["date", "retry-after", "content-type"]), st.text(max_size=30)))  # fmt: skip
def test_any_answer_is_read_or_ends_in_a_typed_error(status, body, headers):
    for call in (LISTING, calls.get_agent("a"), calls.execute_agent("a"), calls.list_agents()):
        try:
            answer = calls.read_answer(call, status, headers, body)
        except AgentsError:
            continue
        else:
            assert 200 <= status < 300
            assert answer.value is not None


def test_an_agent_is_read_bare_and_inside_data():
    agent = {"id": "agent-1", "name": "prices"}
    assert read(calls.get_agent("agent-1"), 200, agent).value.name == "prices"
    assert read(calls.get_agent("agent-1"), 200, {"data": agent}).value.name == "prices"


def test_an_accepted_run_without_a_request_id_is_accepted_all_the_same():
    assert read(calls.execute_agent("a"), 202, {"data": {"message": "started"}}).value.requestId is None


def test_the_servers_clock_comes_with_the_answer():
    answer = read(LISTING, 200, {"data": []}, date="Thu, 01 Jan 2026 09:00:00 GMT")
    assert answer.server_time == datetime(2026, 1, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize("date", ["", "now", "Thu, 99 Jan 2026", "1", "Thu, 01 Jan 99999 00:00:00 GMT"])
def test_a_date_that_is_none_is_no_date(date):
    assert read(LISTING, 200, {"data": []}, date=date).server_time is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("1e9", calls.MAX_RETRY_AFTER_SECONDS),
        ("inf", calls.MAX_RETRY_AFTER_SECONDS),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 2026 09:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 08:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_on_the_servers_own_clock(text, seconds):
    assert calls.read_retry_after(text, datetime(2026, 1, 1, 9, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 200, 202, 204])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"data": [', {"data": 7}, b"[" * 10_000])
def test_whatever_may_pass_keeps_the_pause_that_the_server_asks_for(status, body):
    with pytest.raises(TemporaryError) as caught:
        read(LISTING, status, body, retry_after="12")
    assert caught.value.retry_after_seconds == 12


def test_retry_after_travels_with_the_error():
    with pytest.raises(RateLimitedError) as caught:
        read(LISTING, 429, retry_after="12")
    assert caught.value.retry_after_seconds == 12


# --- listings of more than one page ---


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

    answer, asked = drive(calls.walk(LISTING), page)
    assert [event.id for event in answer.value] == ["a", "b"]
    assert [params.get("nextToken") for params in asked] == [None, "1", "2"]
    assert answer.server_time == datetime(2026, 1, 1, 9, tzinfo=UTC)


def test_a_token_that_comes_twice_ends_in_a_typed_error():
    with pytest.raises(PaginationError, match="same nextToken twice"):
        drive(calls.walk(LISTING), lambda params: {"data": rows("a"), "nextToken": "again"})


def test_a_listing_without_end_ends_at_the_stated_bound():
    with pytest.raises(PaginationError, match="beyond 5 pages"):
        drive(
            calls.walk(LISTING, max_pages=5),
            lambda params: {"data": [], "nextToken": f"{params.get('nextToken', '')}x"},
        )


def test_a_listing_of_large_pages_ends_at_the_stated_weight():
    weight = read(LISTING, 200, {"data": [{**EVENT, "error": "x" * 1_000_000}], "nextToken": "1"}).weight
    assert weight > 1_000_000
    steps = calls.walk(LISTING)
    next(steps)
    for number in range(calls.MAX_WALK_BYTES // weight):
        steps.send(calls.Answer(Page(data=(), nextToken=str(number)), None, weight))
    with pytest.raises(PaginationError, match="larger than 268,435,456 bytes"):
        steps.send(calls.Answer(Page(data=(), nextToken="last"), None, weight))


def test_a_walk_resumes_where_another_one_has_stopped():
    place = calls.Place()
    steps = calls.walk(LISTING, place=place)
    next(steps)
    for number in range(1, 4):
        steps.send(calls.Answer(Page(data=(), nextToken=str(number)), datetime(2026, 1, number, tzinfo=UTC)))
    with pytest.raises(RateLimitedError):
        steps.throw(RateLimitedError("429"))
    assert (place.token, place.pages, place.is_done) == ("3", 3, False)
    answer, asked = drive(calls.walk(LISTING, place=place), lambda params: {"data": rows("z"), "nextToken": None})
    assert [params.get("nextToken") for params in asked] == ["3"]
    # The rows are those of its own pages, and no older than the first page of all.
    assert [event.id for event in answer.value] == ["z"]
    assert answer.server_time == place.server_time == datetime(2026, 1, 1, tzinfo=UTC)
    assert place.is_done


@pytest.mark.parametrize("token", ["1", "2"])
def test_a_token_that_came_before_a_walk_was_resumed_ends_it_too(token):
    place = calls.Place()
    for number in (1, 2):
        steps = calls.walk(LISTING, place=place)
        next(steps)
        steps.send(calls.Answer(Page(data=(), nextToken=str(number)), None))
        steps.close()
    with pytest.raises(PaginationError, match="same nextToken twice"):
        drive(calls.walk(LISTING, place=place), lambda params: {"data": [], "nextToken": token})


def test_a_resumed_walk_is_bounded_as_a_whole():
    place = calls.Place()
    for number in range(4):
        steps = calls.walk(LISTING, max_pages=5, place=place)
        next(steps)
        steps.send(calls.Answer(Page(data=(), nextToken=f"token {number}"), None))
        steps.close()
    with pytest.raises(PaginationError, match="beyond 5 pages"):
        drive(calls.walk(LISTING, max_pages=5, place=place), lambda params: {"data": [], "nextToken": "token 4"})


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 40))
def test_the_newest_rows_are_gathered_over_as_many_pages_as_that_takes(count, page_size, total):
    ids = [f"e{n}" for n in range(total)]

    def page(params):
        start = int(params.get("nextToken", 0))
        end = start + min(page_size, int(params["limit"]))
        return {"data": rows(*ids[start:end]), "nextToken": str(end) if end < total else None}

    events, asked = drive(calls.newest(LISTING, count), page)
    assert [event.id for event in events] == ids[:count]
    assert len(asked) <= -(-count // page_size) + 1


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "3"])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(InvalidArgumentError, match="limit"):
        drive(calls.newest(LISTING, count), lambda params: {"data": []})


def test_a_walk_may_last_no_longer_than_asked():
    answer, asked = drive(
        calls.walk(LISTING, lambda page: page.value.data[0].id == "b"),
        lambda params: {"data": rows(chr(ord("a") + len(params.get("nextToken", "")))),
                        "nextToken": params.get("nextToken", "") + "x"},
    )  # fmt: skip
    assert [event.id for event in answer.value] == ["a", "b"]
    assert len(asked) == 2


def test_retry_after_a_date_without_the_servers_clock_uses_ours():
    moment = datetime.now(UTC) + timedelta(seconds=600)
    seconds = calls.read_retry_after(moment.strftime("%a, %d %b %Y %H:%M:%S GMT"), None)
    assert 590 < seconds <= 600


# --- the place of a row that names no time ---


def old(name, day, **fields):
    times = dict.fromkeys(("createdAt", "startedAt", "updatedAt"), f"2026-01-{day:02}T00:00:00Z")
    return {"id": name, "status": "COMPLETED", **times, **fields}


def walked(listing, *pages):
    """The rows of a walk over these pages, and the moments by which they were created."""
    steps = calls.walk(listing)
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
    assert walked(calls.list_events(status="PENDING"), rows)[1] == ("x", None)
