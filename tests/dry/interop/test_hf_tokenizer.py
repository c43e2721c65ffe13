"""A tokenizer in Hugging Face's form gives the ids of the original, on ten thousand texts of every kind."""

import base64
import io
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece

from mindmoe.data.bpe import train_sentencepiece
from mindmoe.data.tokenizer import load_tokenizer
from mindmoe.host.errors import UserError
from mindmoe.interop.hf_tokenizer import hf_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="converting tokenizers needs the extra hf")

TEXT = Path(json.__file__).read_text() + Path(random.__file__).read_text()


def texts(count: int) -> Iterator[str]:
    """Scripts, runs of spaces, control characters, special names and cuts of real text, in one string."""
    rng = random.Random(7)
    ranges = ((32, 127), (0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x400, 0x4FF), (0x1F300, 0x1FAFF))
    ranges += ((0, 32), (0x80, 0x250), (0x2000, 0x2800))
    special = ("</s>", "<s>", "<unk>", "<|endoftext|>", "<pad>", "<0x0A>", "\u2581", "\ufffd", "\u00a0", "\r\n", "\t")
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(6)):
            kind = rng.randrange(4)
            if kind == 0:
                low, high = rng.choice(ranges)
                parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 12))))
            elif kind == 1:
                parts.append(" " * rng.randrange(1, 20))
            elif kind == 2:
                parts.append(rng.choice(special))
            else:
                start = rng.randrange(len(TEXT))
                parts.append(TEXT[start : start + rng.randrange(40)])
        yield "".join(parts)


def other_model(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=model, vocab_size=600, minloglevel=2, **options
    )
    return model.getvalue()


MODELS: dict[str, Callable[[], bytes]] = {
    "ours": lambda: train_sentencepiece([TEXT], 900),
    "a dummy space first": lambda: other_model(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False
    ),
    "spaces removed, NFKC": lambda: other_model(model_type="bpe", character_coverage=0.99),
    "unigram": lambda: other_model(model_type="unigram", pad_id=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_ids_of_sentencepiece_are_equal(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODELS[name]())
    ours = load_tokenizer(tmp_path)
    made = hf_tokenizer(tmp_path, 1000, 512)
    assert not made.note or (name == "unigram" and "in another order" in made.note)
    theirs = tokenizers.Tokenizer.from_str(made.files["tokenizer.json"].decode())
    theirs.encode_special_tokens = True
    for text in texts(10_000):
        ids, other = ours.encode(text), theirs.encode(text, add_special_tokens=False).ids
        if name == "unigram":  # which of two equally likely orders of the same pieces it is, rounding decides
            ids, other = sorted(ids), sorted(other)
        assert other == ids, ascii(text)
        if name == "ours":
            assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids) == text
    config = json.loads(made.files["tokenizer_config.json"])
    assert theirs.token_to_id(config["eos_token"]) == ours.eod_id == made.token_ids["eos_token_id"]
    assert made.token_ids["bos_token_id"] is not None and config["split_special_tokens"] is True
    assert made.token_ids["pad_token_id"] == (3 if name == "unigram" else None)


def test_what_cannot_be_converted_goes_along_as_it_is(tmp_path: Path) -> None:
    content = other_model(model_type="word")
    (tmp_path / "tokenizer.model").write_bytes(content)
    made = hf_tokenizer(tmp_path, 1000, 512)
    assert made.files == {"original/tokenizer.model": content}
    assert "would give other ids" in made.note and made.token_ids["eos_token_id"] == 2


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODELS["ours"]())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    made = hf_tokenizer(tmp_path, 1000, 512)
    assert "pip install 'mindmoe[hf]'" in made.note and list(made.files) == ["original/tokenizer.model"]


def test_a_tokenizer_json_is_copied_with_its_special_tokens(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    model.add_special_tokens(["<s>", "<|end_of_text|>", "<pad>"])
    model.save(str(tmp_path / "tokenizer.json"))
    beside = {"bos_token": {"content": "<s>"}, "pad_token": "<pad>", "chat_template": "{{ x }}", "auto_map": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(beside))
    made = hf_tokenizer(tmp_path, 6, 512)
    assert made.files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert made.token_ids == {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 5}
    config = json.loads(made.files["tokenizer_config.json"])
    assert config["eos_token"] == "<|end_of_text|>" and config["chat_template"] == "{{ x }}"
    with pytest.raises(UserError, match="has 6 ids, the model 5"):
        hf_tokenizer(tmp_path, 5, 512)
    with pytest.raises(UserError, match="does not exist"):
        hf_tokenizer(tmp_path / "gone", 5, 512)


@pytest.mark.slow
@pytest.mark.parametrize("count", [50_256, 100_256, 128_000, 199_998])
def test_ids_of_tiktoken_are_equal(tmp_path: Path, count: int) -> None:
    """Files of as many ranks as the published encodings have: bytes, then pairs of letters, then longer ones."""
    pytest.importorskip("tiktoken")
    small = [bytes([b]) for b in range(97, 123)]
    tokens = [bytes([b]) for b in range(256)] + [a + b for a in small for b in small]
    longer = (pair + bytes([c]) for pair in tokens[256:] for c in range(256))
    longest = (pair + b"e" + bytes([c]) for pair in tokens[256:] for c in range(256))
    tokens += itertools.islice(itertools.chain(longer, longest), count - len(tokens))
    (tmp_path / "tokenizer.model").write_bytes(
        b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    )
    ours = load_tokenizer(tmp_path)
    made = hf_tokenizer(tmp_path, 201_088, 512)
    assert not made.note and made.token_ids["eos_token_id"] == ours.eod_id
    theirs = tokenizers.Tokenizer.from_str(made.files["tokenizer.json"].decode())
    theirs.encode_special_tokens = True
    for text in texts(3_000):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids, ascii(text)
        assert theirs.decode(ids, skip_special_tokens=False) == text
