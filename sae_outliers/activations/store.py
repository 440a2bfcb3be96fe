"""Activations as runs read them: of each layer, evaluation tokens in order and training tokens in shuffled batches.

They lie in `<root>/<digest>/`, shared by every run on that model and data; `layer_files` says how.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sae_outliers.activations.coding import Coding, Exact
from sae_outliers.activations.layer_files import StoredLayer
from sae_outliers.activations.split import SPECIAL, find_split, is_token
from sae_outliers.utils.prefetch import read_ahead

EVAL_ROWS = 4096  # rows of a chunk of evaluation tokens
BLOCK_BATCHES = 64  # training batches whose tokens are shuffled, and in memory, together


class LayerTokens:
    """The tokens of one layer that a run sees: the first `n_eval` to measure on, and `n_train` of later documents.

    Tokens come in chunks [tokens, d_model], float32 on the CPU, as the network put them out; training tokens up to the
    rounding of float16, where they are stored so. Special tokens are left out unless `special_tokens`.

    Raises:
        ValueError: fewer tokens are stored than asked for; or, when they are read, a shard is not what was written.
    """

    def __init__(self, layer: StoredLayer, n_eval: int, n_train: int, special_tokens: bool) -> None:
        self._opened = layer.open(n_eval, n_train)
        last = self._opened[-1]
        self.d_model, self._flags = last.extent.d_model, last.flags
        self.n_eval, self.n_train, self.special_tokens = n_eval, n_train, special_tokens
        parts = find_split(self._flags, n_eval, n_train, special_tokens)
        if parts is None:
            raise ValueError(
                f"{last.files.rows_path} holds {last.extent.tokens} tokens: too few for n_eval={n_eval} and, in other "
                f"documents, train.n_tokens={n_train}"
            )
        self.parts = parts

    def eval_chunks(self) -> Iterator[Tensor]:
        """The evaluation tokens, always the same and in the same order."""
        return (self._decoded(start, stop) for start, stop in self._eval_bounds())

    def eval_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All stored rows [n, d_model] up to the last evaluation token, and which of them are special, bool [n]."""
        for start, stop in self._eval_bounds():
            rows = self._decoded(start, stop, all_rows=True)
            yield rows, torch.from_numpy(self._flags[start:stop] & SPECIAL > 0)

    def _eval_bounds(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.parts.eval_end, EVAL_ROWS):
            yield start, min(start + EVAL_ROWS, self.parts.eval_end)

    def training_batches(self, batch_size: int, seed: int, start: int = 0, blocks_ahead: int = 0) -> Iterator[Tensor]:
        """Batches [batch_size, d_model] without end, from batch number `start` on; the seed fixes their order.

        Each epoch takes blocks of BLOCK_BATCHES batches in a random order and shuffles the rows within a block, so
        memory holds one block as it is stored, and those that a thread has read ahead. Documents were shuffled before
        they were stored. A block's last, partial batch is left out.

        Raises:
            ValueError: there are fewer training tokens than one batch holds.
        """
        blocks = self._blocks(BLOCK_BATCHES * batch_size)
        per_epoch = sum(tokens // batch_size for _, _, tokens in blocks)
        if per_epoch == 0:
            raise ValueError(
                f"train.n_tokens={self.n_train} gives no batch of train.batch_size={batch_size}: lower the batch "
                "size or raise the number of tokens"
            )
        ordered = self._in_order(blocks, batch_size, seed, *divmod(start, per_epoch))
        read = ((*self._block(*bounds), torch.from_numpy(batches)) for bounds, batches in ordered)
        for block, coding, batches in read_ahead(read, blocks_ahead) if blocks_ahead else read:
            yield from (coding.decode(block.index_select(0, batch)) for batch in batches)
            del block  # before the next is read

    def _in_order(
        self, blocks: list[tuple[int, int, int]], batch_size: int, seed: int, epoch: int, skip: int
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yield the rows of each block in the order of training, with its tokens for each batch, [batches, batch_size].

        The first `skip` batches of epoch `epoch` are left out.
        """
        while True:
            rng = np.random.default_rng((seed, epoch))
            for i in rng.permutation(len(blocks)):
                start, stop, tokens = blocks[i]
                n_batches = tokens // batch_size
                order = rng.permutation(tokens)[: n_batches * batch_size].reshape(n_batches, batch_size)
                if skip < n_batches:
                    yield (start, stop), order[skip:]
                skip = max(0, skip - n_batches)
            epoch += 1

    def _blocks(self, size: int) -> list[tuple[int, int, int]]:
        """(first row, end row, tokens) of the consecutive blocks of `size` rows in the training part."""
        starts = range(self.parts.train_start, self.parts.train_end, size)
        bounds = [(start, min(start + size, self.parts.train_end)) for start in starts]
        return [(start, stop, int(self._kept(start, stop).sum())) for start, stop in bounds]

    def _kept(self, start: int, stop: int) -> np.ndarray:
        return is_token(self._flags[start:stop], self.special_tokens)

    def _block(self, start: int, stop: int) -> tuple[Tensor, Coding]:
        """The tokens among rows start:stop as they are stored; decoded, where they are so in two ways."""
        pieces = list(self._pieces(start, stop, all_rows=False))
        return pieces[0] if len(pieces) == 1 else (_joined(pieces), Exact())

    def _decoded(self, start: int, stop: int, all_rows: bool = False) -> Tensor:
        """The tokens among rows start:stop, or all of these rows."""
        return _joined(list(self._pieces(start, stop, all_rows)))

    def _pieces(self, start: int, stop: int, all_rows: bool) -> Iterator[tuple[Tensor, Coding]]:
        """The tokens, or all rows, of each file that rows start:stop are read from, and their coding."""
        self._opened[-1].verify(start, stop)  # whose flags tell tokens
        for opened in self._opened:
            end = min(stop, opened.extent.rows)
            if start >= end:
                continue
            opened.verify(start, end)
            rows, kept = opened.rows(start, end), self._kept(start, end)
            whole = all_rows or kept.all()
            yield torch.from_numpy(np.array(rows) if whole else np.asarray(rows[kept])), opened.coding  # one copy
            start = end


def _joined(pieces: list[tuple[Tensor, Coding]]) -> Tensor:
    decoded = [coding.decode(stored) for stored, coding in pieces]
    return decoded[0] if len(decoded) == 1 else torch.cat(decoded)
