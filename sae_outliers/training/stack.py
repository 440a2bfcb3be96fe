"""Small SAEs of one shape trained as one computation: an operation for all members, not one for each.

A small SAE spends its step on the overhead of operations. A stack holds the weights, moments and counters of its
members on a member axis, and every operation of a training step runs once over it. The members' own SAEs and trainers
hold views of these tensors, so that each is measured, saved and resumed as if it were alone. `Trainer.train_step` is
the readable twin: from the same state, both give the same weights but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import StepOutput
from sae_outliers.sae.kernels import (
    ByFeature,
    Code,
    joined,
    largest,
    largest_positive,
    products,
    rows_of_k,
    sums_by_feature,
    weighted_rows,
)
from sae_outliers.training.revival import AuxK, Revival
from sae_outliers.training.trainer import MOMENTS, Trainer, drop_negligible

# pre-activations of a batch that all members together may have: with more, a step leaves the CPU's cache
LARGEST = {"cpu": 1 << 22, "cuda": 1 << 28}
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Stack:
    """Members in training together.

    Args:
        trainers: those of one of `stacks`. They and their SAEs must not be moved, or trained alone, afterwards.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        first, self.trainers = trainers[0], trainers
        self.k, self.batch_size = first.sae.k, first.cfg.batch_size
        self.weights = {name: _joined([one.optimised[name] for one in trainers]) for name in WEIGHTS}
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = self.weights.values()  # W_enc as rows, like W_dec
        self.members, self.n_features, self.d_model = self.W_dec.shape
        self.last_fired = torch.stack([one.last_fired for one in trainers])
        for one, last_fired in zip(trainers, self.last_fired, strict=True):
            one.last_fired, one.sae.W_enc.data = last_fired, one.optimised["W_enc"].data.T
        self.pre = self.W_dec.new_empty(self.members, self.batch_size, self.n_features)
        scale = self.b_dec.new_tensor([one.sae.scale for one in trainers])
        self.per_token = 1 / (self.batch_size * scale.square())  # what a token's squared error adds to the loss
        self.rates = list(_alike(trainers, rates_of))
        self.auxks = [
            (members, one.revival) for members, one in _alike(trainers, auxk_of) if isinstance(one.revival, AuxK)
        ]
        self.parameters: list[tuple[nn.Parameter, str, slice]] = []
        self.optimizer = self._make_optimizer()

    @torch.no_grad()
    def train_step(self, inputs: Sequence[Tensor]) -> None:
        """Take one optimiser step of every member on its batch [batch_size, d_model]."""
        given = torch.stack(list(inputs))
        x = given - self.b_dec[:, None]
        # baddbmm takes half as long again, as does memory that is new at each step
        pre = torch.bmm(x, self.W_enc.transpose(1, 2), out=self.pre).add_(self.b_enc[:, None])
        code = choose(pre, self.k)
        residual = x - reconstruct(code, self.W_dec)
        grad_x_hat = residual * (-2 * self.per_token[:, None, None])
        terms = [Term(code, x, grad_x_hat)]
        for members, auxk in self.auxks:
            terms += self._auxk_terms(members, auxk, x[members], pre[members], residual[members])
        grads = gradients(terms, self.W_enc, self.W_dec)
        grads["b_dec"] += grad_x_hat.sum(1)
        self._update(grads)
        self._finish_step(given, code, residual)

    def _auxk_terms(self, members: slice, auxk: AuxK, x: Tensor, pre: Tensor, residual: Tensor) -> "list[Term]":
        """Return the term of `AuxK.loss` in the gradients of some members; none where it has no dead features."""
        dead = self._dead(members)
        if not dead.any():
            return []
        code = choose_positive(pre, dead, min(auxk.k_of(self.d_model), self.n_features))
        error = residual - reconstruct(code, self.W_dec[members])
        spread = (residual - residual.mean(1, keepdim=True)).square().sum((1, 2), keepdim=True)
        grad_x_hat = error * (-2 * auxk.alpha / spread.clamp(min=torch.finfo(error.dtype).tiny))
        return [Term(code._replace(indices=code.indices + members.start * self.n_features), x, grad_x_hat)]

    def _dead(self, members: slice) -> Tensor:
        """Return which features count as dead, as `Trainer.dead` does, bool [members, n_features]."""
        latest = [one.tokens - one.cfg.dead_window for one in self.trainers[members]]
        latest = [tokens if tokens >= 0 else -1 for tokens in latest]
        return self.last_fired[members] <= torch.tensor(latest, device=self.last_fired.device)[:, None]

    def _update(self, grads: dict[str, Tensor]) -> None:
        """Take Adam's step, each member at its own rates, and keep decoder rows at unit norm."""
        grads["W_dec"].addcmul_(grads["norm"][..., None], self.W_dec, value=-1)
        for parameter, name, members in self.parameters:
            parameter.grad = grads[name][members]
        rates = [lr * one.schedule() for _, one in self.rates for lr in one.lrs]
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self.optimizer.step()
        self.W_dec.div_(self.W_dec.norm(dim=2, keepdim=True))

    def _finish_step(self, given: Tensor, code: Code, residual: Tensor) -> None:
        """Bring every member's trainer to the state after its step."""
        fired = code.fired(self.members * self.n_features).view(self.members, self.n_features)
        losses = residual.square().sum((1, 2)) * self.per_token
        self.last_fired.masked_fill_(fired, self.trainers[0].tokens + self.batch_size)
        drop_negligible(self.optimizer, self.trainers[0].step + 1)
        for m, one in enumerate(self.trainers):
            one.step, one.loss = one.step + 1, losses[m]
            if type(one.revival).after_step is not Revival.after_step:
                one.revive(given[m], StepOutput(losses[m], fired[m], residual[m]))

    def _make_optimizer(self) -> torch.optim.Adam:
        """Return Adam with two groups for each slice of members with the same rates, b_dec's the second."""
        groups: list[dict[str, list[nn.Parameter]]] = []
        state: dict[Tensor, dict[str, Tensor]] = {}
        for members, _ in self.rates:
            slices = {name: nn.Parameter(weight[members]) for name, weight in self.weights.items()}
            self.parameters += [(parameter, name, members) for name, parameter in slices.items()]
            groups += [{"params": [slices[name] for name in WEIGHTS[:3]]}, {"params": [slices["b_dec"]]}]
            for name, parameter in slices.items():
                state[parameter] = _joined_state(self.trainers[members], name)
        optimizer = torch.optim.Adam(groups, fused=True)
        optimizer.state.update(state)
        return optimizer


# --- of all members at once: pre-activations [members, tokens, n_features], x [members, tokens, d_model] ------


def choose(pre: Tensor, k: int) -> Code:
    """Return the k largest positive pre-activations of each token; member m's features count from m * n_features on."""
    members, _, n_features = pre.shape
    values, indices = largest(pre.flatten(0, 1), k)
    first = torch.arange(members, device=pre.device)[:, None, None] * n_features
    return rows_of_k(values.relu(), (indices.view(members, -1, k) + first).view(-1, k))


def choose_positive(pre: Tensor, among: Tensor, k: int) -> Code:
    """Return the k largest positive pre-activations of each token among some features, bool [members, n_features].

    `pre` is spent.
    """
    members, tokens, n_features = pre.shape
    # each of the others becomes negative and has a value of its own: equal ones are slow to rank
    others = torch.linspace(-2e30, -1e30, n_features, dtype=pre.dtype, device=pre.device)
    pre += others.expand_as(among).masked_fill(among, 0)[:, None]
    code = largest_positive(pre.flatten(0, 1), k)
    first = torch.arange(members, device=pre.device) * n_features
    entries = code.offsets[::tokens].diff()  # of each member
    return code._replace(indices=code.indices + first.repeat_interleave(entries, output_size=len(code.indices)))


def reconstruct(code: Code, W_dec: Tensor) -> Tensor:
    """Return the sum of values times decoder rows, as `kernels.decode`: [members, tokens, d_model]."""
    return weighted_rows(code, W_dec.flatten(0, 1)).view(len(W_dec), -1, W_dec.shape[2])


class Term(NamedTuple):
    """A reconstruction that the loss holds: what gradients come from."""

    code: Code
    x: Tensor  # [members, tokens, d_model]
    grad_x_hat: Tensor  # of the loss by the reconstruction, likewise


def rows_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of all parts [members, tokens, d_model], one after the other; those of one are not copied."""
    rows = [part.flatten(0, 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def gradients(terms: Sequence[Term], W_enc: Tensor, W_dec: Tensor) -> dict[str, Tensor]:
    """Return what reaches the weights through codes, as `kernels.with_gradient` and `decode` form it.

    W_enc is in rows, like W_dec [members, n_features, d_model]. b_dec gets what it changes in the pre-activations.
    `norm` is W_dec's gradient along its rows, summed over the entries that it comes from.
    """
    codes, xs, grads = zip(*terms, strict=True)
    code, directions = joined(codes), W_dec.flatten(0, 1)
    x, grad_x_hat = rows_of(xs), rows_of(grads)
    by_feature = ByFeature(code, len(directions))
    grad_pre = by_feature.transpose(products(grad_x_hat, directions, code) * (code.values > 0))
    values = by_feature.transpose(code.values)
    b_enc, norm = sums_by_feature(grad_pre), sums_by_feature(values._replace(values=values.values * grad_pre.values))
    return {
        "W_enc": weighted_rows(grad_pre, x).view_as(W_enc),
        "b_enc": b_enc.view(W_dec.shape[:2]),
        "W_dec": weighted_rows(values, grad_x_hat).view_as(W_dec),
        "b_dec": -torch.bmm(b_enc.view(len(W_dec), 1, -1), W_enc)[:, 0],
        "norm": norm.view(W_dec.shape[:2]),
    }


# --- which trainers, and in which order ---------------------------------------------------------------------


def stacks(trainers: Sequence[Trainer]) -> list[list[int]]:
    """Return which trainers are to take their steps together, as indices; one by itself trains as ever.

    Those of a stack are at the same step and alike in all but seeds, inputs, rates, a frozen bias and their revival.
    It pays where the pre-activations of several members fit into a cache.
    """
    keys = [_key(one) for one in trainers]
    order = sorted(range(len(trainers)), key=lambda i: (keys[i], auxk_of(trainers[i]), rates_of(trainers[i]), i))
    found = []
    for key, alike in groupby(order, key=lambda i: keys[i]):
        indices = list(alike)
        most = _most_members(trainers[indices[0]]) if key[0] else 1
        found += [indices[first : first + most] for first in range(0, len(indices), most)]
    return found


def _key(trainer: Trainer) -> tuple[Any, ...]:
    """Return what the members of a stack have in common; it begins with False where a trainer can be in none."""
    sae, cfg, revival = trainer.sae, trainer.cfg, trainer.revival
    stackable = (
        type(sae) is TopK and sae.precision == "float32" and (type(revival) is AuxK or not trainer.revives_by_loss)
    )
    return (stackable, sae.d_model, sae.n_features, sae.k, cfg.batch_size, cfg.steps, trainer.step)


def _most_members(trainer: Trainer) -> int:
    return max(1, LARGEST[trainer.sae.W_dec.device.type] // (trainer.cfg.batch_size * trainer.sae.n_features))


def rates_of(trainer: Trainer) -> tuple[float, ...]:
    """Return what the rates of each step follow from."""
    return (*trainer.lrs, trainer.cfg.warmup_steps, trainer.cfg.decay_from)


def auxk_of(trainer: Trainer) -> tuple[float, ...]:
    """Return the options of AuxK; none where the revival is another."""
    revival = trainer.revival
    return (revival.alpha, revival.k_of(trainer.sae.d_model)) if isinstance(revival, AuxK) else ()


def _alike(trainers: Sequence[Trainer], key: Callable[[Trainer], Any]) -> Iterator[tuple[slice, Trainer]]:
    """Yield the slices of neighbours with the same key, each with its first trainer."""
    begin = 0
    for _, alike in groupby(trainers, key):
        length = len(list(alike))
        yield slice(begin, begin + length), trainers[begin]
        begin += length


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors along a member axis, and make each a view of it."""
    joined = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, joined, strict=True):
        tensor.data = view
    return joined


def _joined_state(trainers: Sequence[Trainer], name: str) -> dict[str, Tensor]:
    """Return Adam's state of a weight along a member axis; the trainers' own optimisers get views of it."""
    optimised = [one.optimised[name] for one in trainers]
    for one, parameter in zip(trainers, optimised, strict=True):
        if not one.optimizer.state[parameter]:  # it has taken no step
            zeros = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            one.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
    states = [one.optimizer.state[parameter] for one, parameter in zip(trainers, optimised, strict=True)]
    joined = {moment: torch.stack([state[moment] for state in states]) for moment in MOMENTS}
    step = states[0]["step"].clone()
    for m, state in enumerate(states):
        state |= {"step": step} | {moment: tensor[m] for moment, tensor in joined.items()}
    return {"step": step, **joined}
