"""Defer SLURM's preemption signal to the next safe point.

Submitit has SLURM send SIGUSR2 before a time limit or a preemption. Its handler requeues the job and exits at once.
Files survive that because they are written atomically, but the steps since the last checkpoint would be lost.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class DeferredSignal:
    """The state of a deferred signal: its original handler, and whether it was `received`."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGUSR2)
        self.received = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; this is the handler inside the block."""
        self.received = True

    def deliver(self) -> None:
        """Call the original handler; Submitit's requeues the job and exits instead of returning."""
        self.received = False
        if callable(self.handler):
            self.handler(signal.SIGUSR2, None)


@contextmanager
def defer_preemption() -> Iterator[DeferredSignal]:
    """Only record SIGUSR2 inside the block, which checks `received` where it can stop, and then calls `deliver`.

    A signal that was received but not delivered is delivered when the block ends without an error. Nothing is deferred
    outside SLURM, where no handler is set, or in a thread, where Python does not allow one.
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
