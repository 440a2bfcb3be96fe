"""Loading of transformers checkpoints, with a tiny GPT-2 and a tiny BERT that the tests write."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sae_outliers.activations.capture import capture
from sae_outliers.models.backbone import Backbone
from sae_outliers.models.transformers.auto import load
from sae_outliers.utils.chat import Chat

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"ABCDEFGHIJ"]
ALPHABET = " ".join("ABCDEFGHIJ")


def write_tokenizer(folder: Path, encloses: bool, **specials: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if encloses:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(WORDS), **sizes)).to(
        torch.bfloat16
    ).save_pretrained(folder)
    write_tokenizer(folder, True, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2)
    ).save_pretrained(folder)
    write_tokenizer(folder, False, bos_token="[CLS]", eos_token="[CLS]")
    return folder


def states(backbone: Backbone, documents: list[str], layer: int) -> torch.Tensor:
    (batch,) = backbone.batches(documents, batch_size=100)
    seen: list[torch.Tensor] = []
    hook = backbone.block(layer).register_forward_hook(lambda *args: seen.append(backbone.hidden(args[2])))
    with torch.inference_mode():
        backbone.module(**batch.inputs)
    hook.remove()
    assert batch.mask is not None
    return seen[0][batch.mask]


def test_base_model_of_float32_whatever_the_checkpoint_was_saved_in(bert: Path) -> None:
    backbone = load(bert, "encoder.layer", context=32)
    assert {weight.dtype for weight in backbone.module.parameters()} == {torch.float32}
    assert len(backbone.blocks) == 3
    assert not backbone.module.training
    assert not hasattr(backbone.module, "cls")


def test_windows_cover_the_document_without_overlap(bert: Path) -> None:
    backbone = load(bert, "encoder.layer", context=6, shortest=2)
    windows = list(backbone.items(ALPHABET))
    assert [len(window) for window in windows] == [6, 6, 4]
    assert all(window[0] == 1 and window[-1] == 2 for window in windows)
    assert [token for window in windows for token in window[1:-1]] == list(range(4, 14))


def test_short_remnants_and_short_documents_are_left_out(bert: Path) -> None:
    backbone = load(bert, "encoder.layer", context=6, shortest=3)
    assert [len(window) for window in backbone.items(ALPHABET)] == [6, 6]
    assert list(backbone.items("A B")) == []


def test_mask_is_of_real_tokens_and_special_of_those_that_are_no_text(bert: Path) -> None:
    backbone = load(bert, "encoder.layer", context=8, shortest=1)
    (batch,) = backbone.batches(["A B C", "D"], batch_size=2)
    assert batch.inputs["input_ids"].tolist() == [[1, 4, 5, 6, 2], [1, 7, 2, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.mask is not None
    assert batch.special is not None
    assert batch.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.special.tolist() == [[True, False, False, False, True], [True, False, True, False, False]]


def test_causal_model_gets_bos_in_front_and_needs_no_padding_token(gpt2: Path) -> None:
    (batch,) = load(gpt2, "h", context=8, shortest=1).batches(["A B C", "D"], batch_size=2)
    assert batch.inputs["input_ids"].tolist() == [[1, 4, 5, 6], [1, 7, 0, 0]]
    assert batch.special is not None
    assert batch.special.sum() == 2
    without = load(gpt2, "h", context=8, shortest=1, bos=False)
    assert list(without.items("D")) == [[7]]


@pytest.mark.parametrize(("model", "blocks"), [("bert", "encoder.layer"), ("gpt2", "h")])
def test_padding_does_not_change_the_states_of_real_tokens(
    model: str, blocks: str, request: pytest.FixtureRequest
) -> None:
    backbone = load(request.getfixturevalue(model), blocks, context=16, shortest=1)
    alone = states(backbone, ["A B C"], layer=2)
    padded = states(backbone, ["A B C", ALPHABET], layer=2)[: len(alone)]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_wrong_path_of_blocks_names_the_right_one(bert: Path) -> None:
    with pytest.raises(ValueError, match=r"no list of blocks 'layers'; it has encoder\.layer"):
        load(bert, "layers", context=32)


def test_weights_that_the_checkpoint_lacks_are_not_drawn_at_random(bert: Path, tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM.from_pretrained(bert)
    kept = {name: weight for name, weight in model.state_dict().items() if ".layer.2.output." not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    write_tokenizer(tmp_path, True, pad_token="[PAD]")
    with pytest.raises(ValueError, match=r"encoder\.layer\.2\.output"):
        load(tmp_path, "encoder.layer", context=32)


def test_context_without_room_is_refused(bert: Path) -> None:
    with pytest.raises(ValueError, match="no room"):
        load(bert, "encoder.layer", context=10, shortest=16)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), (None, torch.bfloat16)])
def test_other_types_are_had_by_asking_and_layers_are_float32_all_the_same(
    bert: Path, dtype: str | None, expected: torch.dtype
) -> None:
    backbone = load(bert, context=32, shortest=1, dtype=dtype)
    assert {weight.dtype for weight in backbone.module.parameters()} == {expected}
    (batch,) = backbone.batches(["A B C"], batch_size=1)
    assert capture(backbone, batch, [2])[2].dtype == torch.float32


def test_a_type_that_does_not_exist_is_refused(bert: Path) -> None:
    with pytest.raises(ValueError, match="dtype=float is not known: use float32, bfloat16, float16 or null"):
        load(bert, context=32, dtype="float")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=8, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, False, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]")
    return folder


def test_rotary_positions_go_on_beyond_those_of_training_with_a_warning(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load(llama, context=11, shortest=1)
    assert "context=11 is more than the 8 positions that" in caplog.text
    assert len(states(backbone, [ALPHABET], layer=2)) == 11
    caplog.clear()
    load(llama, context=8, shortest=1)
    assert "positions" not in caplog.text


def test_learned_positions_end_where_their_table_does(bert: Path, gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, positions in ((bert, 512), (gpt2, 1024)):
        with pytest.raises(ValueError, match=rf"context={positions + 1} is more than the {positions} positions"):
            load(folder, context=positions + 1)
    monkeypatch.setattr(transformers.BertConfig, "rope_theta", 1e4, raising=False)  # as ESM's says of either kind
    with pytest.raises(ValueError, match="more than the 512 positions"):
        load(bert, context=513)


CHAT = Chat([{"role": "user", "content": "A B"}, {"role": "assistant", "content": "C"}])


def test_a_chat_is_worded_by_the_tokenizers_template_and_by_role_without_one(llama: Path, tmp_path: Path) -> None:
    plain = load(llama, context=8, shortest=1)
    assert list(plain.items(CHAT)) == [[1, 3, 4, 5, 3, 6]]  # [UNK], that is `user:`, A B, `assistant:`, C after BOS
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    template = "{{ bos_token }}{% for m in messages %} {{ m['content'] }} [SEP]{% endfor %}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    backbone = load(tmp_path, context=8, shortest=1)
    (batch,) = backbone.batches([CHAT], 1)
    assert batch.inputs["input_ids"].tolist() == [[1, 4, 5, 2, 6, 2]]  # one BOS, though the template has it too
    assert batch.special is not None
    assert batch.special.tolist() == [[True, False, False, True, False, True]]
    assert list(backbone.items("A B C")) == list(plain.items("A B C"))


def test_token_ids_are_taken_as_they_are_once_their_tokenizer_is_named(
    bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load(bert, context=6, shortest=1)
    worded = list(backbone.items("A B C D E"))
    for ids in ([4, 5, 6, 7, 8], [1, 4, 5, 6, 7, 8, 2]):  # without and with what encloses a window
        assert list(backbone.items(np.array(ids))) == worded
    assert caplog.text.count("the data hold token ids, which are taken for those of") == 1
    for wrong in (14, -100):
        with pytest.raises(ValueError, match=f"the token id {wrong}, but the model's tokenizer has ids from 0 to 13"):
            list(backbone.items(np.array([4, wrong])))
    with pytest.raises(ValueError, match="the model reads text, and the data are ndarray"):
        list(backbone.items(np.zeros((2, 2))))
