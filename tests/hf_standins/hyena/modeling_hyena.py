import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_hyena import StripedHyenaConfig


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x):
        return x / (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5 + 1e-6) * self.scale


def masked(x, padding_mask):
    return x if padding_mask is None else x * padding_mask[..., None]


class AttentionBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.pre_norm, self.post_norm = RMSNorm(config), RMSNorm(config)
        self.inner_mha_cls = nn.Linear(width, 3 * width)
        self.mlp = nn.Linear(width, width)

    def forward(self, u, inference_params=None, padding_mask=None):
        q, k, v = self.inner_mha_cls(self.pre_norm(masked(u, padding_mask))).chunk(3, -1)
        u = masked(F.scaled_dot_product_attention(q, k, v, is_causal=True) + u, padding_mask)
        return self.mlp(self.post_norm(u)) + u, None


class ParallelHyenaFilter(nn.Module):
    """A causal convolution with a filter that is a sum of decaying exponentials."""

    def __init__(self, config):
        super().__init__()
        self.D = nn.Parameter(torch.zeros(config.hidden_size))
        self.poles = nn.Parameter(torch.randn(config.hidden_size, config.state_size))
        self.residues = nn.Parameter(torch.randn(config.hidden_size, config.state_size))

    def forward(self, u):
        length = u.shape[1]
        decay = torch.exp(-self.poles.abs()[..., None] * torch.arange(length, device=u.device))
        h = (self.residues[..., None] * decay).sum(1)
        assert h.dtype == torch.float32
        spectrum = torch.fft.rfft(u.float().transpose(1, 2), 2 * length) * torch.fft.rfft(h, 2 * length)
        return torch.fft.irfft(spectrum, 2 * length)[..., :length].transpose(1, 2).to(u.dtype) + u * self.D


class ParallelGatedConvBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.pre_norm, self.post_norm = RMSNorm(config), RMSNorm(config)
        self.filter = ParallelHyenaFilter(config)
        self.projections = nn.Linear(width, width)
        self.mlp = nn.Linear(width, width)

    def forward(self, u, inference_params=None, padding_mask=None):
        z = masked(self.projections(self.pre_norm(u)), padding_mask)
        z = masked(self.filter(z) + u, padding_mask)
        return self.mlp(self.post_norm(z)) + z, inference_params


class Embedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size))


class StripedHyena(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding_layer = Embedding(config)
        self.norm = RMSNorm(config)
        self.unembed = self.embedding_layer
        self.blocks = nn.ModuleList(
            AttentionBlock(config) if number in config.attn_layer_idxs else ParallelGatedConvBlock(config)
            for number in range(config.num_layers)
        )

    def forward(self, ids, inference_params_dict=None, padding_mask=None):
        x = masked(self.embedding_layer.weight[ids], padding_mask)
        for block in self.blocks:
            x, _ = block(x, inference_params=None, padding_mask=padding_mask)
        return self.norm(x) @ self.unembed.weight.T, inference_params_dict

    def to_bfloat16_except_poles_residues(self):
        for name, weight in self.named_parameters():
            if "poles" not in name and "residues" not in name:
                weight.data = weight.data.to(torch.bfloat16)


class StripedHyenaPreTrainedModel(PreTrainedModel):
    config_class = StripedHyenaConfig
    base_model_prefix = "sh"


class StripedHyenaModelForCausalLM(StripedHyenaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.backbone = StripedHyena(config)
        self.post_init()
        self.backbone.to_bfloat16_except_poles_residues()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, return_dict=None):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        assert not use_cache, "the published code would go the way of generation here, which ignores the mask"
        return CausalLMOutputWithPast(logits=self.backbone(input_ids, padding_mask=attention_mask)[0])
