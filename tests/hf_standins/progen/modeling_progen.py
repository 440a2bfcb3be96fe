import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_progen import ProGenConfig

PARTS = 8  # of the rows of qkv_proj, each with its share of query, value and key, in this order


def rotated(x, rotary_dim):  # [items, heads, positions, dim]: neighbouring pairs of the first rotary_dim turn
    angles = torch.outer(torch.arange(x.shape[2]).float(), 1e4 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim))
    even, odd = x[..., :rotary_dim:2], x[..., 1:rotary_dim:2]
    turned = torch.stack([even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], -1)
    return torch.cat([turned.flatten(-2), x[..., rotary_dim:]], -1)


class ProGenAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.rotary_dim = config.n_head, config.rotary_dim
        positions = config.n_positions
        self.register_buffer("bias", torch.ones(positions, positions, dtype=torch.bool).tril()[None, None])
        self.register_buffer("masked_bias", torch.tensor(-1e9))
        self.qkv_proj = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=False)
        self.out_proj = nn.Linear(config.embed_dim, config.embed_dim, bias=False)

    def forward(self, x, attention_mask=None):
        per_part = self.qkv_proj(x).unflatten(-1, (PARTS, 3, -1))
        query, value, key = (
            per_part[..., i, :].flatten(-2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for i in range(3)
        )
        scores = rotated(query, self.rotary_dim) @ rotated(key, self.rotary_dim).mT / query.shape[-1] ** 0.5
        length = x.shape[1]
        scores = torch.where(self.bias[..., :length, :length], scores, self.masked_bias)
        if attention_mask is not None:
            scores = scores - 10000.0 * (1 - attention_mask[:, None, None, :].float())
        return self.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class ProGenMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc_in = nn.Linear(config.embed_dim, 4 * config.embed_dim)
        self.fc_out = nn.Linear(4 * config.embed_dim, config.embed_dim)
        self.act = ACT2FN[config.activation_function]

    def forward(self, x):
        return self.fc_out(self.act(self.fc_in(x)))


class ProGenBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_epsilon)
        self.attn = ProGenAttention(config)
        self.mlp = ProGenMLP(config)

    def forward(self, x, attention_mask=None):
        normed = self.ln_1(x)
        return (x + self.attn(normed, attention_mask) + self.mlp(normed),)


class ProGenPreTrainedModel(PreTrainedModel):
    config_class = ProGenConfig
    base_model_prefix = "transformer"


class ProGenModel(ProGenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size_emb, config.embed_dim)
        self.h = nn.ModuleList([ProGenBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_epsilon)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        x = self.wte(input_ids)
        for block in self.h:
            x = block(x, attention_mask)[0]
        return BaseModelOutput(last_hidden_state=self.ln_f(x))


class ProGenForCausalLM(ProGenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = ProGenModel(config)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size_lm_head)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return CausalLMOutput(logits=self.lm_head(self.transformer(input_ids, attention_mask)[0]))
