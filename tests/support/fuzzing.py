"""Hostile answers by the million, through everything that reads them: `make fuzz`.

Some go to tasks that are played from their start to their end, with a judge who knows the truth: `episodes`.

What is true of each, whatever it is: it is read, or ends in an error of this package; it costs a bounded amount of time
and memory; no error and no log line shows the key or breaks its line; and what is handed on can be kept by Airflow.
A failure prints the seed that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import logging
import os
import random
import resource
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
from driving import Scene
from frames import variables
from own_time import keep_time

from airflow_provider_agents.api import endpoints, flow, responses
from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.errors import AgentsError, InvalidConnectionError
from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent, Page
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.asking import IdleAgent
from airflow_provider_agents.polling.progress import state_of
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import Checkpoint, CompletionTracker
from airflow_provider_agents.runs.first_run import list_started
from airflow_provider_agents.runs.outcome import Verdict, to_error
from airflow_provider_agents.runs.status import active_runs, usage_of
from airflow_provider_agents.runs.submission import Submission, find_unconfirmed, submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import Reply, SimulatorConfig, mock_transport

KEY = "sk/fuzz-0123456789+key"
#: No answer may take longer, in seconds: ten times what the slowest ones take.
SLOWEST_SECONDS = 2.0
#: Resident memory may grow by so many bytes from a tenth of the way to the end.
GROWTH_BYTES = 150 * 1024 * 1024

# --- what is sent ---------------------------------------------------------------------------------------------------

#: Written into JSON without the quotation marks, since Python would not write them.
RAW = [
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-0",
    "1E400",
    "00",
    "0x1",
    "1_000",
    "'x'",
    "undefined",
    "9" * 5000,
    r'"\ud83d"',
]
TEXTS = [
    "",
    " ",
    "x" * 3000,
    "\0",
    "a\nb\r\n::group::c",
    "\x1b[31mred\x1b[0m",
    "\u202e\u2028\x85\x9b",
    "[bold]x[/bold]",
    "😀ä\u0301",
    "__type",
    "{agent_id}",
    "../../agents",
    "<script>alert(1)</script>",
    "%00%0a",
    KEY,
]
TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-23:59",
    "1969-12-31T23:59:59Z",
    "2999-12-31T23:59:59-12:00",
    "2026-01-01",
    "2026-01-01T09:00:00",
    "2026-01-01T09:00:00.123456789Z",
    "2026-02-30T00:00:00Z",
    "2026-01-01T24:00:00Z",
    "1767225600",
    "1767225600000",
    "-1",
    "now",
    "2026-01-01T09:00:00+99:99",
]
NUMBERS = [0, -1, 1.5, -0.0, 1e308, 2**31, 2**53, 2**63, -(2**63) - 1, 2**64, 10**400]
NAMES = ["id", "status", "agentId", "requestId", "startedAt", "completedAt", "createdAt", "updatedAt", "error", "data"]
RESERVED = ["__type", "__var", "__classname__", "__version__", "__data__", "__id__", "\0", "x" * 300]
STATUSES = ["PENDING", "RUNNING", "COMPLETED", "FAILED", "QUEUED", "completed", "CANCELLED", ""]
CODES = [100, 199, 200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 408, 409, 410, 418, 421, 425, 429]
CODES += [431, 451, 499, 500, 501, 502, 503, 504, 505, 520, 599, 600, 999]
HEADERS = {
    "date": [
        "Thu, 01 Jan 2026 09:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Thu, 01 Jan 1970 00:00:00 +9959",
        "Thu, 32 Jan 2026 09:00:00 GMT",
        "Thu, 01 Jan 99999999999 00:00:00 GMT",
        "0",
        "x, " * 500,
        "2026-01-01T09:00:00Z",
    ],
    "retry-after": ["0", "1", "-5", "1.5", "3600", "1e400", "nan", "inf", "-inf", "9" * 400, "1_0", "soon", "\u0661"],
    "content-type": ["application/json", "text/html", "application/json; charset=utf-16", "x" * 3000, KEY, "\t"],
    "content-encoding": ["gzip", "br", "gzip, gzip", "identity", "deflate", "x" * 300],
    "location": ["https://elsewhere.example/", "http://[::1", "//", "javascript:x", f"/?{KEY}", "x" * 3000],
    "set-cookie": ["a=1", "a" * 3000, "=;=;"],
    "x-other": ["x" * 8000, ""],
}
HEADERS["retry-after"] += HEADERS["date"]


def any_value(rng, depth=0):  # noqa: C901, PLR0911 - one small case for each kind
    kind = rng.randrange(12 if depth < 4 else 8)
    match kind:
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice(NUMBERS)
        case 3 | 4:
            return rng.choice(TEXTS)
        case 5:
            return rng.choice(TIMES)
        case 6:
            return f"@raw{rng.randrange(len(RAW))}@"
        case 7:
            return rng.choice(STATUSES)
        case 8 | 9:
            return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 10:
            value = any_value(rng, depth + 1)
            for _ in range(rng.choice([5, 40, 150, 250])):
                value = [value] if rng.random() < 0.5 else {rng.choice(RESERVED): value}
            return value
    return {rng.choice(NAMES + RESERVED): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def spoil(rng, value):  # noqa: PLR0911 - the same
    """One change somewhere inside a decoded value."""
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        match rng.randrange(10):
            case 0:
                return [*value[:index], *value[index + 1 :]]
            case 1:
                return value * rng.choice([0, 2, 3])
            case 2:
                return [*value, any_value(rng)]
        return [*value[:index], spoil(rng, value[index]), *value[index + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {other: inner for other, inner in value.items() if other != name}
            case 1:
                return {**value, rng.choice(NAMES + RESERVED): any_value(rng)}
            case 2:
                return {(rng.choice(RESERVED) if other == name else other): inner for other, inner in value.items()}
        return {**value, name: spoil(rng, value[name])}
    return any_value(rng)


def written(rng, value):
    """As JSON, in one of the ways to write it."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if b"@raw" in text:
        for index, raw in enumerate(RAW):
            text = text.replace(f'"@raw{index}@"'.encode(), raw.encode())
    return text.replace(b"/", rb"\/") if rng.random() < 0.1 else text


def spoil_bytes(rng, body):
    match rng.randrange(7):
        case 0:
            return body[: rng.randrange(len(body) + 1)]
        case 1:
            return body + rng.choice([b"\0", b"}", b"\xff\xfe", b" " * 1000, b"\xef\xbb\xbf", body])
        case 2:
            return rng.choice([b"", b"null", b"[]", b"{}", b'""', b"0", b"<html>", b"\x1f\x8b\x08", b"\xef\xbb\xbf{}"])
        case 3:
            return rng.randbytes(rng.randrange(200))
        case 4:
            at = rng.randrange(len(body) + 1)
            return body[:at] + rng.randbytes(rng.randrange(1, 9)) + body[at:]
        case 5:
            return rng.choice([b"[", b'{"data":', b'{"a":[']) * rng.choice([3, 150, 5000]) + body
    changed = bytearray(body)
    for _ in range(min(len(body), rng.randrange(1, 6))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def any_headers(rng):
    names = rng.sample(list(HEADERS), rng.randrange(len(HEADERS)))
    return {name: rng.choice(HEADERS[name]) for name in names if name != "content-encoding"}


def hostile(rng, status, headers, body):
    """An honest answer, made into another one."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        match rng.randrange(10):
            case 0:
                status = rng.choice(CODES)
            case 1:
                headers = any_headers(rng)
            case 2:
                headers = {**headers, **any_headers(rng)}
            case 3 | 4:
                body = spoil_bytes(rng, body)
            case _:
                try:
                    body = written(rng, spoil(rng, json.loads(body)))
                except (ValueError, RecursionError):
                    body = written(rng, any_value(rng))
    return status, headers, body


# --- what is checked ------------------------------------------------------------------------------------------------


def check_error(error, *, redacted=True):
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 2000, len(text)
    assert not redacted or KEY not in text + repr(error.__cause__)
    return type(error).__name__


def check_frames(error):
    """That no variable of the package's frames holds the key."""
    assert KEY not in "\n".join(variables(error))


def check_kept(value):
    """That Airflow can keep it, and finds nothing in it but data."""
    text = json.dumps(value, allow_nan=False)
    assert "\\u0000" not in text
    assert '"__' not in text.replace('": "__', "").replace('["__', "").replace(', "__', "") or not _names(value)
    assert msgspec.msgpack.encode(value)


def _names(value):
    """The names of fields that Airflow would take for an instruction."""
    if isinstance(value, dict):
        own = [name for name in value if name.startswith("__")]
        return own + [name for inner in value.values() for name in _names(inner)]
    return [name for inner in value for name in _names(inner)] if isinstance(value, list) else []


SUBMISSION = Submission(agent_id="agent-0", taken_at=datetime(2026, 1, 1, 9, tzinfo=UTC))


def check_value(value):
    """What a readable answer may be used for."""
    for one in value.data if isinstance(value, Page) else (value,):
        match one:
            case ExecutionEvent():
                check_kept(one.to_json())
                check_kept(usage_of(one, try_number=1))
                assert one.id.isprintable()
                assert one.status.isprintable()
                for outcome in ("failed", "timed_out", "ambiguous"):
                    error = to_error(Verdict(outcome, (one,)), SUBMISSION, what_now="")
                    assert str(error).isprintable()
            case Agent():
                assert one.id.isprintable()
            case Accepted():
                assert one.requestId is None or one.requestId.isprintable()


class Lines(logging.Handler):
    """What is logged is one line, and without the key."""

    def emit(self, record):
        text = record.getMessage()
        assert text.isprintable(), text
        assert KEY not in text

    def handle(self, record):
        # Past logging's own handler of errors, which only prints them.
        self.emit(record)
        return True


# --- through what ---------------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, 9, tzinfo=UTC)


def honest_event(rng, number):
    started = NOW + timedelta(seconds=rng.randrange(-3600, 60))
    status = rng.choice(STATUSES[:4])
    over = status in {"COMPLETED", "FAILED"}
    return {
        "id": f"event-{number}",
        "agentId": f"agent-{rng.randrange(3)}",
        "userId": "user-1",
        "status": status,
        "startedAt": started.isoformat(),
        "completedAt": (started + timedelta(seconds=20)).isoformat() if over else None,
        "error": "out of luck" if status == "FAILED" else None,
        "finalModel": "model-1",
        "browserStepCount": 5,
        "browserSessionSeconds": 90.5,
        "createdAt": started.isoformat(),
        "updatedAt": started.isoformat(),
    }


def reading(rng, tally):
    """Pure: status, headers and bytes, read as each endpoint's answer. Yields once for each answer."""
    agent = {"id": "agent-0", "name": "one", "status": "ACTIVE", "schedule": '{"times":["09:00"]}', "createdAt": None}
    accepted = {"message": "ok", "requestId": "req-1", "agentId": "agent-0"}
    while True:
        call, value = rng.choice(
            [
                (endpoints.list_events(), {"data": [honest_event(rng, n) for n in range(4)], "nextToken": "t"}),
                (endpoints.list_agents(), {"data": [agent] * 2, "nextToken": None}),
                (endpoints.get_agent("agent-0"), {"data": agent} if rng.random() < 0.5 else agent),
                (endpoints.execute_agent("agent-0"), {"data": accepted}),
            ]
        )
        status, headers, body = hostile(rng, 200, {"date": HEADERS["date"][0]}, json.dumps(value).encode())
        try:
            answer = responses.read_response(call, status, headers, body)
        except AgentsError as error:
            # The client has taken the key out of what is read here.
            tally[check_error(error, redacted=False)] += 1
        else:
            tally["read"] += 1
            check_value(answer.value)
        yield


class HostileScene(Scene):
    """The simulator behind somebody who changes what it answers."""

    def __init__(self, rng, tally, share):
        super().__init__(
            SimulatorConfig(
                request_id=rng.choice(["field", "id", "absent"]),
                sort_by=rng.choice(["createdAt", "startedAt"]),
                nulls=rng.choice(["first", "last"]),
                record_lag=rng.choice([0.0, 3.0]),
                page_rows=rng.choice([None, 3]),
                endless_tokens=rng.random() < 0.02,
            ),
            agents=3,
            seed=rng.randrange(10**6),
            queue_seconds=2.0,
            run_seconds=30.0,
        )
        self.fuzz, self.tally, self.share, self.answers = rng, tally, share, 0

        def spoilt(_, answer):
            self.answers += 1
            reply = answer()
            if rng.random() >= self.share:
                return reply
            # A refused key ends everything at once, so there is less of it.
            status, headers, body = hostile(rng, reply.status, dict(reply.headers), reply.body)
            return Reply(status if status != 401 or rng.random() < 0.1 else 503, printable(headers), body)

        self.sim.intercept(spoilt)
        self.sim.api_keys = (KEY,)
        tallied = CountingClient(
            Settings(api_key=KEY, base_url="http://127.0.0.1"),
            transport=mock_transport(self.sim),
        )
        tallied.tally = tally
        self.client.close()
        self.client = self.driver.client = tallied


def printable(headers):
    """As httpx takes them."""
    return {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}


class CountingClient(Client):
    def send_once(self, call):
        try:
            answer = super().send_once(call)
        except AgentsError as error:
            self.tally[check_error(error)] += 1
            raise
        self.tally["read"] += 1
        check_value(answer.value)
        return answer


def poller(rng, tally):
    """Everybody who can wait on a poller, whose plan is driven by hand."""
    while True:
        scene = HostileScene(rng, tally, rng.choice([0.1, 0.5, 0.9]))
        trackers = []
        for _ in range(rng.randrange(20, 60)):
            while len(scene.plan.subscriptions) < 6:
                agent_id = rng.choice(scene.agents)
                deadline_at = scene.clock.now + timedelta(seconds=rng.choice([30, 600, 86400]))
                run = scene.sim.start_scheduled_run(agent_id)
                event = ExecutionEvent(id=run, status="RUNNING")
                submission = Submission(
                    agent_id=agent_id,
                    request_id=rng.choice([None, "req-1"]),
                    taken_at=scene.clock.now,
                    server_before=rng.choice([None, scene.clock.now]),
                )
                policy = WaitPolicy(settle=5.0, appear_within=60.0)
                subscriber = rng.choice(
                    [
                        lambda: RunTracker(submission, policy),  # noqa: B023 - called at once
                        lambda: RunTracker(Submission.for_event(event, agent_id, scene.clock.now), policy),  # noqa: B023
                        lambda: IdleAgent(agent_id, lambda *_: None),  # noqa: B023
                        lambda: CompletionTracker(
                            rng.choice([ACCOUNT, agent_id]),  # noqa: B023
                            5.0,
                            Checkpoint(watermark=scene.clock.now),  # noqa: B023
                        ),
                    ]
                )()
                trackers += [subscriber] if isinstance(subscriber, CompletionTracker) else []
                scene.driver.subscribe(subscriber, interval=rng.choice([0.5, 5.0, 60.0]), deadline_at=deadline_at)
            before = scene.answers
            scene.driver.cycle_once()
            for subscription in scene.plan.subscriptions:
                if isinstance(subscription.subscriber, RunTracker):
                    assert state_of(subscription.subscriber).isprintable()
            for tracker in trackers:
                for ended in tracker.ended():
                    check_kept(ended.to_json())
                check_kept(tracker.checkpoint().to_json())
            yield from range(scene.answers - before)
        scene.client.close()


def worker(rng, tally):
    """The dialogues of a task on a worker."""
    while True:
        scene = HostileScene(rng, tally, rng.choice([0.1, 0.5, 0.9]))
        for _ in range(10):
            agent_id = rng.choice(scene.agents)
            before = scene.answers
            dialogue = rng.choice(
                [
                    lambda: submit(agent_id, settle=5.0, say=check_line),  # noqa: B023 - called at once
                    lambda: find_unconfirmed(SUBMISSION, settle=5.0),
                    lambda: active_runs(agent_id),  # noqa: B023
                    lambda: list_started(agent_id, NOW, None),  # noqa: B023
                    lambda: flow.first_rows(endpoints.list_agents(), 5),
                    lambda: RunTracker(SUBMISSION, WaitPolicy()).read_listing(),
                ]
            )()
            # Another scene may have come in between.
            keep_time(scene.clock)
            try:
                scene.client.run_flow(dialogue)
            except AgentsError as error:
                check_error(error)
            yield from range(scene.answers - before)
        scene.client.close()


def check_line(text):
    assert text.isprintable()
    assert KEY not in text


def in_chunks(rng, data):
    while data:
        size = rng.choice([1, 7, 1000, 65536])
        yield data[:size]
        data = data[size:]


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, chunks):
        self.chunks = chunks

    def __iter__(self):
        yield from self.chunks

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk


def compressed(rng, body):
    match rng.randrange(6):
        case 0:
            return gzip.compress(gzip.compress(body))
        case 1:
            return gzip.compress(body)[: rng.randrange(30)]
        case 2:
            return zlib.compress(body)
        case 3:
            return gzip.compress(body) + rng.randbytes(rng.randrange(20))
        case 4 if rng.random() < 0.01:
            return BOMB
    return gzip.compress(body)


BOMB = gzip.compress(bytes(64 * 1024 * 1024))


def transport(rng, tally):
    """Both clients, with the network's part: encodings, chunks, odd headers, broken connections."""
    prepared = []

    def answer(request):
        reply = prepared.pop()
        if isinstance(reply, Exception):
            raise reply
        return reply

    settings = Settings(api_key=KEY, base_url="http://127.0.0.1")
    call = endpoints.list_events()
    mock = httpx.MockTransport(answer)
    with Client(settings, transport=mock) as client, asyncio.Runner() as runner:
        async_client = AsyncClient(settings, transport=mock)
        for number in itertools.count():
            value = {"data": [honest_event(rng, n) for n in range(3)], "nextToken": None, "key": KEY}
            status, headers, body = hostile(rng, 200, {}, json.dumps(value).encode())
            headers = printable(headers)
            if rng.random() < 0.3:
                headers["content-encoding"] = rng.choice(HEADERS["content-encoding"])
                body = compressed(rng, body) if rng.random() < 0.9 else body
            prepared.append(
                httpx.Response(status, headers=headers, stream=Chunks(in_chunks(rng, body)))
                if rng.random() < 0.97
                else rng.choice(
                    [httpx.ReadError(KEY), httpx.RemoteProtocolError(f"bad: {KEY}\n"), httpx.ReadTimeout("")]
                )
            )
            try:
                got = client.send_once(call) if number % 2 else runner.run(async_client.send_once(call))
            except AgentsError as error:
                tally[check_error(error)] += 1
            else:
                tally["read"] += 1
                check_value(got.value)
                assert KEY not in json.dumps([event.to_json() for event in got.value.data])
            yield


VARIABLE = "AIRFLOW_CONN_AGENTS_DEFAULT"


def connections(rng, tally):
    """Connections as URIs and as JSON, through Airflow's own reading of them."""
    from airflow_provider_agents.hooks import AgentsHook

    hosts = [
        "",
        "https://h.example",
        "h.example",
        "http://127.0.0.1:80",
        "ftp://x",
        "https://[::1",
        "https://ü.example",
    ]
    hosts += [
        "https://a:b@h.example",
        "https://h.example/?x",
        "http://h.example",
        "//",
        "https://" + "x" * 300,
        "\0",
        "]",
    ]
    extras = {
        "auth_header": ["Authorization", "X-Api-Key", "Cookie", 1, None, []],
        "timeout": [1, "2.5", "x", -1, 0, True, "nan", 1e400, [], "\u0661"],
        "verify": [True, "false", "/no/such", 7, {}, "\0"],
        "proxy": ["http://p.example:1", "nonsense", 7, f"http://u:{KEY}@p.example", "socks5://x", "http://[", "\0"],
        "run_url": ["https://x/{agent_id}", "javascript:x", 7],
        "max_requests_per_second": [1, 0, "many", 1e9, None],
        "allow_plain_http": [True, "true", "perhaps", 3],
        "other": [1],
    }
    before = os.environ.get(VARIABLE)
    try:
        while True:
            extra = {name: rng.choice(values) for name, values in extras.items() if rng.random() < 0.12}
            host = rng.choice(hosts[:4] if rng.random() < 0.6 else hosts)
            if rng.random() < 0.5:
                value = {"conn_type": "agents", "password": KEY, "host": host, "extra": extra}
                for name in ("port", "schema", "login", "password", "extra", "host"):
                    if rng.random() < 0.1:
                        value[name] = rng.choice([None, "", 7, "text", [], {}, "***", f"{KEY}\n", 99999, "{", "[1]"])
                text = json.dumps(value)
            else:
                query = "&".join(f"{name}={quote(str(one), safe='')}" for name, one in extra.items())
                text = f"agents://:{quote(KEY, safe='')}@{quote(host, safe='') if rng.random() < 0.7 else host}?{query}"
            if rng.random() < 0.3:
                at = rng.randrange(len(text))
                text = text[:at] + rng.choice(["@", ":", "/", "%", "[", '"', "\\", "?", "#", "é", ""]) + text[at + 1 :]
            os.environ[VARIABLE] = text.replace("\0", "")
            try:
                settings = AgentsHook().settings()
            except InvalidConnectionError as error:
                tally[check_error(error)] += 1
            else:
                tally["usable"] += 1
                assert KEY not in repr(settings)
                settings.headers()[settings.auth_header].encode("ascii")
            yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


PROXY_TEXTS = [
    "", "http://127.0.0.1:1", "https://127.0.0.1:1", "socks5://127.0.0.1:1", "socks4://127.0.0.1:1", "127.0.0.1:1",
    "ftp://127.0.0.1:1", "http://127.0.0.1:port", "http://[::1]:1", "http://[::1", "http://a..b:1", "//", "nonsense",
    "http://user:pass@127.0.0.1:1", "localhost,[::1]", "*", ".example", "10.0.0.0/8", "::1", "http://" + "x" * 300,
]  # fmt: skip
#: Environment variables that a client reads.
NETWORK_VARIABLES = [
    *(f"{kind}_{end}" for kind in ("HTTP", "HTTPS", "ALL", "NO") for end in ("PROXY",)),
    *(f"{kind}_proxy" for kind in ("http", "https", "all", "no")),
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE",
]  # fmt: skip


def environments(rng, tally):
    """Proxy and TLS settings, of the environment and of a connection, until a client is made of them or refused."""
    before = {name: os.environ.get(name) for name in NETWORK_VARIABLES}
    paths = ["", "/no/such/file", __file__, os.path.dirname(__file__)]  # noqa: PTH120 - a variable's text

    def drawn(values):
        text = rng.choice(values)
        if text and rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["@", ":", "/", "%", "[", ",", "\\", "?", "#", "é", " ", "\n", ""])
                + text[at + 1 :]
            )
        return text

    try:
        while True:
            for name in NETWORK_VARIABLES:
                os.environ.pop(name, None)
                if rng.random() < 0.3:
                    os.environ[name] = drawn(paths if name.startswith("SSL") else PROXY_TEXTS)
            try:
                settings = Settings(
                    api_key=KEY,
                    base_url=rng.choice(["https://127.0.0.1:1", "http://127.0.0.1:1"]),
                    proxy=drawn(PROXY_TEXTS[1:]) if rng.random() < 0.3 else None,
                    verify=drawn(paths[1:]) if rng.random() < 0.3 else rng.choice([True, False]),
                    allow_plain_http=rng.random() < 0.5,
                )
            except InvalidConnectionError as error:
                # The caller holds the key here; below, only the package does.
                tally[check_error(error)] += 1
                yield
                continue
            try:
                with Client(settings, attempts=1):
                    tally["a client"] += 1
            except InvalidConnectionError as error:
                tally[check_error(error)] += 1
                check_frames(error)
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def tasks(rng, tally):
    """Tasks from their first try to their end, while the platform and Airflow misbehave for a while."""
    from episodes import Episode

    while True:
        episode = Episode(rng, any_value, KEY)
        tally.update(f"task {end}" for end in episode.play())
        tally["answered to tasks"] += len(episode.sim.requests)
        yield from range(len(episode.sim.requests))


#: Each way with its share of the answers. Airflow masks each secret that it has ever read, by a pattern that grows with
#: each: so there are few connections.
WAYS = {
    reading: 0.67,
    poller: 0.17,
    worker: 0.03,
    tasks: 0.03,
    transport: 0.0985,
    connections: 0.001,
    environments: 0.0005,
}


@contextmanager
def checked_lines():
    handler, logger = Lines(), logging.getLogger("airflow_provider_agents")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def run(way, answers, seed):
    """Send so many answers one way.

    Returns:
        How often each outcome was seen, the seconds of all and of the slowest, as the processor counts them.
    """
    tally, slowest, began_at = Counter(), 0.0, time.process_time()
    steps = way(random.Random(f"{way.__name__}-{seed}"), tally)
    before = began_at
    with checked_lines():
        for number in range(answers):
            try:
                next(steps)
            except Exception:
                print(f"{way.__name__}: answer {number} of seed {seed}")
                raise
            now = time.process_time()
            # The first one imports what is used.
            slowest, before = max(slowest, now - before if number else 0.0), now
        steps.close()
    return tally, time.process_time() - began_at, slowest


def memory():
    """The most that was ever resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    # Airflow tells of each connection that it cannot read.
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "CRITICAL"
    print(f"seed {arguments.seed}")
    total, after_a_tenth = 0, 0
    outcomes = Counter()
    for part in (0.1, 0.9):
        for way, share in WAYS.items():
            count = max(1, round(arguments.answers * share * part))
            tally, seconds, slowest = run(way, count, f"{arguments.seed}-{part}")
            total += count
            outcomes.update(tally)
            print(f"{way.__name__:12} {count:>9,} answers in {seconds:6.1f} s, the slowest {slowest * 1000:6.1f} ms")
            assert slowest < SLOWEST_SECONDS
        after_a_tenth = after_a_tenth or memory()
    grown = memory() - after_a_tenth
    print(
        f"{total:,} answers; memory grew by {grown / 2**20:.0f} MB after the first tenth, to {memory() / 2**20:.0f} MB"
    )
    for outcome, count in outcomes.most_common():
        print(f"  {outcome:24} {count:>9,}")
    assert grown < GROWTH_BYTES


if __name__ == "__main__":
    # As pytest has it: what is shared with the fixtures is in conftest.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    main()
