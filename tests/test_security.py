"""The claims of docs/security.md and docs/security-claims.md, tried with hostile bytes over sockets of this machine."""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
import json
import logging
import re
import ssl
import sys
import tomllib
import traceback
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from conftest import KEY as PLATFORM_KEY
from conftest import connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from frames import variables
from hostile import HostileServer, answering, response
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from pydantic import ValidationError

from airflow_provider_agents import payloads, triggers, watchers
from airflow_provider_agents.__main__ import main
from airflow_provider_agents.api import endpoints, flow, responses
from airflow_provider_agents.api.body import MAX_BODY_BYTES
from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.errors import (
    AgentsError,
    InvalidConnectionError,
    NoAnswerError,
    NotSentError,
    RequestRejectedError,
    UnreadableAnswerError,
)
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.clock import now
from airflow_provider_agents.hooks import AgentsHook, poller_of, run_url_of
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.polling.progress import state_of
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.outcome import Outcome, Verdict, to_error
from airflow_provider_agents.runs.status import usage_of
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.versioned_json import UnusableDataError

PROJECT = Path(__file__).parent.parent
PAGE = PROJECT / "docs" / "security.md"
CLAIMS = (PROJECT / "docs" / "security-claims.md").read_text()
KEY = "sk-live/0123456789+secret"
READ = endpoints.list_events(limit=1)
EXECUTE = endpoints.execute_agent("agent-1")
SECRET = "of-the-proxy"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
#: What the buffers of two sockets and of an event loop hold depends on the machine, and comes on top of what was read.
IN_BETWEEN_BYTES = 64 * 1024 * 1024


@pytest.fixture
def hostile():
    """Makes servers; closes them afterwards."""
    servers = []

    def make(script, **arguments):
        servers.append(HostileServer(script, **arguments))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(params=["sync", "async"])
def send(request):
    """Send calls with one of the two clients, one after the other, and return the answers."""

    def send(url, *wanted, **settings):
        made = Settings(api_key=KEY, base_url=url, **settings)
        if request.param == "sync":
            with Client(made) as client:
                return [client.send_once(call) for call in wanted]

        async def all_of_them():
            async with AsyncClient(made) as client:
                return [await client.send_once(call) for call in wanted]

        return asyncio.run(all_of_them())

    return send


def shown(error):
    """All that anybody prints of an error, the variables of its frames included; those of the tests hold the key."""
    told = one = traceback.TracebackException.from_exception(error, capture_locals=True)
    while one is not None:
        one.stack = traceback.StackSummary.from_list(
            [frame for frame in one.stack if not frame.filename.startswith(str(PROJECT / "tests"))]
        )
        one = one.__cause__ or one.__context__
    return "".join(told.format())


# --- an answer costs a bounded amount of memory and time ---


def head(server, connection, request):
    server.send(connection, b"HTTP/1.1 200 OK\r\n")


def dripping_body(server, connection, request):
    server.send(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    server.drip(connection, b" ")


def dripping_headers(server, connection, request):
    head(server, connection, request)
    server.send(connection, b"X-Long: ")
    server.drip(connection, b"x")


def interim_answers_without_end(server, connection, request):
    server.flood(connection, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)


def chunks_of_one_byte(server, connection, request):
    server.send(connection, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    server.drip(connection, b"1\r\n \r\n")


def a_body_without_length_that_drips(server, connection, request):
    server.send(connection, b'HTTP/1.1 200 OK\r\n\r\n{"data": []}')
    server.drip(connection, b" ")


@pytest.mark.parametrize(
    "script",
    [
        dripping_body,
        dripping_headers,
        interim_answers_without_end,
        chunks_of_one_byte,
        a_body_without_length_that_drips,
    ],
)
def test_an_answer_that_never_ends_is_given_up_in_bounded_time(hostile, send, script):
    server = hostile(script)
    # On a machine that is busy, a single read may take too long, too.
    with pytest.raises(NoAnswerError, match="too slowly|No response from"):
        send(server.url, EXECUTE, timeout_seconds=0.1)


def test_a_client_that_has_given_up_once_goes_on_with_a_new_connection(hostile):
    def script(server, connection, request):
        (answering(response()) if server.requests[1:] else dripping_headers)(server, connection, request)

    server = hostile(script)
    settings = Settings(api_key=KEY, base_url=server.url, timeout_seconds=0.25)
    with Client(settings) as client:
        with pytest.raises(NoAnswerError):
            client.send_once(READ)
        assert client.send_once(READ).value.data == ()


def test_headers_without_end_are_refused(hostile, send):
    def script(server, connection, request):
        head(server, connection, request)
        server.flood(connection, b"X-Header: " + b"x" * 1000 + b"\r\n")

    server = hostile(script)
    with pytest.raises(NoAnswerError):
        send(server.url, READ)
    assert server.sent < IN_BETWEEN_BYTES


@pytest.mark.parametrize("framing", ["Content-Length: 1073741824", "Transfer-Encoding: chunked", "Connection: close"])
def test_a_gigabyte_is_not_read_to_its_end(hostile, send, framing):
    def script(server, connection, request):
        server.send(connection, f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        chunk = b" " * 65536
        server.flood(connection, b"10000\r\n" + chunk + b"\r\n" if "chunked" in framing else chunk)

    server = hostile(script)
    with pytest.raises(UnreadableAnswerError, match="larger than"):
        send(server.url, READ)
    assert server.sent < MAX_BODY_BYTES + IN_BETWEEN_BYTES


def test_a_page_of_a_million_events_is_refused_within_the_stated_memory(hostile, send):
    rows = b",".join([b"{}"] * 1_000_000)
    server = hostile(answering(response(b'{"data": [' + rows + b"]}")))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableAnswerError, match="more than 500,000 values"):
            send(server.url, READ)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The server's own copy is among it.
    assert peak < 64 * 1024 * 1024


def test_an_answer_that_is_compressed_twice_is_refused(hostile, send):
    server = hostile(answering(response(b"\x1f\x8b", Content_Encoding="gzip, gzip")))
    with pytest.raises(UnreadableAnswerError, match="not asked for"):
        send(server.url, READ)
    assert b"Accept-Encoding: gzip\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("status", "error"),
    [("401 No", "AuthenticationError"), ("404 No", "NotFoundError"), ("429 No", "RateLimitedError")],
)
def test_no_body_hides_a_status(hostile, send, status, error):
    def script(server, connection, request):
        server.send(connection, f"HTTP/1.1 {status}\r\nContent-Encoding: br\r\nRetry-After: 7\r\n\r\n".encode())
        server.flood(connection, b"\x00" * 65536)

    with pytest.raises(AgentsError) as caught:
        send(hostile(script).url, READ)
    assert type(caught.value).__name__ == error


def test_what_cannot_be_read_after_an_execute_says_that_the_run_may_have_started(hostile, monkeypatch):
    def script(server, connection, request):
        if request.startswith(b"POST"):
            server.send(connection, b"HTTP/1.1 202 Accepted\r\n\r\n")
            server.flood(connection, b" " * 65536)
        server.send(connection, response())

    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(hostile(script).url))
    operator = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False)
    submission = operator.execute({"ti": type("TI", (), {"max_tries": 0, "xcom_push": lambda *_, **__: None})()})
    assert submission["sent_at"] is not None
    assert submission["request_id"] is None


# --- the key stays where it is ---


#: What servers make of the credentials that they were sent, as misconfigured gateways do.
REPEATED = {
    "body": lambda said: response(json.dumps({"message": said}).encode(), status="400 Bad"),
    "escaped body": lambda said: response(
        f'{{"message": "{said}"}}'.replace("/", r"\/").replace("+", r"\u002b").encode(), status="401 No"
    ),
    "success": lambda said: response(json.dumps({"data": said}).encode()),
    "location": lambda said: response(status="302 Found", Location=f"https://elsewhere.example/?{said}"),
    "content type": lambda said: response(b"?", Content_Type=said),
    "retry-after": lambda said: response(status="429 No", Retry_After=said),
    "header line": lambda said: b"HTTP/1.1 200 OK\r\n" + said.split()[-1].encode() + b"\r\n\r\n",
    "status line": lambda said: said.split()[-1].encode() + b"\r\n\r\n",
    "reason": lambda said: response(status=f"500 {said}"),
    "event": lambda said: response(json.dumps({"data": [{"id": "e", "status": "FAILED", "error": said}]}).encode()),
}


def echoing(as_what):
    """A server that repeats what it was sent."""

    def script(server, connection, request):
        lines = request.decode().split("\r\n")
        server.send(connection, REPEATED[as_what](next(line for line in lines if line.startswith("Authorization"))))

    return script


@pytest.mark.parametrize("as_what", sorted(set(REPEATED) - {"event"}))
@pytest.mark.parametrize("call", [READ, EXECUTE], ids=["read", "execute"])
def test_no_error_shows_a_key_that_the_server_repeats(hostile, send, as_what, call):
    server = hostile(echoing(as_what))
    with pytest.raises(AgentsError) as caught:
        send(server.url, call)
    assert KEY.encode() in server.requests[0]
    assert KEY not in shown(caught.value)


def test_no_result_holds_a_key_that_the_server_repeats(hostile, send):
    (answer,) = send(hostile(echoing("event")).url, READ)
    assert answer.value.data[0].error == "Authorization: Bearer ***"
    assert KEY not in json.dumps(answer.value.data[0].to_json())


@pytest.mark.parametrize("as_what", ["body", "event"])
def test_no_log_line_of_any_level_holds_the_key(hostile, send, as_what, caplog):
    with caplog.at_level(logging.DEBUG):
        try:
            send(hostile(echoing(as_what)).url, READ)
        except AgentsError:
            logging.getLogger("test").exception("It failed.")
    assert "send_request_headers" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("failure", [ConnectionRefusedError, None])
def test_no_failure_of_the_network_shows_the_key(hostile, send, failure):
    server = hostile(answering(b""))
    if failure is not None:
        server.close()
    with pytest.raises(NotSentError if failure else NoAnswerError) as caught:
        send(server.url, READ)
    assert KEY not in shown(caught.value)


WRONG = [
    {"host": "ftp://gateway.example"},
    {"host": "gateway.example"},
    {"extra": {"timeout": "soon"}},
    {"extra": {"proxy": "nonsense"}},
    {"extra": {"verify": "/no/such/file"}},
    {"extra": {"auth_header": "Cookie"}},
    {"extra": "["},
    {"password": f"{KEY}\n"},
    {"password": f"Bearer {KEY}"},
    {"schema": "v1"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_wrong_connection_does_not_show_its_key(monkeypatch, wrong):
    value = {"conn_type": "agents", "password": KEY, "host": "https://gateway.example", **wrong}
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", json.dumps(value))
    with pytest.raises(InvalidConnectionError) as caught:
        AgentsHook().settings()
    assert KEY not in shown(caught.value)

    async def in_a_triggerer():
        async with poller_of("agents_default") as poller:
            await poller.run_flow(flow.value_of(READ))

    with pytest.raises(InvalidConnectionError) as caught:
        asyncio.run(in_a_triggerer())
    assert KEY not in shown(caught.value)


ENVIRONMENTS = [
    {"NO_PROXY": "localhost,[::1]"},
    {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    {"HTTPS_PROXY": "http://proxy.corp:port"},
    {"HTTPS_PROXY": "ftp://proxy.corp:3128"},
    {"HTTPS_PROXY": f"http://user:{SECRET}@127.0.0.1:1"},
    {"SSL_CERT_FILE": "/missing/ca.pem"},
    {"SSL_CERT_DIR": "/missing"},
    {"SSLKEYLOGFILE": "/missing/keys"},
]


async def all_events(trigger):
    return [event.payload async for event in trigger.run()]


def run_triggers():
    deadline_at = (now() + timedelta(seconds=60)).isoformat()
    wait = triggers.AgentRunTrigger(
        agents_conn_id="agents_default",
        submission=Submission(agent_id="agent-1", taken_at=now()).to_json(),
        settle=5.0,
        appear_within=30.0,
        on_ambiguous="all",
        poll_interval=5.0,
        deadline_at=deadline_at,
    )
    idle = triggers.AgentIdleTrigger(
        agents_conn_id="agents_default",
        agent_id="agent-1",
        poll_interval=5.0,
        deadline_at=deadline_at,
        settle=30.0,
        hold_seconds=30.0,
    )
    return [asyncio.run(all_events(trigger)) for trigger in (wait, idle)]


#: Each way in which a connection is first used.
USES = {
    "hook": lambda context: AgentsHook().list_agents(),
    "hook on a loop": lambda context: asyncio.run(AgentsHook().alist_agents()),
    "test_connection": lambda context: AgentsHook().test_connection(),
    "atest_connection": lambda context: asyncio.run(AgentsHook().atest_connection()),
    "operator": lambda context: ExecuteAgentOperator(task_id="run", agent_id="agent-1").execute(context),
    "operator on a worker": lambda context: ExecuteAgentOperator(
        task_id="run", agent_id="agent-1", deferrable=False
    ).execute(context),
    "sensor": lambda context: AgentRunSensor(task_id="wait", agent_id="agent-1", event_id="event-1").poke(context),
    "triggers": lambda context: run_triggers(),
    # It never gives up on what may pass.
    "watcher": lambda context: asyncio.run(
        asyncio.wait_for(all_events(watchers.AgentRunEventTrigger(poll_interval=5.0)), 60)
    ),
}


def used(use, context):
    """What came of a use: what it returned, or the error that it raised."""
    try:
        return use(context)
    except Exception as error:  # noqa: BLE001 - whatever a user can see
        return error


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("chosen", ENVIRONMENTS, ids=str)
def test_no_environment_brings_the_key_into_an_error_of_any_use(
    platform, task, monkeypatch, logged, caplog, chosen, use
):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection("https://127.0.0.1:1", KEY))
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    result = used(USES[use], task.context())
    # A sensor looks again, and a test of a connection says what is wrong.
    error = result if isinstance(result, Exception) else None
    shown = "\n".join([repr(result), *variables(error), logged(), caplog.text])
    assert KEY not in shown
    assert SECRET not in shown
    assert any(name in shown for name in (*chosen, "No connection to 127.0.0.1:1"))


URIS = [
    "agents://KEY",
    "agents://KEY@",
    "agents://:KEY",
    "agents://KEY:@",
    "agents:KEY",
    "agents:///KEY",
    "agents://:KEY@host:port",
    "agents://:KEY@[::1",
    "agents://:x@KEY",
    "agents://:x@https%3A%2F%2Fgateway.example%2F%3Fkey%3DKEY",
    "agents://:x@https%3A%2F%2FKEY%40gateway.example",
    "agents://:x@KEY%3A%2F%2F",
]


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_that_is_written_wrongly_does_not_show_its_key(monkeypatch, uri):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", uri.replace("KEY", "sk-0123456789secret"))
    with pytest.raises(InvalidConnectionError) as caught:
        AgentsHook().settings()
    assert "sk-0123456789secret" not in shown(caught.value)


def test_nothing_that_holds_the_key_shows_it():
    settings = Settings(api_key=KEY, proxy=f"http://user:{KEY.replace('/', '')}@proxy.example:3128")
    sent = []

    def answer(request):
        sent.append(request)
        return httpx.Response(200, json={"data": [], "nextToken": None})

    client = Client(settings, transport=httpx.MockTransport(answer))
    async_client = AsyncClient(settings, transport=httpx.MockTransport(answer))
    client.send_once(READ)
    asyncio.run(async_client.send_once(READ))
    assert [KEY in request.headers["authorization"] for request in sent] == [True, True]
    for one in (settings, Client(settings), AsyncClient(settings), client, async_client, *sent):
        assert "sk-live" not in repr(one) + str(one)
    for request in sent:
        assert "sk-live" not in repr(request.headers) + str(request.headers)


def test_a_task_takes_the_key_into_nothing_that_airflow_stores_or_shows(platform, task, logged):
    operator = ExecuteAgentOperator(task_id="run", agent_id="agent-1")
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(task.context())
    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    stored = [deferred.value.trigger.serialize(), deferred.value.kwargs, task.xcoms, task.store, rendered]
    assert operator.__dict__
    assert PLATFORM_KEY not in json.dumps(stored, default=str) + repr(deferred.value) + repr(operator.__dict__)
    assert PLATFORM_KEY not in logged()


# --- where the key is sent ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_request_to_another_port(hostile, send, status):
    other = hostile(answering(response()))
    server = hostile(answering(response(status=f"{status} Moved", Location=f"{other.url}/v1/events")))
    with pytest.raises(RequestRejectedError, match="redirects"):
        send(server.url, READ)
    assert other.requests == []


@pytest.mark.parametrize("location", ["http://[::1", "https://\xff", "//", "javascript:alert(1)", "x" * 70000, "\t"])
def test_a_redirect_to_no_place_at_all_is_refused_like_any_other(hostile, send, location):
    answer = response(status="302 Found").replace(b"\r\n\r\n", b"\r\nLocation: " + location.encode() + b"\r\n\r\n")
    with pytest.raises(RequestRejectedError, match="redirects"):
        send(hostile(answering(answer)).url, READ)


@given(
    st.text(max_size=50)
    | st.sampled_from(["../../x", "&limit=1", "#", "?", "@evil.example", "//evil.example/", "\r\n"])
)
def test_no_answer_changes_what_is_asked_but_the_place_in_a_listing(token):
    asked = []

    def answer(request):
        asked.append(request.url)
        return httpx.Response(200, json={"data": [], "nextToken": None if asked[1:] else token})

    settings = Settings(api_key=KEY, base_url="http://127.0.0.1/v2")
    with Client(settings, transport=httpx.MockTransport(answer)) as client:
        client.run_flow(flow.paginate(READ))
    first, *rest = asked
    assert [url.copy_with(query=None) for url in rest] == [first.copy_with(query=None)] * bool(token)
    assert [dict(url.params) for url in rest] == [{"limit": "1", "nextToken": token}] * bool(token)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"])
def test_the_environments_proxy_is_not_given_a_key_that_is_for_this_machine(hostile, send, monkeypatch, name):
    proxy, server = hostile(answering(response())), hostile(answering(response()))
    monkeypatch.setenv(name, proxy.url)
    send(server.url, READ)
    assert (len(proxy.requests), len(server.requests)) == (0, 1)


def test_a_proxy_is_not_given_a_key_over_plain_http():
    with pytest.raises(InvalidConnectionError, match="proxy would be sent the API key unencrypted"):
        Settings(api_key=KEY, base_url="http://127.0.0.1:8000", proxy="http://proxy.example:3128")
    Settings(api_key=KEY, base_url="http://127.0.0.1:8000", proxy="http://127.0.0.1:3128")
    Settings(api_key=KEY, base_url="https://api.example", proxy="http://proxy.example:3128")


@pytest.mark.parametrize("by", ["environment", "connection"])
def test_a_proxy_of_an_https_host_sees_the_hosts_name_and_not_the_key(hostile, send, monkeypatch, by):
    proxy = hostile(answering(response(status="502 No")))
    if by == "environment":
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    with pytest.raises(NotSentError):
        send("https://api.example", READ, proxy=proxy.url if by == "connection" else None)
    (request,) = proxy.requests
    assert request.startswith(b"CONNECT api.example:443 ")
    assert b"authorization" not in request.lower()
    assert KEY.encode() not in request


def test_a_netrc_file_changes_nothing(hostile, send, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server = hostile(answering(response()))
    send(server.url, READ)
    assert f"Authorization: Bearer {KEY}\r\n".encode() in server.requests[0]


def test_a_cookie_is_neither_kept_nor_sent(hostile, send):
    server = hostile(answering(response(Set_Cookie="session=1; Path=/")))
    send(server.url, READ, READ)
    assert len(server.requests) == 2
    assert b"cookie" not in b"".join(server.requests).lower()


def self_signed():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture
def secure(hostile, tmp_path):
    """A server with a certificate for `localhost` that nobody has signed, and the file that holds it."""
    certificate, key = self_signed()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle)
    server = hostile(answering(response()), tls=context)
    return server, bundle


def test_a_certificate_that_nobody_vouches_for_is_refused_before_the_key_is_sent(secure, send):
    server, bundle = secure
    with pytest.raises(NotSentError, match="certificate was not accepted"):
        send(f"https://localhost:{server.port}", READ)
    assert server.requests == []
    send(f"https://localhost:{server.port}", READ, verify=str(bundle))
    assert len(server.requests) == 1


def test_a_certificate_for_another_host_is_refused_before_the_key_is_sent(secure, send):
    server, bundle = secure
    with pytest.raises(NotSentError, match="certificate was not accepted"):
        send(f"https://127.0.0.1:{server.port}", READ, verify=str(bundle))
    assert server.requests == []


def test_an_old_version_of_tls_is_not_spoken():
    context = Settings(api_key=KEY).tls_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_blocking_answer_over_tls_is_given_up_in_bounded_time(hostile, tmp_path):
    certificate, key = self_signed()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle)
    server = hostile(dripping_headers, tls=context)
    settings = Settings(
        api_key=KEY, base_url=f"https://localhost:{server.port}", verify=str(bundle), timeout_seconds=0.1
    )
    with Client(settings) as client, pytest.raises(NoAnswerError, match="too slowly|No response from"):
        client.send_once(READ)


# --- what a server writes stays data ---

#: A forged line, a terminal's escape, a group of GitHub's, markup, what turns the direction of writing, and a NUL.
NASTY = "x\n[2026-01-01] ERROR forged\r\x1b[31m\x1b]0;title\x07\n::group::\n[bold red]\u202e\x9b31m\u2028\0"


@pytest.mark.parametrize("field", ["id", "status"])
def test_a_name_that_is_not_printable_is_no_name(field):
    ExecutionEvent.read({"id": "e", "status": "PENDING", field: "Ünusual name ✓"})
    for character in NASTY:
        if not character.isprintable():
            with pytest.raises(ValidationError):
                ExecutionEvent.read({"id": "e", "status": "PENDING", field: f"a{character}b"})


@pytest.mark.parametrize("field", ["agentId", "requestId"])
def test_a_name_that_is_not_printable_and_not_needed_is_absent(field):
    for character in NASTY:
        if not character.isprintable():
            event = ExecutionEvent.read({"id": "e", "status": "PENDING", field: f"a{character}b"})
            assert getattr(event, field) is None


@given(st.text() | st.just(NASTY) | st.recursive(st.text(), st.lists))
def test_what_an_agent_says_of_its_failure_stays_in_its_line(said):
    event = ExecutionEvent.read({"id": "e-1", "status": "FAILED", "error": said, "agentId": "agent-1"})
    submission = Submission(agent_id="agent-1", taken_at=datetime(2026, 1, 1, tzinfo=UTC), event_id="e-1")
    message = str(to_error(Verdict(Outcome.FAILED, (event,)), submission, what_now="A retry starts a new run."))
    assert message.isprintable()
    assert len(message) < 500


@given(st.text(min_size=1) | st.just(NASTY), st.text(min_size=1) | st.just(NASTY))
def test_what_is_logged_of_a_run_stays_in_its_line(event_id, status):
    try:
        event = ExecutionEvent.read({"id": event_id, "status": status, "agentId": "agent-1"})
    except ValidationError:
        return
    tracker = RunTracker(
        Submission(agent_id="agent-1", taken_at=datetime(2026, 1, 1, tzinfo=UTC), event_id=event_id), WaitPolicy()
    )
    tracker.apply_listing(Listing((event,), None), tracker.submission.taken_at)
    assert tracker.events == (event,)
    assert state_of(tracker).isprintable()
    assert tracker.name.isprintable()


@given(st.text() | st.just(NASTY), st.sampled_from([200, 302, 400, 401, 429, 503]))
def test_what_a_server_says_of_an_error_stays_in_its_line(said, status):
    body = json.dumps({"message": said, "id": said, "data": {"requestId": said}}).encode()
    with pytest.raises(AgentsError) as caught:
        responses.read_response(
            EXECUTE, status, {"location": said, "content-type": said}, body + b"?" * (status == 200)
        )
    assert str(caught.value).isprintable()


def test_a_failed_run_forges_no_line_of_the_tasks_log(platform, task, logged):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=1.0, end_status="FAILED", error=NASTY)
    operator = ExecuteAgentOperator(task_id="run", agent_id="agent-1", deferrable=False)
    with pytest.raises(AgentsError) as caught:
        operator.execute(task.context())
    assert str(caught.value).isprintable()
    for line in [*logged().splitlines(), *str(caught.value).splitlines()]:
        assert not line.startswith(("::group::", "[2026-01-01] ERROR"))


def test_the_xcoms_of_a_run_hold_what_airflow_can_keep():
    sent = {
        "id": "e-1",
        "status": "COMPLETED",
        "finalModel": "m\0",
        "browserStepCount": 10**400,
        "error": ["\0", 2**70],
    }
    event = ExecutionEvent.read(sent)
    assert event.to_json() == {
        "id": "e-1",
        "status": "COMPLETED",
        "finalModel": "m\ufffd",
        "browserStepCount": None,
        "error": ["\ufffd", 2.0**70],
    }
    usage = usage_of(event, try_number=1)
    assert (usage["finalModel"], usage["browserStepCount"]) == ("m\ufffd", None)


@pytest.mark.parametrize("output", ["table", "plain", "json", "yaml"])
def test_the_command_line_prints_no_markup_and_no_escape_of_a_servers(platform, monkeypatch, capsys, output):
    # So that no connection is looked for in a database that this machine may have.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "client")
    platform.sim.add_agent("agent-2", name=f"{NASTY}[link=https://evil.example]:bug:[/link]")
    main(["list", "--output", output])
    printed = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert "[bold red]" in printed
    assert not any(line.startswith(("::group::", "[2026")) for line in printed.splitlines())


# --- a link ---


@pytest.mark.parametrize(
    "template", ["javascript:alert(1)", " javascript:x", "data:text/html,x", "//evil", "file:///x"]
)
def test_a_link_is_of_the_web_or_none(template):
    with pytest.raises(InvalidConnectionError, match="run_url must be an http"):
        Settings(api_key=KEY, run_url=template)


@given(st.text(), st.text())
def test_no_id_leaves_its_place_in_a_link(agent_id, event_id):
    template = "https://app.example/{agent_id}/runs/{event_id}"
    url = run_url_of(template, agent_id=agent_id, event_id=event_id)
    if url is None:
        # An id that would lead up or down in the path, or nowhere.
        assert {agent_id, event_id} & {"", ".", ".."}
    else:
        assert re.fullmatch(r"https://app\.example/[A-Za-z0-9%._~-]+/runs/[A-Za-z0-9%._~-]+", url)


def test_a_template_reaches_into_nothing():
    template = "https://app.example/{agent_id.__class__}/{0}/{event_id}"
    with pytest.raises(InvalidConnectionError, match="nothing else in braces"):
        Settings(api_key=KEY, run_url=template)
    assert run_url_of(template, agent_id="a", event_id="e") == "https://app.example/{agent_id.__class__}/{0}/e"


# --- what a task is resumed with ---

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
SUBMISSION = Submission(agent_id="agent-1", taken_at=datetime(2026, 1, 1, tzinfo=UTC)).to_json()
GOOD = {"version": 1, "kind": "run", "submission": SUBMISSION, "outcome": "completed", "events": [], "error": None}


@given(ANYTHING | st.builds(lambda name, value: {**GOOD, name: value}, st.sampled_from(sorted(GOOD)), ANYTHING))
def test_no_payload_is_a_success_that_does_not_hold_one(payload):
    try:
        ended = payloads.RunEnded.from_json(payload)
        verdict = ended.verdict()
    except UnusableDataError:
        return
    if verdict is not None and verdict.outcome == Outcome.COMPLETED:
        assert payload["outcome"] == "completed"
        assert all(event.status == "COMPLETED" for event in verdict.events)


@pytest.mark.parametrize("events", [[{}], [{"id": "e"}], [{"id": "e", "status": "FAILED"}], [{"id": 1, "status": "x"}]])
def test_a_payload_with_events_that_are_none_fails_the_task(task, events):
    operator = ExecuteAgentOperator(task_id="run", agent_id="agent-1")
    with pytest.raises(Exception, match="cannot be read by this version|does not hold") as caught:
        operator.execute_complete(task.context(), {**GOOD, "events": events})
    assert isinstance(caught.value.__cause__, UnusableDataError)


# --- the page ---


def claims():
    """The rows of all tables that have a column of tests."""
    rows, in_table = [], False
    for line in CLAIMS.splitlines():
        if line.endswith("| test |"):
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table and not line.startswith("|---"):
            rows.append(line)
    return rows


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", CLAIMS)
    assert len(named) == CLAIMS.count("::test_")
    for path, name in named:
        functions = [
            one.name for one in ast.parse((PROJECT / path).read_text()).body if isinstance(one, ast.FunctionDef)
        ]
        assert name in functions, f"{path}::{name}"


def test_every_claim_of_the_page_names_a_test():
    assert len(claims()) > 30
    assert [row for row in claims() if "::test_" not in row.split("|")[-2]] == []


def needed():
    """The packages that are needed at run time. `test_wheel.py` shows that the wheel needs the same."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return {Requirement(text).name for text in project["dependencies"]}


def test_what_is_needed_at_run_time_is_what_the_page_states():
    stated = set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert stated == needed()


def test_all_but_two_of_them_are_airflows_own():
    # Airflow's packages need each other; what any of them needs is there already.
    airflow = set()
    for package in importlib.metadata.distributions():
        if package.name.startswith("apache-airflow") and package.name != "apache-airflow-providers-common-compat":
            airflow |= {Requirement(text).name for text in package.requires or () if Requirement(text).marker is None}
    assert needed() - airflow <= {"apache-airflow", "apache-airflow-providers-common-compat"}
