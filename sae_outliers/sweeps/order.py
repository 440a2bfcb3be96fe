"""In which order local processes take the tasks of a sweep: a job only when its activations are there."""

from collections.abc import Collection, Sequence

from sae_outliers.sweeps.task import Task


class Order:
    """Tasks that wait for a process, by their indices in `tasks`, extractions with the longest first.

    While one process extracts, the others prefer jobs whose activations are there: the first result then does not wait
    for the last model, and no job for a process.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.waiting = list(range(len(tasks)))
        self._unfilled = {task.store for task in tasks if task.kind == "extract"}

    def take(self, running: Collection[int]) -> int | None:
        """Return the next task; None while all that wait need activations that are being extracted."""
        extractions = [i for i in self.waiting if self.tasks[i].kind == "extract"]
        ready = [i for i in self.waiting if self.tasks[i].store not in self._unfilled]
        extracting = any(self.tasks[i].kind == "extract" for i in running)
        in_order = ready + extractions if extracting else extractions + ready
        if not in_order:
            return None
        self.waiting.remove(in_order[0])
        return in_order[0]

    def at_once(self, index: int, running: Collection[int]) -> int:
        """Return how many tasks at most will run at a time while this one, just taken, does beside those `running`."""
        task = self.tasks[index]
        wait_for_it = [i for i in self.waiting if task.kind == "extract" and self.tasks[i].store == task.store]
        return 1 + len(running) + len(self.waiting) - len(wait_for_it)

    def ended(self, index: int, failed: bool) -> list[int]:
        """Take note that a task has ended; return the jobs that cannot run any more, which wait no longer."""
        task = self.tasks[index]
        if task.kind != "extract":
            return []
        if not failed:
            self._unfilled.remove(task.store)
            return []
        lost = [i for i in self.waiting if self.tasks[i].store == task.store]
        self.waiting = [i for i in self.waiting if i not in lost]
        return lost
