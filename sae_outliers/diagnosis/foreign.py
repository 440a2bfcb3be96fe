"""Where other libraries keep an SAE's weights, as views in one layout that a centering can be folded into."""

from dataclasses import dataclass

from torch import Tensor, nn

from sae_outliers.stats.transforms import Affine

# names of attributes, first those whose tensors are in our layout, then those of nn.Linear, which are transposed
ENCODERS, DECODERS = ("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")
ENCODER_BIASES, DECODER_BIASES = ("b_enc", "encoder.bias"), ("b_dec", "bias", "decoder.bias")


@dataclass(frozen=True)
class Weights:
    """Views of the weights of x̂ = f((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec.

    Attributes:
        W_enc: [d_model, n_features].  W_dec: [n_features, d_model].
        subtracts_b_dec: whether b_dec is subtracted before the encoder, as above.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    subtracts_b_dec: bool

    def fold(self, centering: Affine) -> None:
        """Change them so that they do on x what they did on `centering.apply(x)`; see `sae.io.fold`."""
        W_enc, W_dec, b_dec = (tensor.double() for tensor in (self.W_enc, self.W_dec, self.b_dec))
        linear, inverse, scale = (
            None if part is None else part.to(W_enc) for part in (centering.linear, centering.inverse, centering.scale)
        )
        if linear is not None and inverse is not None and self.subtracts_b_dec:
            self.b_enc.add_(((b_dec @ inverse @ linear - b_dec) @ W_enc).to(self.b_enc))
        W_enc = W_enc if linear is None else linear @ W_enc
        W_enc = W_enc if scale is None else scale * W_enc
        W_dec = W_dec if inverse is None else W_dec @ inverse
        if not self.subtracts_b_dec:
            self.b_enc.sub_((centering.shift.to(W_enc) @ W_enc).to(self.b_enc))
        self.W_enc.copy_(W_enc)
        self.W_dec.copy_(W_dec if scale is None else W_dec / scale)
        self.b_dec.copy_(centering.to(b_dec.device).undo(self.b_dec.float()))


def weights_of(sae: nn.Module) -> Weights:
    """Return views of another library's weights. Raises ValueError where they are not to be found."""
    groups = (ENCODERS, ENCODER_BIASES, DECODERS, DECODER_BIASES)
    found = [next(filter(None.__ne__, (_attribute(sae, name) for name in names)), None) for names in groups]
    if any(tensor is None for tensor in found):
        raise ValueError(
            f"{type(sae).__name__} has no weights under names that are known: "
            + "; ".join(" or ".join(names) for names in groups)
        )
    W_enc, b_enc, W_dec, b_dec = (tensor.data for tensor in found if tensor is not None)
    told = getattr(getattr(sae, "cfg", sae), "apply_b_dec_to_input", True)
    return Weights(W_enc, b_enc, W_dec, b_dec, subtracts_b_dec=told and _attribute(sae, "decoder.bias") is None)


def _attribute(sae: nn.Module, name: str) -> Tensor | None:
    """Return the tensor at a dotted name, in our layout; None if there is none."""
    value: object = sae
    for part in name.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Tensor):
        return None
    return value.T if name.endswith(".weight") else value
