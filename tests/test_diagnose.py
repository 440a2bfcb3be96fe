"""The diagnosis of activations: what it measures, against separate passes and planted truths, and its verdicts."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sae_outliers import Centering, TopK, diagnose, geometric_median, load_sae, moments, postln
from sae_outliers.diagnosis.condition import Condition
from sae_outliers.diagnosis.result import ModelDiagnosis
from sae_outliers.diagnosis.unseen import unseen
from sae_outliers.diagnosis.verdict import FINE_TOPK_PCT, WHITEN_TOPK_PCT, verdict
from sae_outliers.sae.evaluation import FateCounter, count_fates, fate_counter
from sae_outliers.sae.shared_product import SharedProduct
from sae_outliers.stats import theory
from sae_outliers.stats.transforms import CENTERINGS, Affine

D, N, K = 64, 512, 8
SIZE = {"n_features": N, "k": K}


def planted(gamma: float, tokens: int = 6000, d_model: int = D, rank: int | None = None) -> Tensor:
    """Tokens [tokens, d_model] of this γ, their mean in two dimensions; they vary alike in all directions or in few."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, d_model, generator=rng)
    if rank:
        x[:, rank:] *= 0.004
        x = x @ torch.linalg.qr(torch.randn(d_model, d_model, generator=rng)).Q
    mean = torch.zeros(d_model)
    mean[3], mean[9] = 2.0, -1.0
    return x + gamma * mean * (x.var(0).sum().sqrt() / mean.norm())


# --- one product for all shifts ---------------------------------------------------------------------------


def test_how_long_b_dec_would_take_is_what_the_law_says_of_these_tokens() -> None:
    x = planted(5.0)
    d = diagnose(x, **SIZE)
    off = x.double().mean(0).abs().max().item()
    expected = theory.bias_half_time(off, 1e-3, d.severity.gamma, 256, SIZE["n_features"])
    assert d.bias_half_time(lr=1e-3, batch_size=256) == pytest.approx(float(expected), rel=1e-6)
    assert "b_dec, left to learn the mean by itself" in repr(d)
    assert "b_dec, left to" not in repr(diagnose(planted(0.0), **SIZE))


def test_counting_stops_once_every_feature_is_alive_and_no_sooner() -> None:
    x = planted(0.0, tokens=20_000)
    sae = TopK(D, N, k=K)
    zero, far = torch.zeros(D), torch.zeros(D)
    far[3] = -100
    shared = SharedProduct(sae.W_enc, zero, enough=2048)
    settles, does_not = fate_counter(sae), fate_counter(sae)
    shared.add(settles, sae, Affine(zero))
    shared.add(does_not, sae, Affine(far))
    for chunk in x.split(1000):
        shared.update(chunk)
    assert 2048 <= settles.n_tokens < 20_000
    assert settles.dead_pct_topk == 0
    assert does_not.n_tokens == 20_000


# --- figures ----------------------------------------------------------------------------------------------


def test_figures_are_those_of_a_plain_computation() -> None:
    x = planted(2.0)
    d = diagnose(x, **SIZE)
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    p = eigenvalues / eigenvalues.sum()
    assert d.severity.gamma == pytest.approx((mean.norm() / std.norm()).item())
    assert d.severity.gamma_raw == d.severity.gamma
    assert d.severity.gamma_postln == pytest.approx(moments([postln(x)]).gamma, rel=1e-5)
    assert d.severity.effective_rank == pytest.approx((-(p * p.log()).sum()).exp().item(), rel=1e-6)
    np.testing.assert_allclose(d.severity.spectrum, eigenvalues, rtol=1e-6)
    np.testing.assert_allclose(d.severity.std, std, rtol=1e-6)
    outliers = d.severity.outlier_dims.set_index("dimension")
    assert list(outliers.index[:2]) == [3, 9]
    assert outliers.loc[3, "pct_of_mean"] == pytest.approx(100 * (mean[3] ** 2 / mean.square().sum()).item())
    assert outliers.loc[3, "pct_of_variance"] == pytest.approx(100 * (std[3] ** 2 / std.square().sum()).item())


def test_each_condition_is_what_an_sae_meets_behind_that_centering() -> None:
    x = planted(2.0)
    d = diagnose(x, **SIZE)
    m = moments([x], covariance=True)
    median = geometric_median(lambda: iter([x]), m.mean)
    maps = {"off": CENTERINGS["off"](m), "mean": CENTERINGS["on"](m), "geometric_median": Affine(median.float()),
            "whiten": CENTERINGS["whiten"](m)}  # fmt: skip
    sae = TopK(D, N, k=K)
    for name, affine in maps.items():
        condition = d.conditions[name]
        counter = fate_counter(sae)
        count_fates(counter, sae, affine, [x])
        assert condition.dead_pct_topk == pytest.approx(counter.dead_pct_topk, abs=100 / N)
        assert condition.dead_pct_relu == pytest.approx(counter.dead_pct_relu, abs=100 / N)
        assert condition.gamma == pytest.approx(moments([affine.apply(x)]).gamma, abs=1e-4)
    always = d.conditions["off"].active > 0.9
    assert d.conditions["off"].always_on == always.sum() > 0
    assert d.features["alignment"][always].min() > 0.2
    assert list(d.features["fate_off"]) == list(d.conditions["off"].fates)


def test_tokens_are_spread_over_an_array_and_the_first_of_a_stream() -> None:
    x = torch.cat([planted(0.0, 3000), 9 + planted(0.0, 3000)])
    assert diagnose(x, tokens=1000, **SIZE).severity.mean.mean() == pytest.approx(4.5, abs=0.1)
    assert diagnose(iter(x.split(500)), tokens=1000, **SIZE).severity.mean.mean() == pytest.approx(0, abs=0.1)


def forms(x: Tensor) -> dict[str, dict[str, Any]]:
    """The same tokens in every form that is taken."""
    padded = torch.full((10, 400, D), torch.nan)
    mask = torch.arange(400) < 300
    padded[:, :300] = x.view(10, 300, D)
    masks = mask.expand(10, 400)
    return {
        "array": {"activations": x.numpy()},
        "half": {"activations": x.double()},
        "batch": {"activations": x.view(10, 300, D)},
        "padded": {"activations": padded, "mask": masks},
        "padded array": {"activations": padded.numpy(), "mask": masks.numpy()},
        "list": {"activations": list(x.split(700))},
        "generator": {"activations": (chunk.numpy() for chunk in x.split(700))},
        "pairs": {"activations": [(padded, masks)]},
        "loader": {"activations": DataLoader(TensorDataset(x, torch.arange(3000)), batch_size=256)},
    }


@pytest.mark.parametrize("form", forms(torch.zeros(3000, D)))
def test_every_form_of_activations_gives_the_same(form: str) -> None:
    x = planted(1.0, 3000)
    expected = diagnose(x, **SIZE)
    d = diagnose(**forms(x)[form], **SIZE)
    assert d.n_tokens == 3000
    assert d.severity.gamma == pytest.approx(expected.severity.gamma)
    assert d.table.equals(expected.table) or np.allclose(d.table, expected.table, atol=1e-3)


def test_an_array_on_the_disk_is_not_read_whole(tmp_path: Path) -> None:
    shape = (200_000, 64)
    huge = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    huge[:: 200_000 // 1000] = planted(1.0, 1000).numpy()
    d = diagnose(huge, tokens=1000, **SIZE)
    assert d.n_tokens == 1000


# --- verdict ----------------------------------------------------------------------------------------------


def test_verdicts_on_layers_of_which_the_truth_is_known() -> None:
    assert diagnose(planted(0.1, 12_000), **SIZE).verdict.kind == "fine"
    centre = diagnose(planted(3.0), **SIZE)
    assert (centre.verdict.kind, centre.recommended.centering.name) == ("centre", "mean")
    narrow = diagnose(planted(1.0, d_model=128, rank=2), **SIZE)
    assert (narrow.verdict.kind, narrow.recommended.centering.name) == ("whiten", "whiten")
    assert narrow.severity.effective_rank < 2.5
    flat = torch.randn(6000, 2) @ torch.randn(2, 64) + 1  # in the other 62 directions there is nothing to whiten
    assert "and whitening would leave" in diagnose(flat, **SIZE).verdict.reason


def conditions(off: float, relu: float, mean: float, median: float, whiten: float) -> dict[str, Condition]:
    counter = FateCounter(2, 1)
    counter.update(torch.ones(3, 2))
    none = unseen(counter)

    def one(topk: float, relu: float = 0.0) -> Condition:
        return Condition(1.0, topk, relu, 0, 3, none, np.zeros(2, np.int8), np.zeros(2))

    return {"off": one(off, relu), "mean": one(mean), "geometric_median": one(median), "whiten": one(whiten)}


@pytest.mark.parametrize(
    ("dead", "kind", "centering"),
    [
        ((FINE_TOPK_PCT, 0, 0, 0, 0), "fine", "off"),
        ((FINE_TOPK_PCT + 1, 0, 0, 0, 0), "centre", "mean"),
        ((10, 2, 0, 0, 0), "centre", "mean"),
        ((60, 0, 30, 28, 0), "centre", "geometric_median"),
        ((60, 0, 30, 29.5, 0), "centre", "mean"),
        ((90, 0, WHITEN_TOPK_PCT + 1, 99, 0), "whiten", "whiten"),
        ((90, 0, WHITEN_TOPK_PCT + 1, 99, 80), "centre", "mean"),
    ],
)
def test_the_verdict_follows_the_thresholds(dead: tuple[float, ...], kind: str, centering: str) -> None:
    decided = verdict(conditions(*dead))
    assert (decided.kind, decided.centering) == (kind, centering)
    assert f"{dead[0]:.1f} %" in decided.reason


def test_the_recommended_centering_saves_the_features() -> None:
    for x in (planted(3.0), planted(1.0, d_model=128, rank=2)):
        d = diagnose(x, **SIZE)
        after = diagnose(d.recommended.centering(x), **SIZE)
        assert after.conditions["off"].dead_pct_topk < 1 < d.conditions["off"].dead_pct_topk


# --- few tokens -------------------------------------------------------------------------------------------


def test_few_tokens_are_said_to_be_few_and_the_number_that_is_named_would_do() -> None:
    x = planted(0.3, 60_000)
    few = diagnose(x[:200], **SIZE)
    (note,) = [note for note in few.notes if "few for 512 features" in note]
    needed = few.conditions["off"].unseen.tokens_needed
    assert needed is not None
    assert f"{needed:,}" in note
    many = diagnose(x, tokens=60_000, **SIZE)
    enough = diagnose(x[:needed], tokens=needed, **SIZE)
    truth = many.conditions["off"].dead_pct_topk
    assert abs(enough.conditions["off"].dead_pct_topk - truth) < abs(few.conditions["off"].dead_pct_topk - truth) / 2
    # Chao's estimate is a lower bound of those that are missed
    assert 0 < few.conditions["off"].unseen.pct <= few.conditions["off"].dead_pct_topk - truth + 2
    assert not [note for note in many.notes if "few for" in note]


def test_fewer_tokens_than_dimensions_make_whitening_uncertain() -> None:
    notes = diagnose(planted(1.0, 100), **SIZE).notes
    assert any("do not determine the covariance" in note for note in notes)


# --- the centering ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_a_centering_is_undone_kept_and_folded(rank: int | None, tmp_path: Path) -> None:
    x = planted(3.0, d_model=128, rank=rank)
    centering = diagnose(x, **SIZE).recommended.centering
    assert isinstance(centering, nn.Module)
    assert torch.allclose(centering.undo(centering(x)), x, atol=1e-3 * x.abs().max().item())
    centering.save(tmp_path / "deep" / "centering.safetensors")
    loaded = Centering.load(tmp_path / "deep" / "centering.safetensors")
    assert (loaded.name, loaded.preprocessing) == (centering.name, "raw")
    assert torch.equal(loaded(x), centering(x))
    sae = TopK(128, N, k=K)
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(3))
        folded = centering.fold_into(sae)
        pre = sae.pre_activations(centering(x))
        assert (folded.pre_activations(x) - pre).norm() < 1e-4 * pre.norm()
        expected = centering.undo(sae(centering(x)))
        off = (folded(x) - expected).norm(dim=1) > 1e-4 * expected.norm(dim=1)
        assert off.sum() <= 2  # where a token's k-th and next feature are as large as each other, rounding chooses


class SaeLensLike(nn.Module):
    def __init__(self, sae: TopK) -> None:
        super().__init__()
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            setattr(self, name, nn.Parameter(getattr(sae, name).detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        return pre.relu() @ self.W_dec + self.b_dec


class LinearLike(nn.Module):
    def __init__(self, sae: TopK) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.bias = nn.Parameter(sae.b_dec.detach().clone())
        self.encoder.weight.data = sae.W_enc.detach().T.clone()
        self.encoder.bias.data = sae.b_enc.detach().clone()
        self.decoder.weight.data = sae.W_dec.detach().T.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x - self.bias).relu()) + self.bias


class WithoutBiasBefore(SaeLensLike):
    apply_b_dec_to_input = False

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc + self.b_enc).relu() @ self.W_dec + self.b_dec


@pytest.mark.parametrize("kind", [SaeLensLike, LinearLike, WithoutBiasBefore])
def test_a_centering_is_folded_into_other_libraries_modules_in_place(kind: type[Any]) -> None:
    x = planted(3.0)
    m = moments([x], covariance=True)
    sae = TopK(D, D, k=K)  # as many features as dimensions: shapes do not tell a matrix from its transpose
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
        for name in ("on", "whiten"):
            centering, theirs = Centering(CENTERINGS[name](m), name), kind(sae)
            expected = centering.undo(theirs(centering(x)))
            assert centering.fold_into(theirs) is theirs
            assert (theirs(x) - expected).norm() < 1e-5 * expected.norm()


def test_what_cannot_be_folded_or_loaded_is_a_sentence(tmp_path: Path) -> None:
    centering = diagnose(planted(3.0), **SIZE).recommended.centering
    with pytest.raises(ValueError, match="the SAE is for tokens of width 7, but this centering for 64"):
        centering.fold_into(TopK(7, 14, k=2))
    with pytest.raises(ValueError, match="Linear has no weights under names that are known: W_enc or encoder"):
        centering.fold_into(nn.Linear(3, 3))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.safetensors is no safetensors file"):
        Centering.load(tmp_path / "x.safetensors")
    from sae_outliers.sae.io import save_sae

    save_sae(tmp_path / "sae.safetensors", TopK(4, 8, k=2), Affine(torch.zeros(4)), {})
    assert load_sae(tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="holds no centering"):
        Centering.load(tmp_path / "sae.safetensors")


# --- bad input --------------------------------------------------------------------------------------------


def with_value(value: float) -> Tensor:
    x = planted(1.0, 500)
    x[70, 5] = value
    return x


def nothing() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"activations": with_value(torch.nan)}, ValueError, r"contain nan \(first in token 70, dimension 5; 1 of 500"),
        ({"activations": with_value(torch.inf)}, ValueError, "contain inf .*float16 overflows"),
        ({"activations": torch.ones(500, D)}, ValueError, "none of the dimensions varies over 500 tokens"),
        ({"activations": torch.zeros(500)}, ValueError, r"the shape \[500\]: \[tokens, d_model\] or"),
        ({"activations": torch.zeros(0, D)}, ValueError, "there are no tokens"),
        ({"activations": nothing()}, ValueError, "the iterable is empty"),
        ({"activations": [torch.zeros(3, 4), torch.zeros(3, 5)]}, ValueError, "chunk 1 has tokens of width 5, but the"),
        ({"activations": ["x"]}, TypeError, "chunk 0 is a str"),
        ({"activations": "acts.npy"}, TypeError, "python -m sae_outliers.diagnose reads them"),
        ({"activations": {"a": 1}}, TypeError, "activations are a dict: give a tensor"),
        ({"activations": torch.zeros(2, 3, 4), "mask": torch.ones(2, 4)}, ValueError, r"mask has the shape \[2, 4\]"),
        ({"activations": torch.zeros(2, 3, 4), "mask": torch.zeros(2, 3)}, ValueError, "its mask is False everywhere"),
        ({"activations": [torch.zeros(2, 3)], "mask": torch.ones(2)}, ValueError, "mask is for one tensor"),
        ({"activations": planted(1.0, 100), "k": 9, "n_features": 8}, ValueError, "k=9 must lie between 1 and n_feat"),
        ({"activations": planted(1.0, 100), "tokens": 1}, ValueError, "tokens=1: at least 2 are needed"),
        ({"activations": planted(1.0, 100), "preprocessing": "x"}, ValueError, "preprocessing=x does not exist: use"),
        ({"activations": planted(1.0, 100), "sae": 3}, TypeError, "sae is a int: give the folder"),
    ],
)
def test_bad_input_is_a_sentence(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as raised:
        diagnose(**arguments)
    assert "\n" not in str(raised.value)


# --- how it shows itself, and its name --------------------------------------------------------------------


def test_it_is_a_table_in_a_terminal_and_in_a_notebook() -> None:
    d = diagnose(planted(3.0), **SIZE)
    text, html = repr(d), d._repr_html_()
    assert text.startswith("CENTRE. ")
    assert f"{d.conditions['off'].dead_pct_topk:.2f}" in text
    for name in ("off", "mean", "geometric median", "whiten"):
        assert f"<th>{name}</th>" in html
        assert name in text
    assert max(map(len, text.splitlines()[3:9])) < 100


def test_the_layers_of_a_model_are_rows_and_the_least_certain_one_is_named() -> None:
    layers = {number: replace(diagnose(x, **SIZE), layer=number)
              for number, x in {4: planted(3.0), 7: planted(1.0, 150)}.items()}  # fmt: skip
    model = ModelDiagnosis("mine", layers)
    assert model[4].verdict.kind == "centre"
    assert [one.layer for one in model] == list(model.table.index) == [4, 7]
    assert model.table.loc[4, "off"] == layers[4].conditions["off"].dead_pct_topk
    assert repr(model).startswith("mine: ")
    assert "Note, layer 7: 150 tokens are few for 512 features" in repr(model)
    assert "<th>7</th>" in model._repr_html_()
    assert "no layer was finished" in repr(ModelDiagnosis("mine", {}))


@pytest.mark.parametrize(
    "imports",
    [
        "import sae_outliers",
        "import sae_outliers.diagnose",
        "import sae_outliers; sae_outliers.diagnose; import sae_outliers.diagnose",
        "import sae_outliers.diagnose; from sae_outliers import diagnose",
    ],
)
def test_the_name_is_callable_whichever_way_it_is_imported(imports: str) -> None:
    code = f"{imports}\nimport torch; print(sae_outliers.diagnose(torch.randn(99, 4), n_features=8, k=2).n_tokens)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "99"


# --- recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["saelens", "saelens_trainer", "dictionary_learning", "sparsify", "torch"])
def test_recipes_are_python_of_the_library_that_puts_the_centering_in(library: str) -> None:
    for x in (planted(3.0), planted(1.0, d_model=128, rank=2)):
        recommended = diagnose(x, **SIZE).recommended
        text = recommended.recipe(library)
        compile(text, library, "exec")
        by_itself = library == "saelens" and recommended.verdict.kind == "whiten"
        assert ("covariance_whitening" if by_itself else 'Centering.load("centering.safetensors")') in text
        assert "CAUTION" not in text
        assert "{" not in text.replace('f"{save_dir}/trainer_{i}', "").replace("{}", "").replace("{name}", "")
    assert "nothing to do" in diagnose(planted(0.0, 12_000), **SIZE).recommended.recipe(library)


def test_a_recipe_says_where_a_library_does_not_preprocess_as_was_diagnosed() -> None:
    recommended = diagnose(planted(3.0), preprocessing="postln", **SIZE).recommended
    assert recommended.recipe("torch").count("centering(postln(x))") == 2
    assert "CAUTION" in recommended.recipe("sparsify")
    assert "preprocessing=raw, layer_norm" in recommended.recipe("saelens")
    with pytest.raises(
        ValueError, match="no recipe for tensorflow: use one of saelens, saelens_trainer, dictionary_learning"
    ):
        recommended.recipe("tensorflow")


def test_the_plain_loop_trains_on_centred_tokens_and_loses_no_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = planted(5.0, 4000)
    d = diagnose(x, **SIZE)
    d.recommended.centering.save("centering.safetensors")
    sae = TopK(D, N, k=K)
    batches = [x[torch.randint(len(x), (256,))] for _ in range(30)]
    names = {"sae": sae, "batches": batches, "optimizer": torch.optim.Adam(sae.parameters(), lr=1e-3)}
    exec(d.recommended.recipe("torch"), names)
    assert names["x_hat"].shape == (256, D)  # type: ignore[attr-defined]
    found = diagnose(x, sae=d.recommended.centering.fold_into(sae)).trained  # type: ignore[arg-type]
    assert found is not None
    assert found.dead_pct < 1 < d.conditions["off"].dead_pct_topk
