"""Byte tokenizer for Evo, where the id of a nucleotide is its byte."""

from typing import Any


class ByteTokenizer:
    """A tokenizer with one token per byte and no special tokens, with the interface that `TokenWindows` needs.

    It replaces the class in Evo's repository, which newer releases of transformers cannot import.
    """

    pad_token_id = 1  # as in Evo's CharLevelTokenizer (github.com/togethercomputer/stripedhyena)
    bos_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}
