"""Ids follow from settings by name: code may move and options may be added, and no id changes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sae_outliers import config
from sae_outliers.config import Role, role_of, roles
from sae_outliers.results import integrity
from sae_outliers.results.layout import is_finished
from sae_outliers.results.record import read_records, read_row, write_row
from sae_outliers.results.settings import activation_settings, settings_of
from sae_outliers.runs.former_ids import former_run_digests, former_store_digest
from sae_outliers.runs.identity import run_directories, store_directory, store_settings
from sae_outliers.runs.record import read_record
from sae_outliers.utils.instantiate import instantiate, stable_name
from tests.conftest import composed

GOLDEN: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "golden_ids.json").read_text())
KINDS = {"init": ["train=none"], "trained": ["train=short", "revival=auxk", "sae=matryoshka"]}
SMALL = ["model=offline/minilm", "layer=5", "n_eval=2000", "sae.n_features=1024", "sae.k=16"]
TRAINED = ["train.steps=20", "train.n_tokens=4096", "train.batch_size=256"]
# Of runs that version 0.1 made: their folders' names then.
OF_VERSION_0_1 = [
    (["train=none"], "633843f2660b"),
    (["train=none", "data.source.corpora=[docstrings]"], "cdc2a8e7b807"),
    (["train=none", "init=active_subspace", "init.rank=8"], "2aa57e8ef69f"),
    (["train=none", "model.loader.context=32"], "858ee9a5ced6"),
    (["train=none", "data.tokens_per_item=8"], "2b46fa216d0f"),
    (["centering=whiten", "train=none"], "bfc3c635e2e4"),
    (["init=datapoint", "init.blend=0.5", *TRAINED], "91034640dfca"),
    (["sae=topk", *TRAINED], "3f6a6894047d"),
    (["sae=batchtopk", *TRAINED], "3885993f81a9"),
    (["sae=groupmax", *TRAINED], "83ba5ef38aa6"),
    (["sae=relu", *TRAINED], "eec282e82b30"),
    (["sae=relu_april", *TRAINED], "2e5139f765a5"),
    (["sae=jumprelu", *TRAINED], "b9b90af88f53"),
    (["sae=gated", *TRAINED], "8168dc746252"),
    (["revival=resample", *TRAINED], "619ff42cde0c"),
    (["revival=ghost_grads", *TRAINED], "93a67f9be01c"),
    (["sae=jumprelu", "revival=preact_loss", *TRAINED], "97111eb928f4"),
]
# Of gpt2's first layer on one's own files, before their yamls named all options: ids of the run and the store, and
# those of version 0.1.
OF_OWN_FILES = [
    (["data=text_files", "data.source.files=none"], "c766103b9167 7358d97a178f e5a8800b4e73 22c28173f229"),
    (
        ["data=text_files", "data.source.files=none", "data.source.column=body", "data.source.on_error=skip"],
        "692615970e33 79707043bc49 75634e66cc6b 214887d68835",
    ),
    (["data=prompt_files", "data.source.files=none"], "253ba52b25e1 08b2fc146116 15f199c71636 a16cb749b249"),
    (["data=stored", "path=none"], "bed1d4de062f ce2353422708 85972fa2d24f 8a20bfcf339e"),
    (
        ["data=stored", "path=none", "data.source.shape=[-1,8]", "data.source.dtype=float16"],
        "8d46919a7adb 84f28955fbfa 85765764f036 9d45c04405b9",
    ),
    (["data=alphafold3", "path=none"], "5dc18ad84fdb 5bd2995ebb66 5228ab0b21bf a643ab9e77f6"),
]


def resolved(*overrides: str) -> dict[str, Any]:
    container: dict[str, Any] = OmegaConf.to_container(composed(*overrides), resolve=True)  # type: ignore[assignment]
    return container


@pytest.mark.parametrize("case", GOLDEN)
def test_the_ids_of_every_model_are_what_they_were(case: str, tmp_path: Path) -> None:
    """One that fails after a module was moved asks for a line in `utils.instantiate.STABLE_NAMES`."""
    model, kind = case.split()
    cfg = composed(f"model={model}", "layer=1", "path=none", f"results_dir={tmp_path}", *KINDS[kind])
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    found = {
        "run": run_directories(cfg, [1])[0].name,
        "store": store_directory(cfg).name.rpartition("-")[2],
        "former run": former_run_digests(config, [1])[0],
        "former store": former_store_digest(config),
    }
    assert found == GOLDEN[case]


@pytest.mark.parametrize(("overrides", "ids"), OF_OWN_FILES)
def test_the_ids_of_ones_own_files_are_what_they_were(overrides: list[str], ids: str, tmp_path: Path) -> None:
    cfg = composed("model=gpt2", "layer=1", "train=none", f"results_dir={tmp_path}", *overrides)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    now = [run_directories(cfg, [1])[0].name, store_directory(cfg).name.rpartition("-")[2]]
    assert [*now, former_run_digests(config, [1])[0], former_store_digest(config)] == ids.split()


@pytest.mark.parametrize(("overrides", "former"), OF_VERSION_0_1)
def test_a_run_of_version_0_1_keeps_its_folder(overrides: list[str], former: str, tmp_path: Path) -> None:
    cfg = composed(*SMALL, f"results_dir={tmp_path}", *overrides)
    new = run_directories(cfg, [5])[0]
    assert new.name != former
    (new.parent / former).mkdir(parents=True)
    assert run_directories(cfg, [5])[0] == new.parent / former
    new.mkdir()
    assert run_directories(cfg, [5])[0] == new


def test_a_store_of_version_0_1_keeps_its_folder(tmp_path: Path) -> None:
    cfg = composed(*SMALL, f"results_dir={tmp_path}")
    new = store_directory(cfg)
    former = new.with_name("minilm-f58b64789811")
    former.mkdir(parents=True)
    assert store_directory(cfg) == former


def test_a_new_option_at_its_neutral_value_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of(resolved(*SMALL, *TRAINED))
    schema = roles() | {"train.freeze_b_dec": Role("training", neutral=False), "sae_dtype": Role("init")}
    monkeypatch.setattr(config, "roles", lambda: schema)
    grown = resolved(*SMALL, *TRAINED)
    grown["train"]["freeze_b_dec"], grown["sae_dtype"] = False, None
    grown["sae"]["temperature"] = grown["revival"]["patience"] = None  # options of types that were added
    grown["model"]["loader"]["attention"] = None
    assert settings_of(grown) == before
    grown["train"]["freeze_b_dec"] = True
    assert settings_of(grown) == before | {"train.freeze_b_dec": True}


@pytest.mark.parametrize("key", [key for key, role in roles().items() if role.affects != "nothing"])
def test_every_setting_that_affects_a_result_changes_the_settings(key: str) -> None:
    one = OmegaConf.create(resolved(*SMALL, *TRAINED, "init.rank=3", "train.b_dec_lr=0.1", "data.rescale_mean=2"))
    other = one.copy()
    is_text = key.endswith("_target_") or isinstance(OmegaConf.select(one, key), str)
    OmegaConf.update(other, key, "my.own" if is_text else 7, force_add=True)
    pair = [settings_of(OmegaConf.to_container(cfg)) for cfg in (one, other)]  # type: ignore[arg-type]
    assert pair[0] != pair[1]
    streams = [activation_settings(OmegaConf.to_container(cfg)) for cfg in (one, other)]  # type: ignore[arg-type]
    assert (streams[0] != streams[1]) == (role_of(key).affects == "activations")


def test_settings_of_the_training_say_nothing_of_an_untrained_run() -> None:
    plain = settings_of(resolved(*SMALL, "train=none"))
    assert settings_of(resolved(*SMALL, "train=none", "train.lr=1", "revival=auxk", "precision=bf16_select")) == plain
    assert settings_of(resolved(*SMALL, "train=none", "sae_seed=0")) == plain
    assert settings_of(resolved(*SMALL, "train=none", "sae_seed=1")) == plain | {"sae_seed": 1}


def test_where_a_run_happens_and_how_it_is_watched_is_no_part_of_its_id(tmp_path: Path) -> None:
    plain = run_directories(composed(*SMALL, f"results_dir={tmp_path}"), [5])
    elsewhere = ["device=cpu", "tracker=none", "group=x", "data.batch_size=3", "store=true", "trust_remote_code=true"]
    assert run_directories(composed(*SMALL, f"results_dir={tmp_path}", *elsewhere), [5]) == plain


def test_a_loader_is_found_and_known_by_the_name_that_it_had_before_its_module_moved() -> None:
    former = "sae_outliers.models.synthetic.load"
    assert stable_name("sae_outliers.models.other.synthetic.load") == stable_name(former) == former
    cfg = composed("model=synthetic/sparse")
    same = store_settings(cfg)
    cfg.model.loader._target_ = former
    assert store_settings(cfg) == same
    assert instantiate(cfg.model.loader).blocks


def write(directory: Path, row: dict[str, Any]) -> None:
    directory.mkdir(parents=True)
    (directory / "record.json").write_text(json.dumps(row))


def test_a_record_without_a_column_reads_as_empty_and_an_unknown_column_is_no_error(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "m" / "1" / "abc"
    row = {"model": "m", "layer": 1, "centering": "off", "gamma": 2.0, "of_a_later_version": 1}
    write(directory, row)
    record = read_record(directory)
    assert (record.gamma, record.fvu, record.settings) == (2.0, None, None)
    assert not hasattr(record, "of_a_later_version")
    assert read_records(tmp_path)["of_a_later_version"].tolist() == [1]


def test_a_record_of_version_0_1_gets_its_settings_from_the_config_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "minilm" / "5" / "abc"
    write(directory, {"model": "minilm", "layer": 5, "centering": "off"})
    cfg = composed(*SMALL, "train=none", "data.tokens_per_item=8")
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    settings = read_row(directory)["settings"]
    assert settings == settings_of(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    assert settings["data.tokens_per_item"] == 8


def test_a_config_is_read_only_as_it_was_written_where_the_record_says_how(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "minilm" / "5" / "abc"
    directory.mkdir(parents=True)
    text = OmegaConf.to_yaml(composed(*SMALL, "train=none"), resolve=True)
    (directory / "config.yaml").write_text(text)
    write_row(directory, {"model": "minilm", "layer": 5, "centering": "off"})
    known = json.loads((directory / "record.json").read_text())["digests"]["config.yaml"]
    assert known == hashlib.sha256(text.encode()).hexdigest()
    assert read_row(directory)["settings"]["n_eval"] == 2000
    (directory / "config.yaml").write_text(text.replace("n_eval: 2000", "n_eval: 3000"))
    with pytest.raises(
        ValueError, match=r"config\.yaml is damaged \(its digest is not the one in record\.json\): delete"
    ):
        read_row(directory)
    row = json.loads((directory / "record.json").read_text())
    del row["digests"]["config.yaml"]  # as records were before it had one
    (directory / "record.json").write_text(json.dumps(row))
    assert read_row(directory)["settings"]["n_eval"] == 3000


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 9, '{"model": "m", "digests": {"record": "0"}}'])
def test_a_broken_record_is_named_and_counts_as_missing(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = (tmp_path / "runs" / "m" / "1" / name for name in ("abc", "def"))
    write(broken, {})
    (broken / "record.json").write_text(content)
    write(whole, {"model": "m", "layer": 1, "centering": "off"})
    assert not is_finished(broken)
    assert is_finished(whole)
    assert read_records(tmp_path)["run_dir"].tolist() == [str(whole)]
    assert caplog.text.count("abc/record.json") == 1
    with pytest.raises(ValueError, match=r"abc/record.json is .*; delete it and run its job again"):
        read_row(broken)


def test_a_record_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "runs" / "m" / "1" / "abc"
    write(directory, {"model": "m", "layer": 1, "centering": "off", "settings": {}})
    read: list[Path] = []
    monkeypatch.setattr(integrity, "read_regular", lambda path: (read.append(path), path.read_bytes())[1])
    assert len(read_records(tmp_path)) == 1
    assert read == [directory / "record.json"]


def test_a_number_is_the_same_setting_with_and_without_a_point() -> None:
    ids = [settings_of(resolved(*SMALL, *TRAINED, "sae=relu", f"sae.sparsity={value}")) for value in ("1", "1.0", "2")]
    assert json.dumps(ids[0]) == json.dumps(ids[1]) != json.dumps(ids[2])
