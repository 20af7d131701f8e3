"""The network's side: what goes out, what failures become, what is repeated. Both faces, through httpx's own seam."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
import traceback
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import pytest
from frames import variables
from own_time import keep_time

from airflow_provider_agents.api import endpoints, flow
from airflow_provider_agents.api.body import MAX_BODY_BYTES
from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    InvalidConnectionError,
    NoAnswerError,
    NotSentError,
    RateLimitedError,
    ServerError,
    UnreadableAnswerError,
)
from airflow_provider_agents.api.retry import RetryWindow
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.simulator import ManualClock

KEY = "sk-0123456789-secret"
READ = endpoints.list_agents(limit=1)
EXECUTE = endpoints.execute_agent("agent-1")
PAGE = {"data": []}


class Server:
    """Answers a list of replies in turn, the last for ever, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []

    def __call__(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply() if callable(reply) else reply


def ok():
    return httpx.Response(200, json=PAGE)


class Face:
    """One of the two clients, used in the same way."""

    def __init__(self, kind, server, *, attempts=None, settings=None):
        self.kind, self.slept = kind, []
        self.settings = settings or Settings(api_key=KEY)
        arguments = {"transport": httpx.MockTransport(server)}
        if attempts is not None:
            arguments["attempts"] = attempts
        if kind == "sync":
            keep_time(sleep=self.slept.append)
            self.client = Client(self.settings, **arguments)
        else:
            self.client = AsyncClient(self.settings, **arguments)

    def do(self, method, *args):
        result = getattr(self.client, method)(*args)
        return result if self.kind == "sync" else asyncio.run(result)

    def run_flow(self, steps):
        async def take(call):
            answer = self.client.send_once(call)
            return answer if self.kind == "sync" else await answer

        return asyncio.run(flow.run_flow(steps, take))


@pytest.fixture(params=["sync", "async"])
def face(request):
    return lambda *args, **kwargs: Face(request.param, *args, **kwargs)


@pytest.fixture
def worker():
    """The client that repeats."""
    return lambda *args, **kwargs: Face("sync", *args, **kwargs)


def test_a_request_carries_the_key_the_versions_and_the_query(face):
    server = Server(ok())
    face(server).do("send_once", endpoints.list_events(status="FAILED", limit=3))
    (request,) = server.requests
    assert str(request.url) == "https://api.uragents.ai/v1/events?status=FAILED&limit=3"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["user-agent"].startswith("airflow-provider-agents/")
    assert "python/" in request.headers["user-agent"]


def test_the_key_goes_into_the_header_that_the_connection_names(face):
    server = Server(ok())
    face(server, settings=Settings(api_key=KEY, auth_header="X-Api-Key")).do("send_once", READ)
    assert server.requests[0].headers["x-api-key"] == KEY
    assert "authorization" not in server.requests[0].headers


def test_a_base_url_with_a_path_keeps_it_and_quoted_ids_stay_quoted(face):
    server = Server(httpx.Response(202, json={"data": {"requestId": "r"}}))
    settings = Settings(api_key=KEY, base_url="https://gateway.example/agents-api/")
    face(server, settings=settings).do("send_once", endpoints.execute_agent("a/b c"))
    assert server.requests[0].url.raw_path == b"/agents-api/v1/agents/a%2Fb%20c/execute"
    assert server.requests[0].content == b""


def test_a_redirect_is_not_followed(face):
    server = Server(httpx.Response(307, headers={"location": "https://elsewhere.example/v1/agents"}))
    with pytest.raises(AgentsError, match="redirects"):
        face(server).do("send_once", READ)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (httpx.ConnectError("refused"), NotSentError),
        (httpx.ConnectTimeout("slow"), NotSentError),
        (httpx.PoolTimeout("full"), NotSentError),
        (httpx.ProxyError("403"), NotSentError),
        (httpx.ReadTimeout("slow"), NoAnswerError),
        (httpx.WriteTimeout("slow"), NoAnswerError),
        (httpx.ReadError("reset"), NoAnswerError),
        (httpx.WriteError("reset"), NoAnswerError),
        (httpx.RemoteProtocolError("closed"), NoAnswerError),
        (httpx.LocalProtocolError(f"Illegal header value b'Bearer {KEY}'"), InvalidConnectionError),
    ],
)
def test_a_failure_of_the_network_says_whether_the_platform_can_have_acted(face, failure, error):
    with pytest.raises(error) as caught:
        face(Server(failure)).do("send_once", EXECUTE)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_read_is_repeated_with_growing_pauses_and_then_answers(worker):
    client = worker(Server(httpx.ReadError("reset"), httpx.Response(503), httpx.Response(200, text="<html>"), ok()),
                  attempts=5)  # fmt: skip
    assert client.do("send", READ).value.data == ()
    assert len(client.slept) == 3
    assert all(0 <= pause <= 20 for pause in client.slept)


def test_a_read_that_goes_on_failing_ends_with_the_last_error(worker):
    server = Server(httpx.Response(503))
    with pytest.raises(ServerError):
        worker(server, attempts=5).do("send", READ)
    assert len(server.requests) == 5


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), httpx.ReadTimeout("slow")])
def test_an_execute_whose_answer_is_lost_is_never_sent_again(worker, failure):
    server = Server(failure)
    with pytest.raises(NoAnswerError):
        worker(server, attempts=5).do("send", EXECUTE)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_execute_that_a_server_failed_at_is_never_sent_again(worker, status):
    server = Server(httpx.Response(status))
    with pytest.raises(ServerError):
        worker(server, attempts=5).do("send", EXECUTE)
    assert len(server.requests) == 1


def test_an_execute_that_was_never_sent_is_sent_again(worker):
    accepted = httpx.Response(202, json={"data": {"requestId": "r"}})
    server = Server(httpx.ConnectError("refused"), httpx.Response(429), accepted)
    assert worker(server, attempts=5).do("send", EXECUTE).value.requestId == "r"


def test_the_pause_is_at_least_what_the_server_asks_for(worker):
    client = worker(Server(httpx.Response(429, headers={"retry-after": "33"}), ok()), attempts=5)
    client.do("send", READ)
    assert client.slept == [33]


def test_a_worker_does_not_sleep_for_longer_than_a_minute_because_a_server_asks(worker):
    client = worker(Server(httpx.Response(429, headers={"retry-after": "600"})), attempts=5)
    with pytest.raises(RateLimitedError) as caught:
        client.do("send", READ)
    assert caught.value.retry_after_seconds == 600
    assert client.slept == []


@pytest.mark.parametrize(("call", "requests"), [(READ, 2), (EXECUTE, 1)])
def test_a_client_with_a_window_retries_as_long_as_the_window_lasts(call, requests):
    clock = ManualClock()
    keep_time(clock)
    window = RetryWindow(300.0, warn=lambda _: None)
    server = Server(httpx.Response(503))
    client = Client(Settings(api_key=KEY), window=window, transport=httpx.MockTransport(server))
    began_at = clock.now
    with pytest.raises(ServerError):
        client.send(call)
    assert len(server.requests) >= requests
    assert (clock.now - began_at).total_seconds() == pytest.approx(300.0 if call is READ else 0.0)


@pytest.mark.parametrize("status", [401, 403, 404, 400])
def test_what_will_not_get_better_is_not_repeated(worker, status):
    server = Server(httpx.Response(status))
    with pytest.raises(AgentsError):
        worker(server, attempts=5).do("send", READ)
    assert len(server.requests) == 1


def test_an_answer_beyond_the_bound_is_not_read_to_its_end(face):
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1))
    reply = httpx.Response(200, headers={"content-encoding": "gzip"}, content=bomb)
    with pytest.raises(UnreadableAnswerError, match="larger than"):
        face(Server(reply)).do("send_once", READ)


def test_a_token_that_makes_no_url_is_a_typed_error(face):
    for token in ("x" * 4097, "x" * 65536, "😀" * 20_000):
        listing = httpx.Response(200, json={"data": [], "nextToken": token})
        with pytest.raises(UnreadableAnswerError, match="nextToken"):
            face(Server(listing)).do("send_once", READ)
    server = Server(httpx.Response(200, json={"data": [], "nextToken": "😀" * 4096}), ok())
    assert face(server).run_flow(flow.paginate(READ)).value == []
    assert len(server.requests) == 2


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends with an error of the network."""

    def __iter__(self):
        yield b'{"message": '
        raise httpx.ReadError("reset")

    async def __aiter__(self):
        yield b'{"message": '
        raise httpx.ReadError("reset")


@pytest.mark.parametrize(
    ("status", "error"), [(429, RateLimitedError), (503, ServerError), (401, AuthenticationError), (200, NoAnswerError)]
)
def test_a_failure_whose_text_is_lost_keeps_its_status_and_its_retry_after(face, status, error):
    reply = httpx.Response(status, headers={"retry-after": "7"}, stream=Broken())
    with pytest.raises(error) as caught:
        face(Server(reply)).do("send_once", EXECUTE)
    assert getattr(caught.value, "retry_after_seconds", None) == (7 if status in {429, 503} else None)


def gzipped(data):
    return {"content-encoding": "gzip"}, gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b'\xef\xbb\xbf{"data": []}'),
        gzipped(b'\xef\xbb\xbf{"data": []}'),
        ({"content-encoding": "gzip"}, gzip.compress(b'{"data"', mtime=0) + gzip.compress(b": []}", mtime=0)),
        ({"content-encoding": "deflate"}, zlib.compress(b'{"data": []}')),
        ({"content-encoding": "identity"}, b'{"data": []}'),
    ],
)
def test_an_answer_is_read_however_a_gateway_wraps_it(face, headers, body):
    reply = httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))
    assert face(Server(reply)).do("send_once", READ).value.data == ()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-encoding": "br"}, b""),
        ({"content-encoding": "gzip"}, b"damaged"),
        gzipped(b" " * (MAX_BODY_BYTES + 1)),
        ({}, b"<html>"),
    ],
)
def test_an_answer_that_cannot_be_read_keeps_the_pause_that_it_asks_for(face, headers, body):
    reply = httpx.Response(200, headers={"retry-after": "7", **headers}, stream=httpx.ByteStream(body))
    with pytest.raises(UnreadableAnswerError) as caught:
        face(Server(reply)).do("send_once", READ)
    assert caught.value.retry_after_seconds == 7


@pytest.mark.parametrize("encoding", [None, "gzip", "br"])
def test_no_frame_of_an_answer_that_cannot_be_read_holds_the_key_that_it_repeats(face, encoding):
    body = KEY.encode() * 500_000
    headers = {} if encoding is None else {"content-encoding": encoding}
    with pytest.raises(UnreadableAnswerError) as caught:
        face(Server(httpx.Response(200, headers=headers, stream=httpx.ByteStream(body)))).do("send_once", READ)
    assert not [line for line in variables(caught.value) if KEY in line]


def test_a_damaged_content_encoding_is_unreadable(face):
    # As a stream: httpx would otherwise decode it when the test makes it.
    reply = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    with pytest.raises(UnreadableAnswerError, match="content encoding"):
        face(Server(reply)).do("send_once", READ)


def test_a_server_that_repeats_the_key_does_not_bring_it_into_a_message(face):
    server = Server(httpx.Response(401, json={"message": f"the key {KEY} is unknown"}))
    with pytest.raises(AuthenticationError, match=r"the key \*\*\* is unknown") as caught:
        face(server).do("send_once", READ)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_dialogue_pauses_repeats_nothing_it_wants_once_and_is_told_of_failures(worker):
    server = Server(httpx.Response(503), ok())
    client = worker(server, attempts=5)

    def dialogue():
        try:
            yield flow.NoRetry(READ)
        except ServerError:
            yield flow.Sleep(2.5)
        answer = yield READ
        return len(answer.value.data)

    assert client.do("run_flow", dialogue()) == 0
    assert client.slept == [2.5]
    assert len(server.requests) == 2


def test_a_row_that_cannot_be_read_is_logged_once_by_a_client(face, caplog):
    client = face(
        Server(httpx.Response(200, json={"data": [{"id": "e", "status": None}, {"id": "f", "status": "RUNNING"}]}))
    )
    for _ in range(3):
        assert len(client.do("send_once", endpoints.list_events()).value.data) == 2
    assert ["event=e" in line for line in caplog.messages if "cannot be read" in line] == [True]


@pytest.mark.parametrize("status", [200, 429])
def test_the_headers_of_each_response_are_handed_on_without_the_key(status):
    reply = httpx.Response(status, json=PAGE, headers={"X-RateLimit-Limit": "60", "X-Echo": f"Bearer {KEY}"})
    seen = []
    settings = Settings(base_url="https://api.example", api_key=KEY)
    transport = httpx.MockTransport(Server(reply))
    with Client(settings, attempts=1, transport=transport, on_response=lambda *of: seen.append(of)) as client:
        try:
            client.send(READ)
        except RateLimitedError:
            assert status == 429
    ((found, headers),) = seen
    assert (found, headers["x-ratelimit-limit"], headers["x-echo"]) == (status, "60", "Bearer ***")
    assert KEY not in str(headers)


class Connections(BaseHTTPRequestHandler):
    """Answers with a page, and keeps from which port each request came."""

    protocol_version = "HTTP/1.1"
    ports: ClassVar[list[int]] = []

    def do_GET(self):
        self.ports.append(self.client_address[1])
        body = json.dumps(PAGE).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("pause", "connections"), [(5.0, 1), (30.0, 1), (60.0, 2)])
def test_a_connection_is_kept_over_the_pause_between_two_polls(kind, pause, connections, mocker):
    Connections.ports.clear()
    later = [0.0]
    of_httpcore = mocker.patch(f"httpcore._{kind}.http11.time")
    of_httpcore.monotonic.side_effect = lambda: time.monotonic() + later[0]

    async def ask_twice(client):
        async with client:
            for _ in range(2):
                await client.send_once(READ)
                later[0] += pause

    with ThreadingHTTPServer(("127.0.0.1", 0), Connections) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        settings = Settings(api_key=KEY, base_url=f"http://127.0.0.1:{server.server_port}")
        if kind == "async":
            asyncio.run(ask_twice(AsyncClient(settings)))
        else:
            with Client(settings) as client:
                for _ in range(2):
                    client.send_once(READ)
                    later[0] += pause
        server.shutdown()
        thread.join()
    assert len(Connections.ports) == 2
    assert len(set(Connections.ports)) == connections
