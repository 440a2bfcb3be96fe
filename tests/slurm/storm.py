"""Several sweeps on one cluster at once, of which jobs are preempted, requeued, cancelled, lose their node or raise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from sae_outliers.results.layout import CHECKPOINT
from sae_outliers.sweeps.manifest import read_manifests
from sae_outliers.sweeps.task import Task
from tests.slurm.cluster import field_of, has_left, is_running, lose_node, queued, slurm, states_of, wait_for
from tests.slurm.conftest import Start

SMALL = ("n_eval=1000", "sae.n_features=256", "sae.k=8", "tracker=none")
STEPS = 3000
TRAIN = (f"train.steps={STEPS}", "train.n_tokens=3000", "train.batch_size=256", "train.eval_every=100")

SWEEPS = {
    # 80 short jobs of four runs each, on four stores of activations
    "measured": (
        *("model=offline/minilm,offline/sapiens", "layer=all", "centering=off,on", "sae=topk,relu", "seed=0,1"),
        *("sae_seed=0,1,2,3", "train=none", *SMALL),
    ),
    # no checkpoint but the one that a preemption leaves; the activations are some of those above, and more
    "preempted": ("model=offline/minilm", "layer=2", *TRAIN, f"train.checkpoint_every={STEPS + 1}", *SMALL),
    "trained": ("model=offline/minilm", "layer=3,4,5", *TRAIN, "train.checkpoint_every=50", *SMALL),
    # told to SLURM twice at the same moment
    "twice": ("model=offline/sapiens", "layer=1,2", "train.batch_size=128", *TRAIN[:2], "pack=2", *SMALL),
    "raising": ("model=offline/sapiens", "layer=3", "init=active_subspace", "init.rank=8,999", "train=none", *SMALL),
    # its extraction is cancelled before it begins
    "unfounded": ("model=offline/sapiens", "layer=4", "seed=2", "train=none", *SMALL),
}


@dataclass
class Struck:
    """A training job that something befell, and what SLURM and its folder say of it."""

    sweep: str
    layer: int
    how: Callable[[str], object]
    job: str = ""
    step: int = 0  # of its checkpoint, a moment before
    runs: list[str] = field(default_factory=list)  # how SLURM's accounting calls the end of each of its runs


def struck() -> dict[str, Struck]:
    return {
        "preempted": Struck("preempted", 2, lambda job: slurm("scancel", "--signal=USR2", job)),
        "requeued": Struck("trained", 3, lambda job: slurm("scontrol", "requeue", job)),
        "cancelled": Struck("trained", 4, lambda job: slurm("scancel", job)),
        "lost": Struck("trained", 5, lambda job: lose_node(field_of(job, "NodeList"))),
    }


@dataclass
class Storm:
    results_dir: Path
    struck: dict[str, Struck] = field(default_factory=struck)
    said: dict[str, tuple[int, str]] = field(default_factory=dict)  # status and output of each sweep
    step_left: int = 0  # of the checkpoint that the preempted job left

    def blow(self, start: Start) -> None:
        """Start the sweeps, strike some of their jobs, and wait until all have ended."""
        running = {name: start(self.results_dir, *SWEEPS[name]) for name in ("preempted", "trained")}
        for name in running:  # before the many short jobs, which would hold the nodes for minutes
            wait_for(lambda name=name: list(self.tasks(name, "run")), f"jobs of {name}")
        running["measured"] = start(self.results_dir, *SWEEPS["measured"])
        self.strike_all()
        for name in ("raising", "unfounded", "twice"):
            running[name] = start(self.results_dir, *SWEEPS[name])
        running["twice again"] = start(self.results_dir, *SWEEPS["twice"])
        running["measured again"] = start(self.results_dir, *SWEEPS["measured"], "wait=false")
        wait_for(running["measured again"].has_planned, "the second call's plan")
        self.cancel_waiting("measured", "run")
        self.cancel_waiting("unfounded", "extract")
        wait_for(lambda: "down" in slurm("sinfo", "--noheader", "--format=%T"), "the lost node to be noticed")
        slurm("launch/cluster/up.sh")
        self.said = {name: sweep.ended() for name, sweep in running.items()}
        wait_for(lambda: not queued(), "the queue to be empty")
        for one in self.struck.values():
            one.runs = states_of(one.job)

    def strike_all(self) -> None:
        """Each of the training jobs is struck once it has trained for a while, in the order in which they come to it.

        The node is lost last, because with it goes whatever else happens to be there, and when the others have left
        theirs: of a job whose node is lost as it leaves it, SLURM 22.05 forgets the GPUs, and fails its next run.
        """
        *others, lost = self.struck.values()
        wait_for(lambda: all([one.job or self.strike(one) for one in others]), "jobs that train")
        wait_for(lambda: self.checkpoint(self.struck["preempted"]), "the preempted job's checkpoint")
        self.step_left = self.checkpoint(self.struck["preempted"])
        wait_for(lambda: all(has_left(one.job) for one in others), "them to leave their nodes")
        wait_for(lambda: self.strike(lost), "the last of them")

    def strike(self, one: Struck) -> bool:
        task = next(self.tasks(one.sweep, "run", one.layer), None)
        if task is None or task.job is None or not trains(task.results[0]):
            return False
        assert is_running(task.job), f"{task.name} ended before it could be struck: it needs more steps"
        one.step, one.job = self.checkpoint(one), task.job
        one.how(one.job)
        return True

    def cancel_waiting(self, sweep: str, kind: str) -> None:
        """Cancel the last task of a sweep, long before it is its turn."""
        wait_for(lambda: list(self.tasks(sweep, kind)), f"jobs of {sweep}")
        job = list(self.tasks(sweep, kind))[-1].job or ""
        assert field_of(job, "JobState") == "PENDING", f"{job} did not wait: the cluster needs more to do"
        slurm("scancel", job)

    def checkpoint(self, one: Struck) -> int:
        """The step that the checkpoint of a run is of; 0 without one."""
        task = next(self.tasks(one.sweep, "run", one.layer))
        path = task.results[0] / CHECKPOINT
        if not path.is_file():
            return 0
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["step"])

    def tasks(self, sweep: str, kind: str, layer: int | None = None) -> Iterator[Task]:
        """The tasks that this sweep's first call has told SLURM of; runs of one layer or of all."""
        mine = [
            manifest for manifest in read_manifests(self.results_dir) if set(SWEEPS[sweep]) <= set(manifest.command)
        ]
        for task in mine[-1].tasks if mine else []:
            if task.job and task.kind == kind and layer in (None, *layers_of(task)):
                yield task


def layers_of(task: Task) -> list[int]:
    """Of a run; an extraction has no results."""
    return [int(result.parent.name) for result in task.results]


def trains(directory: Path) -> bool:
    """Whether the run has a point of its death curves beyond that of step 0."""
    metrics = directory / "metrics.jsonl"
    return metrics.is_file() and len(metrics.read_text().splitlines()) > 1
