"""Ctrl-C, pressed while a command runs."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from conftest import Platform


def interrupt_when(condition: Callable[[], bool]) -> threading.Thread:
    """Press Ctrl-C as soon as something is true."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def wait() -> None:
        while not condition():
            pass
        signal.pthread_kill(main_thread, signal.SIGINT)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    return waiting


def interrupt_in_pause(platform: Platform, monkeypatch: pytest.MonkeyPatch, number: int = 5) -> None:
    """Press Ctrl-C at the end of the command's Nth pause."""
    advance = time.sleep

    def sleep(seconds: float) -> None:
        advance(seconds)
        if len(platform.slept) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(time, "sleep", sleep)
