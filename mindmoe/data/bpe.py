"""Trains the SentencePiece BPE tokenizer of a corpus on a bounded sample of it."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from mindmoe.data.records import BadRecord, Input, Rejected, parse
from mindmoe.host.errors import UserError

EOD_PIECE = "<|endoftext|>"
_MIN_SHARE = 64 << 10  # [bytes] the least an input may give to the sample
_MAX_TOLD = 100
_MAX_LINE = 1000  # [characters] longer lines are cut: the trainer leaves out what exceeds 4192 bytes


def training_sample(
    inputs: Sequence[Input], text_key: str, seed: int, budget: int, refused: list[str]
) -> Iterator[str]:
    """Texts from all over the corpus, `budget` bytes of them or all there are, whatever the number of processes.

    Inputs are visited in an order drawn from the seed and their names, and none gives more than its share, so
    that one large file does not drown the others; unreadable records are passed over, and told in `refused`.

    Args:
        inputs: of all sources.
        text_key: key of the text in JSON records.
        seed: of the order.
        budget: [bytes] of UTF-8 text.
        refused: takes the records that are passed over, the first _MAX_TOLD of them, each with its reason.
    """

    def draw(item: Input) -> bytes:
        return hashlib.blake2b(f"{seed}/{item.name}".encode(), digest_size=8).digest()

    # Where everything fits into the budget, nothing needs to be shared.
    share = max(budget // max(len(inputs), 1), _MIN_SHARE) if sum(i.size for i in inputs) > budget else budget
    for item in sorted(inputs, key=draw):
        taken = 0
        for record in item.read():
            try:
                text = "" if isinstance(record, Rejected) else parse(record, text_key)
            except BadRecord as error:
                record, text = Rejected(record.file, record.line, str(error)), ""
            if isinstance(record, Rejected) and len(refused) < _MAX_TOLD:
                refused.append(str(record))
            # Characters, of which none is less than a byte: what is over by that is noticed below, in bytes.
            text = text[: min(share - taken, budget)]
            size = len(text.encode("utf-8"))
            taken += size
            budget -= size
            yield text
            if taken >= share or budget <= 0:
                break
        if budget <= 0:
            return


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """The bytes of a SentencePiece model: equal for equal input.

    Text survives encoding and decoding unchanged: no normalisation, no added or removed spaces, and characters
    that are not in the vocabulary go through their UTF-8 bytes. Digits stand alone, runs of spaces (indentation)
    may be one token, no token spans a line break. Id 0 is <unk>, id 1 the end of a document.

    Args:
        texts: the sample to train on.
        vocab_size: number of pieces, the 256 bytes included.

    Raises:
        UserError: the vocabulary is too small or too large for the sample, or the sample is empty.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=EOD_PIECE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(str(error), vocab_size) from None
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _MAX_LINE):
                yield line[start : start + _MAX_LINE]


def _explain(error: str, vocab_size: int) -> UserError:
    """What the trainer's message means for the user."""
    # The trainer's errors are all of one type: only their wording tells them apart.
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        least = int(found[1])
        return UserError(
            f"vocab_size={vocab_size} is too small: the bytes and characters of this text alone take {least}",
            f"set vocab_size to {least + 1} or more; several thousand are usual",
        )
    if found := re.search(r"Vocabulary size too high .*<= (\d+)", error):
        return UserError(
            f"vocab_size={vocab_size} is too large: this text yields at most {found[1]} pieces",
            f"set vocab_size to {found[1]} or less, give more text, or raise tokenizer_bytes",
        )
    if "sentences_.empty()" in error:
        return UserError("there is no text to train a tokenizer on", "give documents that are not empty")
    return UserError(f"SentencePiece could not train a tokenizer ({error.strip()})", "change vocab_size or the text")
