"""An event loop whose time only moves when everything waits: a day of polling takes as long as its requests."""

from __future__ import annotations

import asyncio
import selectors

#: Answers over loopback take milliseconds. A request that gets none in this many real seconds is a hung test.
_PATIENCE_SECONDS = 30.0


class _Selector(selectors.DefaultSelector):
    """Waits for the network in real time, and for timers in none."""

    loop: VirtualLoop

    def select(self, timeout=None):
        loop = self.loop
        if timeout == 0:
            return super().select(0)
        if loop.under_way or timeout is None:
            # An answer is on its way: no timer may overtake it. Or a thread is, which ends.
            ready = super().select(_PATIENCE_SECONDS)
            assert ready, "nothing answers"
            return ready
        ready = super().select(0)
        if ready:
            return ready
        loop.pass_time(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time.

    Args:
        on_pass: called with the seconds that pass.
    """

    def __init__(self, on_pass=lambda seconds: None):
        self._virtual, self._on_pass = 1000.0, on_pass
        #: What is being waited for outside of the loop: requests over real sockets, threads.
        self.under_way = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self._virtual

    def pass_time(self, seconds):
        # A timer that is due in less than the clock's resolution would never come.
        seconds = max(seconds, 1e-6)
        self._virtual += seconds
        self._on_pass(seconds)

    def run_in_executor(self, executor, func, *args):
        self.under_way += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._landed())
        return future

    def _landed(self):
        self.under_way -= 1


def count_requests(monkeypatch, client_class):
    """Let virtual loops know of the requests that a client class has under way."""
    send = client_class.send_once

    async def send_once(self, call):
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            return await send(self, call)
        loop.under_way += 1
        try:
            return await send(self, call)
        finally:
            loop.under_way -= 1

    monkeypatch.setattr(client_class, "send_once", send_once)
