"""Batches: pure in (seed, step), equal under any split among ranks, complete, and honest about what they read."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.data.config import DataConfig
from mindmoe.data.loader import Batch, TokenBatches
from mindmoe.host.errors import UserError

Write = Callable[..., Path]
S = 8  # sequence length


def batches(sources, split="train", vocab_size=100, batch_size=6, seq_length=S, **data) -> TokenBatches:
    return TokenBatches(DataConfig(sources=sources, **data), split, seq_length, batch_size, vocab_size)


def documents(rng: np.random.Generator, count: int, vocab_size: int = 100) -> list[list[int]]:
    return [rng.integers(0, vocab_size, rng.integers(0, 14)).tolist() for _ in range(count)]


@pytest.fixture
def folder(write_folder: Write) -> Path:
    rng = np.random.default_rng(0)
    return write_folder("folder", documents(rng, 60), documents(rng, 20))


def flat(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in document]


def stack(batch: Batch) -> np.ndarray:
    return np.concatenate([batch.input_ids, batch.labels[:, -1:]], axis=1)


def test_every_window_once_an_epoch(write_folder: Write) -> None:
    tokens = list(range(85))
    data = batches(str(write_folder("f", [tokens[:50], tokens[50:]], [[1] * 20])), batch_size=5)
    assert (data.num_tokens, data.num_samples) == (85, 10)
    windows = [tuple(tokens[k * S : k * S + S + 1]) for k in range(10)]
    epochs = [[tuple(row) for i in (0, 1) for row in stack(data.batch(2 * e + i, 0, 5)).tolist()] for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == windows
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in another order


def test_an_epoch_may_end_inside_a_batch(write_folder: Write) -> None:
    tokens = list(range(85))
    data = batches(str(write_folder("f", [tokens], [[1] * 20])), batch_size=7)
    first = [int(row[0]) // S for step in range(10) for row in data.batch(step, 0, 7).input_ids]
    for epoch in range(7):
        assert sorted(first[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_types_and_labels(folder: Path) -> None:
    batch = batches(str(folder)).batch(3, 1, 5)
    for array, dtype in (
        (batch.input_ids, np.int32),
        (batch.labels, np.int32),
        (batch.loss_mask, np.float32),
        (batch.segment_ids, np.int32),
    ):
        assert array.shape == (4, S) and array.dtype == dtype and array.flags.c_contiguous
    assert np.array_equal(batch.input_ids[:, 1:], batch.labels[:, :-1])
    assert batch.loss_mask.min() == 1 and batch.segment_ids.max() == 0


@pytest.mark.parametrize("dp", [1, 2, 3, 4, 6])
def test_ranks_share_the_same_batch(folder: Path, write_pair: Write, dp: int) -> None:
    """Also the batch size of one rank may differ: sample i is the same whatever batch it falls into."""
    other = write_pair([[5] * 100])
    sources = [{"path": str(folder), "weight": 0.7}, {"path": str(other), "weight": 0.3}]
    for attention in (False, True):
        whole, small = (batches(sources, document_attention=attention, batch_size=b) for b in (12, 4))
        for step in (0, 7, 10**7):
            one = whole.batch(step, 0, 12)
            parts = [whole.batch(step, r * 12 // dp, (r + 1) * 12 // dp) for r in range(dp)]
            parts_of_small = [small.batch(3 * step + i, 0, 4) for i in range(3)]
            for name in ("input_ids", "labels", "loss_mask", "segment_ids"):
                assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(one, name))
                assert np.array_equal(np.concatenate([getattr(p, name) for p in parts_of_small]), getattr(one, name))


def test_pure_function_of_the_step(folder: Path) -> None:
    one, two = batches(str(folder)), batches(str(folder))
    forward = [stack(one.batch(step, 0, 6)) for step in range(12)]
    for step in reversed(range(12)):
        assert np.array_equal(stack(two.batch(step, 0, 6)), forward[step])
    assert not np.array_equal(stack(batches(str(folder), seed=1).batch(0, 0, 6)), forward[0])


def test_blend_shares_and_origin(write_folder: Write, write_pair: Write) -> None:
    one = write_folder("one", [[1] * 500], [[1] * 20])
    two, three = write_pair([[2] * 90], "two"), write_pair([[3] * 300], "three", "i4")
    sources = [{"path": str(p), "weight": w} for p, w in ((one, 5.0), (two, 3.0), (three, 2.0))]
    data = batches(sources, batch_size=100)
    counts = Counter(int(row[0]) for step in range(10) for row in data.batch(step, 0, 100).input_ids)
    assert {k: abs(v - share) <= 2 for (k, v), share in zip(sorted(counts.items()), (500, 300, 200), strict=True)} == {
        1: True,
        2: True,
        3: True,
    }
    assert data.num_samples == 499 // S + 89 // S + 299 // S


def test_document_attention_against_a_loop(write_pair: Write) -> None:
    rng = np.random.default_rng(1)
    texts = documents(rng, 80)  # some of them empty
    data = batches(str(write_pair(texts)), "train", document_attention=True, batch_size=4)
    numbered = [(token, d) for d, document in enumerate(texts) for token in document]
    windows = {}
    for k in range(data.num_samples):
        row = numbered[k * S : k * S + S + 1]
        names = list(dict.fromkeys(d for _, d in row))
        segments = [names.index(d) for _, d in row]
        mask = [float(a == b) for a, b in zip(segments[:-1], segments[1:], strict=True)]
        windows[tuple(t for t, _ in row)] = (segments[:-1], mask)
    seen = 0
    for step in range(data.num_samples // 4):
        batch = data.batch(step, 0, 4)
        for i, row in enumerate(stack(batch).tolist()):
            segments, mask = windows[tuple(row)]
            assert batch.segment_ids[i].tolist() == segments
            assert batch.loss_mask[i].tolist() == mask
            seen += max(segments)
    assert seen > 20  # rows that cross documents were among them


def test_valid_is_in_file_order_and_ends(write_folder: Write) -> None:
    tokens = list(range(60))
    data = batches(str(write_folder("f", [[1] * 30], [tokens[:20], tokens[20:]])), "valid", batch_size=3)
    assert (data.num_samples, data.num_tokens) == (7, 60)
    rows = [row for step in range(2) for row in stack(data.batch(step, 0, 3)).tolist()]
    rows += stack(data.batch(2, 0, 1)).tolist()
    assert rows == [tokens[k * S : k * S + S + 1] for k in range(7)]
    with pytest.raises(IndexError, match="behind the 7 rows"):
        data.batch(2, 0, 2)
    with pytest.raises(IndexError):
        data.batch(3, 0, 1)


def test_resume_far_into_a_run_is_instant(folder: Path) -> None:
    """Opening included, step 10**7 takes hardly more calls than step 10: permutations of other epochs walk a bit on."""
    calls = {}
    for step in (10, 10**7):
        events: list[str] = []
        sys.setprofile(lambda frame, event, argument, seen=events: seen.append(event))
        try:
            batches(str(folder)).batch(step, 0, 6)
        finally:
            sys.setprofile(None)
        calls[step] = len(events)
    assert calls[10**7] < 2 * calls[10]


def test_a_prepared_set_by_its_prefix(folder: Path) -> None:
    for path in ("valid", "valid.bin", "valid.idx"):
        data = batches(str(folder), "valid", valid=str(folder / path))
        assert np.array_equal(stack(data.batch(0, 0, 6)), stack(batches(str(folder), "valid").batch(0, 0, 6)))


def test_vocabulary_mismatch(folder: Path, write_pair: Write) -> None:
    with pytest.raises(UserError, match="uses a vocabulary of 100, the model has 99: set model.vocab_size to 100"):
        batches(str(folder), vocab_size=99)
    with pytest.raises(UserError, match="holds the token 77, outside the model's vocabulary of 77"):
        batches(str(write_pair([[1, 2, 77] * 9])), vocab_size=77)
    with pytest.raises(UserError, match="holds the token -3"):
        batches(str(write_pair([[1, 2, -3] * 9], dtype="i4")))


def test_a_token_that_the_scan_missed_is_found_when_read(write_pair: Write) -> None:
    tokens = np.ones((1 << 23) + 1, np.uint16)
    tokens[20_000] = 5000  # outside the runs of 16384 tokens that are looked at in a set of this size
    prefix = write_pair([tokens])
    data = batches(str(prefix), seq_length=1 << 14, batch_size=1)
    with pytest.raises(UserError, match="holds the token 5000"):
        for step in range(data.num_samples):
            data.batch(step, 0, 1)


def test_data_too_short(write_folder: Write, write_pair: Write) -> None:
    assert batches(str(write_pair([[1] * 9]))).num_samples == 1
    with pytest.raises(UserError, match=r"holds 8 tokens, fewer than one row of seq_length \+ 1 = 9"):
        batches(str(write_pair([[1] * 8])))
    with pytest.raises(UserError, match="holds 0 tokens"):
        batches(str(write_pair([])))
    with pytest.raises(UserError, match="valid holds 3 tokens"):
        batches(str(write_folder("f", [[1] * 30], [[1] * 3])), "valid")


def test_missing_sets(tmp_path: Path, write_folder: Write, write_pair: Write) -> None:
    with pytest.raises(UserError, match="neither a token folder nor the prefix"):
        batches(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no token folder: it has no dataset.json"):
        batches(str(tmp_path / "empty"))
    (tmp_path / "empty/.partial").mkdir()
    with pytest.raises(UserError, match="is half-finished: run `mindmoe data prepare` again"):
        batches(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no held-out set: .* set data.valid"):
        batches(str(write_pair([[1] * 30])), "valid")
    with pytest.raises(UserError, match="has no valid set: it was prepared with valid_fraction=0"):
        batches(str(write_folder("f", [[1] * 30], [])), "valid")
    (tmp_path / "f/train.bin").unlink()
    with pytest.raises(UserError, match=r"train\.bin does not exist"):
        batches(str(tmp_path / "f"))


def test_tokenizer_mismatch(tmp_path: Path, folder: Path, write_folder: Write) -> None:
    (tmp_path / "other.model").write_bytes(b"another tokenizer")
    batches(str(folder), tokenizer=str(folder))
    with pytest.raises(UserError, match="folder was tokenised with another tokenizer than .*other.model"):
        batches(str(folder), tokenizer=str(tmp_path / "other.model"))
    with pytest.raises(UserError, match="tokenizer .*absent does not exist"):
        batches(str(folder), tokenizer=str(tmp_path / "absent"))
    (folder / "tokenizer.model").write_bytes(b"swapped")
    with pytest.raises(UserError, match="is not the tokenizer that the tokens beside it were made with"):
        batches(str(folder))


def test_two_tokenizers_in_a_mixture(tmp_path: Path, write_folder: Write) -> None:
    one, two = (write_folder(name, [[1] * 30], [[1] * 20]) for name in ("one", "two"))
    batches([str(one), str(two)])
    text = (two / "dataset.json").read_text()
    digest = text.split('"tokenizer_digest": "')[1][:64]
    (two / "dataset.json").write_text(text.replace(digest, "0" * 64))
    (two / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="two was tokenised with another tokenizer than .*one"):
        batches([str(one), str(two)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "has version 2, this program knows 1"),
        ('"eod_id": 1', '"eod_id": "x"', "eod_id: input should be a valid integer"),
        ('"dtype": "uint16"', '"dtype": "int32"', "of uint16, but dataset.json beside it says"),
        ('"tokenizer.model"', '"../../outside.model"', "tokenizer: string should match pattern"),
        ('"valid"', '"../elsewhere"', "splits.*should match pattern"),
        ('"vocab_size": 100', '"vocab_size": 1e999', "is too large a number"),
        ('"vocab_size": 100', '"vocab_size": true', "vocab_size: input should be a valid integer"),
        ('"version": 1', '"version": 1, "version": 1', "key version stands twice"),
        ('"settings": {}', '"settings": ' + '{"a":' * 100 + "1" + "}" * 100, "nested"),
        ('"train"', '"valid2"', "splits.*should match pattern"),
        ("{", "", "no JSON"),
    ],
)
def test_damaged_manifest(folder: Path, old: str, new: str, message: str) -> None:
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        batches(str(folder))


def test_tokens_that_do_not_belong_to_the_manifest(folder: Path, write_pair: Write) -> None:
    for suffix in (".bin", ".idx"):
        source = write_pair([[1] * 50])
        Path(f"{source}{suffix}").replace(folder / f"train{suffix}")
    with pytest.raises(UserError, match="holds 50 tokens of uint16, but dataset.json beside it says"):
        batches(str(folder))


def test_floats_are_no_tokens(write_pair: Write) -> None:
    with pytest.raises(UserError, match="says float32, tokens are integers"):
        batches(str(write_pair([[1] * 30], dtype="f4")))


@pytest.mark.parametrize("rows", [(-1, 2), (0, 7), (4, 3)])
def test_rows_outside_the_batch(folder: Path, rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="the batch has 6 rows"):
        batches(str(folder)).batch(0, *rows)
    with pytest.raises(ValueError):
        batches(str(folder)).batch(-1, 0, 1)
    assert batches(str(folder)).batch(0, 2, 2).input_ids.shape == (0, S)
