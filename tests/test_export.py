"""The exported files without the libraries that read them; tests/peers loads them with those."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from sae_outliers.export import main
from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SAES, SparseAutoencoder
from sae_outliers.sae.export.base import EXPORTERS, export, exporter, preprocessing_note
from sae_outliers.sae.io import save_sae
from sae_outliers.stats.moments import moments
from sae_outliers.stats.transforms import CENTERINGS, PREPROCESSINGS, Affine
from sae_outliers.utils.boundary import one_sentence

ROOT = Path(__file__).parents[1]
D, N, K = 24, 200, 8
DESCRIBED = {"run_id": "abc", "model": "tiny", "layer": 3, "gamma": 2.5, "centering": "on", "preprocessing": "postln"}
Kind = type[SparseAutoencoder]


def shifted_tokens() -> Tensor:
    """Correlated tokens [tokens, D], two dimensions with a large mean."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, D)) @ rng.normal(size=(D, D)) + 20 * (np.arange(D) == 5) - 12 * (np.arange(D) == 11)
    return torch.from_numpy(x).float()


def trained_like(kind: Kind, z: Tensor) -> SparseAutoencoder:
    """An SAE of inputs z whose every parameter is away from its value at initialisation."""
    sae = kind(D, N, k=K, scale=z.var(0).sum().sqrt().item())
    unit = sae.scale / D**0.5
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            step = 0.2 * unit if name in ("b_enc", "b_dec", "b_mag") else 0.2
            parameter.add_(step * torch.randn(parameter.shape, generator=generator))
    if isinstance(sae, BatchTopK):
        for batch in z.split(100):
            sae.choose(batch)  # moves the threshold
    return sae


def steady(sae: SparseAutoencoder, z: Tensor) -> Tensor:
    """Which tokens have the same active features a little to either side of z: rounding does not decide on them."""
    noise = 1e-4 * sae.scale * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    active, opposite = (sae.features(sae.pre_activations(inputs)) > 0 for inputs in (z + noise, z - noise))
    return (active == opposite).all(1)


class Case:
    """An SAE, its centering, tokens x [tokens, D] and what is expected of the exported SAE on them."""

    def __init__(self, kind: Kind, centering: str, preprocessing: str = "raw") -> None:
        tokens = PREPROCESSINGS[preprocessing](shifted_tokens())
        self.centering: Affine = CENTERINGS[centering](moments([tokens], covariance=True))
        z = self.centering.apply(tokens)
        self.sae = trained_like(kind, z)
        kept = steady(self.sae, z)
        assert kept.sum() > 200
        self.x, z = tokens[kept], z[kept]
        with torch.no_grad():
            self.features = self.sae.features(self.sae.pre_activations(z))
            self.x_hat = self.centering.undo(self.sae(z))
        assert 2 < (self.features > 0).sum(1).float().mean() < N / 2

    def export(self, format: str, to: Path, described: dict[str, Any] = DESCRIBED) -> Path:
        export(self.sae, self.centering, described, format, to)
        return to


def distance(actual: Any, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||."""
    actual = torch.as_tensor(actual)
    return ((actual - expected).norm() / expected.norm()).item()


def reconstruct_by_hand(folder: Path, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """x̂ of the SAE that SAELens' files describe, in float64."""
    config = json.loads((folder / "cfg.json").read_text())
    weights = {name: t.double().numpy() for name, t in load_file(folder / "sae_weights.safetensors").items()}
    products = (x - weights["b_dec"]) @ weights["W_enc"]
    match config["architecture"]:
        case "standard":
            features = np.maximum(products + weights["b_enc"], 0)
        case "topk":
            pre = products + weights["b_enc"]
            least = np.sort(pre, axis=1)[:, -config["k"], None]
            features = np.where(pre >= least, np.maximum(pre, 0), 0)
        case "jumprelu":
            pre = products + weights["b_enc"]
            features = np.where(pre > weights["threshold"], np.maximum(pre, 0), 0)
        case "gated":
            magnitude = products * np.exp(weights["r_mag"]) + weights["b_mag"]
            features = np.where(products + weights["b_gate"] > 0, np.maximum(magnitude, 0), 0)
    result: NDArray[np.float64] = features @ weights["W_dec"] + weights["b_dec"]
    return result


@pytest.mark.parametrize("centering", ["off", "on", "whiten"])
@pytest.mark.parametrize("kind", [TopK, BatchTopK, Matryoshka, JumpReLU, Gated, ReLU])
def test_saelens_tensors_hold_sae_and_centering_together(kind: Kind, centering: str, tmp_path: Path) -> None:
    case = Case(kind, centering)
    folder = case.export("saelens", tmp_path / "out")
    assert distance(reconstruct_by_hand(folder, case.x.double().numpy()), case.x_hat) < 1e-5


def test_saelens_config_names_version_sizes_and_where_the_sae_comes_from(tmp_path: Path) -> None:
    folder = Case(TopK, "on").export("saelens", tmp_path / "out")
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["d_in"], config["d_sae"], config["k"], config["apply_b_dec_to_input"]) == (D, N, K, True)
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert config["metadata"]["model_name"] == "tiny"
    origin = config["metadata"]["sae_outliers"]
    assert "LayerNorm" in origin.pop("reading")
    assert origin == DESCRIBED
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


LINEAR = {"encoder.weight": (N, D), "decoder.weight": (D, N)}
MATRICES = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
SELECTING = {"k": (), "threshold": ()}


@pytest.mark.parametrize(
    ("kind", "name", "shapes"),
    [
        (TopK, "AutoEncoderTopK", LINEAR | {"encoder.bias": (N,), "b_dec": (D,)} | SELECTING),
        (BatchTopK, "BatchTopKSAE", LINEAR | {"encoder.bias": (N,), "b_dec": (D,)} | SELECTING),
        (Matryoshka, "MatryoshkaBatchTopKSAE", MATRICES | SELECTING | {"group_sizes": (5,)}),
        (JumpReLU, "JumpReluAutoEncoder", MATRICES | {"threshold": (N,)}),
        (
            Gated,
            "GatedAutoEncoder",
            LINEAR | {"decoder_bias": (D,), "gate_bias": (N,), "mag_bias": (N,), "r_mag": (N,)},
        ),
        (ReLU, "AutoEncoderNew", LINEAR | {"encoder.bias": (N,), "decoder.bias": (D,)}),
    ],
)
def test_dictionary_learning_gets_the_class_and_keys_of_the_type(
    kind: Kind, name: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    folder = Case(kind, "on").export("dictionary_learning", tmp_path / "out")
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["activation_dim"], trainer["dict_size"]) == (name, D, N)
    assert {key: tuple(tensor.shape) for key, tensor in torch.load(folder / "ae.pt").items()} == shapes


def test_dictionary_learning_counts_layers_from_zero(tmp_path: Path) -> None:
    folder = Case(TopK, "on").export("dictionary_learning", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["sae_outliers"]["layer"] - config["trainer"]["layer"] == 1


def test_relu_keeps_its_own_class_in_dictionary_learning_where_the_loader_would_not_rescale_features(
    tmp_path: Path,
) -> None:
    case = Case(ReLU, "on")
    case.sae.normalize_decoder()
    folder = case.export("dictionary_learning", tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == "AutoEncoder"


def test_matryoshka_prefixes_become_group_sizes(tmp_path: Path) -> None:
    case = Case(Matryoshka, "off")
    folder = case.export("dictionary_learning", tmp_path / "out")
    assert torch.load(folder / "ae.pt")["group_sizes"].tolist() == [12, 13, 25, 50, 100]


@pytest.mark.parametrize(("kind", "activation"), [(TopK, "topk"), (GroupMax, "groupmax")])
def test_sparsify_gets_its_keys_and_whether_rows_are_at_unit_norm(kind: Kind, activation: str, tmp_path: Path) -> None:
    case = Case(kind, "whiten")
    folder = case.export("sparsify", tmp_path / "whiten")
    config = json.loads((folder / "cfg.json").read_text())
    expected = {"activation": activation, "num_latents": N, "k": K, "d_in": D, "normalize_decoder": False}
    assert expected.items() <= config.items()
    assert json.loads((folder / "sae_outliers.json").read_text())["run_id"] == "abc"
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "sae.safetensors").items()}
    assert shapes == {"encoder.weight": (N, D), "encoder.bias": (N,), "W_dec": (N, D), "b_dec": (D,)}
    case = Case(kind, "on")
    case.sae.normalize_decoder()
    folder = case.export("sparsify", tmp_path / "on")
    assert json.loads((folder / "cfg.json").read_text())["normalize_decoder"] is True


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ({"preprocessing": "raw"}, "there is nothing to apply before"),
        ({"preprocessing": "postln"}, r"apply LayerNorm without affine .*times sqrt\(d_model\)"),
        ({}, "apply preprocessing=unknown"),
    ],
)
def test_reading_names_what_the_files_do_not_do(described: dict[str, Any], sentence: str) -> None:
    assert re.search(sentence, preprocessing_note(described))


def test_refusals_say_what_to_do_and_leave_no_files(tmp_path: Path) -> None:
    to = tmp_path / "out"
    groupmax, untrained = Case(GroupMax, "on"), Case(BatchTopK, "on")
    with pytest.raises(ValueError, match="format=onnx does not exist: use one of dictionary_learning, saelens, spars"):
        groupmax.export("onnx", to)
    for format in ("saelens", "dictionary_learning"):
        with pytest.raises(ValueError, match=f"format={format} cannot hold a groupmax SAE: use format=sparsify"):
            groupmax.export(format, to)
    with pytest.raises(ValueError, match="a gated SAE: use format=dictionary_learning or saelens"):
        Case(Gated, "on").export("sparsify", to)
    untrained.sae.threshold.fill_(-1)  # type: ignore[operator]
    for format in ("saelens", "dictionary_learning"):
        with pytest.raises(ValueError, match=r"This batchtopk SAE has no threshold \(-1.0\).*train it first"):
            untrained.export(format, to)
    assert not to.exists()
    to.mkdir()
    (to / "notes").write_text("mine")
    with pytest.raises(ValueError, match=r"out exists and is not an empty folder: name another"):
        groupmax.export("sparsify", to)
    with pytest.raises(ValueError, match=r"notes exists and is not an empty folder"):
        groupmax.export("sparsify", to / "notes")
    assert [path.name for path in to.iterdir()] == ["notes"]


class TopKOfMine(TopK):
    """Another function than its base's: exporting it as a TopK would change the features."""

    def features(self, pre: torch.Tensor) -> torch.Tensor:
        return super().features(pre).square()


@pytest.mark.parametrize("format", EXPORTERS)
def test_a_type_of_ones_own_is_refused_by_name_whatever_it_derives_from(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, off = TopKOfMine(D, N, k=K), Affine(torch.zeros(D))
    with pytest.raises(ValueError, match=r"cannot hold a tests\.test_export\.TopKOfMine SAE: no other format can"):
        export(sae, off, DESCRIBED, format, tmp_path / "out")
    monkeypatch.setattr(SAES, "_found", {**dict(SAES.items()), "mytopk": TopKOfMine})
    with pytest.raises(ValueError, match=f"format={format} cannot hold a mytopk SAE: no other format can"):
        export(sae, off, DESCRIBED, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    case = Case(JumpReLU, "whiten")
    save_sae(tmp_path / "run" / "sae.safetensors", case.sae, case.centering, DESCRIBED)
    return tmp_path / "run"


def test_command_exports_what_the_function_does_and_says_how_to_read_it(run_folder: Path, tmp_path: Path) -> None:
    arguments = [f"run={run_folder}", "format=saelens", f"to={tmp_path / 'by=command'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "sae_outliers.export", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    by_function = Case(JumpReLU, "whiten").export("saelens", tmp_path / "by_function")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "by=command" / name).read_bytes() == (by_function / name).read_bytes()
    files, how = done.stdout.splitlines()
    assert files.endswith("by=command: sae_weights.safetensors, cfg.json")
    assert how == preprocessing_note(DESCRIBED)


class Mine(TopK):
    """A class of one's own, in whose module there is a format for it."""


def files_of_mine(sae: SparseAutoencoder, described: dict[str, Any]) -> dict[str, Any]:
    return {"b_dec.safetensors": {"b_dec": sae.b_dec}, "of.json": {"layer": described["layer"]}}


def test_a_class_of_ones_own_is_exported_once_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EXPORTERS, "_found", dict(EXPORTERS.items()))  # what is registered here goes with the test
    exporter("mine", "tests.test_export.Mine")(files_of_mine)
    case = Case(Mine, "on")
    save_sae(tmp_path / "run/sae.safetensors", case.sae, case.centering, DESCRIBED)
    arguments = [f"run={tmp_path / 'run'}", "format=mine", f"to={tmp_path / 'to'}"]
    with pytest.raises(
        ValueError, match=r"of the type tests\.test_export\.Mine, .* name it yourself, by type=tests\.test_"
    ):
        main(arguments)
    with pytest.raises(ValueError, match=r"sae type shutil\.which is not a subclass of SparseAutoencoder"):
        main([*arguments, "type=shutil.which"])
    main([*arguments, "type=tests.test_export.Mine"])
    assert "b_dec.safetensors, of.json" in capsys.readouterr().out
    exported = load_file(tmp_path / "to/b_dec.safetensors")["b_dec"]
    assert torch.allclose(exported, case.centering.undo(case.sae.b_dec))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run: [f"rum={run}", "format=saelens", "to=x"], "Expected run=<folder of a run> format=<format> to=<f"),
        (lambda run: [f"run={run}", "format=saelens"], "Expected run="),
        (
            lambda run: [f"run={run}", "format=saelens", "to=x", "verbose"],
            "verbose; formats: dictionary_learning, sae",
        ),
        (lambda run: [], "got no arguments"),
        (lambda run: [f"run={run}", "format=saelens", "to=x", "to=y"], "Expected run="),
        (lambda run: [f"run={run}", "format=saelens", "to=x", "type=topk", "type=relu"], "Expected run="),
        (lambda run: [f"run={run}/nowhere", "format=saelens", "to=x"], "nowhere/sae.safetensors does not exist: give"),
        (lambda run: [f"run={run}", "format=sparsify", "to=x"], "cannot hold a jumprelu SAE"),
    ],
)
def test_command_ends_with_status_1_and_a_sentence(
    arguments: Callable[[Path], list[str]], message: str, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end, one_sentence():
        main(arguments(run_folder))
    (said,) = caplog.messages
    assert end.value.code == 1
    assert message in said
