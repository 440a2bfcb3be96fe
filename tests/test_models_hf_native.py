"""The paper's models that transformers implements: small versions, loaded with the arguments of their yaml."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra.utils import instantiate
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from sae_outliers.models.backbone import Backbone
from tests.conftest import composed
from tests.model_checks import batch_of, captured, padding_leaks, stops_after

ESM_VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
SHORT, LONG = "of the winter of our discontent", "now is the winter of our discontent made glorious summer"
PROTEIN, LONGER = "MKTAYIAKQR", "MKTAYIAKQRQISFVKSHFSRQ"


def write_bpe(folder: Path, special_tokens: list[str], encloses: bool, **named: str) -> int:
    """Write a byte-level BPE like GPT-2's, and return its number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special_tokens, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SHORT, LONG] * 3, trainer)
    if encloses:
        ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def write_gpt2(folder: Path) -> Any:
    end = "<|endoftext|>"
    size = write_bpe(folder, [end], False, bos_token=end, eos_token=end, unk_token=end)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=size, n_embd=24, n_layer=4, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    )


def write_neox(folder: Path) -> Any:
    end = "<|endoftext|>"
    size = write_bpe(folder, [end, "<|padding|>"], False, bos_token=end, eos_token=end, unk_token=end)
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=size, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
            max_position_embeddings=64,
        )
    )  # fmt: skip


def write_modernbert(folder: Path) -> Any:
    specials = ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"]
    named = dict(zip(["cls_token", "sep_token", "pad_token", "mask_token", "unk_token"], specials, strict=True))
    size = write_bpe(folder, specials, True, **named)
    return transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=size, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            local_attention=8, cls_token_id=0, sep_token_id=1, pad_token_id=2, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def write_esm2(folder: Path) -> Any:
    (folder / "vocab.txt").write_text("\n".join(ESM_VOCABULARY))
    transformers.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return transformers.EsmForMaskedLM(
        transformers.EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=24, num_hidden_layers=4,
            num_attention_heads=2, intermediate_size=48, position_embedding_type="rotary", token_dropout=True,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: str
    write: Callable[[Path], Any]
    final_norm: str
    documents: tuple[str, str]
    prefix: list[str]
    suffix: list[str]


END = ["<|endoftext|>"]
CASES = [
    Case("gpt2", write_gpt2, "ln_f", (SHORT, LONG), END, []),
    Case("pythia_70m", write_neox, "final_layer_norm", (SHORT, LONG), END, []),
    Case("modernbert", write_modernbert, "final_norm", (SHORT, LONG), ["[CLS]"], ["[SEP]"]),
    Case("esm2_35m", write_esm2, "encoder.emb_layer_norm_after", (PROTEIN, LONGER), ["<cls>"], ["<eos>"]),
]


@dataclass(frozen=True)
class Loaded:
    case: Case
    backbone: Backbone
    reference: Any  # the same model as its own class makes it, without its head


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.model)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Return a checkpoint stored in bfloat16, loaded with the arguments of the yaml."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.model)
    torch.manual_seed(0)
    model = case.write(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
            weight.copy_(weight.bfloat16())
    model.bfloat16().save_pretrained(folder)
    settings = [f"model.loader.checkpoint={folder}", "model.loader.context=32", "+model.loader.shortest=4"]
    backbone = instantiate(composed(f"model={case.model}", *settings).model.loader)
    reference = type(model)(model.config)  # its buffers are float32's, not rounded
    reference.load_state_dict(model.state_dict())
    return Loaded(case, backbone, reference.base_model.eval())


LAST_BLOCKS = {"gpt2": 12, "pythia_70m": 6, "pythia_410m": 24, "modernbert": 22, "modernbert_large": 28,
               "esm2_35m": 12, "esm2_650m": 33, "esm2_3B": 36}  # fmt: skip


@pytest.mark.parametrize("model", LAST_BLOCKS)
def test_yaml_pins_a_commit_leaves_the_last_block_out_and_names_the_data_of_its_domain(model: str) -> None:
    config = composed(f"model={model}")
    assert config.model.last_layer == LAST_BLOCKS[model] - 1
    assert len(config.model.loader.revision) == 40
    assert config.data.name == ("uniref50" if config.model.domain == "protein" else "fineweb")


@pytest.mark.parametrize(("larger", "tested"), [("pythia_410m", "pythia_70m"), ("modernbert_large", "modernbert"),
                                                ("esm2_650m", "esm2_35m"), ("esm2_3B", "esm2_35m")])  # fmt: skip
def test_larger_sizes_are_loaded_as_the_ones_tested_here(larger: str, tested: str) -> None:
    loaders = [dict(composed(f"model={model}").model.loader) for model in (larger, tested)]
    for loader in loaders:
        del loader["checkpoint"], loader["revision"]
    assert loaders[0] == loaders[1]


def test_network_is_in_float32_without_its_head(loaded: Loaded) -> None:
    module = loaded.backbone.module
    assert type(module) is type(loaded.reference)
    assert {tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert not module.training
    assert not getattr(module.config, "use_cache", False)


def test_each_layer_is_what_the_library_calls_its_hidden_state(loaded: Loaded) -> None:
    batch = batch_of(loaded.backbone, *loaded.case.documents)
    with torch.inference_mode():
        expected = loaded.reference(**batch.inputs, output_hidden_states=True)
    layers = captured(loaded.backbone, *loaded.case.documents)
    assert list(layers) == [1, 2, 3, 4]
    for layer in (1, 2, 3):
        assert layers[layer].shape[-1] == loaded.reference.config.hidden_size
        states = expected.hidden_states[layer]
        torch.testing.assert_close(layers[layer][batch.mask], states[batch.mask], atol=1e-5, rtol=1e-5)
    # what the network puts out is after its final norm, and so is in most releases the last of the hidden states
    with torch.inference_mode():
        normed = loaded.reference.get_submodule(loaded.case.final_norm)(layers[4])
    output = expected.last_hidden_state
    torch.testing.assert_close(normed[batch.mask], output[batch.mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layers[4][batch.mask], output[batch.mask], atol=1e-2)


def test_only_what_was_put_around_the_text_is_special(loaded: Loaded) -> None:
    tokenizer = loaded.backbone.items.__self__.tokenizer  # type: ignore[attr-defined]
    batch = batch_of(loaded.backbone, *loaded.case.documents)
    prefix, suffix = (tokenizer.convert_tokens_to_ids(part) for part in (loaded.case.prefix, loaded.case.suffix))
    for row, document in enumerate(loaded.case.documents):
        text = tokenizer(document, add_special_tokens=False)["input_ids"]
        real, special = batch.mask[row], batch.special[row]  # type: ignore[index]
        assert batch.inputs["input_ids"][row][real].tolist() == [*prefix, *text, *suffix]
        assert batch.inputs["input_ids"][row][real & ~special].tolist() == text
        assert real.sum() == len(prefix) + len(text) + len(suffix)


def test_padding_does_not_reach_the_real_tokens(loaded: Loaded) -> None:
    assert not padding_leaks(loaded.backbone, *loaded.case.documents)


def test_forward_pass_ends_at_the_last_layer_wanted(loaded: Loaded) -> None:
    assert stops_after(loaded.backbone, 2, loaded.case.documents[0])


def test_residues_are_one_token_each(tmp_path: Path) -> None:
    write_esm2(tmp_path).save_pretrained(tmp_path)
    settings = [f"model.loader.checkpoint={tmp_path}", "model.loader.context=64"]
    batch = batch_of(instantiate(composed("model=esm2_35m", *settings).model.loader), LONGER)
    assert (batch.mask & ~batch.special).sum() == len(LONGER)  # type: ignore[operator]
