"""Tokenizers: text survives, training is deterministic, files are told apart, mistakes are explained."""

import base64
import json
from itertools import islice
from pathlib import Path

import pytest

from mindmoe.data.bpe import EOD_PIECE, train_sentencepiece, training_sample
from mindmoe.data.records import Input, Record, parse
from mindmoe.data.sources import discover
from mindmoe.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_kind
from mindmoe.host.errors import UserError

HARD_TEXTS = [
    "",
    " ",
    "\n",
    "   leading and trailing   ",
    "\ttabs\t\tand  \t spaces",
    "\r\nwindows\r\n\r\n",
    "def f(x):\n    return x\n\n\n\tif y:\n        pass\n",
    "\u2581 is written for a space \u2581\u2581 \u2581x\u2581",
    "caf\u00e9 \u6f22\u5b57\u3000\u00a0\u2028\u200b\ufeff \U0001f600\U0001f468\u200d\U0001f469",
    "e\u0301 is not normalised to \u00e9; \ufb01 \u2126",
    "12345 3.14 0x1F",
    f"{EOD_PIECE} <unk> <s> </s> <0x0A>",
    "\x01\x0b\x0c\x1b[0m\x7f",
]


def stdlib_texts() -> list[str]:
    inputs = discover("python-stdlib", "auto", "text").inputs
    return [parse(record, "text") for item in inputs[::12] for record in islice(item.read(), 5)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    texts = stdlib_texts()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_sentencepiece(texts[::2], 1000))
    return path, texts


def test_text_survives(trained: tuple[Path, list[str]]) -> None:
    """Real source with its non-ASCII characters, also indented by tabs, half of it not trained on; and hard cases."""
    path, texts = trained
    tokenizer = load_tokenizer(path)
    assert sum(map(len, texts)) > 500_000 and not all(text.isascii() for text in texts)
    tabbed = [text.replace("    ", "\t") for text in texts[::8]]
    for text in texts + tabbed + HARD_TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod_id not in ids


def test_trained_vocabulary(trained: tuple[Path, list[str]]) -> None:
    path, texts = trained
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (1000, 1)
    assert len(tokenizer.digest) == 64
    sizes = [(len(text.encode()), len(tokenizer.encode(text))) for text in texts[1::4]]
    assert sum(size for size, _ in sizes) > 2 * sum(tokens for _, tokens in sizes)  # bytes a token: it did learn
    assert len(tokenizer.encode("        ")) == 1  # indentation
    assert [len(tokenizer.encode(number)) for number in ("00", "10", "255", "1000", "2001")] == [2, 2, 3, 4, 4]


def test_cutting_at_a_line_break_changes_nothing(trained: tuple[Path, list[str]]) -> None:
    tokenizer = load_tokenizer(trained[0])
    text = max(trained[1], key=len)
    pieces = [i for line in text.splitlines(keepends=True) for i in tokenizer.encode(line)]
    assert "\n" in text and pieces == tokenizer.encode(text)


def test_training_is_deterministic(trained: tuple[Path, list[str]]) -> None:
    texts = trained[1][:30]
    assert train_sentencepiece(texts, 600) == train_sentencepiece(iter(texts), 600)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 500, "there is no text to train a tokenizer on"),
        (["", "\n\n"], 500, "there is no text to train a tokenizer on"),
        (["hello hello world"], 100, r"vocab_size=100 is too small: .* take \d+: set vocab_size to \d+"),
        (["hello hello world"], 5000, r"vocab_size=5000 is too large: this text yields at most \d+ pieces"),
    ],
)
def test_vocabulary_that_does_not_fit(texts: list[str], vocab_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_sentencepiece(texts, vocab_size)


def test_the_size_named_in_the_remedy_works() -> None:
    with pytest.raises(UserError) as caught:
        train_sentencepiece(["hello hello world"], 5000)
    largest = int(caught.value.remedy.split()[3])
    assert train_sentencepiece(["hello hello world"], largest)
    with pytest.raises(UserError) as caught:
        train_sentencepiece(["hello hello world"], 100)
    assert train_sentencepiece(["hello hello world"], int(caught.value.remedy.split()[3]))


def test_sample_is_bounded_fair_and_repeatable() -> None:
    def item(name: str, size: int) -> Input:
        def read():
            for line in range(size // 1000):
                yield Record(name, line, name[0].encode() * 1000, False, 0)

        return Input(name, size, "", read)

    inputs = [item("large", 3_000_000), *(item(f"small{i}", 2000) for i in range(50))]
    sample = list(training_sample(inputs, "text", 0, 150_000, []))
    assert sample == list(training_sample(inputs[::-1], "text", 0, 150_000, []))
    text = "".join(sample)
    assert len(text) <= 150_000
    assert 0 < text.count("l") <= 64 << 10  # the large file gives its share only
    assert text.count("s") > 50_000
    assert sum(map(len, training_sample(inputs, "text", 0, 10**9, []))) == 3_100_000  # all there is


def hugging_face_tokenizer(path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|stop|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 50], trainer)
    model.enable_truncation(5)
    model.save(str(path))


def check_survival(tokenizer: Tokenizer) -> None:
    for text in [*HARD_TEXTS, "a text longer than the five tokens it was told to cut at"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < tokenizer.vocab_size


def test_hugging_face(tmp_path: Path) -> None:
    hugging_face_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    check_survival(tokenizer)
    assert tokenizer.eod_id == -1
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|stop|>"}}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eod_id == 1
    ids = tokenizer.encode("a<|stop|>b")  # text of a document, not a command
    assert 1 not in ids and tokenizer.decode(ids) == "a<|stop|>b"


def test_tiktoken(tmp_path: Path) -> None:
    """A file of as many ranks as GPT-2 has: single bytes, then made-up pairs and triples."""
    pytest.importorskip("tiktoken")
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes([a, b]) for a in range(97, 123) for b in range(97, 123)]
    tokens += [bytes([a, b, c]) for a in range(97, 123) for b in range(97, 123) for c in range(256)][
        : 50_256 - len(tokens)
    ]
    path = tmp_path / "tokenizer.model"  # as Llama 3 names it
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    assert tokenizer_kind(path) == "tokenizer.tiktoken"
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (50_257, 50_256)
    check_survival(tokenizer)
    assert tokenizer.encode("ab") == [256 + 1]
    assert 50_256 not in tokenizer.encode("<|endoftext|>")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="has 50,255 ranks"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no SentencePiece model"),
        (b"\x0a\x0bnot a model", "is no SentencePiece model"),
        (b'{"version": "1.0"}', "is no tokenizer.json"),
        (b"{broken", "is no tokenizer.json"),
        (b"aGVsbG8= 0\nbroken\n", "is no tiktoken file"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds none of"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "tokenizer.model")
