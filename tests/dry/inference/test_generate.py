"""Sampling and prompts, without a model."""

import os

import numpy as np
import pytest

from mindmoe.data.bpe import train_sentencepiece
from mindmoe.data.tokenizer import Tokenizer, load_tokenizer
from mindmoe.host.errors import UserError
from mindmoe.inference.generate import choose, encode_prompt


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_sentencepiece(["some words to make pieces of"] * 9, 280))
    return load_tokenizer(path)


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 0.8, 999.0])
def test_ids_without_a_piece_are_never_drawn(temperature: float) -> None:
    """Neither those beyond the tokenizer nor the gaps within it, though the model finds them likeliest."""
    rng = np.random.default_rng(0)
    has_piece = np.array([True, False, True, True, False, True])
    logits = np.array([0.0, 90.0, 0.1, 0.2, 90.0, 0.3, 90.0, 90.0], np.float32)
    drawn = {choose(logits, temperature, rng, has_piece) for _ in range(400)}
    assert drawn == ({5} if temperature < 0.1 else {0, 2, 3, 5})


def test_a_tokenizer_larger_than_the_model() -> None:
    logits = np.array([0.0, 1.0], np.float32)
    assert choose(logits, 0.0, np.random.default_rng(0), np.ones(9, np.bool_)) == 1


@pytest.mark.slow
def test_frequencies_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32)) * 2
    rng = np.random.default_rng(1)
    counts = np.bincount([choose(logits, 2.0, rng, np.ones(3, np.bool_)) for _ in range(20_000)])
    assert np.allclose(counts / 20_000, [0.5, 0.3, 0.2], atol=0.02)  # 5 standard deviations


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    logits = np.array([0.0, bad, 1.0], np.float32)
    with pytest.raises(UserError, match="not finite"):
        choose(logits, temperature, np.random.default_rng(0), np.ones(3, np.bool_))
    assert choose(logits, 0.0, np.random.default_rng(0), np.array([True, False, True])) == 2


@pytest.mark.parametrize(
    ("raw", "byte", "at"), [(b"\xff", "0xff", 0), (b"ab\xe9 cd", "0xe9", 2), ("\u6f22".encode()[:2], "0xe6", 0)]
)
def test_a_prompt_that_is_no_utf8(tokenizer: Tokenizer, raw: bytes, byte: str, at: int) -> None:
    with pytest.raises(UserError, match=f"--prompt is not UTF-8: {byte} at character {at}"):
        encode_prompt(os.fsdecode(raw), tokenizer, 1000)


def test_a_surrogate_that_no_byte_stands_for(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="--prompt is not UTF-8"):
        encode_prompt("\ud800", tokenizer, 1000)


def test_prompts(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encode_prompt("words", tokenizer, 280) == tokenizer.encode("words")
    assert encode_prompt("", tokenizer, 280) == [tokenizer.eod_id]
    with pytest.raises(UserError, match=r"makes the id \d+ of the prompt, the model has a vocabulary of 20"):
        encode_prompt("words", tokenizer, 20)
    monkeypatch.setattr(tokenizer, "eod_id", -1)
    with pytest.raises(UserError, match="--prompt is empty, and the tokenizer has no end-of-document token"):
        encode_prompt("", tokenizer, 280)


def test_ids_beyond_the_tokenizer_decode_to_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("words")
    for beyond in (280, 1000, 1 << 40, -1):
        assert tokenizer.decode([*ids, beyond, *ids, beyond]) == "words\ufffdwords\ufffd"
    assert tokenizer.decode([]) == ""
