"""ESM3 from a folder with the layout of the hub repository, with tiny random weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from torch import Tensor

from sae_outliers.activations.capture import capture
from sae_outliers.models.other import esm3
from tests.conftest import composed

esm_models = pytest.importorskip("esm.models.esm3", reason="esm is not installed: `make esm`")

PROTEINS = ["MKTAYIAKQRQISFVKSHFS", "MSDVAIVKEGWLHKRGEYIKTWRPRYFLLKNDGTFIGYKE"]  # 20 and 40 residues


def network(**sizes: int) -> Any:
    """Return the package's own ESM3, including geometric attention."""
    from esm.tokenization import EsmSequenceTokenizer

    torch.manual_seed(0)
    absent = dict.fromkeys(("structure_encoder_fn", "structure_decoder_fn", "function_decoder_fn"))
    tokenizers = SimpleNamespace(sequence=EsmSequenceTokenizer())
    return esm_models.ESM3(**sizes, **absent, tokenizers=tokenizers).eval()


@pytest.fixture(scope="module")
def original() -> Any:
    return network(d_model=128, n_heads=2, v_heads=8, n_layers=4)


@pytest.fixture(scope="module")
def folder(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("esm3")
    file = path / "data/weights/esm3_sm_open_v1.pth"
    file.parent.mkdir(parents=True)
    torch.save(original.state_dict(), file)
    return path


def packages_own_states(original: Any, protein: str) -> list[Tensor]:
    """Return the hidden states that the package's transformer returns for one protein, each [1, residues + 2, 128]."""
    found: list[list[Tensor]] = []
    hook = original.transformer.register_forward_hook(lambda *args: found.append(args[2][2]))
    with torch.inference_mode():
        original(sequence_tokens=torch.tensor([original.tokenizers.sequence.encode(protein)]))
    hook.remove()
    return found[0]


def test_each_layer_is_the_packages_own_hidden_state(original: Any, folder: Path) -> None:
    backbone = esm3.load(folder, context=64)
    (batch,) = backbone.batches(PROTEINS, 2)
    ours = capture(backbone, batch, [1, 2, 3, 4])
    assert len(backbone.blocks) == 4
    for item, protein in enumerate(PROTEINS):
        expected = packages_own_states(original, protein)
        positions = len(protein) + 2
        for layer in (1, 2, 3, 4):  # alone there, padded here
            torch.testing.assert_close(ours[layer][item, :positions], expected[layer - 1][0], rtol=1e-4, atol=1e-5)
    assert ours[1].shape == (2, 42, 128)
    assert not torch.allclose(ours[1], ours[2], atol=1e-2)


def test_without_coordinates_geometric_attention_adds_exactly_nothing(original: Any) -> None:
    added: list[Tensor] = []
    hook = original.transformer.blocks[0].geom_attn.register_forward_hook(lambda *args: added.append(args[2]))
    packages_own_states(original, PROTEINS[0])
    hook.remove()
    assert added[0].shape == (1, 22, 128)
    assert not added[0].any()


def test_bos_and_eos_are_special_and_padding_is_no_token(folder: Path) -> None:
    (batch,) = esm3.load(folder, context=64).batches(PROTEINS, 2)
    assert batch.mask is not None
    assert batch.special is not None
    assert batch.mask.sum(1).tolist() == [22, 42]
    assert batch.special.nonzero().tolist() == [[0, 0], [0, 21], [1, 0], [1, 41]]
    assert batch.inputs["sequence_tokens"][0, [0, 21, 22]].tolist() == [0, 2, 1]  # BOS, EOS, padding


def test_long_proteins_are_cut_into_windows(folder: Path) -> None:
    backbone = esm3.load(folder, context=32, shortest=10)
    assert [len(window) for window in backbone.items(PROTEINS[1])] == [32, 12]
    with pytest.raises(ValueError, match="no room for 40 tokens"):
        esm3.load(folder, context=32, shortest=40)


def test_blocks_after_the_last_wanted_layer_do_not_run(folder: Path) -> None:
    backbone = esm3.load(folder, context=64)
    ran: list[int] = []
    for layer, block in enumerate(backbone.blocks, start=1):
        block.register_forward_hook(lambda *_args, layer=layer: ran.append(layer))
    capture(backbone, next(backbone.batches(PROTEINS, 2)), [1, 3])
    assert ran == [1, 2, 3]


def test_float32_whatever_the_file_holds(original: Any, tmp_path: Path) -> None:
    file = tmp_path / "data/weights/esm3_sm_open_v1.pth"
    file.parent.mkdir(parents=True)
    torch.save({name: tensor.bfloat16() for name, tensor in original.state_dict().items()}, file)
    backbone = esm3.load(tmp_path, context=64)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    assert not backbone.module.training


def test_a_file_that_lacks_weights_is_refused(original: Any, tmp_path: Path) -> None:
    file = tmp_path / "data/weights/esm3_sm_open_v1.pth"
    file.parent.mkdir(parents=True)
    torch.save({name: x for name, x in original.state_dict().items() if "blocks.2.ffn" not in name}, file)
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.2\.ffn"):
        esm3.load(tmp_path, context=64)


def test_nothing_is_unpickled_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "data/weights/esm3_sm_open_v1.pth"
    file.parent.mkdir(parents=True)
    torch.save({"encoder.sequence_embed.weight": Path("/")}, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        esm3.load(tmp_path, context=64)


def test_what_to_do_where_the_weights_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"contains no data/weights/esm3_sm_open_v1\.pth"):
        esm3.load(tmp_path, context=64)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"https://huggingface.co/a-lab/gated, log in with `hf auth login`"):
        esm3.load("a-lab/gated", context=64)


def test_the_configs_figures_are_those_of_the_released_size() -> None:
    """Sizes as in esm.pretrained.ESM3_sm_open_v0."""
    model = composed("model=esm3").model
    with torch.device("meta"):
        released = network(d_model=1536, n_heads=24, v_heads=256, n_layers=48)
    assert model.d_model == 1536 == released.encoder.sequence_embed.embedding_dim
    assert esm3.HEAD_WIDTH == 1536 // 24
    assert model.last_layer == len(released.transformer.blocks) - 1 == 47
    assert model.parameters == pytest.approx(sum(p.numel() for p in released.parameters()), rel=0.01)
