"""Blocks are found in the module tree and counted without weights; ambiguity is an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sae_outliers.models.blocks import block_list, blocks_path, part_that_runs
from sae_outliers.models.transformers.auto import count_blocks, load
from sae_outliers.runs.layer_spec import last_layer
from tests.conftest import composed

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES = [
    ("GPT2", {"n_embd": 16, "n_layer": 3, "n_head": 2}, "GPT2Block"),
    ("GPTNeoX", SMALL, "GPTNeoXLayer"),
    ("Bert", SMALL, "BertLayer"),
    ("Roberta", SMALL, "RobertaLayer"),
    ("ModernBert", SMALL, "ModernBertEncoderLayer"),
    ("Esm", {**SMALL, "vocab_size": 33}, "EsmLayer"),
    ("Llama", SMALL, "LlamaDecoderLayer"),
    ("Qwen2", {**SMALL, "num_key_value_heads": 2}, "Qwen2DecoderLayer"),
    ("OPT", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16}, "OPTDecoderLayer"),
    ("ViT", SMALL, "ViTLayer"),
    ("Mixtral", {**SMALL, "num_key_value_heads": 2, "num_local_experts": 3}, "MixtralDecoderLayer"),
]


@pytest.mark.parametrize(("architecture", "sizes", "block"), ARCHITECTURES, ids=lambda value: str(value)[:12])
def test_blocks_are_found_and_no_other_list(architecture: str, sizes: dict[str, Any], block: str) -> None:
    config = getattr(transformers, f"{architecture}Config")(**sizes)
    with torch.device("meta"):
        module = getattr(transformers, f"{architecture}Model")(config)
    blocks = block_list(module, blocks_path(module))
    assert [type(member).__name__ for member in blocks] == [block] * 3


def test_one_block_is_enough_to_be_found() -> None:
    with torch.device("meta"):
        module = transformers.BertModel(transformers.BertConfig(**{**SMALL, "num_hidden_layers": 1}))
    assert blocks_path(module) == "encoder.layer"


class Twins(nn.Module):
    """A model with two lists of blocks of the configured depth, and an equally long list of single layers."""

    def __init__(self, depth: int | None) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig(**({} if depth is None else {"depth": depth}))
        self.left = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))
        self.right = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(3))


def test_a_list_of_single_layers_is_not_the_blocks() -> None:
    assert blocks_path(Twins(3)) == "left"


@pytest.mark.parametrize("depth", [4, None])
def test_where_no_list_fits_the_candidates_are_named(depth: int | None) -> None:
    with pytest.raises(ValueError, match=r"model\.loader\.blocks=; the model has left \(3\), right \(2\), norms \(3\)"):
        blocks_path(Twins(depth))


def test_an_encoder_is_taken_by_itself_and_its_decoder_refused() -> None:
    config = transformers.T5Config(d_model=16, num_layers=3, num_heads=2, d_ff=32, d_kv=8)
    with torch.device("meta"):
        module = transformers.T5Model(config)
    assert blocks_path(module) == "encoder.block"
    assert part_that_runs(module, "encoder.block") is module.encoder
    with pytest.raises(ValueError, match=r"decoder\.block of T5Model read what its encoder gives"):
        part_that_runs(module, "decoder.block")


def test_a_path_that_is_no_list_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"Twins has no list of blocks 'middle'; it has left \(3\)"):
        blocks_path(Twins(3), "middle")


@pytest.fixture
def gpt2_without_weights(tmp_path: Path) -> Path:
    transformers.GPT2Config(n_layer=5, n_embd=16, n_head=2).save_pretrained(tmp_path)
    return tmp_path


def test_counting_reads_no_weights(gpt2_without_weights: Path) -> None:
    assert count_blocks(str(gpt2_without_weights)) == 5
    assert count_blocks(str(gpt2_without_weights), blocks="h") == 5
    with pytest.raises(OSError, match="weights"):
        load(gpt2_without_weights, context=32)


def test_every_block_of_ones_own_model_is_a_layer(gpt2_without_weights: Path) -> None:
    config = composed("model=hf", f"name={gpt2_without_weights}")
    assert last_layer(config.model) == 5
    assert config.model.name == gpt2_without_weights.name


def test_blocks_named_on_the_command_line_are_those_counted(gpt2_without_weights: Path) -> None:
    config = composed("model=hf", f"name={gpt2_without_weights}", "model.loader.blocks=layers")
    with pytest.raises(Exception, match="no list of blocks 'layers'; it has h"):
        last_layer(config.model)


def test_a_model_type_that_nobody_knows_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "newcomer"}))
    with pytest.raises(ValueError, match="newcomer"):
        count_blocks(str(tmp_path))
