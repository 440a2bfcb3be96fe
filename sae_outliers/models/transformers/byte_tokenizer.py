"""Evo's tokens: a nucleotide's id is its byte."""

from typing import Any


class ByteTokenizer:
    """One token a byte, with nothing before, after or special: what `Windows` needs of a tokenizer.

    Evo's repository brings a class of its own for this, which newer releases of transformers cannot import.
    """

    pad_token_id = 1  # as Evo's CharLevelTokenizer has it (github.com/togethercomputer/stripedhyena)
    bos_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}
