"""Defer SLURM's preemption signal to the next safe point.

Submitit has SLURM send USR2 before a time limit or a preemption. Its handler requeues the job and ends the process
wherever it happens to be; files that are written whole survive that, but the steps since the last checkpoint do not.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class DeferredSignal:
    """A signal that is deferred, and whether it was `received`."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGUSR2)
        self.received = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def deliver(self) -> None:
        """Call the handler that the block took the place of: Submitit's does not return, but requeues and exits."""
        self.received = False
        if callable(self.handler):
            self.handler(signal.SIGUSR2, None)


@contextmanager
def defer_preemption() -> Iterator[DeferredSignal]:
    """Within the block USR2 is only noted; the block checks `received` where it can stop, and then calls `deliver`.

    One that was received and not delivered is delivered when the block ends without an error. Where nobody handles the
    signal, as outside of SLURM, or in a thread, which cannot, nothing is deferred.
    """
    deferred = DeferredSignal()
    if not callable(deferred.handler) or threading.current_thread() is not threading.main_thread():
        yield deferred
        return
    signal.signal(signal.SIGUSR2, deferred.note)
    try:
        yield deferred
    finally:
        signal.signal(signal.SIGUSR2, deferred.handler)
    if deferred.received:
        deferred.deliver()
