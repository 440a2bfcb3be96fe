from transformers import PretrainedConfig


class gLM2Config(PretrainedConfig):
    model_type = "gLM2"

    def __init__(self, dim=640, depth=30, heads=10, vocab_size=37, norm_eps=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.depth, self.heads = dim, depth, heads
        self.vocab_size, self.norm_eps = vocab_size, norm_eps
