"""Models that need remote code (stand-ins for it are in hf_standins/), and ProGen2, which is loaded without."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import dynamic_module_utils

from sae_outliers.models.backbone import Backbone
from sae_outliers.models.transformers import progen
from sae_outliers.models.transformers.auto import count_blocks, load
from sae_outliers.models.transformers.remote_code import construct
from tests.conftest import composed
from tests.model_checks import batch_of, captured, padding_leaks, stops_after

STANDINS = Path(__file__).parent / "hf_standins"
PROTEIN, LONGER = "MKTAYIAKQRQISFVKSH", "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV"
CONTIG, LONGER_CONTIG = "<+>MKTAYIAKQR<->acgtacg", "<+>MKTAYIAKQRQISFVK<->acgtacgtaa<+>MTAY"
DNA, LONGER_DNA = "ACGTTGCAACGTACGTACGA", "ACGTTGCAACGTACGTACGATTGACCATGACGGATTA"


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make transformers copy remote code into a temporary cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)  # of another folder, where this module's tests ran before in this process
        yield


def write(folder: Path, standin: str, sizes: dict[str, Any], auto_map: dict[str, Any], saved: str) -> None:
    """Write the stand-in's repository with random weights, saved by the Auto class `saved`."""
    shutil.copytree(STANDINS / standin, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    architecture = auto_map[saved].rpartition(".")[2]
    config = {**sizes, "architectures": [architecture], "auto_map": auto_map, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    only = {**config, "auto_map": {name: auto_map[name] for name in ("AutoConfig", saved)}}
    (folder / "config.json").write_text(json.dumps(only))
    module = construct(folder, None, str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=0.2)
    distinct = dict(module.named_parameters()) | {k: v for k, v in module.named_buffers() if k in module.state_dict()}
    save_file({name: tensor.detach().contiguous() for name, tensor in distinct.items()}, folder / "model.safetensors")


def write_glm2(folder: Path) -> None:
    auto_map = {
        "AutoConfig": "configuration_glm2.gLM2Config",
        "AutoModel": "modeling_glm2.gLM2Model",
        "AutoModelForMaskedLM": "modeling_glm2.gLM2ForMaskedLM",
    }
    write(folder, "glm2", {"model_type": "gLM2", "dim": 24, "depth": 4, "heads": 2}, auto_map, "AutoModelForMaskedLM")
    tokenizer = {"auto_map": {"AutoTokenizer": ["glm_tokenizer.gLM2Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "tokenizer_class": "gLM2Tokenizer"}))


def write_evo(folder: Path) -> None:
    auto_map = {
        "AutoConfig": "configuration_hyena.StripedHyenaConfig",
        "AutoModelForCausalLM": "modeling_hyena.StripedHyenaModelForCausalLM",
    }
    sizes = {"model_type": "stripedhyena", "hidden_size": 24, "num_layers": 4, "attn_layer_idxs": [1]}
    write(folder, "hyena", sizes, auto_map, "AutoModelForCausalLM")


def write_progen(folder: Path) -> None:
    auto_map = {
        "AutoConfig": "configuration_progen.ProGenConfig",
        "AutoModelForCausalLM": "modeling_progen.ProGenForCausalLM",
    }
    sizes = {"model_type": "progen", "embed_dim": 64, "n_layer": 4, "n_head": 8, "rotary_dim": 4, "n_positions": 64,
             "n_inner": None, "vocab_size_emb": 32, "vocab_size_lm_head": 32, "activation_function": "gelu_new",
             "layer_norm_epsilon": 1e-5}  # fmt: skip
    write(folder, "progen", sizes, auto_map, "AutoModelForCausalLM")
    specials = ["<|pad|>", "<|bos|>", "<|eos|>"]
    tokens = [*specials, "1", "2", *"ABCDEFGHIKLMNOPQRSTUVWXYZ"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in ("glm2", "evo", "progen")}
    for name, writer in {"glm2": write_glm2, "evo": write_evo, "progen": write_progen}.items():
        writer(made[name])
    return made


def by_yaml(model: str, folder: Path, *settings: str) -> Backbone:
    overrides = [f"model.loader.checkpoint={folder}", "model.loader.context=48", *settings]
    with the_loaders_own_errors():
        return instantiate(composed(f"model={model}", *overrides).model.loader)


@contextmanager
def the_loaders_own_errors() -> Iterator[None]:
    """Raise the loader's own error instead of the exception that Hydra wraps it in."""
    try:
        yield
    except InstantiationException as error:
        raise error.__cause__ or error from None


@pytest.fixture(scope="module")
def glm2(folders: dict[str, Path]) -> Backbone:
    return by_yaml("glm2", folders["glm2"], "trust_remote_code=true")


@pytest.fixture(scope="module")
def evo(folders: dict[str, Path]) -> Backbone:
    return by_yaml("evo", folders["evo"], "trust_remote_code=true")


@pytest.fixture(scope="module")
def progen2(folders: dict[str, Path]) -> Backbone:
    return by_yaml("progen_base", folders["progen"])


@pytest.mark.parametrize(
    ("model", "last_layer"), [("glm2", 32), ("evo", 31), ("progen_base", 26), ("progen_large", 31)]
)
def test_yaml_leaves_the_last_block_out_and_pins_the_code_that_it_needs(model: str, last_layer: int) -> None:
    config = composed(f"model={model}").model
    assert config.last_layer == last_layer
    if "code" in config.loader:
        assert len(config.loader.revision) == len(config.loader.code.rpartition("@")[2]) == 40


@pytest.mark.parametrize("model", ["glm2", "evo"])
def test_code_that_was_not_allowed_does_not_run(model: str, tmp_path: Path) -> None:
    code = composed(f"model={model}").model.loader.code.split("@")
    with pytest.raises(ValueError, match=f"Python code from {code[0]} at revision {code[1]}.* trust_remote_code=true"):
        by_yaml(model, tmp_path)


def test_code_that_only_the_config_names_does_not_run_either(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=f"Python code from {folders['evo']}, .* add trust_remote_code=true"):
        load(folders["evo"], context=48)
    with pytest.raises(ValueError, match="trust_remote_code=true"):
        count_blocks(str(folders["evo"]))


def test_allowed_code_on_the_hub_must_be_of_one_commit(folders: dict[str, Path], tmp_path: Path) -> None:
    entries = json.loads((folders["glm2"] / "config.json").read_text())
    entries["auto_map"] = {name: f"someone/else--{path}" for name, path in entries["auto_map"].items()}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"code in someone/else may change .* model.loader.code=someone/else@<commit>"):
        load(tmp_path, context=48, trust_remote_code=True)


def test_blocks_are_counted_without_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    for model, folder in folders.items():
        shutil.copytree(folder, tmp_path / model, ignore=shutil.ignore_patterns("*.safetensors"))
        assert count_blocks(str(tmp_path / model), trust_remote_code=True) == 4


def test_glm2_is_its_own_code_with_the_buffers_that_this_computes(glm2: Backbone, folders: dict[str, Path]) -> None:
    head = construct(folders["glm2"], None, str(folders["glm2"]))
    stored = load_file(folders["glm2"] / "model.safetensors")
    head.load_state_dict({name[5:]: tensor for name, tensor in stored.items() if name.startswith("glm2.")})
    batch = batch_of(glm2, CONTIG, LONGER_CONTIG)
    with torch.inference_mode():
        expected = head(**batch.inputs, output_hidden_states=True).hidden_states
    for layer, states in captured(glm2, CONTIG, LONGER_CONTIG).items():
        assert states.shape[-1] == 24
        torch.testing.assert_close(states[batch.mask], expected[layer - 1][batch.mask])
    frequencies = glm2.module.get_buffer("encoder.layers.3.attention.rotary_emb.inv_freq")
    torch.testing.assert_close(frequencies, 1e4 ** (-torch.arange(0, 12, 2) / 12))


def test_glm2_has_a_token_a_residue_and_a_base_and_its_strand_signs_are_special(glm2: Backbone) -> None:
    batch = batch_of(glm2, CONTIG, LONGER_CONTIG)
    assert batch.inputs["input_ids"][0, :3].tolist() == [33, 20, 15]  # <+>, M, K
    assert batch.mask.sum(1).tolist() == [19, 33]  # type: ignore[union-attr]
    assert (batch.mask & ~batch.special).sum(1).tolist() == [17, 30]  # type: ignore[operator]


def test_evo_keeps_its_own_precision(evo: Backbone, folders: dict[str, Path]) -> None:
    stored = load_file(folders["evo"] / "model.safetensors")
    for name, weight in evo.module.named_parameters():
        float32 = "poles" in name or "residues" in name
        assert weight.dtype == (torch.float32 if float32 else torch.bfloat16)
        assert torch.equal(weight, stored[name])
    assert not evo.module.config.use_cache


def test_evo_reads_bytes_and_its_layers_are_what_its_blocks_hand_on(evo: Backbone) -> None:
    batch = batch_of(evo, DNA, LONGER_DNA)
    assert batch.inputs["input_ids"][0, :4].tolist() == [65, 67, 71, 84]
    assert batch.special.sum() == 0  # type: ignore[union-attr]
    assert batch.mask.sum(1).tolist() == [len(DNA), len(LONGER_DNA)]  # type: ignore[union-attr]
    layers = captured(evo, DNA)
    network: Any = evo.module.backbone
    x = network.embedding_layer.weight[batch.inputs["input_ids"][:1, : len(DNA)]]
    for layer, block in enumerate(network.blocks, 1):
        with torch.inference_mode():
            x = block(x)[0]
        torch.testing.assert_close(layers[layer], x.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("model", "short", "long", "tolerance"), [
    ("glm2", CONTIG, LONGER_CONTIG, 1e-5), ("evo", DNA, LONGER_DNA, 0.1), ("progen2", PROTEIN, LONGER, 1e-5),
])  # fmt: skip
def test_padding_does_not_reach_the_real_tokens(
    model: str, short: str, long: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    assert not padding_leaks(request.getfixturevalue(model), short, long, tolerance)


@pytest.mark.parametrize(("model", "document"), [("glm2", CONTIG), ("evo", DNA), ("progen2", PROTEIN)])
def test_forward_pass_ends_at_the_last_layer_wanted(model: str, document: str, request: pytest.FixtureRequest) -> None:
    assert stops_after(request.getfixturevalue(model), 2, document)


def test_progen_is_what_its_published_code_computes(progen2: Backbone, folders: dict[str, Path]) -> None:
    published = load(folders["progen"], context=48, trust_remote_code=True, tokenizer=tokenizer_of(progen2))
    documents = (f"1{PROTEIN}", f"1{LONGER}")
    expected = captured(published, *documents)
    batch, layers = batch_of(progen2, PROTEIN, LONGER), captured(progen2, PROTEIN, LONGER)
    assert torch.equal(batch.inputs["input_ids"], batch_of(published, *documents).inputs["input_ids"])
    assert type(progen2.module) is transformers.CodeGenModel
    for layer, states in layers.items():
        torch.testing.assert_close(states[batch.mask], expected[layer][batch.mask], atol=1e-5, rtol=1e-5)


def tokenizer_of(backbone: Backbone) -> Any:
    return backbone.items.__self__.tokenizer  # type: ignore[attr-defined]


def test_progen_windows_open_with_the_sign_of_the_n_terminus(progen2: Backbone) -> None:
    batch = batch_of(progen2, PROTEIN * 4)
    assert batch.inputs["input_ids"].shape == (2, 48)
    assert batch.inputs["input_ids"][:, 0].tolist() == [3, 3]
    assert batch.special[:, 0].all()  # type: ignore[index]
    assert (batch.mask & ~batch.special).sum() == 4 * len(PROTEIN)  # type: ignore[operator]


def test_a_configuration_that_is_not_progens_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="not a ProGen2 configuration: it lacks activation_function"):
        progen.load(folders["glm2"], context=48)


@pytest.mark.parametrize("model", ["glm2", "evo", "progen"])
def test_weights_that_the_checkpoint_lacks_are_not_drawn_at_random(
    model: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[model], tmp_path / model)
    stored = load_file(folder / "model.safetensors")
    without = {name: tensor for name, tensor in stored.items() if ".2.mlp." not in name and "s.2.feed_" not in name}
    save_file(without, folder / "model.safetensors")
    yaml, *allowed = ["progen_base"] if model == "progen" else [model, "trust_remote_code=true"]
    with pytest.raises(ValueError, match=r"lacks \d of the weights that are measured"):
        by_yaml(yaml, folder, *allowed)


def test_weights_are_read_from_shards_and_from_nothing_but_safetensors(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["progen"], tmp_path / "progen")
    names = list(stored := load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors: weights are read from safetensors only"):
        by_yaml("progen_base", folder)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: stored[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    whole, parts = by_yaml("progen_base", folders["progen"]), by_yaml("progen_base", folder)
    assert torch.equal(captured(whole, PROTEIN)[4], captured(parts, PROTEIN)[4])
