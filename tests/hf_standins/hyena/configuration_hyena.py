from transformers import PretrainedConfig


class StripedHyenaConfig(PretrainedConfig):
    model_type = "stripedhyena"

    def __init__(self, vocab_size=512, hidden_size=64, num_layers=4, attn_layer_idxs=(1,), state_size=2,
                 use_cache=True, **kwargs):  # fmt: skip
        self.vocab_size, self.hidden_size, self.num_layers = vocab_size, hidden_size, num_layers
        self.attn_layer_idxs, self.state_size, self.use_cache = attn_layer_idxs, state_size, use_cache
        super().__init__(**kwargs)
