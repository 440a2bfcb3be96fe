"""make bench: a training step of the TopK SAE and its parts, as multiples of the encoder's matrix product.

All timings come from one run on one machine, interleaved; seconds on their own say little elsewhere.
"""

import time
from collections.abc import Callable

import torch

from sae_outliers.config import TrainConfig
from sae_outliers.sae.kernels import decode, decode_reference, topk_encode, topk_encode_reference
from sae_outliers.sae.topk import TopK
from sae_outliers.train import Trainer

D_MODEL, N_FEATURES, K, TOKENS, ROUNDS = 768, 8192, 64, 4096, 5


def main() -> None:
    x = torch.randn(TOKENS, D_MODEL)
    cases = make_cases(x)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(ROUNDS + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: sorted(times)[ROUNDS // 2] for name, times in seconds.items()}
    product = medians["encoder product"]
    print(f"d_model {D_MODEL}, n_features {N_FEATURES}, k {K}, {TOKENS} tokens, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:42} {median:7.3f} s {median / product:6.2f} x the product")


def make_cases(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    sae = TopK(D_MODEL, N_FEATURES, K)
    cfg = TrainConfig(steps=10**9, n_tokens=0, batch_size=TOKENS)
    trainer = Trainer(TopK(D_MODEL, N_FEATURES, K), cfg, scale=1.0)

    def forward_backward(encode: Callable, decoder: Callable) -> None:  # type: ignore[type-arg]
        values, indices = encode(x, sae.W_enc, sae.b_enc, sae.b_dec, K)
        (decoder(values, indices, sae.W_dec) + sae.b_dec - x).square().mean().backward()
        sae.zero_grad()

    return {
        "encoder product": lambda: x @ sae.W_enc.detach(),
        "forward and backward, sparse kernels": lambda: forward_backward(topk_encode, decode),
        "forward and backward, dense twins": lambda: forward_backward(topk_encode_reference, decode_reference),
        "whole training step": lambda: trainer.train_step(x),
    }


if __name__ == "__main__":
    main()
