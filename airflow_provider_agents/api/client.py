"""The only code that does HTTP: `Client` and `AsyncClient`, two thin shells that differ in `await` and `sleep`.

All decisions are made elsewhere: what to send in `endpoints`, how to read it in `responses`, what may be repeated in
`retry`, what a network error means in `network`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx

from airflow_provider_agents import clock
from airflow_provider_agents.api import environment, retry
from airflow_provider_agents.api.body import BodyDecoder, BodyError
from airflow_provider_agents.api.errors import AgentsError, AuthenticationError, NoAnswerError, without_frames
from airflow_provider_agents.api.flow import ApiCall, Flow, FlowRun, NoRetry, Response, Sleep, Step
from airflow_provider_agents.api.network import (
    NETWORK_ERRORS,
    PROXY_WANTS_CREDENTIALS,
    RequestDeadline,
    httpx_arguments,
    to_agents_error,
    too_slow,
)
from airflow_provider_agents.api.responses import read_response, unreadable
from airflow_provider_agents.api.rows import WarnOnce
from airflow_provider_agents.interruption import interruptible

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from airflow_provider_agents.api.settings import Settings

T = TypeVar("T")

#: The response headers that are used or quoted.
_HEADERS_READ = ("content-type", "date", "retry-after")


def _put_location_aside(response: httpx.Response) -> None:
    # httpx builds the next request from this header even if it does not follow redirects, and fails on an invalid URL.
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


async def _aput_location_aside(response: httpx.Response) -> None:
    _put_location_aside(response)


class _ResponseReader:
    """Reads a response within the limits of size."""

    def __init__(
        self,
        call: ApiCall[Any],
        response: httpx.Response,
        settings: Settings,
        proxy: environment.Proxy | None,
    ) -> None:
        self._call, self._response, self._settings, self._proxy = call, response, settings, proxy
        self._headers = {
            name: settings.redact(value) for name, value in response.headers.items() if name in _HEADERS_READ
        }
        if "location" in response.extensions:
            self._headers["location"] = settings.redact(response.extensions["location"])
        with self._unreadable_on_body_error():
            self._decoder = BodyDecoder(response.headers.get("content-encoding"), is_success=response.is_success)

    @contextlib.contextmanager
    def _unreadable_on_body_error(self) -> Iterator[None]:
        try:
            yield
        except BodyError as error:
            raise unreadable(self._call, self._response.status_code, self._headers, f"{error}.") from None

    @property
    def is_full(self) -> bool:
        """Whether the rest of the body is not needed."""
        return self._decoder.is_full

    def add(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        with self._unreadable_on_body_error():
            self._decoder.add(chunk)

    def read(self, call: ApiCall[T]) -> Response[T]:
        """The response, once the body is complete."""
        status_code = self._response.status_code
        if status_code == PROXY_WANTS_CREDENTIALS and self._proxy is not None:
            # The proxy answered, not the API. Where a tunnel is to be opened, httpx raises this error itself.
            refusal = httpx.ProxyError(f"{status_code} {self._response.reason_phrase}")
            raise to_agents_error(refusal, call, self._settings, self._proxy)
        with self._unreadable_on_body_error():
            body = self._settings.redact_json(self._decoder.finish())
        return read_response(call, status_code, self._headers, body)


class Client:
    """The API for code that may block: workers and scripts.

    Close it, or use it as a context manager. Two threads must not use it at the same time.

    Args:
        settings: how to reach the API.
        attempts: tries of one call, the first included; 1 for no retry.
        window: how long failures in a row are retried, instead of `attempts`.
        transport: replaces the network.
        warn_once: which unreadable rows were logged already; clients may share one.
        renew: called after a 401 in `run_flow`. Returns new settings, with which the step is repeated, or None.
        on_response: called with the status and the headers of each response: names in lower case, values without the
            key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        attempts: int = retry.ATTEMPTS,
        window: retry.RetryWindow | None = None,
        transport: httpx.BaseTransport | None = None,
        renew: Callable[[], Settings | None] = lambda: None,
        warn_once: WarnOnce | None = None,
        on_response: Callable[[int, Mapping[str, str]], None] = lambda _, __: None,
    ) -> None:
        self._settings, self._attempts, self._window = settings, attempts, window
        self._on_response = on_response
        self._warn_once = warn_once if warn_once is not None else WarnOnce()
        self._transport, self._renew = transport, renew
        self._deadline = RequestDeadline(over_a_network=transport is None)
        self._http = self._opened(settings)

    @property
    def settings(self) -> Settings:
        """How the API is reached."""
        return self._settings

    def _opened(self, settings: Settings) -> httpx.Client:
        # A replaced network has neither a proxy nor TLS.
        over_a_network = self._transport is None
        self._proxy = settings.proxy_in_use() if over_a_network else None
        tls = settings.tls_context() if over_a_network else environment.unchecked_tls()
        return httpx.Client(
            transport=self._transport,
            event_hooks={"response": [_put_location_aside]},
            **httpx_arguments(settings, self._proxy, tls),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. May be repeated."""
        self._http.close()

    def send_once(self, call: ApiCall[T]) -> Response[T]:
        """Send one request once.

        Raises:
            AgentsError: the subclass that fits.
        """
        try:
            with (
                self._deadline.within(self._settings.whole_request_seconds),
                # A killed task, too, waits for the response to an execute: without it, the run would be unknown.
                interruptible() if call.idempotent else contextlib.nullcontext(),
            ):
                reader = self._read(call)
        except NETWORK_ERRORS as error:
            failure = to_agents_error(error, call, self._settings, self._proxy)
        except AgentsError as error:
            # A server may send back the key, so the frames may hold it.
            failure = without_frames(error)
        else:
            if not self._deadline.has_passed:
                response = reader.read(call)
                self._warn_once.check(response.value)
                return response
            # In a response without a length, the aborted connection looks like the end of the body.
            failure = too_slow(call, self._settings)
        if self._deadline.has_passed and isinstance(failure, NoAnswerError):
            failure = too_slow(call, self._settings)
        # Raised outside the handler: httpx's error holds the request, and the request holds the key.
        raise failure

    def _read(self, call: ApiCall[Any]) -> _ResponseReader:
        request = self._http.build_request(
            call.method,
            self._settings.base_url + call.path,
            params=_query(call),
            extensions={"trace": self._deadline.track_socket},
        )
        response = self._http.send(request, stream=True)
        headers = {name: self._settings.redact(value) for name, value in response.headers.items()}
        self._on_response(response.status_code, headers)
        try:
            reader = _ResponseReader(call, response, self._settings, self._proxy)
            # The raw bytes: httpx would decompress each chunk without a limit.
            for chunk in cast("httpx.SyncByteStream", response.stream):
                reader.add(chunk)
                if reader.is_full:
                    break
        except httpx.HTTPError:
            # The status of an error response says more than the loss of its body.
            if response.is_success:
                raise
        finally:
            response.close()
        return reader

    def send(self, call: ApiCall[T]) -> Response[T]:
        """Send one request, and retry it where that can do no harm. Sleeps between tries.

        Raises:
            AgentsError: the last failure.
        """
        retries = self._window if self._window is not None else retry.RetryCount(self._attempts)
        while True:
            try:
                response = self.send_once(call)
            except AgentsError as error:
                if not retry.may_repeat(call, error):
                    raise
                pause = retries.pause_after(error)
            else:
                retries.succeeded()
                return response
            clock.sleep(pause)

    def run_flow(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return its value."""
        run = FlowRun(flow)
        for step in run:
            with run.error_to_flow():
                run.result = self.perform(step)
        return run.value

    def perform(self, step: Step) -> Response[Any] | None:
        """Do what a flow yields."""
        try:
            return self._perform(step)
        except AuthenticationError:
            # A 401 means that nothing was started, so an execute may be repeated, too.
            settings = self._renew()
            if settings is None:
                raise
        http, self._http, self._settings = self._http, self._opened(settings), settings
        http.close()
        return self._perform(step)

    def _perform(self, step: Step) -> Response[Any] | None:
        match step:
            case Sleep(seconds):
                clock.sleep(seconds)
                return None
            case NoRetry(call):
                return self.send_once(call)
            case _:
                return self.send(step)


class AsyncClient:
    """The API for code on an event loop: triggers. One per loop and connection.

    Make it with `await AsyncClient.open(settings)`, which builds the TLS context in a thread. Close it with `aclose`.

    It retries nothing: its callers poll, and retries would multiply with polls. `flow.run_flow` runs a flow with it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._warn_once = WarnOnce()
        self._proxy = settings.proxy_in_use() if transport is None else None
        if tls is None:
            tls = settings.tls_context() if transport is None else environment.unchecked_tls()
        self._http = httpx.AsyncClient(
            transport=transport,
            event_hooks={"response": [_aput_location_aside]},
            **httpx_arguments(settings, self._proxy, tls),
        )

    @property
    def settings(self) -> Settings:
        """How this client reaches the API."""
        return self._settings

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Make a client without blocking the loop: building a TLS context takes about 50 ms.

        Raises:
            InvalidConnectionError: the CA bundle cannot be read, or the environment's proxy cannot be used.
        """
        tls = await asyncio.to_thread(settings.tls_context)
        return cls(settings, tls=tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. May be repeated."""
        await self._http.aclose()

    async def send_once(self, call: ApiCall[T]) -> Response[T]:
        """Send one request once.

        Raises:
            AgentsError: the subclass that fits.
        """
        try:
            async with asyncio.timeout(self._settings.whole_request_seconds):
                reader = await self._read(call)
        except NETWORK_ERRORS as error:
            failure = to_agents_error(error, call, self._settings, self._proxy)
        except AgentsError as error:
            failure = without_frames(error)
        except TimeoutError:
            failure = too_slow(call, self._settings)
        else:
            response = reader.read(call)
            self._warn_once.check(response.value)
            return response
        # Raised outside the handler: httpx's error holds the request, and the request holds the key.
        raise failure

    async def _read(self, call: ApiCall[Any]) -> _ResponseReader:
        request = self._http.build_request(call.method, self._settings.base_url + call.path, params=_query(call))
        response = await self._http.send(request, stream=True)
        try:
            reader = _ResponseReader(call, response, self._settings, self._proxy)
            async for chunk in cast("httpx.AsyncByteStream", response.stream):
                reader.add(chunk)
                if reader.is_full:
                    break
        except httpx.HTTPError:
            # As in `Client`.
            if response.is_success:
                raise
        finally:
            await response.aclose()
        return reader


def _query(call: ApiCall[Any]) -> httpx.QueryParams | None:
    return httpx.QueryParams(call.params) if call.params else None
