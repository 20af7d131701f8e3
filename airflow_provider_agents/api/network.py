"""What a request needs of the network: httpx's arguments, its errors as ours, and an end to what takes too long."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import httpx

from airflow_provider_agents.api import environment
from airflow_provider_agents.api.errors import (
    AgentsError,
    InvalidConnectionError,
    NoAnswerError,
    NotSentError,
    quote,
)
from airflow_provider_agents.api.flow import asked

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from airflow_provider_agents.api.flow import Call
    from airflow_provider_agents.api.settings import Settings


def httpx_arguments(settings: Settings, proxy: environment.Proxy | None, tls: ssl.SSLContext) -> dict[str, Any]:
    """What both of httpx's clients are made with."""
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


#: The platform cannot have seen the request.
_NOT_SENT: tuple[type[Exception], ...] = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    *environment.SOCKS_ERRORS,
)
NETWORK_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.InvalidURL, *environment.SOCKS_ERRORS)
PROXY_WANTS_CREDENTIALS = 407


def our_error(error: Exception, call: Call[Any], settings: Settings, proxy: environment.Proxy | None) -> AgentsError:
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
    if words.startswith(str(PROXY_WANTS_CREDENTIALS)):
        return f"{source} needs a user name and a password: http://USER:PASSWORD@{proxy.address}"
    others = "" if settings.proxy is not None else ", or list the API's host in NO_PROXY"
    return f"{source} names this proxy: check it{others}."


def too_slow(call: Call[Any], settings: Settings) -> NoAnswerError:
    """The error for a request that took too long as a whole."""
    return NoAnswerError(
        f"The answer came too slowly: it was not complete after {settings.whole_request_seconds:g} seconds, and was "
        f"given up. {asked(call)}"
    )


class Cutter:
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
