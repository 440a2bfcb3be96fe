import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .configuration_glm2 import gLM2Config


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("variance_epsilon", torch.tensor(eps), persistent=False)

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class Rotary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, dim, 2) / dim), persistent=False)

    def forward(self, x):  # [items, heads, positions, dim]
        angles = torch.outer(torch.arange(x.shape[2]).float(), self.inv_freq)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.rotary_emb = Rotary(config.dim // config.heads)

    def forward(self, x, attention_mask):
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        mixed = F.scaled_dot_product_attention(self.rotary_emb(q), self.rotary_emb(k), v, attn_mask=mask)
        return self.wo(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = nn.Sequential(nn.Linear(config.dim, 2 * config.dim), nn.SiLU(),
                                          nn.Linear(2 * config.dim, config.dim))  # fmt: skip
        self.attention_norm, self.ffn_norm = Norm(config.dim, config.norm_eps), Norm(config.dim, config.norm_eps)

    def forward(self, x, attention_mask=None):
        h = x + self.attention(self.attention_norm(x), attention_mask)
        return h + self.feed_forward(self.ffn_norm(h))


class TransformerLayers(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList([TransformerBlock(config) for _ in range(config.depth)])

    def forward(self, x, attention_mask=None):
        states = []
        for layer in self.layers:
            x = layer(x, attention_mask=attention_mask)
            states.append(x)
        return x, states


class gLM2PreTrainedModel(PreTrainedModel):
    config_class = gLM2Config
    base_model_prefix = "glm2"

    def _init_weights(self, module):  # as in the published code, nothing restores the buffers
        pass


class gLM2Model(gLM2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.encoder = TransformerLayers(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, output_hidden_states=None, return_dict=None):
        x, states = self.encoder(self.tok_embeddings(input_ids), attention_mask)
        return BaseModelOutput(last_hidden_state=x, hidden_states=states if output_hidden_states else None)


class gLM2ForMaskedLM(gLM2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.glm2 = gLM2Model(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return MaskedLMOutput(logits=self.lm_head(self.glm2(input_ids, attention_mask)[0]))
