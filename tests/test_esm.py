"""EvolutionaryScale's package with a newer transformers than it requires (`make esm`), on tiny random weights."""

import pytest
import torch

from sae_outliers.activations.capture import capture
from sae_outliers.models.backbone import Backbone, Batch

pytest.importorskip("esm", reason="esm is not installed: `make esm`")


def test_esm_c_runs_and_its_blocks_are_captured() -> None:
    from esm.models.esmc import ESMC
    from esm.tokenization import EsmSequenceTokenizer

    torch.manual_seed(0)
    tokenizer = EsmSequenceTokenizer()
    model = ESMC(d_model=64, n_heads=4, n_layers=3, tokenizer=tokenizer, use_flash_attn=False).eval()
    ids = torch.tensor([tokenizer.encode("MKTAYIAKQR")])
    with torch.no_grad():
        expected = model(sequence_tokens=ids).hidden_states
    backbone = Backbone(model, list(model.transformer.blocks), items=list, collate=lambda items: Batch({}))
    captured = capture(backbone, Batch({"sequence_tokens": ids}), [1, 2])
    assert expected is not None
    # esm divides nothing after a block, and lists a hidden state for each
    torch.testing.assert_close(captured[1], expected[0].float())
    torch.testing.assert_close(captured[2], expected[1].float())
