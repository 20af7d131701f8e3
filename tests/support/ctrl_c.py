"""Ctrl-C, pressed while a command runs."""

from __future__ import annotations

import signal
import threading
import time


def interrupt_when(condition):
    """Press Ctrl-C as soon as something is true."""
    main_thread = threading.main_thread().ident

    def wait():
        while not condition():
            pass
        signal.pthread_kill(main_thread, signal.SIGINT)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    return waiting


def interrupt_in_pause(platform, monkeypatch, number=5):
    """Press Ctrl-C at the end of the command's Nth pause."""
    advance = time.sleep

    def sleep(seconds):
        advance(seconds)
        if len(platform.slept) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(time, "sleep", sleep)
