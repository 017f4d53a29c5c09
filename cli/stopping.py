"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it was writing is cleaned up."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_GRACE = 0.2  # seconds


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def end_as_interrupted() -> None:
    """Makes the signals raise `Terminated`, but for those that are ignored already, as by ``nohup``."""
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            if hasattr(signal, "SIGCHLD"):  # PyTorch raises where a worker has ended: in what cleans up, too
                signal.signal(signal.SIGCHLD, lambda *_: None)
            raise Terminated(number)
        # A fork, which writes nothing of its own; where the signal is for all, its parent has it by then.
        time.sleep(_GRACE)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP, and sends no SIGTERM
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)
