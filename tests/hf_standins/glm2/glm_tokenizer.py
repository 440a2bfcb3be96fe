from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZOatcg", "<+>", "<->", "<mask>", "<sep>"]


class gLM2Tokenizer(PreTrainedTokenizerFast):
    def __init__(self, pos_token="<+>", neg_token="<->", **kwargs):
        tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(TOKENS)}, merges=[], unk_token="<unk>"))
        names = ("cls", "pad", "mask", "eos", "sep", "unk")
        tokenizer.add_special_tokens([f"<{name}>" for name in names] + [pos_token, neg_token])
        kwargs |= {f"{name}_token": f"<{name}>" for name in names}
        kwargs.pop("tokenizer_file", None)
        kwargs["tokenizer_object"] = tokenizer
        super().__init__(**kwargs)
