"""Hostile answers of a platform, drawn at random, and what is true of whatever is made of them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
from frames import variables

from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent, Page
from airflow_provider_agents.runs.outcome import Outcome, Verdict, to_error
from airflow_provider_agents.runs.status import usage_of
from airflow_provider_agents.runs.submission import Submission

if TYPE_CHECKING:
    import random

KEY = "sk/fuzz-0123456789+key"
NOW = datetime(2026, 1, 1, 9, tzinfo=UTC)
#: Days of other lengths than 24 hours, offsets of half an hour and less, a day that was left out.
ZONES = [
    UTC,
    *map(ZoneInfo, ("America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "America/Asuncion")),
]

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


def any_value(rng: random.Random, depth: int = 0) -> Any:  # noqa: C901, PLR0911 - one small case for each kind
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


def spoil(rng: random.Random, value: Any) -> Any:  # noqa: PLR0911 - the same
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


def written(rng: random.Random, value: Any) -> bytes:
    """As JSON, in one of the ways to write it."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if b"@raw" in text:
        for index, raw in enumerate(RAW):
            text = text.replace(f'"@raw{index}@"'.encode(), raw.encode())
    return text.replace(b"/", rb"\/") if rng.random() < 0.1 else text


def spoil_bytes(rng: random.Random, body: bytes) -> bytes:
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


def any_headers(rng: random.Random) -> dict[str, str]:
    names = rng.sample(list(HEADERS), rng.randrange(len(HEADERS)))
    return {name: rng.choice(HEADERS[name]) for name in names if name != "content-encoding"}


def hostile(rng: random.Random, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
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


def honest_event(rng: random.Random, number: int) -> dict[str, Any]:
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


# --- what is checked ------------------------------------------------------------------------------------------------


def check_error(error: BaseException, *, redacted: bool = True) -> str:
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 2000, len(text)
    assert not redacted or KEY not in text + repr(error.__cause__)
    return type(error).__name__


def check_frames(error: BaseException) -> None:
    """That no variable of the package's frames holds the key."""
    assert KEY not in "\n".join(variables(error))


def check_kept(value: Any) -> None:
    """That Airflow can keep it, and finds nothing in it but data."""
    text = json.dumps(value, allow_nan=False)
    assert "\\u0000" not in text
    assert '"__' not in text.replace('": "__', "").replace('["__', "").replace(', "__', "") or not _names(value)
    assert msgspec.msgpack.encode(value)


def _names(value: Any) -> list[str]:
    """The names of fields that Airflow would take for an instruction."""
    if isinstance(value, dict):
        own = [name for name in value if name.startswith("__")]
        return own + [name for inner in value.values() for name in _names(inner)]
    return [name for inner in value for name in _names(inner)] if isinstance(value, list) else []


SUBMISSION = Submission(agent_id="agent-0", taken_at=datetime(2026, 1, 1, 9, tzinfo=UTC))


def check_value(value: object) -> None:
    """What a readable answer may be used for."""
    for one in value.data if isinstance(value, Page) else (value,):
        match one:
            case ExecutionEvent():
                check_kept(one.to_json())
                check_kept(usage_of(one, try_number=1))
                assert one.id.isprintable()
                assert one.status.isprintable()
                for outcome in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.AMBIGUOUS):
                    error = to_error(Verdict(outcome, (one,)), SUBMISSION, what_now="")
                    assert str(error).isprintable()
            case Agent():
                assert one.id.isprintable()
            case Accepted():
                assert one.requestId is None or one.requestId.isprintable()


class Lines(logging.Handler):
    """What is logged is one line, and without the key."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        assert text.isprintable(), text
        assert KEY not in text

    def handle(self, record: logging.LogRecord) -> bool:
        # Past logging's own handler of errors, which only prints them.
        self.emit(record)
        return True


def check_line(text: str) -> None:
    assert text.isprintable()
    assert KEY not in text
