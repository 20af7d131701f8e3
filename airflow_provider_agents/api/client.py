"""The only code that does HTTP: `Client` and `AsyncClient`, two thin shells that differ in `await` and `sleep`.

Everything they decide is decided elsewhere: what to send and how to read it in `calls`, what may be repeated in
`retry`. What is here is the network's: timeouts, the size of an answer, and httpx's errors turned into ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import platform
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import httpx
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_attempt

from airflow_provider_agents import __version__
from airflow_provider_agents import clock as our_clock
from airflow_provider_agents.api import environment, retry
from airflow_provider_agents.api.bodies import BodyError, Intake, without
from airflow_provider_agents.api.calls import Answer, Call, Once, Pause, Steps, asked, follow, read_answer, unreadable
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    InvalidConnectionError,
    NoAnswerError,
    NotSentError,
    quote,
    quote_setting,
    without_frames,
)
from airflow_provider_agents.api.rows import WarnOnce

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

T = TypeVar("T")

#: The hosted service (the API's own pages).
DEFAULT_BASE_URL = "https://api.uragents.ai"
#: Seconds for each phase of a request (connect, send, each chunk of the answer). The longest that is accepted is ten
#: minutes: a request that takes longer is no listing.
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 600.0
#: A request as a whole may take this many times its timeout, so that a server that drips bytes cannot hold it for ever:
#: connect, send, wait and read, each at its slowest.
WHOLE_REQUEST_FACTOR = 4
#: Keys shorter than this are not searched for in answers: they would be found in innocent words.
_SHORTEST_REDACTED_KEY = 8
#: The headers that decide something or are quoted.
_HEADERS_READ = ("content-type", "date", "retry-after")

#: A triggerer asks no more than this for all that wait on a connection, unless the connection says otherwise: enough
#: for 10,000 runs in a sweep of two seconds, at 200 events a request.
DEFAULT_REQUESTS_PER_SECOND = 25.0
MAX_REQUESTS_PER_SECOND = 1000.0

AUTH_HEADERS = ("Authorization", "X-Api-Key")


def user_agent(*products: str) -> str:
    """The `User-Agent` of this package's requests: its version, Python's, and `products` such as `airflow/3.3.2`."""
    return " ".join((f"airflow-provider-agents/{__version__}", f"python/{platform.python_version()}", *products))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach the API, checked when it is made.

    Attributes:
        api_key: printable ASCII without white space. Neither `repr` nor any message shows it.
        base_url: `https://…`, perhaps with a path. Plain http only to a loopback address, or with `allow_plain_http`.
        auth_header: `Authorization` (the key is sent as a bearer token) or `X-Api-Key`.
        timeout_seconds: above 0, at most 600; for each phase of a request.
        verify: whether to check the server's certificate, or the path of a CA bundle or directory to check it against.
        proxy: the proxy's URL. Without it, the environment's proxy settings hold.
        allow_plain_http: send the key unencrypted to a host that is not this machine.
        max_requests_per_second: above 0, at most 1,000; for what a triggerer asks on behalf of all that wait. A client
            by itself keeps no count.
        run_url: where a person can look at a run: an http(s) URL with `{agent_id}` and `{event_id}` to be filled in.
            A client only keeps it.

    Raises:
        InvalidConnectionError: from the constructor, naming what is wrong and what to do.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    auth_header: str = "Authorization"
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    allow_plain_http: bool = False
    max_requests_per_second: float = DEFAULT_REQUESTS_PER_SECOND
    run_url: str | None = None
    user_agent: str = field(default_factory=user_agent)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is sent."""
        check_api_key(self.api_key)
        object.__setattr__(self, "base_url", _checked_base_url(self.base_url, allow_plain_http=self.allow_plain_http))
        if self.auth_header not in AUTH_HEADERS:
            raise InvalidConnectionError(
                f"auth_header must be one of {', '.join(AUTH_HEADERS)}, got {quote_setting(self.auth_header, 60)}."
            )
        if (
            isinstance(self.timeout_seconds, bool)
            or not isinstance(self.timeout_seconds, int | float)
            or not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS
        ):
            raise InvalidConnectionError(
                f"timeout must be a number of seconds above 0 and at most {MAX_TIMEOUT_SECONDS:g}, "
                f"got {quote_setting(self.timeout_seconds, 60)}."
            )
        if (
            isinstance(self.max_requests_per_second, bool)
            or not isinstance(self.max_requests_per_second, int | float)
            or not 0 < self.max_requests_per_second <= MAX_REQUESTS_PER_SECOND
        ):
            raise InvalidConnectionError(
                f"max_requests_per_second must be a number above 0 and at most {MAX_REQUESTS_PER_SECOND:g}, "
                f"got {quote_setting(self.max_requests_per_second, 60)}."
            )
        # Not Path.exists: it raises where a directory may not be read.
        if isinstance(self.verify, str) and not os.path.exists(self.verify):  # noqa: PTH110
            raise InvalidConnectionError(
                f"verify names the CA bundle {quote_setting(self.verify, 100)}, which does not exist on this machine."
            )
        if self.proxy is not None:
            _check_proxy(
                environment.read_proxy(self.proxy, environment.OF_CONNECTION),
                sees_key=self.base_url.startswith("http:") and not self.allow_plain_http,
            )
        if self.run_url is not None:
            _check_run_url(self.run_url)

    def headers(self) -> dict[str, str]:
        """The headers of every request, the key among them."""
        value = f"Bearer {self.api_key}" if self.auth_header == "Authorization" else self.api_key
        return {
            self.auth_header: value,
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": self.user_agent,
        }

    @property
    def whole_request_seconds(self) -> float:
        """The longest that one request may take, from connecting to the last byte of its answer."""
        return self.timeout_seconds * WHOLE_REQUEST_FACTOR

    @property
    def _can_be_found(self) -> bool:
        return len(self.api_key) >= _SHORTEST_REDACTED_KEY

    def redacted(self, text: str) -> str:
        """What a server sent, without the key: a server that repeats it must not bring it into a log or an XCom."""
        return text.replace(self.api_key, "***") if self._can_be_found else text

    def redacted_json(self, body: bytes) -> bytes:
        """As `redacted`, of JSON, however it spells the key."""
        return without(body, self.api_key) if self._can_be_found else body

    def proxy_in_use(self) -> environment.Proxy | None:
        """The proxy that requests go through now: the connection's, or else the environment's.

        Raises:
            InvalidConnectionError: the environment names one that cannot be used.
        """
        found = environment.find_proxy(
            httpx.URL(self.base_url),
            self.proxy,
            # Plain http is for this machine only: the environment's proxy would be sent the key unencrypted.
            trust_environment=self.allow_plain_http or not self.base_url.startswith("http:"),
        )
        if isinstance(found, InvalidConnectionError):
            raise found
        return found

    def tls_context(self) -> ssl.SSLContext:
        """A TLS context as `verify` wants it. Reads the CA bundle: about 50 ms of CPU, so build it once.

        Raises:
            InvalidConnectionError: the CA bundle cannot be read, or the environment's proxy cannot be used.
        """
        proxy = self.proxy_in_use()
        speaks_no_tls = self.base_url.startswith("http:") and (proxy is None or proxy.url.scheme != "https")
        if self.verify is False or speaks_no_tls:
            return environment.unchecked_tls()
        made = environment.checked_tls(self.verify)
        if isinstance(made, InvalidConnectionError):
            raise made
        return made


def check_api_key(key: object) -> None:
    """Refuse what cannot be a key.

    Raises:
        InvalidConnectionError: naming what is wrong, without the key.
    """
    if not isinstance(key, str) or not key:
        raise InvalidConnectionError(
            "The connection has no API key. Put it in the connection's password (API key). "
            "In a URI the key stands between a colon and an @, percent-encoded: agents://:KEY@"
        )
    if set(key) == {"*"}:
        raise InvalidConnectionError(
            "The API key is only asterisks: a form or an export has saved the mask in place of the key. "
            "Type the key into the connection's password (API key) again."
        )
    if re.match(r"bearer[\s:]", key, re.IGNORECASE):
        raise InvalidConnectionError(
            "The API key begins with the word Bearer, which the provider adds by itself. Put the bare key, without the "
            "word and the white space, into the connection's password (API key)."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidConnectionError(
            "The API key holds white space or characters that no HTTP header can carry, perhaps a line break from "
            "copying. Put the bare key into the connection's password (API key)."
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, told from its text alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked_base_url(text: object, *, allow_plain_http: bool) -> str:
    if not isinstance(text, str):
        raise InvalidConnectionError(f"The host must be the API's base URL, got {type(text).__name__}.")
    # What is no URL is not shown: in a URI that is written wrongly, the key can stand in the place of the host.
    if "://" not in text:
        raise InvalidConnectionError(
            "The host has no scheme. Write the whole base URL, for example https://gateway.example, or leave the host "
            f"empty for {DEFAULT_BASE_URL}. In a URI, the key stands between a colon and an @: agents://:KEY@"
        )
    url = environment.read_url(text)
    if url is None:
        raise InvalidConnectionError(f"The host is not a URL. Write it like {DEFAULT_BASE_URL}.")
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidConnectionError(f"The host is not an http(s) URL. Write it like {DEFAULT_BASE_URL}.")
    shown = quote(url.host, 100)
    if url.userinfo or url.query or url.fragment:
        raise InvalidConnectionError(
            f"The host {shown!r} holds more than scheme, host, port and path. "
            "The key belongs in the password field, and nothing in a query."
        )
    if url.scheme == "http" and not is_loopback(url.host) and not allow_plain_http:
        raise InvalidConnectionError(
            f"The host {shown!r} would send the API key unencrypted. Use https, or set the connection's extra "
            "allow_plain_http to true if the network between is trusted."
        )
    if re.search(r"/v1(/agents|/events)?/*$", url.path):
        raise InvalidConnectionError(
            f"The base URL on {shown!r} ends in the path of the API itself, /v1, which is added to every request. "
            "Put the base URL without it into the host."
        )
    return str(url).rstrip("/")


def _check_proxy(proxy: environment.Proxy | InvalidConnectionError, *, sees_key: bool) -> None:
    if isinstance(proxy, InvalidConnectionError):
        raise proxy
    if sees_key and not is_loopback(proxy.url.host):
        raise InvalidConnectionError(
            "The host is plain http, so the proxy would be sent the API key unencrypted. Use https, leave out the "
            "proxy, or set the connection's extra allow_plain_http to true if the network between is trusted."
        )


def _check_run_url(template: object) -> None:
    """Refuse what would be no link, or one that an id can lead to another host. Whoever clicks it trusts it."""
    text = template if isinstance(template, str) else repr(template)
    try:
        url = urlsplit(text)
        good = url.scheme in {"http", "https"} and url.hostname is not None and text.isprintable() and " " not in text
    except ValueError:
        good = False
    if not good or "{" in url.netloc or "@" in url.netloc:
        raise InvalidConnectionError(
            "run_url must be an http(s) URL with its ids behind the host, got "
            f"{quote(text.rsplit('@', 1)[-1], 100)!r}. "
            "Write it like https://app.example/agents/{agent_id}/runs/{event_id}."
        )
    unknown = re.sub(r"\{(?:agent_id|event_id)\}", "", text)
    if "{" in unknown or "}" in unknown:
        raise InvalidConnectionError(
            f"run_url knows {{agent_id}} and {{event_id}} and nothing else in braces, got {quote_setting(text, 100)}."
        )


def _httpx_arguments(settings: Settings, proxy: environment.Proxy | None, tls: ssl.SSLContext) -> dict[str, Any]:
    return {
        "headers": settings.headers(),
        "timeout": httpx.Timeout(settings.timeout_seconds),
        "verify": tls,
        "proxy": proxy.for_httpx(tls) if proxy is not None else None,
        # A redirect would carry the key to whatever host it names.
        "follow_redirects": False,
        # `environment` has read it.
        "trust_env": False,
        # The API sets none, and one that is kept would be sent with every request from then on.
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),
    }


def _put_location_aside(response: httpx.Response) -> None:
    # Httpx would make a request of it, though not send it, and fail over one that is no URL.
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


async def _aput_location_aside(response: httpx.Response) -> None:
    _put_location_aside(response)


#: The platform cannot have seen the request.
_NOT_SENT: tuple[type[Exception], ...] = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    *environment.SOCKS_ERRORS,
)
_NETWORK_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.InvalidURL, *environment.SOCKS_ERRORS)
_PROXY_WANTS_CREDENTIALS = 407


def _our_error(error: Exception, call: Call[Any], settings: Settings, proxy: environment.Proxy | None) -> AgentsError:
    """Httpx's errors as ours, split by whether the platform can have seen the request."""
    # What was wrong with an answer may be told in its own words.
    words = quote(settings.redacted(str(error)), 120) or type(error).__name__
    place = environment.address_of(httpx.URL(settings.base_url))
    if proxy is not None:
        place += f" through the proxy {proxy.address}"
    if isinstance(error, _NOT_SENT):
        hint = _what_to_check(words, settings, proxy)
        return NotSentError(f"No connection to {place} ({words}). {hint} {asked(call)}")
    match error:
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
            # Their text may quote a header's value.
            return InvalidConnectionError(f"The connection's settings make no valid HTTP request. {asked(call)}")
        case httpx.TimeoutException():
            return NoAnswerError(
                f"No answer from {place} within {settings.timeout_seconds:g} seconds ({words}). {asked(call)}"
            )
        case _:
            return NoAnswerError(f"The answer from {place} was lost ({words}). {asked(call)}")


def _what_to_check(words: str, settings: Settings, proxy: environment.Proxy | None) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in words:
        source, _ = environment.ca_source(settings.verify)
        return (
            f"Its certificate was not accepted with the CA certificates of {source}: set verify to the CA bundle that "
            "signed it."
        )
    if proxy is None:
        return "Check the connection's host and port, and the network."
    source = environment.as_subject(proxy.source)
    if words.startswith(str(_PROXY_WANTS_CREDENTIALS)):
        return f"{source} needs a user name and a password: http://USER:PASSWORD@{proxy.address}"
    others = "" if settings.proxy is not None else ", or list the API's host in NO_PROXY"
    return f"{source} names this proxy: check it{others}."


def _too_slow(call: Call[Any], settings: Settings) -> NoAnswerError:
    return NoAnswerError(
        f"The answer came too slowly: it was not complete after {settings.whole_request_seconds:g} seconds, and was "
        f"given up. {asked(call)}"
    )


class _Body:
    """Collects an answer's bytes within the bounds of size and time."""

    def __init__(
        self,
        call: Call[Any],
        response: httpx.Response,
        settings: Settings,
        proxy: environment.Proxy | None,
        clock: Callable[[], float],
    ) -> None:
        self._call, self._response, self._settings, self._proxy, self._clock = call, response, settings, proxy, clock
        self._ends_at = clock() + settings.whole_request_seconds
        self._headers = {
            name: settings.redacted(value) for name, value in response.headers.items() if name in _HEADERS_READ
        }
        if "location" in response.extensions:
            self._headers["location"] = settings.redacted(response.extensions["location"])
        try:
            self._intake = Intake(response.headers.get("content-encoding"), is_success=response.is_success)
        except BodyError as error:
            raise unreadable(call, response.status_code, self._headers, f"{error}.") from None

    @property
    def has_enough(self) -> bool:
        """Whether the rest need not be read."""
        return self._intake.has_enough

    def add(self, chunk: bytes) -> None:
        """The next bytes."""
        try:
            self._intake.add(chunk)
        except BodyError as error:
            raise unreadable(self._call, self._response.status_code, self._headers, f"{error}.") from None
        if self._clock() > self._ends_at:
            raise _too_slow(self._call, self._settings)

    def read(self, call: Call[T]) -> Answer[T]:
        """What the answer says."""
        status_code = self._response.status_code
        if status_code == _PROXY_WANTS_CREDENTIALS and self._proxy is not None:
            # A proxy's own answer. It gives the same one in words if it is to open a tunnel.
            refusal = httpx.ProxyError(f"{status_code} {self._response.reason_phrase}")
            raise _our_error(refusal, call, self._settings, self._proxy)
        try:
            body = self._settings.redacted_json(self._intake.end())
        except BodyError as error:
            raise unreadable(call, status_code, self._headers, f"{error}.") from None
        return read_answer(call, status_code, self._headers, body)


class _Cutter:
    """Ends a blocking request that takes too long as a whole, by cutting its connection.

    A time limit of httpx is for one read. A server that drips its headers, or sends interim answers without end, keeps
    within it for ever. An event loop has a remedy of its own; a thread that blocks in a read must be freed by another.

    Args:
        over_a_network: whether there is anything to cut; else no thread is started.
    """

    def __init__(self, *, over_a_network: bool) -> None:
        self._over_a_network = over_a_network
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self.has_cut = False

    def note(self, name: str, info: dict[str, Any]) -> None:
        """Httpcore's `trace`: learn of each connection that is made."""
        if not name.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        made = info["return_value"].get_extra_info("socket")
        if isinstance(made, socket.socket):
            self._sockets.add(made)
            if self.has_cut:
                self._cut()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut the connections unless the block ends in so many seconds."""
        self.has_cut = False
        if not self._over_a_network:
            yield
            return
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        self.has_cut = True
        for connection in tuple(self._sockets):
            # To close it would not wake up who reads from it. And not as TLS would do it, which takes its state away
            # from under the reader.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _policy(call: Call[Any], attempts: int) -> dict[str, Any]:
    return {
        "retry": retry_if_exception(lambda error: retry.may_repeat(call, error)),
        "wait": retry.PauseAsAsked(),
        "stop": stop_after_attempt(attempts) | retry.StopWhenAskedTooMuch(),
        "reraise": True,
    }


class Client:
    """The API for code that may block: workers and scripts.

    Close it, or use it as a context manager. Not to be shared between threads that use it at once.

    Args:
        settings: how to reach the API.
        attempts: tries of one call, the first included; 1 means no repetition.
        window: how long failures in a row are retried, in place of `attempts`.
        transport: in place of the network.
        sleep: how to wait between tries, in seconds.
        clock: monotonic seconds.
        warn_once: which unreadable rows were logged already; another client may share it.
        renew: called after a 401 of a step in `follow`; other settings, with which the step is repeated, or None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        attempts: int = retry.ATTEMPTS,
        window: retry.RetryWindow | None = None,
        transport: httpx.BaseTransport | None = None,
        renew: Callable[[], Settings | None] = lambda: None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        warn_once: WarnOnce | None = None,
    ) -> None:
        self._settings, self._attempts, self._window, self._clock = settings, attempts, window, clock
        self._sleep = sleep if sleep is not None else our_clock.sleep
        self._warn_once = warn_once if warn_once is not None else WarnOnce()
        self._transport, self._renew = transport, renew
        self._cutter = _Cutter(over_a_network=transport is None)
        self._http = self._opened(settings)

    def _opened(self, settings: Settings) -> httpx.Client:
        # Whatever stands in for the network needs neither.
        over_a_network = self._transport is None
        self._proxy = settings.proxy_in_use() if over_a_network else None
        tls = settings.tls_context() if over_a_network else environment.unchecked_tls()
        return httpx.Client(
            transport=self._transport,
            event_hooks={"response": [_put_location_aside]},
            **_httpx_arguments(settings, self._proxy, tls),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. May be repeated."""
        self._http.close()

    def send_once(self, call: Call[T]) -> Answer[T]:
        """One request, no repetition.

        Raises:
            AgentsError: the one that fits.
        """
        try:
            with self._cutter.within(self._settings.whole_request_seconds):
                body = self._read(call)
        except _NETWORK_ERRORS as error:
            failure = _our_error(error, call, self._settings, self._proxy)
        except AgentsError as error:
            # What a server sends can hold the key that it was sent.
            failure = without_frames(error)
        else:
            if not self._cutter.has_cut:
                answer = body.read(call)
                self._warn_once.check(answer.value, self._clock())
                return answer
            # A cut looks like the end of an answer that does not tell its length.
            failure = _too_slow(call, self._settings)
        if self._cutter.has_cut and isinstance(failure, NoAnswerError):
            failure = _too_slow(call, self._settings)
        # Outside the handler: httpx's error holds the request, and the request the key.
        raise failure

    def _read(self, call: Call[Any]) -> _Body:
        request = self._http.build_request(
            call.method,
            self._settings.base_url + call.path,
            params=_query(call),
            extensions={"trace": self._cutter.note},
        )
        response = self._http.send(request, stream=True)
        try:
            body = _Body(call, response, self._settings, self._proxy, self._clock)
            # The bytes as sent: httpx would decompress each chunk whole, whatever comes of it.
            for chunk in cast("httpx.SyncByteStream", response.stream):
                body.add(chunk)
                if body.has_enough:
                    break
        except httpx.HTTPError:
            # The status of a failure says more than that the rest of its text was lost.
            if response.is_success:
                raise
        finally:
            response.close()
        return body

    def send(self, call: Call[T]) -> Answer[T]:
        """One request, repeated after failures where that can do no harm; sleeps in between.

        Raises:
            AgentsError: the last failure.
        """
        if self._window is not None:
            return self._send_within(self._window, call)
        return Retrying(sleep=self._sleep, **_policy(call, self._attempts))(self.send_once, call)

    def _send_within(self, window: retry.RetryWindow, call: Call[T]) -> Answer[T]:
        while True:
            try:
                answer = self.send_once(call)
            except AgentsError as error:
                if not retry.may_repeat(call, error):
                    raise
                pause = window.pause_after(error)
            else:
                window.succeeded()
                return answer
            self._sleep(pause)

    def follow(self, steps: Steps[T]) -> T:
        """Drive a dialogue to its end and return its result."""
        try:
            step = next(steps)
            while True:
                try:
                    result = self.take(step)
                except AgentsError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # a generator's return value is untyped

    def take(self, step: Call[Any] | Once | Pause) -> Answer[Any] | None:
        """Do what a dialogue asks for next."""
        try:
            return self._take(step)
        except AuthenticationError:
            # A 401 has started nothing, so an execute may be repeated, too.
            settings = self._renew()
            if settings is None:
                raise
        http, self._http, self._settings = self._http, self._opened(settings), settings
        http.close()
        return self._take(step)

    def _take(self, step: Call[Any] | Once | Pause) -> Answer[Any] | None:
        match step:
            case Pause(seconds):
                self._sleep(seconds)
                return None
            case Once(call):
                return self.send_once(call)
            case _:
                return self.send(step)


class AsyncClient:
    """The API for code on an event loop: triggers. One per loop and connection, shared by everything there.

    Make it with `await AsyncClient.open(settings)`, which builds the TLS context off the loop. Close it with `aclose`.

    It repeats nothing by itself: who polls decides about the next poll, else tries multiply with polls.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        attempts: int = 1,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._attempts, self._clock = settings, attempts, clock
        self._sleep = sleep if sleep is not None else our_clock.asleep
        self._warn_once = WarnOnce()
        self._proxy = settings.proxy_in_use() if transport is None else None
        if tls is None:
            tls = settings.tls_context() if transport is None else environment.unchecked_tls()
        self._http = httpx.AsyncClient(
            transport=transport,
            event_hooks={"response": [_aput_location_aside]},
            **_httpx_arguments(settings, self._proxy, tls),
        )

    @property
    def settings(self) -> Settings:
        """How it reaches the API."""
        return self._settings

    @classmethod
    async def open(cls, settings: Settings, *, attempts: int = 1) -> Self:
        """Make a client without blocking the loop for the 50 ms that a TLS context takes.

        Raises:
            InvalidConnectionError: the CA bundle cannot be read, or the environment's proxy cannot be used.
        """
        tls = await asyncio.to_thread(settings.tls_context)
        return cls(settings, tls=tls, attempts=attempts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. May be repeated."""
        await self._http.aclose()

    async def send_once(self, call: Call[T]) -> Answer[T]:
        """One request, no repetition.

        Raises:
            AgentsError: the one that fits.
        """
        try:
            with our_clock.working():
                async with asyncio.timeout(self._settings.whole_request_seconds):
                    body = await self._read(call)
        except _NETWORK_ERRORS as error:
            failure = _our_error(error, call, self._settings, self._proxy)
        except AgentsError as error:
            failure = without_frames(error)
        except TimeoutError:
            failure = _too_slow(call, self._settings)
        else:
            answer = body.read(call)
            self._warn_once.check(answer.value, self._clock())
            return answer
        # Outside the handler: httpx's error holds the request, and the request the key.
        raise failure

    async def _read(self, call: Call[Any]) -> _Body:
        request = self._http.build_request(call.method, self._settings.base_url + call.path, params=_query(call))
        response = await self._http.send(request, stream=True)
        try:
            body = _Body(call, response, self._settings, self._proxy, self._clock)
            async for chunk in cast("httpx.AsyncByteStream", response.stream):
                body.add(chunk)
                if body.has_enough:
                    break
        except httpx.HTTPError:
            # As in `Client`.
            if response.is_success:
                raise
        finally:
            await response.aclose()
        return body

    async def send(self, call: Call[T]) -> Answer[T]:
        """One request, repeated up to `attempts` where that can do no harm.

        Raises:
            AgentsError: the last failure.
        """
        return await AsyncRetrying(sleep=self._sleep, **_policy(call, self._attempts))(self.send_once, call)

    async def follow(self, steps: Steps[T]) -> T:
        """Drive a dialogue to its end and return its result."""
        return await follow(steps, self.take)

    async def take(self, step: Call[Any] | Once | Pause) -> Answer[Any] | None:
        """Do what a dialogue asks for next."""
        match step:
            case Pause(seconds):
                await self._sleep(seconds)
                return None
            case Once(call):
                return await self.send_once(call)
            case _:
                return await self.send(step)


def _query(call: Call[Any]) -> httpx.QueryParams | None:
    return httpx.QueryParams(call.params) if call.params else None
