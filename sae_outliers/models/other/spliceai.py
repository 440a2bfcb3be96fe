"""SpliceAI-10k, a dilated convolutional network for splice sites, in PyTorch with the weights of its Keras files.

The package's licence is GPLv3, and its weights are believed to be for non-commercial use only; therefore nothing of it
is bundled, and this model is optional.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import h5py
import torch
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.utils.package_cache import package_folder

CONTEXT = 5000  # half the receptive field in bases: Σ (width - 1)·dilation / 2 over all convolutions
CHANNELS = 32
STAGES = ((11, 1), (11, 4), (21, 10), (41, 25))  # kernel width and dilation of four units each
UNITS_PER_STAGE = 4


def load(net: int = 1, window: int = 15_000) -> Backbone:
    """Return one of the ensemble's five networks; an item is a window of DNA.

    Args:
        net: 1 to 5.
        window: bases in an item. Its tokens are the `window - 10_000` bases whose receptive field lies inside; the
            activations of the others depend on the zero padding.

    Raise ModuleNotFoundError without the package, ValueError if no base of a window would be a token.
    """
    if window <= 2 * CONTEXT:
        raise ValueError(f"window={window} leaves no token: the network needs {CONTEXT} bases on either side")
    folder = package_folder("spliceai", "spliceai")
    module = read_network(folder / "models" / f"spliceai{net}.h5")

    def items(sequence: str) -> Iterator[str]:
        return windows(sequence, window)

    return Backbone(module, list(module.units), items, collate, hidden)


def windows(sequence: str, window: int) -> Iterator[str]:
    """Yield windows whose tokens are consecutive, without gap or overlap; the last window may be shorter."""
    for start in range(0, len(sequence) - 2 * CONTEXT, window - 2 * CONTEXT):
        yield sequence[start : start + window]


def collate(sequences: list[str]) -> Batch:
    """Return the one-hot input [items, 4, bases], padded on the right; unknown bases are masked out."""
    length = max(map(len, sequences))
    encoded = torch.stack([one_hot(sequence.ljust(length, "N")) for sequence in sequences])
    mask = encoded.sum(1) > 0
    for row, sequence in zip(mask, sequences, strict=True):
        row[:CONTEXT] = False
        row[len(sequence) - CONTEXT :] = False
    return Batch({"x": encoded}, mask)


def one_hot(sequence: str) -> Tensor:
    """Return float32 [4, bases] in the order A, C, G, T; a column of zeros for any other letter."""
    codes = torch.frombuffer(bytearray(sequence.upper().encode("ascii")), dtype=torch.uint8)
    bases = torch.tensor([ord(base) for base in "ACGT"], dtype=torch.uint8)
    return (codes == bases[:, None]).float()


def hidden(output: Tensor) -> Tensor:
    """Transpose [items, channels, bases] to [items, bases, channels]."""
    return output.transpose(1, 2)


class ResidualUnit(nn.Module):
    """A residual unit of two sequences of batch norm, ReLU and dilated convolution."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                nn.BatchNorm1d(CHANNELS, eps=1e-3),
                nn.ReLU(),
                nn.Conv1d(CHANNELS, CHANNELS, width, dilation=dilation, padding="same"),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SpliceAI(nn.Module):
    """The network, from DNA [items, 4, bases] to [items, 3, bases - 10_000] probabilities: none, acceptor, donor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, CHANNELS, 1)
        self.units = nn.ModuleList(
            ResidualUnit(width, dilation) for width, dilation in STAGES for _ in range(UNITS_PER_STAGE)
        )
        self.skips = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in range(1 + len(STAGES)))
        self.head = nn.Conv1d(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total = self.skips[0](x)
        for i, unit in enumerate(self.units, start=1):
            x = unit(x)
            if i % UNITS_PER_STAGE == 0:
                total = total + self.skips[i // UNITS_PER_STAGE](x)
        return self.head(total[..., CONTEXT:-CONTEXT]).softmax(1)


def read_network(path: Path) -> SpliceAI:
    """Read a Keras file into a network in eval mode. Raise KeyError or RuntimeError if the layers do not match."""
    network = SpliceAI()
    with h5py.File(path) as file:
        weights = file["model_weights"]
        for i, convolution in enumerate(_convolutions(network), start=1):
            _fill_convolution(convolution, weights[f"conv1d_{i}/conv1d_{i}"])
        norms = (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d))
        for i, norm in enumerate(norms, start=1):
            _fill_norm(norm, weights[f"batch_normalization_{i}/batch_normalization_{i}"])
    return network.eval()


def _convolutions(network: SpliceAI) -> Iterator[nn.Module]:
    """Yield the convolutions in Keras' numbering, which is the order in which the original model was built."""
    yield network.stem
    yield network.skips[0]
    units = iter(network.units)
    for skip in network.skips[1:]:
        for unit in islice(units, UNITS_PER_STAGE):
            yield from (layer for layer in unit.modules() if isinstance(layer, nn.Conv1d))
        yield skip
    yield network.head


def _fill_convolution(convolution: nn.Module, group: h5py.Group) -> None:
    kernel = torch.from_numpy(group["kernel:0"][()])  # [width, in, out]
    convolution.load_state_dict({"weight": kernel.permute(2, 1, 0), "bias": torch.from_numpy(group["bias:0"][()])})


def _fill_norm(norm: nn.BatchNorm1d, group: h5py.Group) -> None:
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    state = {name: torch.from_numpy(group[f"{keras}:0"][()]) for name, keras in names.items()}
    norm.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
