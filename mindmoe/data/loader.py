"""Batches as a pure function of the step: any number of data-parallel ranks, any resume point, no state.

Sample i of the run belongs to batch i // B. `Blend` says which set it comes from and how many samples j that set
has given before; j // windows is the epoch of the set, and a permutation keyed by (seed, set, epoch) says which
window is the (j % windows)-th of that epoch. So every window is served once an epoch, in another order each time.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindmoe.data.blend import Blend
from mindmoe.data.config import DataConfig, SourceConfig
from mindmoe.data.dataset import Split, TokenSet
from mindmoe.data.files import file_digest
from mindmoe.data.permutation import Permutation
from mindmoe.data.tokenizer import load_tokenizer, tokenizer_file
from mindmoe.host.errors import UserError

_DOMAINS = 7  # sets its random numbers apart from others of the same seed


@dataclass(frozen=True)
class Batch:
    """Some rows of a global batch; S is the sequence length.

    Attributes:
        input_ids: (n, S) int32.
        labels: (n, S) int32, the token behind each input token.
        loss_mask: (n, S) float32, 1 where the prediction counts.
        segment_ids: (n, S) int32, the number of the token's document within the row, from 0; all 0 unless
            attention is kept inside documents.
        domains: (n,) int32, the source of the row, from 1; 0 where it is unknown or hidden.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    loss_mask: NDArray[np.float32]
    segment_ids: NDArray[np.int32]
    domains: NDArray[np.int32]

    def read(self, name: str) -> NDArray[np.int32]:
        """What a router may want to know of each token, (n, S) int32 by the names of mindmoe/moe/router/base.py."""
        shape = self.input_ids.shape
        match name:
            case "token_id":
                return self.input_ids
            case "position":
                return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
            case "domain":
                return np.broadcast_to(self.domains[:, None], shape)
            case "previous":
                before = np.full(shape, -1, np.int32)
                inside = self.segment_ids[:, 1:] == self.segment_ids[:, :-1]
                # -1 stays where a row or a document begins: nothing comes before.
                before[:, 1:][inside] = self.input_ids[:, :-1][inside]
                return before
        raise ValueError(f"no token has a {name}")


class TokenBatches:
    """The batches of a run, for training (shuffled, without end) or for evaluation (in file order, once).

    Args:
        data: the sets.
        split: `train` reads the weighted sources, `valid` the held-out set: `data.valid`, or by default that
            of the first source's folder.
        seq_length: tokens predicted in a row.
        global_batch_size: rows of a batch over all ranks.
        vocab_size: of the model.
        domain_dropout: share of training rows whose domain is hidden.

    Attributes:
        num_tokens: of all sets.
        num_samples: rows of one pass over all sets.

    Raises:
        UserError: a set is missing, damaged, too short, or does not match the model or the tokenizer.
    """

    def __init__(
        self,
        data: DataConfig,
        split: Split,
        seq_length: int,
        global_batch_size: int,
        vocab_size: int,
        domain_dropout: float = 0.0,
    ):
        if seq_length < 1 or global_batch_size < 1:
            raise ValueError(f"seq_length={seq_length} and global_batch_size={global_batch_size} must be at least 1")
        self._shuffled, self._domain_dropout = split == "train", domain_dropout
        self._seed, self._document_attention = data.seed, data.document_attention
        self._seq_length, self._batch_size = seq_length, global_batch_size
        # Weights do not matter for the held-out set, which is one.
        sources = data.sources if self._shuffled else [SourceConfig(path=data.valid or data.sources[0].path)]
        if split == "valid" and data.valid is None and not Path(sources[0].path).is_dir():
            raise UserError(
                f"there is no held-out set: the first source {sources[0].path} is no token folder",
                "set data.valid to a token folder or the prefix of a .bin/.idx pair",
            )
        self._sets = [TokenSet(source.path, split, seq_length, vocab_size) for source in sources]
        self._check_tokenizers(data.tokenizer)
        weights = [source.weight for source in sources]
        self._blend = Blend(weights)
        self.num_tokens = sum(part.num_tokens for part in self._sets)
        self.num_samples = sum(part.num_windows for part in self._sets)
        self._tokenizer = data.tokenizer

    def _check_tokenizers(self, tokenizer: str | None) -> None:
        """Every set whose tokenizer is known was made with the same one, and with the configured one."""
        known = [(part.path, part.manifest.tokenizer_digest) for part in self._sets if part.manifest is not None]
        if tokenizer is not None:
            file = tokenizer_file(tokenizer)
            # First, so that the configured tokenizer is what all the others are held against.
            known.insert(0, (str(file), file_digest(file)))
        for path, digest in known[1:]:
            if digest != known[0][1]:
                raise UserError(
                    f"{path} was tokenised with another tokenizer than {known[0][0]} "
                    f"(SHA-256 {digest[:12]}.. and {known[0][1][:12]}..)",
                    "prepare all sets with one tokenizer, and point data.tokenizer at it or leave it out",
                )

    def text_bytes(self, num_batches: int) -> int | None:
        """The bytes of UTF-8 text of the tokens that the first batches of a held-out set predict.

        None if the tokenizer of the set is not known: it has no manifest with its tokenizer beside it, and none is
        configured.

        Raises:
            UserError: the tokenizer cannot be read.
        """
        assert not self._shuffled
        # A held-out set is one set, read in file order: its first batches are its first windows.
        (held_out,) = self._sets
        if self._tokenizer is not None:
            tokenizer = load_tokenizer(self._tokenizer)
        elif held_out.manifest is not None and os.path.lexists(held_out.prefix.parent / held_out.manifest.tokenizer):
            tokenizer = load_tokenizer(held_out.prefix.parent / held_out.manifest.tokenizer)
        else:
            return None
        return held_out.text_bytes(num_batches * self._batch_size, tokenizer, self._document_attention)

    def batch(self, step: int, start: int, stop: int) -> Batch:
        """Rows [start, stop) of the global batch number `step`.

        Args:
            step: from 0, without end in training.
            start: first row of this rank, from 0.
            stop: one behind its last row, at most global_batch_size.

        Raises:
            IndexError: the held-out set ends before the last of these rows.
            UserError: a token lies outside the vocabulary.
        """
        if step < 0 or not 0 <= start <= stop <= self._batch_size:
            raise ValueError(f"rows [{start}, {stop}) of batch {step}: the batch has {self._batch_size} rows")
        # The samples of a run are numbered without a gap, whatever ranks serve them.
        samples = step * self._batch_size + np.arange(start, stop, dtype=np.int64)
        if not self._shuffled and step * self._batch_size + stop > self.num_samples:
            raise IndexError(
                f"rows [{start}, {stop}) of batch {step} lie behind the {self.num_samples} rows of the set"
            )
        sets, windows = self._order(samples)
        rows = np.empty((len(samples), self._seq_length + 1), np.int32)
        segments = np.zeros_like(rows)
        for number, part in enumerate(self._sets):
            chosen = sets == number
            rows[chosen] = part.rows(windows[chosen])
            if self._document_attention:
                segments[chosen] = part.segments(windows[chosen])
        # A label of another document cannot be told from its input: it counts only inside a document. Where attention
        # crosses documents all segments are 0, and every label counts.
        within = segments[:, 1:] == segments[:, :-1]
        inputs, labels = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
        segments = np.ascontiguousarray(segments[:, :-1])
        return Batch(inputs, labels, within.astype(np.float32), segments, self._domains(samples, sets))

    def _domains(self, samples: NDArray[np.int64], sets: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) the domain of samples as a router may see it; what is held out is unknown."""
        if not self._shuffled:
            return np.zeros(len(samples), np.int32)
        if not self._domain_dropout:
            return (sets + 1).astype(np.int32)
        hidden = [
            # Keyed by the sample, not drawn in a row: the same under any number of ranks and after any resume.
            np.random.default_rng([self._seed, _DOMAINS, int(sample)]).random() < self._domain_dropout
            for sample in samples
        ]
        return np.where(hidden, 0, sets + 1).astype(np.int32)

    def _order(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) the set and (n,) the window of samples."""
        if not self._shuffled:
            return np.zeros_like(samples), samples
        sets, served = self._blend(samples)
        windows = np.empty_like(samples)
        for number in np.unique(sets):
            size = self._sets[number].num_windows
            # One batch may span the end of an epoch of a small set, and epochs differ in their order.
            epochs, positions = np.divmod(served, size)
            for epoch in np.unique(epochs[sets == number]):
                chosen = (sets == number) & (epochs == epoch)
                windows[chosen] = Permutation(size, self._seed, int(number), int(epoch))(positions[chosen])
        return sets, windows
