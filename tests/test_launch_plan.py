"""What a sweep plans and what SLURM would be told of it, on a machine without SLURM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from sae_outliers.config import expand, roles
from sae_outliers.runs import identity
from sae_outliers.runs.activations import extract
from sae_outliers.runs.execute import run
from sae_outliers.runs.identity import run_directories
from sae_outliers.sweeps import cost as costs
from sae_outliers.sweeps.plan import Plan, plan
from sae_outliers.sweeps.slurm import profile
from sae_outliers.sweeps.slurm.arrays import arrays_of
from sae_outliers.sweeps.slurm.profile import Site, load_site
from sae_outliers.sweeps.slurm.submit import parameters, script
from sae_outliers.sweeps.task import Cost, Task
from tests.conftest import Run, composed

SMALL = ("tracker=none", "n_eval=500", "sae.n_features=256", "sae.k=8")
GRID = ["model=gpt2,esm2_35m,dinov2", "layer=all", "centering=off,on", "seed=range(3)", "sae.k=8,16", *SMALL[:3]]


def counting(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[Any]:
    """The arguments of each call of a function that goes on as before."""
    calls: list[Any] = []
    function = getattr(where, name)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(where, name, counted)
    return calls


def test_a_grid_is_composed_once_for_each_choice_of_files_and_resolved_once_for_each_config(
    combinations: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = combinations(*GRID)
    compositions = counting(monkeypatch, grid, "_composed")
    identities = counting(monkeypatch, identity, "run_settings")
    planned = plan(grid.composed())
    assert len(planned.jobs) == (11 + 11 + 11) * 2 * 3 * 2
    assert len(planned.extractions) == 3 * 3  # the seed is also the data's
    assert len(compositions) == 3 * 2
    assert len(identities) == 3 * 2 * 3 * 2  # whatever the number of layers
    assert len({task.results for task in planned.jobs}) == len(planned.jobs)


def test_a_config_of_a_grid_is_the_one_that_hydra_composes(combinations: Callable[..., Any]) -> None:
    arguments = ["model=gpt2,dinov2", "train.steps=3,5", "seed=0,4", "experiment=recovery", "layer=1,'[2,3]'"]
    for overrides, config, variants in combinations(*arguments).composed():
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(composed(*overrides))
        revived = composed(*overrides, "revival=auxk")
        assert OmegaConf.to_yaml(variants[1]) == OmegaConf.to_yaml(revived)


def test_a_variant_has_the_last_word_over_a_swept_value(combinations: Callable[..., Any]) -> None:
    ((_, config, variants), *_) = combinations("model=gpt2", "seed=1,2", "variants=['','seed=7']").composed()
    assert (config.seed, [variant.seed for variant in variants]) == (1, [1, 7])


def test_a_store_that_is_filled_needs_no_extraction_and_what_others_have_under_way_is_left_to_them(
    combinations: Callable[..., Any], tmp_path: Path
) -> None:
    grid = combinations("model=synthetic/sparse", "layer=1", "centering=off,on", "train=none", *SMALL)
    planned = plan(grid.composed())
    assert [task.name for task in planned.extractions] == ["synthetic activations"]
    assert planned.extractions[0].overrides[-2:] == ("layer=1", "task=extract")
    theirs = plan(grid.composed(), planned.jobs[0].results[:1])
    assert (len(theirs.jobs), theirs.elsewhere, theirs.finished) == (1, 1, 0)
    extract(composed("model=synthetic/sparse", "train=none", *SMALL, f"results_dir={tmp_path}"), [1])
    assert plan(grid.composed()).extractions == []
    more = combinations("model=synthetic/sparse", "layer=1", "train=none", *SMALL[2:], "n_eval=100000")
    assert len(plan(more.composed()).extractions) == 1


def test_the_extraction_that_takes_longest_begins_first(combinations: Callable[..., Any]) -> None:
    models = "offline/sapiens,offline/minilm,offline/smollm2"
    planned = plan(combinations(f"model={models}", "layer=middle", "train=none", *SMALL).composed())
    assert [task.model for task in planned.extractions] == ["smollm2", "minilm", "sapiens"]
    assert [task.model for task in planned.jobs] == ["sapiens", "minilm", "smollm2"]  # as they were named


def test_conditions_that_share_a_product_are_variants_of_one_job(combinations: Callable[..., Any]) -> None:
    sweep = ("model=gpt2", "layer=3,4", "train=none", "centering=off,whiten", "data.rescale_mean=null,3")
    planned = plan(combinations(*sweep, "sae_seed=0,1").composed())
    assert len(planned.jobs) == 2 * 2  # layers and SAEs
    assert [len(task.results) for task in planned.jobs] == [4] * 4
    assert len({folder for task in planned.jobs for folder in task.results}) == 16
    task = planned.jobs[0]
    conditions = [(centering, gamma) for centering in ("off", "whiten") for gamma in ("null", "3")]
    variants = [f"centering={centering} data.rescale_mean={gamma}" for centering, gamma in conditions]
    config: Any = composed(*task.overrides)
    assert list(config.variants) == variants
    found = expand(config, lambda variant: composed(*task.overrides, *variant))  # type: ignore[arg-type, return-value]
    assert task.results == tuple(folder for one in found for folder in run_directories(one, [3]))


@pytest.mark.parametrize("apart", ["train=short", "seed=0,1", "sae_seed=0,1", "sae.n_features=512,1024", "n_eval=9,99"])
def test_what_does_not_share_a_product_has_jobs_of_its_own(combinations: Callable[..., Any], apart: str) -> None:
    key = apart.partition("=")[0]
    rest = [one for one in ("train=none", "seed=0", "n_eval=99", "sae.k=4") if not one.startswith(f"{key}=")]
    planned = plan(combinations("model=gpt2", "layer=3", "centering=off,on", *rest, apart).composed())
    assert len(planned.jobs) == 2


def test_a_condition_that_others_measure_is_left_to_them(combinations: Callable[..., Any]) -> None:
    grid = combinations("model=gpt2", "layer=3", "centering=off,on,whiten", "train=none")
    ((task,), *_) = [plan(grid.composed()).jobs]
    left = plan(grid.composed(), task.results[1:2])
    assert (len(left.jobs), left.elsewhere) == (1, 1)
    assert left.jobs[0].results == (task.results[0], task.results[2])


def test_tasks_do_not_hear_of_the_options_that_are_the_sweeps(combinations: Callable[..., Any]) -> None:
    grid = combinations("model=gpt2", "layer=3", "wait=false", "pack=4", "site=default", "dry_run=false", "seed=5")
    (task,) = plan(grid.composed()).jobs
    assert task.overrides == ("model=gpt2", "seed=5", *task.overrides[2:])
    sweep_only = {key for key, role in roles().items() if role.sweep_only}
    assert sweep_only >= {"layer", "wait", "pack", "site", "dry_run"}
    assert sweep_only & {override.partition("=")[0] for override in task.overrides} == {"layer"}  # its own
    assert task.name == "gpt2 layer 3 topk centering=off seed=5"


def tasks(store: str, number: int, cost: Cost = Cost()) -> list[Task]:  # noqa: B008 - it cannot change
    results = [(Path(f"runs/{store}/{i}/a"),) for i in range(number)]
    return [
        Task(f"{store} {i}", "run", (f"layer={i}",), r, Path(f"activations/{store}-0"), cost=cost)
        for i, r in enumerate(results)
    ]


def test_runs_of_a_store_are_packed_into_arrays_after_its_extraction_and_stores_do_not_mix() -> None:
    extraction = Task("a activations", "extract", ("task=extract",), (), Path("activations/a-0"))
    jobs = [*tasks("a", 7), *tasks("b", 2)]
    arrays = list(arrays_of(Plan([extraction], jobs, 0), pack=2, array_size=3))
    assert [(a.kind, a.model, [len(pack) for pack in a.packs]) for a in arrays] == [
        ("extract", "a", [1]), ("run", "a", [2, 2, 2]), ("run", "a", [1]), ("run", "b", [2]),
    ]  # fmt: skip
    assert [task for array in arrays[1:] for task in array.tasks] == jobs
    costly = tasks("c", 3, Cost(operations=1e12, read=1e9, disk=1e6, gpu_gb=3, host_gb=5))
    (array,) = arrays_of(Plan([], costly, 0), pack=2, array_size=9)
    assert array.largest() == Cost(2e12, 2e9, 2e6, 3, 5)  # one after the other: memory does not add up
    assert array.total() == Cost(3e12, 3e9, 3e6, 3, 5)


def test_the_script_asks_for_what_the_profile_and_the_model_say() -> None:
    here = Site(
        name="here", partition="gpu", account="physics", gpus={24: "gpu:rtx:1", 80: "gpu:a100:1"}, cpus=8, mem_gb=10,
        array_parallelism=5, scratch="/scratch/$USER", setup=["module load cuda"], extra={"constraint": "ib"},
        tflops=1.0,
    )  # fmt: skip
    hours = Cost(operations=3600e12, gpu_gb=30, host_gb=40.2)
    (array,) = arrays_of(Plan([], tasks("a", 12, hours), 0), pack=1, array_size=100)
    options = parameters(array, here, Path("/shared/co de"), "afterok:77")
    text = script(Path("/shared/logs"), options, len(array.packs))
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SBATCH" in line)
    assert asked["array"] == "0-11%5"
    assert (asked["partition"], asked["account"], asked["gres"], asked["constraint"]) == (
        "gpu", "physics", "gpu:a100:1", "ib",
    )  # fmt: skip
    assert (asked["cpus-per-task"], asked["mem"]) == ("8", "41GB")
    assert int(asked["time"]) == 184  # three times an hour and the minute to start, rounded up
    assert (asked["dependency"], asked["kill-on-invalid-dep"]) == ("afterok:77", "yes")
    assert (asked["signal"], "requeue" in asked) == ("USR2@120", True)
    lines = text.splitlines()
    first, python = lines.index("module load cuda"), next(i for i, line in enumerate(lines) if line.startswith("srun"))
    assert first < lines.index("export PYTHONPATH='/shared/co de':'/shared/co de/launch'${PYTHONPATH:+:$PYTHONPATH}")
    assert 'export HF_HOME="${HF_HOME:-/scratch/$USER/huggingface}"' in lines[first:python]
    one = script(Path("/shared/logs"), parameters(array, here, Path("/c")), 1)
    assert "--array" not in one
    assert "--dependency" not in one
    small = Site(name="small", gpus={24: "gpu:1"})
    with pytest.raises(ValueError, match="site=small has no GPU of 30 GB: add one to gpus in its profile"):
        parameters(array, small, Path("/c"))


def test_a_profile_leaves_out_what_is_as_in_the_default_and_a_wrong_key_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no scontrol
    default = load_site(None)
    assert (default.name, default.partition, default.array_size()) == ("default", None, 1000)
    assert default == Site(
        gpus={profile.UNKNOWN_GPU_GB: "gpu:1"}, max_array_size=1000
    )  # default.yaml says what the class has
    monkeypatch.setattr(profile, "SITES", tmp_path)
    (tmp_path / "hpc.yaml").write_text("partition: long\nmax_array_size: 40\ngpus: {}\n")
    (tmp_path / "bad.yaml").write_text("partitoin: long\n")
    hpc = load_site("hpc")
    assert (hpc.partition, hpc.array_size(), hpc.gres(Cost(gpu_gb=900)), hpc.cpus) == ("long", 40, None, 4)
    with pytest.raises(ValueError, match=r"bad\.yaml.*'partitoin'"):
        load_site("bad")
    with pytest.raises(
        ValueError, match="site=elsewhere names no profile in launch/slurm or conf/slurm: there are bad, hpc"
    ):
        load_site("elsewhere")


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_on_a_cluster_its_name_finds_the_profile_and_its_limit_the_size_of_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(profile, "SITES", tmp_path)
    program(tmp_path, "scontrol", "echo 'ClusterName             = ours'; echo 'MaxArraySize            = 33'")
    program(tmp_path, "sinfo", "echo '(null)'")
    (tmp_path / "ours.yaml").write_text("qos: high\n")
    (tmp_path / "default.yaml").write_text("qos: null\n")
    assert (load_site(None).qos, load_site("default").qos) == ("high", None)
    assert load_site(None).array_size() == 33
    assert load_site(None).gpus == {}
    program(tmp_path, "sinfo", "echo 'gpu:a100:4'")
    assert load_site(None).gres(Cost(gpu_gb=70)) == "gpu:1"


def test_operations_are_estimated_within_a_factor_of_two_of_those_that_torch_counts(tmp_path: Path) -> None:
    for sae, over in (("relu", 2.0), ("topk", 3.0)):  # what a sparse step gathers torch does not count
        cfg = composed(
            "model=synthetic/sparse", "layer=1", f"sae={sae}", *SMALL[:3], "sae.k=8", "train.steps=40",
            "train.batch_size=128", "train.n_tokens=3000", "train.eval_every=20", "train.dead_window=500",
            "model.d_model=256", f"results_dir={tmp_path}",
        )  # fmt: skip
        extract(cfg, [1])
        with FlopCounterMode(display=False) as counted:
            run(cfg, [cfg])
        assert 0.5 < costs.run_cost(cfg).operations / counted.get_total_flops() < over, sae


def test_a_models_memory_and_disk_follow_from_its_yaml() -> None:
    cfg = composed("model=dinov3", "train=none", "n_eval=1000")
    cost = costs.extraction_cost(cfg, 39)
    assert cost.disk == 1000 * 4096 * 4 * 39
    asked = ("model=dinov3", "train=short", "n_eval=2000", "train.n_tokens=9000")
    disk = [costs.extraction_cost(composed(*asked, *more), 39).disk for more in ((), ("store_dtype=float32",))]
    assert disk == [(2000 * 4 + 9000 * 2) * 4096 * 39, 11_000 * 4 * 4096 * 39]
    assert cost.operations == pytest.approx(1000 * 2 * 6.716e9)
    assert cost.gpu_gb == 40  # 27 GB of weights, and the least that its yaml has a batch size for
    assert costs.model_gpu_gb(composed("model=pythia_70m")) < 10
    gpt2 = composed("model=gpt2", "train=none", "store=false")
    in_stream = costs.streamed_cost(gpt2, 11, [gpt2] * 4)
    assert in_stream.disk == 0
    assert in_stream.operations > 2 * 20_000 * 2 * 124e6


def test_a_dry_run_prints_the_plan_and_a_script_of_each_kind_and_writes_nothing(here: Run, tmp_path: Path) -> None:
    done = here(
        "sae_outliers.run", "-m", "model=glob(*,exclude=[e*,d*,s*,p*,g*])", "layer=all", "centering=off,on", "pack=3",
        "dry_run=true", "hydra/launcher=slurm",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["extract", "modernbert_large", "1", "1", "1"] in [row[:5] for row in rows]
    assert ["run", "modernbert_large", "54", "18", "1"] in [row[:5] for row in rows]
    total = next(row for row in rows if row[:3] == ["run", "in", "all"])
    assert total[3] == str((1 + 21 + 27) * 2)
    assert "GPU-hours" in done.stdout
    assert done.stdout.count("#!/bin/bash") == 2
    assert "#SBATCH --dependency='afterok:<job of its extraction>'" in done.stdout
    assert "dry_run=true: nothing was started" in done.stdout
    assert list(tmp_path.iterdir()) == []
