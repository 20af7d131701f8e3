"""The only code that does HTTP: `Client` and `AsyncClient`, two thin shells that differ in `await` and `sleep`.

Everything they decide is decided elsewhere: what to send in `endpoints`, how to read it in `responses`, what may be
repeated in `retry`, what a failure of the network means in `network`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_attempt

from airflow_provider_agents import clock as our_clock
from airflow_provider_agents.api import environment, retry
from airflow_provider_agents.api.body import BodyError, Intake
from airflow_provider_agents.api.errors import AgentsError, AuthenticationError, NoAnswerError, without_frames
from airflow_provider_agents.api.flow import Answer, Call, Once, Pause, Steps, follow
from airflow_provider_agents.api.network import (
    NETWORK_ERRORS,
    PROXY_WANTS_CREDENTIALS,
    Cutter,
    httpx_arguments,
    our_error,
    too_slow,
)
from airflow_provider_agents.api.responses import read_answer, unreadable
from airflow_provider_agents.api.rows import WarnOnce
from airflow_provider_agents.interruption import interruptible

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from airflow_provider_agents.api.settings import Settings

T = TypeVar("T")

#: The headers that decide something or are quoted.
_HEADERS_READ = ("content-type", "date", "retry-after")


def _put_location_aside(response: httpx.Response) -> None:
    # Httpx would make a request of it, though not send it, and fail over one that is no URL.
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


async def _aput_location_aside(response: httpx.Response) -> None:
    _put_location_aside(response)


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
            raise too_slow(self._call, self._settings)

    def read(self, call: Call[T]) -> Answer[T]:
        """What the answer says."""
        status_code = self._response.status_code
        if status_code == PROXY_WANTS_CREDENTIALS and self._proxy is not None:
            # A proxy's own answer. It gives the same one in words if it is to open a tunnel.
            refusal = httpx.ProxyError(f"{status_code} {self._response.reason_phrase}")
            raise our_error(refusal, call, self._settings, self._proxy)
        try:
            body = self._settings.redacted_json(self._intake.end())
        except BodyError as error:
            raise unreadable(call, status_code, self._headers, f"{error}.") from None
        return read_answer(call, status_code, self._headers, body)


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
        self._cutter = Cutter(over_a_network=transport is None)
        self._http = self._opened(settings)

    def _opened(self, settings: Settings) -> httpx.Client:
        # Whatever stands in for the network needs neither.
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

    def send_once(self, call: Call[T]) -> Answer[T]:
        """One request, no repetition.

        Raises:
            AgentsError: the one that fits.
        """
        try:
            with (
                self._cutter.within(self._settings.whole_request_seconds),
                # The answer to an execute must be seen, also by a task that is killed.
                interruptible() if call.repeatable else contextlib.nullcontext(),
            ):
                body = self._read(call)
        except NETWORK_ERRORS as error:
            failure = our_error(error, call, self._settings, self._proxy)
        except AgentsError as error:
            # What a server sends can hold the key that it was sent.
            failure = without_frames(error)
        else:
            if not self._cutter.has_cut:
                answer = body.read(call)
                self._warn_once.check(answer.value, self._clock())
                return answer
            # A cut looks like the end of an answer that does not tell its length.
            failure = too_slow(call, self._settings)
        if self._cutter.has_cut and isinstance(failure, NoAnswerError):
            failure = too_slow(call, self._settings)
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
            **httpx_arguments(settings, self._proxy, tls),
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
        except NETWORK_ERRORS as error:
            failure = our_error(error, call, self._settings, self._proxy)
        except AgentsError as error:
            failure = without_frames(error)
        except TimeoutError:
            failure = too_slow(call, self._settings)
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
