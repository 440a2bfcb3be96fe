"""Our SAEs beside those of the libraries that they can be exported to; each test runs where its library is installed.

The same weights (through export and the library's own loader) must give the same features and reconstructions.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import type_name
from sae_outliers.sae.export.base import EXPORTERS
from sae_outliers.sae.kernels import choose_batch_topk
from tests.test_export import DESCRIBED, Case, Kind, distance

KINDS = (TopK, BatchTopK, Matryoshka, JumpReLU, Gated, ReLU, GroupMax)


class Output(NamedTuple):
    features: Tensor  # [tokens, n_features]
    x_hat: Tensor  # [tokens, d_model]


def needs(library: str) -> pytest.MarkDecorator:
    module = {"saelens": "sae_lens"}.get(library, library)
    how = "pip install -e . -r conf/packages/peers.txt, in one resolution"
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed: {how}")


def by_saelens(folder: Path, x: Tensor) -> Output:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return Output(sae.encode(x), sae(x))


def by_dictionary_learning(folder: Path, x: Tensor) -> Output:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), device="cpu")
    return Output(sae.encode(x), sae(x))


def by_sparsify(folder: Path, x: Tensor) -> Output:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder)
    output = sae(x)
    features = x.new_zeros(len(x), sae.num_latents).scatter(1, output.latent_indices, output.latent_acts)
    return Output(features, output.sae_out)


READERS: dict[str, Callable[[Path, Tensor], Output]] = {
    "saelens": by_saelens,
    "dictionary_learning": by_dictionary_learning,
    "sparsify": by_sparsify,
}
PAIRS = [
    pytest.param(library, kind, marks=needs(library))
    for library, exporter in EXPORTERS.items()
    for kind in KINDS
    if type_name(kind) in exporter.types
]


@torch.no_grad()
@pytest.mark.parametrize("centering", ["off", "on", "whiten"])
@pytest.mark.parametrize(("library", "kind"), PAIRS)
def test_library_reads_from_our_files_the_same_features_and_reconstruction(
    library: str, kind: Kind, centering: str, tmp_path: Path
) -> None:
    case = Case(kind, centering)
    output = READERS[library](case.export(library, tmp_path / "out"), case.x)
    assert distance(output.x_hat, case.x_hat) < 1e-5
    assert distance(output.features, case.features) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("library", [pytest.param(library, marks=needs(library)) for library in READERS])
def test_whitened_post_ln_sae_is_the_same_up_to_the_rounding_that_whitening_amplifies(
    library: str, tmp_path: Path
) -> None:
    # LayerNorm empties one direction, which whitening stretches a thousandfold, rounding and all
    case = Case(TopK, "whiten", "postln")
    output = READERS[library](case.export(library, tmp_path / "out"), case.x)
    assert distance(output.x_hat, case.x_hat) < 1e-5


@needs("dictionary_learning")
@torch.no_grad()
def test_unit_norm_relu_is_read_by_dictionary_learning_as_it_is(tmp_path: Path) -> None:
    case = Case(ReLU, "on")
    case.sae.normalize_decoder()
    z = case.centering.apply(case.x)
    output = by_dictionary_learning(case.export("dictionary_learning", tmp_path / "out"), case.x)
    assert distance(output.features, case.sae.features(case.sae.pre_activations(z))) < 1e-5
    assert distance(output.x_hat, case.centering.undo(case.sae(z))) < 1e-5


@needs("dictionary_learning")
@torch.no_grad()
def test_batch_topk_of_a_training_batch_is_dictionary_learnings(tmp_path: Path) -> None:
    from dictionary_learning.utils import load_dictionary

    case = Case(BatchTopK, "off")
    folder = case.export("dictionary_learning", tmp_path / "out")
    sae, _ = load_dictionary(str(folder), device="cpu")
    theirs = sae.encode(case.x, use_threshold=False)
    code = choose_batch_topk(case.x - case.sae.b_dec, case.sae.W_enc, case.sae.b_enc, case.sae.k)
    ours = code.dense(case.sae.n_features)
    assert (ours > 0).sum() == case.sae.k * len(case.x)
    assert torch.equal(ours > 0, theirs > 0)
    assert distance(ours, theirs) < 1e-5


@needs("saelens")
def test_saelens_keeps_what_the_metadata_says(tmp_path: Path) -> None:
    from sae_lens import SAE

    folder = Case(JumpReLU, "whiten").export("saelens", tmp_path / "out")
    metadata = SAE.load_from_disk(folder).cfg.metadata
    assert metadata.model_name == DESCRIBED["model"]
    assert DESCRIBED.items() <= metadata.sae_outliers.items()
