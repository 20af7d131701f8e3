"""Between the clients and httpx: its arguments, its errors as ours, and a deadline for a whole request."""

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
    one_line,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from airflow_provider_agents.api.flow import ApiCall
    from airflow_provider_agents.api.settings import Settings


#: Seconds for which a connection is kept for the next request. Polls are mostly 5 seconds apart, and httpx by itself
#: keeps a connection for as long: each poll would open another one, or use one that the server is just closing. Usual
#: gateways keep a connection for 60 seconds and more. The numbers of connections are httpx's own.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=50.0)


def httpx_arguments(settings: Settings, proxy: environment.Proxy | None, tls: ssl.SSLContext) -> dict[str, Any]:
    """The arguments of both `httpx.Client` and `httpx.AsyncClient`."""
    return {
        "headers": settings.headers(),
        "timeout": httpx.Timeout(settings.timeout_seconds),
        "limits": _LIMITS,
        "verify": tls,
        "proxy": proxy.for_httpx(tls) if proxy is not None else None,
        # A redirect would send the key to another host.
        "follow_redirects": False,
        # `environment` reads the proxy variables.
        "trust_env": False,
        # The API sets no cookies. A cookie that was kept would be sent with every later request.
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),
    }


#: Errors after which the platform cannot have seen the request.
_NOT_SENT: tuple[type[Exception], ...] = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    *environment.SOCKS_ERRORS,
)
NETWORK_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.InvalidURL, *environment.SOCKS_ERRORS)
PROXY_WANTS_CREDENTIALS = 407


def to_agents_error(
    error: Exception, call: ApiCall[Any], settings: Settings, proxy: environment.Proxy | None
) -> AgentsError:
    """An error of httpx as ours: `NotSentError` only where the platform cannot have seen the request."""
    # The text of an error may quote the response.
    words = one_line(settings.redact(str(error)), 120) or type(error).__name__
    place = environment.address_of(httpx.URL(settings.base_url))
    if proxy is not None:
        place += f" through the proxy {proxy.address}"
    if isinstance(error, _NOT_SENT):
        hint = _what_to_check(words, settings, proxy)
        return NotSentError(f"No connection to {place} ({words}). {hint} {call.sentence}")
    match error:
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
            # The text of these errors may quote a header's value.
            return InvalidConnectionError(f"The connection's settings make no valid HTTP request. {call.sentence}")
        case httpx.TimeoutException():
            return NoAnswerError(
                f"No response from {place} within {settings.timeout_seconds:g} seconds ({words}). {call.sentence}"
            )
        case _:
            return NoAnswerError(f"The response from {place} was lost ({words}). {call.sentence}")


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


def too_slow(call: ApiCall[Any], settings: Settings) -> NoAnswerError:
    """The error for a request that was not complete at its deadline."""
    return NoAnswerError(
        f"The response came too slowly: it was not complete after {settings.whole_request_seconds:g} seconds, so "
        f"the request was ended. {call.sentence}"
    )


class RequestDeadline:
    """Limits the time of a whole blocking request, by shutting down its connection.

    A timeout of httpx limits a single read. A server that sends its headers byte by byte, or interim responses without
    end, never exceeds it. An event loop can cancel the request; a thread that blocks in a read needs another thread.

    Args:
        over_a_network: whether there is a connection to shut down; without one, no thread is started.
    """

    def __init__(self, *, over_a_network: bool) -> None:
        self._over_a_network = over_a_network
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self.has_passed = False

    def track_socket(self, name: str, info: dict[str, Any]) -> None:
        """For httpcore's `trace`: remember each connection that is opened."""
        if not name.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        opened = info["return_value"].get_extra_info("socket")
        if isinstance(opened, socket.socket):
            self._sockets.add(opened)
            if self.has_passed:
                self._shut_down()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Shut down the connections if the block takes longer than this many seconds."""
        self.has_passed = False
        if not self._over_a_network:
            yield
            return
        timer = threading.Timer(seconds, self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _shut_down(self) -> None:
        self.has_passed = True
        for connection in tuple(self._sockets):
            # Closing would not wake the reading thread. TLS's own shutdown would take its state away under the reader.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
