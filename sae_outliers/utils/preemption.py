"""SLURM's word that a job will soon be stopped, held back until the work is at a point from which it can go on.

Submitit has SLURM send USR2 before a time limit or a preemption. Its handler requeues the job and ends the process
wherever it happens to be; files that are written whole survive that, but the steps since the last checkpoint do not.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Held:
    """A signal that is held back, and whether it `came`."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGUSR2)
        self.came = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def deliver(self) -> None:
        """Call the handler that the block took the place of: Submitit's does not return, but requeues and exits."""
        self.came = False
        if callable(self.handler):
            self.handler(signal.SIGUSR2, None)


@contextmanager
def held_back() -> Iterator[Held]:
    """Within the block USR2 is only noted; the block looks at `came` where it can stop, and then calls `deliver`.

    One that came and was not delivered is delivered when the block ends without an error. Where nobody handles the
    signal, as outside of SLURM, or in a thread, which cannot, nothing is held back.
    """
    held = Held()
    if not callable(held.handler) or threading.current_thread() is not threading.main_thread():
        yield held
        return
    signal.signal(signal.SIGUSR2, held.note)
    try:
        yield held
    finally:
        signal.signal(signal.SIGUSR2, held.handler)
    if held.came:
        held.deliver()
