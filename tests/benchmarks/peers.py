"""Other libraries' TopK training steps, each as its own trainer does it and with its defaults: float32, no compilation.

Of each also with its own AuxK and features that it takes for dead; of those that offer it, compiled. Imports stand
inside the functions, for none of the libraries need be installed.
"""

from collections.abc import Callable
from importlib import metadata
from itertools import count
from shutil import which
from typing import NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.ours import DEAD_PCT, NO_RATE, shorten
from tests.benchmarks.plan import Size
from tests.benchmarks.timing import Case

INSTALL = "make bench-peers"
STEPS = 10**9  # of the learning rate's schedule, whose end is never reached
LONG_AGO = 10**8  # tokens or steps since a dead feature fired
AUXK_ALPHA = 1 / 32  # for sparsify, whose default is 0: no AuxK


def sae_lens(size: Size, x: Tensor, dead: int = 0, compiled: bool = False) -> Case:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    device = str(x.device)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=size.d_model, d_sae=size.n_features, k=size.k, device=device))
    if compiled:  # as its runner does with compile_sae=True
        sae.training_forward_pass = torch.compile(sae.training_forward_pass, mode="default", backend="inductor")
    rate = {"lr": NO_RATE} if dead else {}
    cfg = SAETrainerConfig(STEPS * size.batch, size.batch, lr_end=0.0, device=device, **rate)
    trainer = SAETrainer(cfg, sae, data_provider=iter(()))
    if dead:
        shorten(sae.W_enc[:, :dead])
        trainer.n_forward_passes_since_fired[:dead] = LONG_AGO
    if compiled:
        trainer.step(x)  # compiles now: once nnsight is loaded, by dictionary_learning, torch.compile fails
    return lambda: trainer.step(x)


def dictionary_learning(size: Size, x: Tensor, dead: int = 0, compiled: bool = False) -> Case:
    from dictionary_learning.trainers.top_k import TopKTrainer

    sizes = {"activation_dim": size.d_model, "dict_size": size.n_features, "k": size.k}
    rate = {"lr": NO_RATE} if dead else {}
    trainer = TopKTrainer(STEPS, **sizes, layer=0, lm_name="none", device=str(x.device), **rate)
    if dead:
        shorten(trainer.ae.encoder.weight[:dead])
        trainer.num_tokens_since_fired[:dead] = LONG_AGO
    steps = count()  # step 0 also takes the geometric median, which falls into the warm-up
    return lambda: trainer.update(next(steps), x)


def sparsify(size: Size, x: Tensor, dead: int = 0, compiled: bool = False) -> Case:
    """Its trainer takes a language model; this is what the trainer does with one layer's activations."""
    from sparsify import SparseCoder, SparseCoderConfig

    cfg = SparseCoderConfig(num_latents=size.n_features, k=size.k)
    coder = SparseCoder(size.d_model, cfg, device=x.device, dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=NO_RATE if dead else 1e-3)
    mask = torch.arange(size.n_features, device=x.device) < dead if dead else None
    shorten(coder.encoder.weight[:dead])

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=mask)
        (out.fvu + AUXK_ALPHA * out.auxk_loss).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Peer(NamedTuple):
    label: str
    distribution: str
    step: Callable[..., Case]
    compiles: bool = False  # whether it offers to

    def version(self) -> str | None:
        """None where it is not installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


PEERS = (
    Peer("SAELens, SAETrainer.step", "sae-lens", sae_lens, compiles=True),
    Peer("dictionary_learning, TopKTrainer.update", "dictionary-learning", dictionary_learning),
    Peer("sparsify, SparseCoder with Adam", "eai-sparsify", sparsify),
)


def training_cases(size: Size, x: Tensor) -> dict[str, Case]:
    """Of the peers that are installed."""
    import sae_outliers.models  # noqa: F401 - first: it makes torchvision importable to transformers

    dead = size.n_features * DEAD_PCT // 100
    cases = {}
    for peer in (peer for peer in PEERS if peer.version()):
        cases[peer.label] = peer.step(size, x)
        if peer.compiles and can_compile(x.device):
            cases[f"{peer.label}, compiled"] = peer.step(size, x, compiled=True)
        cases[f"{peer.label}, its AuxK, {DEAD_PCT} % dead"] = peer.step(size, x, dead=dead)
    return cases


def can_compile(device: torch.device) -> bool:
    """Whether torch's inductor finds what it needs."""
    return device.type == "cuda" or which("g++") is not None or which("clang++") is not None


def absent() -> str:
    """For the report: which are missing, and how to get them; empty where none is."""
    missing = [peer.distribution for peer in PEERS if not peer.version()]
    return f"Not installed, so left out: {', '.join(missing)}. `{INSTALL}` installs them." if missing else ""
