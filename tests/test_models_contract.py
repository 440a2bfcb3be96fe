"""What blocks put out is what the library says, or is refused by name; all kinds of models, small and random."""

import logging
import re
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from sae_outliers.activations.capture import capture
from sae_outliers.activations.stream import TokenStream
from sae_outliers.data.audio import AudioFolder
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.contract import checked
from sae_outliers.models.transformers.auto import count_blocks, load
from tests.conftest import composed
from tests.test_models_hf_native import write_bpe

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
VIT = {key: value for key, value in VISION.items() if key != "intermediate_size"}
SPEECH = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
          "decoder_ffn_dim": 64, "encoder_layers": 3, "decoder_layers": 3}  # fmt: skip
END = "<|endoftext|>"
TEXTS = ["now is the winter of our discontent made glorious " * 3, "hello to the world " * 9, "summer " * 20]


def saved(folder: Path, kind: str, **sizes: Any) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    write_bpe(folder, [END], False, bos_token=END, eos_token=END, unk_token=END, pad_token=END)
    size = {"height": 32, "width": 32}
    if kind == "Whisper":
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
    elif kind == "Wav2Vec2":
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    else:
        transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


def texts() -> list[Any]:
    return list(TEXTS)


def images() -> list[Any]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def sounds() -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=8000 * 31).astype(np.float32), 8000)]  # at another rate than the models'


KINDS: list[tuple[str, dict[str, Any], Callable[[], list[Any]], str | None, int, int | None]] = [
    ("Bert", {**SIZES, "vocab_size": 400}, texts, None, 3, None),
    ("Albert", {**SIZES, "embedding_size": 16, "vocab_size": 400, "num_hidden_groups": 2}, texts, None, 3, None),
    ("XLNet", {"d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 64, "vocab_size": 400}, texts, None, 3, None),
    ("Mamba", {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 400}, texts, None, 3, None),
    ("Bart", {**SPEECH, "vocab_size": 400}, texts, None, 3, None),
    ("CLIP", {"text_config": {**SIZES, "vocab_size": 400}, "vision_config": VISION}, texts, None, 3, None),
    ("CLIP", {"text_config": {**SIZES, "vocab_size": 400}, "vision_config": VISION}, images,
     "vision_model.encoder.layers", 3, 1),
    ("ViT", VISION, images, None, 3, 1),
    ("Dinov2WithRegisters", {**VIT, "num_register_tokens": 4}, images, None, 3, 5),
    ("Swin", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2],
              "window_size": 4}, images, None, 4, 0),
    ("ConvNext", {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}, images, None, 4, 0),
    ("Whisper", SPEECH, sounds, None, 3, 0),
    ("Wav2Vec2", {**SIZES, "conv_dim": [16] * 7}, sounds, None, 3, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes", "documents", "blocks", "depth", "special"), KINDS, ids=[f"{kind[0]}-{kind[3]}" for kind in KINDS]
)
def test_any_kind_of_transformers_model(
    kind: str, sizes: dict[str, Any], documents: Callable[[], list[Any]], blocks: str | None, depth: int,
    special: int | None, tmp_path: Path,
) -> None:  # fmt: skip
    folder = saved(tmp_path, kind, **sizes)
    backbone = load(folder, blocks, context=24)
    assert count_blocks(str(folder), blocks) == len(backbone.blocks) == depth
    batch = next(backbone.batches(documents(), 4))
    said = checked(backbone, batch)
    if kind not in ("Swin", "ConvNext"):  # these give hidden states of stages, not of blocks
        assert re.search(rf"([{depth - 1}{depth}]) of {depth} equal to transformers' hidden states", said)
    together = capture(backbone, batch, range(1, depth + 1))
    for layer in together:
        assert torch.equal(capture(backbone, batch, [layer])[layer], together[layer])
    if special is not None:
        assert (0 if batch.special is None else int(batch.special[0].sum())) == special
    assert not torch.equal(together[1], together[2])


class Blocks(nn.Module):
    """A network of three blocks, in which `act` takes the place of the second."""

    def __init__(self, act: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(3))
        self.layers[1].register_forward_hook(lambda _m, _i, output: act(output))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.layers:
            y = block(x)
        return y


@pytest.mark.parametrize(("act", "message"), [
    (lambda x: x.transpose(0, 1), r"layers\.1 puts out \[items, positions\] = \[5, 2\].*are swapped"),
    (lambda x: x[:, :, None].expand(-1, -1, 4, -1), r"layers\.1 puts out \[2, 5, 4, 8\].*several residual streams"),
    (lambda x: x[:, :3], r"layers\.1 puts out \[items, positions\] = \[2, 3\], but the mask covers \[2, 5\]"),
    (lambda x: x / 0, r"layer 2 \(layers\.1\) puts out 80 values that are not finite"),
    (lambda x: [x, x], r"layers\.1 puts out list, not one tensor"),
])  # fmt: skip
def test_what_is_no_residual_stream_is_refused_by_name(act: Callable[[Tensor], Any], message: str) -> None:
    network = Blocks(act)
    backbone = Backbone(network, list(network.layers), lambda x: [x], lambda _: Batch({}))
    square = Batch({"x": 1 + torch.rand(5, 5, 8)}, torch.ones(5, 5, dtype=torch.bool))  # as many items as positions
    with pytest.raises(ValueError, match=message):
        checked(backbone, square)


def test_a_block_that_runs_twice_is_refused() -> None:
    network = Blocks(lambda x: x)
    backbone = Backbone(nn.Sequential(network, network), list(network.layers), lambda x: [x], lambda _: Batch({}))
    backbone.module.forward = lambda x: network(network(x))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"0\.layers\.0 ran 2 times in a forward pass, not 1"):
        checked(backbone, Batch({"x": torch.rand(2, 5, 8)}))


def test_absurd_activations_are_named(caplog: pytest.LogCaptureFixture) -> None:
    network = Blocks(lambda x: x * 1e12)
    backbone = Backbone(network, list(network.layers), lambda x: [x], lambda _: Batch({}))
    with caplog.at_level(logging.WARNING):
        checked(backbone, Batch({"x": torch.randn(2, 5, 8)}))
    assert [record.getMessage()[:19] for record in caplog.records] == ["layer 2 (layers.1):"]


def test_a_stream_checks_its_first_batch_only() -> None:
    network = Blocks(lambda x: x)
    backbone = Backbone(network, list(network.layers), lambda x: [x], lambda _: Batch({}))
    stream = TokenStream("m", "d", None, None, 0, None, 2, torch.device("cpu"))
    passes: list[int] = []
    network.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(3):
        stream.rows(backbone, Batch({"x": torch.randn(2, 5, 8)}), [1])
    assert backbone.agreed is not None
    assert "layers.0 to layers.2" in backbone.agreed
    assert len(passes) == 4


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "Bart", **SPEECH, vocab_size=400)
    with pytest.raises(ValueError, match=r"the blocks decoder\.layers of BartModel read what its encoder gives"):
        load(folder, "decoder.layers", context=24)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return saved(tmp_path / "bert", "Bert", **SIZES, vocab_size=400, max_position_embeddings=64)


def test_an_adapter_is_not_ignored(bert: Path) -> None:
    (bert / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for act in (lambda: load(bert, context=24), lambda: count_blocks(str(bert), revision="other")):
        with pytest.raises(ValueError, match=r"holds a PEFT adapter .*merge_and_unload"):
            act()


def test_more_than_the_model_has_is_refused_with_both_numbers(bert: Path) -> None:
    with pytest.raises(ValueError, match=r"context=65 is more than the 64 positions .*model\.loader\.context=64"):
        load(bert, context=65)
    assert next(load(bert, context=64).batches(TEXTS, 1)).mask is not None
    small = saved(bert.parent / "small", "Bert", **SIZES, vocab_size=100)
    with pytest.raises(ValueError, match=r"has ids up to 2\d\d, but the model has embeddings for 100"):
        load(small, context=24)


def test_positions_that_begin_after_the_paddings(tmp_path: Path) -> None:
    folder = saved(tmp_path, "Roberta", **SIZES, vocab_size=400, max_position_embeddings=66, pad_token_id=1)
    with pytest.raises(ValueError, match=r"context=65 is more than the 64 positions"):
        load(folder, context=65)
    backbone = load(folder, context=64)
    assert "3 of 3 equal" in checked(backbone, next(backbone.batches([" ".join(TEXTS)], 1)))


def test_a_folder_without_a_tokenizer(bert: Path) -> None:
    for file in bert.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"bert holds no tokenizer.*save_pretrained"):
        load(bert, context=24)


@pytest.mark.parametrize(("kind", "sizes", "documents", "message"), [
    ("ViT", VISION, texts, "reads images, and the data are str: .*data=images"),
    ("Bert", {**SIZES, "vocab_size": 400}, images, "reads text, and the data are Image: name data=text"),
    ("Wav2Vec2", {**SIZES, "conv_dim": [16] * 7}, texts, "reads sounds, and the data are str: .*data=audio_folder"),
])  # fmt: skip
def test_data_of_another_kind_are_named(
    kind: str, sizes: dict[str, Any], documents: Callable[[], list[Any]], message: str, tmp_path: Path
) -> None:
    backbone = load(saved(tmp_path, kind, **sizes), context=24)
    with pytest.raises(ValueError, match=message):
        next(backbone.batches(documents(), 2))


def test_residues_are_spaced_for_a_tokenizer_that_wants_it(tmp_path: Path) -> None:
    """ProtBERT's: whole words, of which it knows those of one letter."""
    saved(tmp_path, "Bert", **SIZES, vocab_size=40)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False).save_pretrained(tmp_path)
    backbone = load(tmp_path, context=64)
    protein = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
    (batch,) = backbone.batches([protein], 1)
    assert batch.inputs["input_ids"][0].tolist() == [2, *(vocabulary.index(residue) for residue in protein), 3]


def test_sounds_are_read_from_files(tmp_path: Path) -> None:
    expected = np.stack([np.linspace(-0.5, 0.5, 1000), np.zeros(1000)])
    (tmp_path / "deep").mkdir()
    with wave.open(str(tmp_path / "deep" / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes((expected.T * 2**15).astype("<i2").tobytes())
    cfg = composed("model=hf", "name=x", "data=audio_folder", f"data.source.folder={tmp_path}")
    ((samples, rate),) = AudioFolder(cfg.data.source.folder)(0)
    assert rate == 22050
    np.testing.assert_allclose(samples, expected.mean(0), atol=1e-4)


@pytest.mark.parametrize(("name", "message"), [
    ("torn.wav", r"torn\.wav cannot be read as"),
    ("song.flac", r"song\.flac (is read with the package soundfile: run `pip install soundfile`|cannot be read)"),
])  # fmt: skip
def test_a_sound_that_cannot_be_read_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=message):
        list(AudioFolder(str(tmp_path))(0))
