"""Other libraries' TopK training steps, each as its own trainer does it and with its defaults: float32, no compilation.

Imports stand inside the functions, for none of the libraries need be installed.
"""

from collections.abc import Callable
from importlib import metadata
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.plan import Size
from tests.benchmarks.timing import Case

INSTALL = "make bench-peers"
STEPS = 10**9  # of the learning rate's schedule, whose end is never reached


def sae_lens(size: Size, x: Tensor) -> Case:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    device = str(x.device)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=size.d_model, d_sae=size.n_features, k=size.k, device=device))
    cfg = SAETrainerConfig(STEPS * size.batch, size.batch, lr_end=0.0, device=device)  # the end is never reached
    trainer = SAETrainer(cfg, sae, data_provider=iter(()))
    return lambda: trainer.step(x)


def dictionary_learning(size: Size, x: Tensor) -> Case:
    from dictionary_learning.trainers.top_k import TopKTrainer

    sizes = {"activation_dim": size.d_model, "dict_size": size.n_features, "k": size.k}
    trainer = TopKTrainer(STEPS, **sizes, layer=0, lm_name="none", device=str(x.device))
    steps = count()  # step 0 also takes the geometric median, which falls into the warm-up
    return lambda: trainer.update(next(steps), x)


def sparsify(size: Size, x: Tensor) -> Case:
    """Its trainer takes a language model; this is what the trainer does with one layer's activations."""
    from sparsify import SparseCoder, SparseCoderConfig

    cfg = SparseCoderConfig(num_latents=size.n_features, k=size.k)
    coder = SparseCoder(size.d_model, cfg, device=x.device, dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters())

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Peer(NamedTuple):
    label: str
    distribution: str
    step: Callable[[Size, Tensor], Case]

    def version(self) -> str | None:
        """None where it is not installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


PEERS = (
    Peer("SAELens, SAETrainer.step", "sae-lens", sae_lens),
    Peer("dictionary_learning, TopKTrainer.update", "dictionary-learning", dictionary_learning),
    Peer("sparsify, SparseCoder with Adam", "eai-sparsify", sparsify),
)


def training_cases(size: Size, x: Tensor) -> dict[str, Case]:
    """Of the peers that are installed."""
    import sae_outliers.models  # noqa: F401 - first: it makes torchvision importable to transformers

    return {peer.label: peer.step(size, x) for peer in PEERS if peer.version()}


def absent() -> str:
    """For the report: which are missing, and how to get them; empty where none is."""
    missing = [peer.distribution for peer in PEERS if not peer.version()]
    return f"Not installed, so left out: {', '.join(missing)}. `{INSTALL}` installs them." if missing else ""
