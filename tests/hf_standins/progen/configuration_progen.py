from transformers import PretrainedConfig


class ProGenConfig(PretrainedConfig):
    model_type = "progen"

    def __init__(self, vocab_size_emb=32, vocab_size_lm_head=32, n_positions=1024, embed_dim=1024, n_layer=12,
                 n_head=16, rotary_dim=32, n_inner=None, activation_function="gelu_new", layer_norm_epsilon=1e-5,
                 use_cache=True, **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.vocab_size_emb, self.vocab_size_lm_head = vocab_size_emb, vocab_size_lm_head
        self.n_positions, self.embed_dim, self.n_layer, self.n_head = n_positions, embed_dim, n_layer, n_head
        self.rotary_dim, self.n_inner, self.activation_function = rotary_dim, n_inner, activation_function
        self.layer_norm_epsilon, self.use_cache = layer_norm_epsilon, use_cache
