import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sae_outliers.data import dna
from sae_outliers.models.other import spliceai
from sae_outliers.utils.package_cache import package_folder

needs_package = pytest.mark.skipif(find_spec("spliceai") is None, reason="spliceai is not installed")


def random_bases(length: int, seed: int = 0) -> str:
    generator = torch.Generator().manual_seed(seed)
    return "".join("ACGT"[i] for i in torch.randint(4, (length,), generator=generator).tolist())


def random_network() -> spliceai.SpliceAI:
    torch.manual_seed(0)
    return spliceai.SpliceAI().eval()


def test_one_hot_knows_either_case_and_leaves_unknown_bases_zero() -> None:
    assert spliceai.one_hot("AcGTn").T.tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
    ]


def test_every_base_with_its_context_is_a_token_once() -> None:
    sequence = random_bases(23_210)
    batch = spliceai.collate(list(spliceai.windows(sequence, 14_000)))
    assert batch.mask is not None
    tokens = batch.inputs["x"].transpose(1, 2)[batch.mask]
    assert torch.equal(tokens.T, spliceai.one_hot(sequence[5000:-5000]))


def test_unknown_bases_are_no_tokens() -> None:
    batch = spliceai.collate([random_bases(5001) + "NN" + random_bases(5001)])
    assert batch.mask is not None
    assert batch.mask[0, 5000:5004].tolist() == [True, False, False, True]


def test_too_short_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no token"):
        spliceai.load(window=10_000)


def test_a_token_depends_on_5000_bases_to_either_side_and_no_more() -> None:
    network = random_network().double()
    for conv in network.modules():
        if isinstance(conv, torch.nn.Conv1d):  # positive, so that no two paths cancel
            conv.load_state_dict({name: torch.full_like(x, 0.01) for name, x in conv.state_dict().items()})
    states: list[torch.Tensor] = []
    network.units[-1].register_forward_hook(lambda _unit, _inputs, output: states.append(output))
    x = spliceai.one_hot(random_bases(10_003))[None].double().requires_grad_()
    network(x)
    (gradient,) = torch.autograd.grad(states[0][0, :, 5001].sum(), x)
    assert torch.nonzero(gradient[0].sum(0))[:, 0].tolist() == list(range(1, 10_002))


def test_blocks_are_the_residual_units() -> None:
    network = random_network()
    assert len(network.units) == 16
    x = torch.zeros(1, 4, 10_010)
    with torch.inference_mode():
        probabilities = network(x)
    assert probabilities.shape == (1, 3, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 10))
    assert spliceai.hidden(torch.zeros(1, 32, 7)).shape == (1, 7, 32)


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_outliers.utils.package_cache.find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="spliceai is not installed: run `make weights SPLICEAI=yes`"):
        spliceai.load()


def globin_sites(path: Path) -> tuple[list[int], list[int]]:
    """Return the 0-based last and first bases of exons at the introns of the five globin genes."""
    record = next(part for part in path.read_text("latin-1").split("\n//") if "\nAC   U01317;" in part)
    genes = re.findall(r'FT   mRNA +join\(([\d.,]+)\)\nFT +/gene="HB', record)
    exons = [[[int(end) for end in exon.split("..")] for exon in gene.split(",")] for gene in genes]
    donors = [exon[1] - 1 for gene in exons for exon in gene[:-1]]
    acceptors = [exon[0] - 1 for gene in exons for exon in gene[1:]]
    return donors, acceptors


@pytest.mark.weights
@needs_package
def test_net_finds_the_annotated_splice_sites_of_the_globin_genes() -> None:
    try:
        path = dna.human_dna_file()
    except FileNotFoundError:
        pytest.skip("emboss-test is not installed")
    sequence = dict(dna.read_embl(path))["U01317"]
    donors, acceptors = globin_sites(path)
    assert len(donors) == len(acceptors) == 10
    backbone = spliceai.load(net=1, window=55_000)
    start = min(donors) - 500
    batch = next(backbone.batches([sequence[start - spliceai.CONTEXT :]], 1))
    with torch.inference_mode():
        _, acceptor, donor = backbone.module(**batch.inputs)[0]
    for probability, sites in ((acceptor, acceptors), (donor, donors)):
        found = {start + int(i) for i in torch.nonzero(probability > 0.5)}
        assert found >= set(sites)
        assert len(found) <= 12  # of 45,000 bases: a single net of the ensemble errs once or twice


@pytest.mark.weights
@needs_package
def test_all_five_nets_load_and_differ() -> None:
    models = package_folder("spliceai", "spliceai") / "models"
    stems = [spliceai.read_network(models / f"spliceai{i}.h5").stem.weight for i in range(1, 6)]
    assert len({tuple(stem.flatten().tolist()) for stem in stems}) == 5
