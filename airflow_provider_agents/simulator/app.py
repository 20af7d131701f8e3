"""The simulator over HTTP: as an httpx transport for tests, as a server for demos and whole-system tests.

The server also has control routes under `/_simulator/`, which need no key. With them, a test in another process can
read the truth and add faults. Anyone who reaches the server can use them, so it should only listen on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.simulator.faults import Fault, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import httpx
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_agents.simulator.platform import Simulator

#: A hanging request ends after this many seconds, even if its client waits longer.
_LONGEST_HANG_SECONDS = 120.0
#: The key of a request's TCP connection in its scope, so that a reset can be a real one. No context variable: some
#: releases of uvicorn start each request in an empty context.
_CONNECTION = "agents_simulator.connection"


def mock_transport(simulator: Simulator) -> httpx.MockTransport:
    """The simulator as a transport for `httpx.Client` and `httpx.AsyncClient`.

    A broken connection raises `httpx.ReadError`; a request that hangs raises `httpx.ReadTimeout` at once.
    """
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode("ascii").partition("?")[0]
        reply = simulator.handle(request.method, path, dict(request.url.params), dict(request.headers))
        if reply.broken == "reset":
            raise httpx.ReadError("the simulator broke the connection", request=request)
        if reply.broken == "hang":
            raise httpx.ReadTimeout("the simulator does not answer", request=request)
        return httpx.Response(reply.status, headers=dict(reply.headers), content=reply.body)

    return httpx.MockTransport(answer)


def asgi_app(simulator: Simulator) -> Starlette:
    """The simulator as an ASGI application, with the control routes.

    Only the servers of `serve` and `running_server` can break a connection. Elsewhere, a reset and a hang that ends
    raise a `RuntimeError`.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def api(request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        reply = simulator.handle(request.method, path, dict(request.query_params), dict(request.headers))
        if reply.broken is not None:
            await _break(request, reply)
        # HTTP allows no body with these statuses, and the server would break the connection.
        body = b"" if reply.status in {204, 304} else reply.body
        return Response(body, status_code=reply.status, headers=dict(reply.headers))

    def control(change: Callable[[Any], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                has_body = request.method not in {"GET", "DELETE"}
                body = await request.json() if has_body else dict(request.query_params)
                return JSONResponse(change(body))
            except (TypeError, ValueError, KeyError) as error:
                return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)

        return endpoint

    controls = _Controls(simulator)
    routes: list[tuple[str, str, Callable[[Any], Any]]] = [
        ("GET", "executions", controls.executions),
        ("GET", "runs", controls.runs),
        ("POST", "runs", controls.start_run),
        ("GET", "requests", controls.requests),
        ("POST", "agents", controls.add_agent),
        ("DELETE", "agents", controls.remove_agent),
        ("POST", "rows", controls.add_row),
        ("PATCH", "rows", controls.corrupt_row),
        ("DELETE", "rows", controls.hide_row),
        ("PUT", "rows", controls.restore_row),
        ("POST", "faults", controls.add_fault),
        ("DELETE", "faults", controls.clear_faults),
        ("PATCH", "config", controls.change_config),
        ("PUT", "keys", controls.set_keys),
    ]
    return Starlette(
        routes=[
            *(Route(f"/_simulator/{name}", control(change), methods=[method]) for method, name, change in routes),
            Route("/{path:path}", api, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]
    )


class _Controls:
    """The control routes. Each gets the JSON of the request's body, or the query of a GET or DELETE."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def executions(self, _: object) -> list[dict[str, Any]]:
        return [
            {
                "agentId": done.agent_id,
                "requestId": done.request_id,
                "eventId": done.event_id,
                "acceptedAt": done.accepted_at.isoformat(),
            }
            for done in self._simulator.executions
        ]

    def runs(self, wanted: dict[str, str]) -> list[dict[str, Any]]:
        runs = [
            {
                "eventId": run.event_id,
                "requestId": run.request_id,
                "agentId": run.agent_id,
                "by": run.started_by,
                "status": status,
                "endStatus": run.end_status,
                "acceptedAt": run.accepted_at.isoformat(timespec="microseconds"),
                "endsAt": run.ended_at.isoformat(timespec="microseconds"),
            }
            for run, status in self._simulator.runs()
        ]
        return [run for run in runs if all(run[name] == value for name, value in wanted.items())]

    def start_run(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"eventId": self._simulator.start_scheduled_run(body["agentId"])}

    def requests(self, _: object) -> dict[str, Any]:
        paths: dict[str, int] = {}
        for request in self._simulator.requests:
            name = f"{request.method} {request.path}"
            paths[name] = paths.get(name, 0) + 1
        return {"total": len(self._simulator.requests), "paths": paths}

    def add_agent(self, body: dict[str, Any]) -> dict[str, Any]:
        self._simulator.add_agent(**body)
        return body

    def remove_agent(self, query: dict[str, str]) -> dict[str, str]:
        keep = query.get("keepEvents", "false")
        if keep not in {"true", "false"}:
            raise ValueError("keepEvents must be true or false")
        self._simulator.remove_agent(query["agentId"], keep_events=keep == "true")
        return query

    def add_row(self, body: dict[str, Any]) -> dict[str, Any]:
        more = {name: body[name] for name in ("without", "age") if name in body}
        return {"eventId": self._simulator.add_row(body["agentId"], body["row"], **more)}

    def corrupt_row(self, body: dict[str, Any]) -> dict[str, Any]:
        self._simulator.corrupt(body["eventId"], body["row"], without=body.get("without", ()))
        return body

    def hide_row(self, query: dict[str, str]) -> dict[str, str]:
        self._simulator.hide(query["eventId"])
        return query

    def restore_row(self, body: dict[str, Any]) -> dict[str, Any]:
        self._simulator.restore(body["eventId"])
        return body

    def add_fault(self, body: dict[str, Any]) -> dict[str, Any]:
        self._add_fault(**body)
        return body

    def _add_fault(self, *, after: float = 0.0, seconds: float | None = None, **fault: Any) -> None:
        self._simulator.add_fault(Fault(**fault), after=after, seconds=seconds)

    def clear_faults(self, _: object) -> dict[str, Any]:
        self._simulator.faults.clear()
        return {}

    def change_config(self, body: dict[str, Any]) -> dict[str, Any]:
        self._simulator.config = dataclasses.replace(self._simulator.config, **body)
        return body

    def set_keys(self, body: list[str]) -> list[str]:
        if not (isinstance(body, list) and all(isinstance(key, str) for key in body)):
            raise TypeError("the keys must be a list of texts")
        self._simulator.api_keys = tuple(body)
        return body


async def _break(request: Request, reply: Reply) -> None:
    transport = request.scope.get(_CONNECTION)
    if reply.broken == "hang":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_HANG_SECONDS):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
    if transport is None:
        raise RuntimeError(f"this server cannot {reply.broken} a connection")
    transport.abort()


def _server(simulator: Simulator) -> Any:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Breakable(H11Protocol):
        """Lets an endpoint reach the connection of its request."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            answer = self.app

            async def answer_on(scope: Any, receive: Any, send: Any) -> None:
                scope[_CONNECTION] = transport
                await answer(scope, receive, send)

            self.app = answer_on

    class Announced(uvicorn.Server):
        """Reports when it is ready: a server that is stopped earlier does not close its socket."""

        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self.is_ready = threading.Event()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().startup(sockets)
            finally:
                self.is_ready.set()

    return Announced(
        uvicorn.Config(
            asgi_app(simulator),
            http=Breakable,
            # With websockets, an older uvicorn imports names that a newer websockets has deprecated.
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            # The simulator sends its own Date header; the server's would contradict it.
            date_header=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            # As usual gateways do.
            timeout_keep_alive=60,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, which the caller closes; port 0 takes a free one.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError:
        listening.close()
        raise
    return listening


def url_of(listening: socket.socket) -> str:
    """The base URL that a socket listens on."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(simulator: Simulator, host: str = "127.0.0.1", port: int = 8099, *, notes: Sequence[str] = ()) -> None:
    """Print the address, then serve until SIGINT or SIGTERM. For the main thread.

    Args:
        simulator: should use the real clock.
        host: a name or address of this machine. The control routes need no key.
        port: 0 takes a free one.
        notes: lines to print behind the address.

    Raises:
        OSError: the server cannot listen on the address; most often, the port is taken.
    """
    listening = listen(host, port)
    # After its shutdown, uvicorn calls the handler that was set before.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        lines = [f"The agents platform is simulated at {url_of(listening)}", *notes]
        print(*lines, sep="\n", flush=True)  # noqa: T201 - the command's
        _server(simulator).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()


@contextlib.contextmanager
def running_server(simulator: Simulator, *, port: int = 0) -> Iterator[str]:
    """The simulator as a server in a thread, for the length of a block.

    Args:
        simulator: should use the real clock.
        port: on 127.0.0.1; 0 takes a free one.

    Yields:
        Its base URL.
    """
    listening = listen("127.0.0.1", port)
    server = _server(simulator)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    server.is_ready.wait(timeout=10)
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()
