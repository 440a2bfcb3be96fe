"""Trained SAEs in a diagnosis: their files read back as what they were, and SAEs of which the truth is known."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_outliers import Centering, TopK, TrainConfig, Trainer, diagnose, fold
from sae_outliers.diagnosis.loaded import NORMALISATIONS, LoadedSae
from sae_outliers.diagnosis.readers.base import READERS, read_sae
from sae_outliers.diagnosis.trained import Action, advise
from sae_outliers.diagnosis.verdict import Verdict
from sae_outliers.results.features import Fate
from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.export.base import EXPORTERS
from sae_outliers.sae.io import save_sae
from sae_outliers.stats.transforms import Affine
from tests.test_diagnose import planted
from tests.test_export import Case, distance

KINDS = {"TopK": TopK, "BatchTopK": BatchTopK, "Matryoshka": Matryoshka, "JumpReLU": JumpReLU, "Gated": Gated,
         "ReLU": ReLU, "GroupMax": GroupMax}  # fmt: skip


def output(loaded: LoadedSae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstruction of tokens x [tokens, d_model] as the file's config has them preprocessed."""
    assert loaded.preprocessing is not None
    tokens = NORMALISATIONS[loaded.preprocessing](x)
    scale = loaded.input_map([tokens])
    with torch.no_grad():
        z = scale.apply(tokens)
        return loaded.sae.features(loaded.sae.pre_activations(z)), scale.undo(loaded.sae(z))


# --- files ------------------------------------------------------------------------------------------------


def pairs() -> list[tuple[str, str]]:
    return [(name, kind) for name, exporter in EXPORTERS.items() for kind in KINDS if kind.lower() in exporter.types]


@pytest.mark.parametrize("centering", ["on", "whiten"])
@pytest.mark.parametrize(("format", "kind"), pairs())
def test_what_is_exported_is_read_back_as_it_was(format: str, kind: str, centering: str, tmp_path: Path) -> None:
    case = Case(KINDS[kind], centering)
    loaded = read_sae(case.export(format, tmp_path / "sae"))
    features, x_hat = output(loaded, case.x)
    assert format in loaded.source.lower()
    assert distance(x_hat, case.x_hat) < 1e-5
    assert distance(features, case.features) < 1e-5


@pytest.mark.parametrize("place", ["folder", "file"])
def test_ours_is_read_with_its_centering_and_preprocessing(place: str, tmp_path: Path) -> None:
    case = Case(JumpReLU, "whiten", "postln")
    save_sae(tmp_path / "sae.safetensors", case.sae, case.centering, {"preprocessing": "postln"})
    loaded = read_sae(tmp_path if place == "folder" else tmp_path / "sae.safetensors")
    assert loaded.preprocessing == "postln"
    assert loaded.centering is not None
    assert torch.equal(loaded.centering.apply(case.x), case.centering.apply(case.x))


def save_saev(path: Path, sae: TopK | BatchTopK | ReLU, header: dict[str, Any], **buffers: Tensor) -> None:
    """As saev's `dump`: a line of JSON, then torch.save of the state_dict."""
    names = ("W_dec", "b_dec", "W_enc", "b_enc")
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save({name: getattr(sae, name).detach().clone() for name in names} | buffers, file)


SAEV = {"d_model": 24, "d_sae": 200, "reinit_blend": 0.8, "normalize_w_dec": True}


@pytest.mark.parametrize(
    ("kind", "activation", "buffers"),
    [
        ("TopK", {"cls": "TopK", "params": {"top_k": 8, "aux": {"cls": "AuxK", "params": {"k_aux": 512}}}}, {}),
        ("BatchTopK", {"cls": "BatchTopK", "params": {"top_k": 8}}, {"activation.threshold": torch.tensor(0.7)}),
        ("ReLU", {"cls": "Relu", "params": {}}, {}),
    ],
)
def test_saevs_files_are_read_as_its_encoder_computes_which_does_not_subtract_b_dec(
    kind: str, activation: dict[str, Any], buffers: dict[str, Tensor], tmp_path: Path
) -> None:
    case = Case(KINDS[kind], "on")
    header = {"schema": 5, "cfg": SAEV | {"activation": activation}, "commit": "abc", "lib": "0.1"}
    save_saev(tmp_path / "sae.pt", case.sae, header, **buffers)  # type: ignore[arg-type]
    loaded = read_sae(tmp_path / "sae.pt")
    z = case.centering.apply(case.x)
    with torch.no_grad():
        pre = z @ case.sae.W_enc + case.sae.b_enc
        if kind == "TopK":
            by_hand = pre.relu() * (pre >= pre.topk(8).values[:, -1:])
        else:
            by_hand = pre.relu() * (pre > buffers.get("activation.threshold", torch.tensor(0.0)))
        features, x_hat = output(loaded, z)
    assert distance(features, by_hand) < 1e-5
    assert distance(x_hat, by_hand @ case.sae.W_dec + case.sae.b_dec) < 1e-5


def saelens(folder: Path, sae: TopK, **settings: Any) -> Path:
    folder.mkdir()
    names = ("W_dec", "b_dec", "W_enc", "b_enc")
    save_file({name: getattr(sae, name).detach().contiguous() for name in names}, folder / "sae_weights.safetensors")
    d, n = sae.W_enc.shape
    cfg = {"architecture": "topk", "d_in": d, "d_sae": n, "k": sae.k, "apply_b_dec_to_input": True}
    (folder / "cfg.json").write_text(json.dumps(cfg | settings))
    return folder


def test_saelens_normalisations_are_applied_as_its_config_declares(tmp_path: Path) -> None:
    case = Case(TopK, "off")
    x, sae = case.x, case.sae
    norms = x.norm(dim=1, keepdim=True)
    centred = x - x.mean(1, keepdim=True)
    factor = 24**0.5 / norms.mean()
    expected = {
        "none": x,
        "layer_norm": centred / (centred.square().sum(1, keepdim=True) / 23).sqrt(),
        "constant_norm_rescale": x * 24**0.5 / norms,
        "expected_average_only_in": x * factor,
    }
    for name, seen in expected.items():
        loaded = read_sae(saelens(tmp_path / name, sae, normalize_activations=name))  # type: ignore[arg-type]
        with torch.no_grad():
            features = sae.features(sae.pre_activations(seen))
        assert distance(output(loaded, x)[0], features) < 1e-4
    folder = saelens(tmp_path / "with_factor", sae, normalize_activations="expected_average_only_in")  # type: ignore[arg-type]
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.37}')
    with torch.no_grad():
        scaled = sae(0.37 * x) / 0.37
    assert distance(output(read_sae(folder), x)[1], scaled) < 1e-5


def test_saelens_settings_of_bias_and_decoder_norm_are_heeded(tmp_path: Path) -> None:
    case = Case(TopK, "off")
    x, sae = case.x, case.sae
    with torch.no_grad():
        folder = saelens(tmp_path / "bias", sae, apply_b_dec_to_input=False)  # type: ignore[arg-type]
        expected = sae.features(x @ sae.W_enc + sae.b_enc)
        assert distance(output(read_sae(folder), x)[0], expected) < 1e-5
        folder = saelens(tmp_path / "norm", sae, rescale_acts_by_decoder_norm=True)  # type: ignore[arg-type]
        norm = sae.W_dec.norm(dim=1)
        by_norm = sae.features(sae.pre_activations(x) * norm)
        features, x_hat = output(read_sae(folder), x)
        assert distance(features, by_norm) < 1e-5
        assert distance(x_hat, (by_norm / norm) @ sae.W_dec + sae.b_dec) < 1e-5


def test_saelens_files_of_its_fifth_version_are_read(tmp_path: Path) -> None:
    case = Case(TopK, "off")
    folder = saelens(tmp_path / "v5", case.sae, architecture="standard")  # type: ignore[arg-type]
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg["k"]
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8}}
    (folder / "cfg.json").write_text(json.dumps(cfg | old))
    assert distance(output(read_sae(folder), case.x)[1], case.x_hat) < 1e-5


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code ran')",))


def bad_folders(root: Path) -> dict[str, Path]:
    """Folders of files that are not to be read, by what is wrong with them."""
    case = Case(TopK, "on")
    made = {name: root / name.replace(" ", "_") for name in ("pickle", "module", "unknown", "empty", "class", "keys")}
    for name in ("pickle", "module", "class", "keys"):
        case.export("dictionary_learning", made[name])
    (made["pickle"] / "ae.pt").write_bytes(pickle.dumps(Unsafe()))
    torch.save(torch.nn.Linear(2, 2), made["module"] / "ae.pt")
    (made["class"] / "config.json").write_text('{"trainer": {"dict_class": "CrossCoder"}}')
    torch.save({"encoder.weight": torch.zeros(2, 2)}, made["keys"] / "ae.pt")
    made["empty"].mkdir()
    made["unknown"].mkdir()
    (made["unknown"] / "model.ckpt").write_bytes(b"x")
    made["json"] = case.export("sparsify", root / "json")
    (made["json"] / "cfg.json").write_text("{")
    made["damaged"] = case.export("sparsify", root / "damaged")
    (made["damaged"] / "sae.safetensors").write_bytes(b"\x09" * 40)
    made["transcoder"] = case.export("sparsify", root / "transcoder")
    (made["transcoder"] / "cfg.json").write_text('{"transcode": true, "k": 3}')
    made["saev pickle"] = root / "saev"
    made["saev pickle"].mkdir()
    (made["saev pickle"] / "sae.pt").write_bytes(b'{"schema": 5, "cfg": {"activation": {"cls": "TopK", "params": '
                                                 b'{"top_k": 4}}}}\n' + pickle.dumps(Unsafe()))  # fmt: skip
    made["architecture"] = saelens(root / "architecture", case.sae, architecture="temporal")  # type: ignore[arg-type]
    made["normalisation"] = saelens(root / "n", case.sae, normalize_activations="other")  # type: ignore[arg-type]
    made["two"] = case.export("saelens", root / "two")
    (made["two"] / "ae.pt").write_bytes(b"")
    (made["two"] / "config.json").write_text("{}")
    made["missing"] = root / "nowhere"
    return made


SENTENCES = {
    "pickle": r"ae\.pt is a pickle of more than tensors, or damaged, and loading it could run code: .*state_dict\(\)",
    "module": r"ae\.pt is a pickle of more than tensors",
    "saev pickle": r"sae\.pt is a pickle of more than tensors",
    "unknown": r"is of no format that is known \(.*saelens: cfg\.json and sae_weights.*it holds model\.ckpt",
    "empty": r"it holds nothing",
    "class": r"dict_class=CrossCoder is not read",
    "keys": r"has no encoder\.bias and no decoder\.weight and no b_dec: it holds encoder\.weight",
    "json": r"cfg\.json is not valid JSON",
    "damaged": r"sae\.safetensors is no safetensors file, or a damaged one",
    "transcoder": r"is a transcoder: only autoencoders",
    "architecture": r"architecture=temporal is not read: topk, jumprelu, gated and standard are",
    "normalisation": r"normalize_activations=other is not known",
    "two": r"holds the files of several formats \(dictionary_learning, saelens\): name one file",
    "missing": r"nowhere does not exist: give the folder",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_folders(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("name", SENTENCES)
def test_files_that_cannot_be_read_are_a_sentence_and_run_no_code(name: str, bad: dict[str, Path]) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=SENTENCES[name]) as raised:
        diagnose(planted(1.0, 300), sae=bad[name])
    assert "\n" not in str(raised.value)


def test_every_bad_folder_has_its_sentence_and_every_format_a_reader(bad: dict[str, Path]) -> None:
    assert set(bad) == set(SENTENCES)
    assert set(READERS) == {"dictionary_learning", "sae_outliers", "saelens", "saev", "sparsify"}


def test_an_sae_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = Case(TopK, "on").export("saelens", tmp_path / "sae")
    with pytest.raises(ValueError, match="is for activations of width 24, but these have 64: is it of another layer"):
        diagnose(planted(1.0, 300), sae=folder)


# --- an SAE of which the truth is known -------------------------------------------------------------------

MEAN = 10.0


def by_hand(in_bias: bool) -> tuple[TopK, Tensor]:
    """Tokens with a mean of 10 along axis 0, and an SAE with a feature of each fate.

    Feature 0 reads axis 0, 1 to 14 the other axes up and down, 15 reads axis 0 backwards, and 16 axis 1 too weakly
    ever to be among the three largest.
    """
    d = 8
    x = torch.randn(4000, d, generator=torch.Generator().manual_seed(5))
    x[:, 0] = MEAN + 0.1 * x[:, 0]
    axes = torch.eye(d)
    W_dec = torch.cat([axes[:1], axes[1:], -axes[1:], -axes[:1], axes[1:2]])
    sae = TopK(d, len(W_dec), k=3)
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.T)
        sae.W_enc[:, 16] *= 1e-4
        if in_bias:
            sae.b_dec[0] = MEAN
    return sae, x


def test_each_feature_has_the_fate_that_it_was_made_for() -> None:
    sae, x = by_hand(in_bias=False)
    found = diagnose(x, sae=sae).trained
    assert found is not None
    fates = found.features["fate"].to_list()
    assert fates == [Fate.ALIVE] * 15 + [Fate.NEVER_POSITIVE, Fate.NEVER_SELECTED]
    assert found.features["always_on"].to_list() == [True] + [False] * 16
    assert found.dead_pct == pytest.approx(100 * 2 / 17)
    assert found.features["alignment"][0] == pytest.approx(1, abs=1e-3)
    assert found.features["alignment"][15] == pytest.approx(-1, abs=1e-3)
    assert found.l0 == pytest.approx(3, abs=0.01)
    assert found.always_on_l0_pct == pytest.approx(100 / 3, abs=0.5)
    assert (found.bias.mean_in_bias, found.bias.mean_in_features) == pytest.approx((0, 1), abs=0.01)
    assert found.mean_in_always_on == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        fvu = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(fvu.item(), rel=1e-4)
    assert found.gamma == pytest.approx(diagnose(x, n_features=17, k=3).severity.gamma)


def test_a_bias_that_holds_the_mean_leaves_none_to_features() -> None:
    sae, x = by_hand(in_bias=True)
    found = diagnose(x, sae=sae).trained
    assert found is not None
    assert found.always_on == 0
    assert found.bias.mean_in_bias == pytest.approx(1, abs=0.01)
    assert found.mean_in_always_on == 0
    assert found.gamma < 0.05
    fates = found.features["fate"].to_list()
    assert fates[1:15] == [Fate.ALIVE] * 14
    assert Fate.NEVER_POSITIVE not in fates


@pytest.fixture(scope="module")
def trained_uncentred() -> tuple[TopK, Tensor]:
    """An SAE that was trained on planted γ = 5 with its bias at 0."""
    x = planted(5.0, 8000)
    torch.manual_seed(0)
    sae = TopK(64, 512, k=8, scale=x.var(0).sum().sqrt().item())
    trainer = Trainer(sae, TrainConfig(steps=300, n_tokens=0, batch_size=256, lr=1e-3, warmup_steps=0))
    for _ in range(300):
        trainer.train_step(x[torch.randint(len(x), (256,))])
    return sae, x


def test_an_sae_trained_off_centre_is_found_out_and_told_what_to_do(trained_uncentred: tuple[TopK, Tensor]) -> None:
    sae, x = trained_uncentred
    d = diagnose(x, sae=sae)
    found = d.trained
    assert found is not None
    assert found.dead_pct > 50
    assert found.bias.mean_in_bias < 0.2
    assert found.bias.mean_in_features > 0.8
    assert found.features.loc[found.features["fate"] == Fate.NEVER_POSITIVE, "alignment"].max() < 0
    assert found.advice.action == Action.RETRAIN
    assert "retrain centred".upper() in repr(d)
    assert "never positive" in d._repr_html_()
    assert (d.n_features, d.k) == (512, 8)


def test_recentring_keeps_what_lives_and_lets_the_dead_see_centred_tokens(
    trained_uncentred: tuple[TopK, Tensor],
) -> None:
    sae, x = trained_uncentred
    d = diagnose(x, sae=sae)
    assert d.trained is not None
    fresh = d.recentred()
    dead = torch.tensor(d.trained.features["fate"].to_numpy() != Fate.ALIVE)
    with torch.no_grad():
        before, after = (one.pre_activations(x) for one in (sae, fresh))
        living = before[:, ~dead]
        assert torch.equal(after[:, ~dead], living)
        expected = (x - d.recommended.centering.shift) @ sae.W_enc[:, dead]
        assert torch.allclose(after[:, dead], expected, atol=1e-3)
    trained = TrainConfig(steps=300, n_tokens=0, batch_size=256, lr=1e-3, warmup_steps=0)
    for one in (sae, fresh):  # as long again, from where it is and recentred
        tuned = copy.deepcopy(one)
        torch.manual_seed(0)
        trainer = Trainer(tuned, trained)
        for _ in range(300):
            trainer.train_step(x[torch.randint(len(x), (256,))])
        found = diagnose(x, sae=tuned).trained
        assert found is not None
        assert found.never_positive_pct == (0 if one is fresh else pytest.approx(d.trained.never_positive_pct, abs=5))


def test_what_was_trained_centred_and_folded_needs_nothing() -> None:
    x = planted(5.0, 8000)
    centering = diagnose(x, n_features=128, k=8).recommended.centering
    z = centering(x)
    torch.manual_seed(0)
    sae = TopK(64, 128, k=8, scale=z.var(0).sum().sqrt().item())
    trainer = Trainer(sae, TrainConfig(steps=200, n_tokens=0, batch_size=256, lr=1e-3, warmup_steps=0))
    for _ in range(200):
        trainer.train_step(z[torch.randint(len(z), (256,))])
    found = diagnose(x, sae=fold(sae, centering.affine)).trained
    assert found is not None
    assert found.advice.action == Action.NOTHING
    assert found.bias.mean_in_bias == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "dead", "never_positive", "in_bias", "always_on", "gamma", "action"),
    [
        ("fine", 1, 0, 0.0, 0, 0.4, Action.NOTHING),
        ("centre", 1, 0, 0.0, 5, 1.5, Action.NOTHING),
        ("centre", 1, 0, 0.0, 40, 1.5, Action.FOLD),
        ("centre", 30, 20, 0.1, 5, 0.9, Action.FOLD),
        ("centre", 80, 70, 0.1, 30, 4.5, Action.RETRAIN),
        ("centre", 94, 94, 0.6, 50, 16.0, Action.RETRAIN),  # γ = 40: most of it in b_dec, and still too much left
        ("centre", 40, 30, 0.9, 12, 2.0, Action.FOLD),
        ("whiten", 80, 70, 0.1, 30, 4.5, Action.WHITEN),
        ("centre", 30, 20, 1.0, 0, 0.1, Action.RETRAIN),
        ("centre", 30, 2, 1.0, 0, 0.1, Action.ENLARGE_K),
        ("fine", 30, 2, 0.0, 0, 0.4, Action.ENLARGE_K),
    ],
)
def test_advice_follows_from_dead_features_and_who_holds_the_mean(
    kind: str, dead: float, never_positive: float, in_bias: float, always_on: float, gamma: float, action: Action
) -> None:
    advice = advise(Verdict(kind, "mean", ""), dead, never_positive, in_bias, always_on, gamma)
    assert advice.action == action
    assert gamma <= 1 or "not in the way" not in advice.reason


def test_a_recommended_centering_stands_for_the_saes_own_preprocessing(tmp_path: Path) -> None:
    x = planted(5.0, 3000)
    folder = saelens(tmp_path / "sae", TopK(64, 128, k=8), normalize_activations="layer_norm")
    d = diagnose(x, sae=folder)
    assert d.preprocessing == "layer_norm"
    tokens = NORMALISATIONS["layer_norm"](x)
    np.testing.assert_allclose(d.recommended.centering.shift, tokens.double().mean(0), atol=1e-5)
    assert isinstance(d.recommended.centering, Centering)
    assert isinstance(d.recommended.centering.affine, Affine)
