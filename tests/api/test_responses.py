"""How answers are read: pure, so that each is one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api import endpoints, responses
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    TemporaryError,
    UnreadableAnswerError,
)

EVENT = {"id": "event-1", "status": "RUNNING"}
LISTING = endpoints.list_agent_events("agent-1")


def read(call, status=200, body=b"", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return responses.read_response(call, status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


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
        (endpoints.execute_agent("agent-1"), "Check the agent's id"),
        (endpoints.list_agents(), "Check the connection's host"),
        (endpoints.list_events(), "Check the connection's host"),
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
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999999", "1969-12-30T23:59:59"])
def test_a_moment_at_the_ends_of_the_calendar_is_none(moment, zone):
    event = {**EVENT, "createdAt": f"{moment}{zone}", "completedAt": f"{moment}{zone}"}
    (read_event,) = read(LISTING, 200, {"data": [event]}).value.data
    assert (read_event.createdAt, read_event.completedAt) == (None, None)


def test_a_moment_whose_offset_moves_it_out_of_the_calendar_is_none():
    (event,) = read(LISTING, 200, {"data": [{**EVENT, "createdAt": "2999-12-31T23:59:59-12:00"}]}).value.data
    assert event.createdAt is None


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "true", '"nan"', "[]", "{}"])
def test_a_number_that_nothing_can_keep_does_not_hide_how_a_run_ended(number):
    body = f'{{"data": [{{"id": "e", "status": "COMPLETED", "browserStepCount": {number}}}]}}'.encode()
    (event,) = read(LISTING, 200, body).value.data
    assert (event.status, event.browserStepCount) == ("COMPLETED", None)


def test_an_unreadable_answer_names_the_place_in_it():
    with pytest.raises(UnreadableAnswerError, match="nextToken"):
        read(LISTING, 200, {"data": [EVENT], "nextToken": [2]})


@pytest.mark.parametrize("row", [None, 7, [], {}, {"id": 7, "status": "RUNNING"}, {"id": "e", "status": None}])
@pytest.mark.parametrize("call", [LISTING, endpoints.list_events()])
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
    accepted = read(
        endpoints.execute_agent("a"), 202, {"data": {"requestId": odd, "agentId": 7, "message": [odd]}}
    ).value
    assert (accepted.requestId, accepted.agentId, accepted.message) == (None, None, None)


@given(st.integers(200, 599), st.binary(max_size=200) | st.builds(lambda x: json.dumps(x).encode(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "id", "status"]), inner),
)), st.dictionaries(st.sampled_from(["date", "retry-after", "content-type"]), st.text(max_size=30)))  # fmt: skip
def test_any_answer_is_read_or_ends_in_a_typed_error(status, body, headers):
    for call in (LISTING, endpoints.get_agent("a"), endpoints.execute_agent("a"), endpoints.list_agents()):
        try:
            answer = responses.read_response(call, status, headers, body)
        except AgentsError:
            continue
        else:
            assert 200 <= status < 300
            assert answer.value is not None


def test_an_agent_is_read_bare_and_inside_data():
    agent = {"id": "agent-1", "name": "prices"}
    assert read(endpoints.get_agent("agent-1"), 200, agent).value.name == "prices"
    assert read(endpoints.get_agent("agent-1"), 200, {"data": agent}).value.name == "prices"


def test_an_accepted_run_without_a_request_id_is_accepted_all_the_same():
    assert read(endpoints.execute_agent("a"), 202, {"data": {"message": "started"}}).value.requestId is None


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
        ("1e9", responses.MAX_RETRY_AFTER_SECONDS),
        ("inf", responses.MAX_RETRY_AFTER_SECONDS),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 2026 09:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 08:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_on_the_servers_own_clock(text, seconds):
    assert responses.read_retry_after(text, datetime(2026, 1, 1, 9, tzinfo=UTC)) == seconds


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


def test_retry_after_a_date_without_the_servers_clock_uses_ours():
    moment = datetime.now(UTC) + timedelta(seconds=600)
    seconds = responses.read_retry_after(moment.strftime("%a, %d %b %Y %H:%M:%S GMT"), None)
    assert 590 < seconds <= 600
