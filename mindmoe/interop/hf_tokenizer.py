"""A run's tokenizer in Hugging Face's form, so that AutoTokenizer gives the ids that the model was trained on.

SentencePiece models and tiktoken files become a tokenizer.json. A conversion is only believed after its ids were equal
on a few hundred texts that try what conversions get wrong. Where they are not, the file goes along as it is, in a
folder of its own: under its usual name transformers would convert it by rules that give other ids, and say nothing.
"""

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindmoe.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_file, tokenizer_kind
from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, read_bytes, shown

_MAX_FILE = 10**8  # [bytes] of a tokenizer
_SPACE = "\u2581"  # SentencePiece writes a space as this character
_NEVER = -1e9  # score of a piece that no text may become
_CARRIED = ("bos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "chat_template")
_RANGES = (  # of characters: Latin, CJK, kana, Hangul, Arabic, emoji, and everything
    (32, 127),
    (0xA0, 0x250),
    (0x4E00, 0x9FFF),
    (0x3040, 0x30FF),
    (0xAC00, 0xD7A3),
    (0x600, 0x6FF),
    (0x1F300, 0x1FAFF),
    (1, 0xD7FF),
    (0xE000, 0x10FFFF),
)
ORIGINAL = "original"  # folder of a tokenizer that is no tokenizer.json


@dataclass(frozen=True, kw_only=True, slots=True)
class HfTokenizer:
    """What a folder of Hugging Face gets of a tokenizer.

    Attributes:
        files: content by name.
        token_ids: bos_token_id, eos_token_id, pad_token_id; None for those it lacks.
        vocab_size: one more than the largest id, 0 where that is not known.
        note: what is missing, and what to do; empty where nothing is.
    """

    files: dict[str, bytes]
    token_ids: dict[str, int | None]
    vocab_size: int
    note: str = ""


NO_TOKENS: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def no_tokenizer(why: str) -> HfTokenizer:
    """The answer where there is none to carry."""
    return HfTokenizer(files={}, token_ids=NO_TOKENS, vocab_size=0, note=f"no tokenizer is exported: {why}")


def hf_tokenizer(path: str | Path, vocab_size: int, max_length: int) -> HfTokenizer:
    """The tokenizer in this file or folder, in Hugging Face's form.

    Args:
        path: as for `load_tokenizer`.
        vocab_size: of the model.
        max_length: longest sequence of the model [tokens].

    Raises:
        UserError: there is none, it is damaged, or it has ids that the model has not.
    """
    file = tokenizer_file(path)
    kind, content = tokenizer_kind(file), read_bytes(file, _MAX_FILE)
    try:
        import tokenizers
    except ImportError:
        place = kind if kind == "tokenizer.json" else f"{ORIGINAL}/{kind}"
        note = (
            f"the tokenizer is exported as it is, as {place}; a tokenizer.json with its special tokens needs the "
            "package tokenizers: pip install 'mindmoe[hf]' and export again"
        )
        return HfTokenizer(files={place: content}, token_ids=NO_TOKENS, vocab_size=0, note=note)
    ours = load_tokenizer(file)
    if ours.vocab_size > vocab_size:
        what = f"{shown(str(file), 300)} has {ours.vocab_size} ids, the model {vocab_size}"
        raise UserError(what, "set data.tokenizer to the one the data was made with")
    note = ""
    if kind == "tokenizer.json":
        model, names = tokenizers.Tokenizer.from_str(content.decode()), _beside(file)
    else:
        try:
            model, names = _tiktoken(content, ours) if kind == "tokenizer.tiktoken" else _sentencepiece(content, ours)
            wrong, note = _differences(model, ours)
        except Exception as error:  # `tokenizers` raises bare ones
            wrong = f"it cannot be made a tokenizer.json ({shown(str(error), 200)})"
        if wrong:
            ids = NO_TOKENS | {"eos_token_id": ours.eod_id if ours.eod_id >= 0 else None}
            note = f"the tokenizer is exported as it is, as {ORIGINAL}/{kind}: {wrong}"
            return HfTokenizer(
                files={f"{ORIGINAL}/{kind}": content}, token_ids=ids, vocab_size=ours.vocab_size, note=note
            )
        content = model.to_str().encode()
    eod = model.id_to_token(ours.eod_id) if ours.eod_id >= 0 else None
    own_pad = names.get("pad_token")
    if eod is not None:  # a text begins behind the end of the one before
        names = {"bos_token": eod, "pad_token": eod} | names | {"eos_token": eod}

    def id_of(name: str | None) -> int | None:
        return None if name is None else model.token_to_id(name)

    return HfTokenizer(
        files={"tokenizer.json": content} | _settings(names, max_length),
        token_ids={
            "bos_token_id": id_of(names.get("bos_token")),
            "eos_token_id": ours.eod_id if eod else None,
            "pad_token_id": id_of(own_pad),
        },
        vocab_size=ours.vocab_size,
        note=note,
    )


def _settings(special: dict[str, str], max_length: int) -> dict[str, bytes]:
    """tokenizer_config.json and special_tokens_map.json."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # in training no text was read as a control token
        **special,
    }
    tokens = {key: value for key, value in special.items() if key.endswith("_token")}
    return {
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps(tokens, indent=2).encode(),
    }


def _beside(file: Path) -> dict[str, str]:
    """The special tokens and the chat template that stand in tokenizer_config.json beside a tokenizer.json."""
    path = file.with_name("tokenizer_config.json")
    try:
        settings = strict_json.checked(dict[str, Any], strict_json.read(path), str(path))
    except FileMissing:
        return {}
    found = {key: settings.get(key) for key in _CARRIED}
    found = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _differences(model: Any, ours: Tokenizer) -> tuple[str, str]:
    """On how many of many texts a converted tokenizer gives other ids, and the same in another order; in words.

    A unigram model may find the same pieces in two orders equally likely, and rounding decides.
    """
    model.encode_special_tokens = True
    probes = list(_probes(ours))
    wrong: list[str] = []
    turned: list[str] = []
    for probe in probes:
        theirs, wanted = model.encode(probe, add_special_tokens=False).ids, ours.encode(probe)
        if theirs != wanted:
            (turned if sorted(theirs) == sorted(wanted) else wrong).append(ascii(probe)[:60])

    def said(what: str, texts: list[str]) -> str:
        return f"a tokenizer.json {what} for {len(texts)} of {len(probes)} texts, {texts[0]} for one" if texts else ""

    return said("would give other ids", wrong), said("puts pieces that are equally likely in another order", turned)


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that conversions get wrong: spaces, other scripts, bytes, special names, pieces in unusual company."""
    rng = random.Random(0)
    names = ["</s>", "<s>", "<unk>", "<pad>", "<|endoftext|>", "<0x41>", _SPACE, f"a{_SPACE} {_SPACE}b", ""]
    special = [tokenizer.decode([i]) for i in range(min(8, tokenizer.vocab_size))]
    yield from names + special + ["".join(pair) for pair in zip(names, special, strict=False)]
    yield from (" " * n + "x" + " " * n for n in range(1, 20))
    yield from ("\n\n  \t x\r\n", "1234567 1,000.5", "it's I'LL we'd", "\u00a0\u3000\u200b\u0085 x")
    yield from (char * n for char in "-=a." for n in (3, 5, 7, 11, 19, 40))
    yield from ("\0\x7f", "e\u0301", " a\n  b\n ")
    for low, high in _RANGES * 15:
        characters = [chr(rng.randrange(low, high)) for _ in range(rng.randrange(40))]
        yield "".join(" " if rng.random() < 0.2 else char for char in characters)
    for _ in range(120):
        yield tokenizer.decode([rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 30))])


def _sentencepiece(content: bytes, ours: Tokenizer) -> tuple[Any, dict[str, str]]:
    """A SentencePiece model in the words of `tokenizers`, and its special tokens.

    Where text survives a model unchanged, pieces keep their spaces as spaces; U+2581 in a text is then an ordinary
    character, as it is to our own reader.
    """
    from sentencepiece import sentencepiece_model_pb2 as form
    from tokenizers import AddedToken, Tokenizer, decoders, models

    proto = form.ModelProto.FromString(content)
    kinds = form.ModelProto.SentencePiece.Type
    verbatim = ours.decode(ours.encode(_SPACE)) == _SPACE
    names = [
        piece.piece.replace(_SPACE, " ") if verbatim and piece.type != kinds.CONTROL else piece.piece
        for piece in proto.pieces
    ]
    unknown = next((i for i, piece in enumerate(proto.pieces) if piece.type == kinds.UNKNOWN), None)
    has_bytes = any(piece.type == kinds.BYTE for piece in proto.pieces)
    if proto.trainer_spec.model_type == form.TrainerSpec.ModelType.UNIGRAM:
        spelt = (kinds.NORMAL, kinds.USER_DEFINED)
        scores = [
            (name, piece.score if piece.type in spelt else _NEVER)
            for name, piece in zip(names, proto.pieces, strict=True)
        ]
        core: Any = models.Unigram(scores, unknown, has_bytes)
    else:
        scores_of = {
            name: (-piece.score, i)
            for i, (name, piece) in enumerate(zip(names, proto.pieces, strict=True))
            if piece.type == kinds.NORMAL
        }
        core = models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=_pairs(scores_of),
            unk_token=None if unknown is None else names[unknown],
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    model = Tokenizer(core)
    if not verbatim:
        model.normalizer = _normalizer(proto.normalizer_spec)
    steps: list[Any] = [] if verbatim else [decoders.Replace(_SPACE, " ")]
    steps += [decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    model.decoder = decoders.Sequence(steps)
    for name, piece in zip(names, proto.pieces, strict=True):
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            model.add_special_tokens([AddedToken(name, special=True, normalized=False)])
        elif piece.type == kinds.USER_DEFINED:
            model.add_tokens([AddedToken(name, special=False, normalized=False)])
    controls = {name for name, piece in zip(names, proto.pieces, strict=True) if piece.type == kinds.CONTROL}
    trainer = proto.trainer_spec
    special = {"bos_token": trainer.bos_piece, "pad_token": trainer.pad_piece}
    special = {key: name for key, name in special.items() if name in controls}
    return model, special | ({} if unknown is None else {"unk_token": names[unknown]})


def _pairs(rank: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, in the order in which SentencePiece would."""
    pairs = [
        (rank[piece], rank[piece[:cut]][1], piece[:cut], piece[cut:])
        for piece in rank
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    ]
    return [(left, right) for _, _, left, right in sorted(pairs)]


def _normalizer(spec: Any) -> Any:
    """What SentencePiece does to a text before it looks for pieces."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _tiktoken(content: bytes, ours: Tokenizer) -> tuple[Any, dict[str, str]]:
    """A tiktoken file of one of the published encodings in the words of `tokenizers`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    from mindmoe.data.tiktoken_file import ENCODINGS

    lines = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = ENCODINGS[len(ranks)]
    spelt = _byte_names()
    name = {token: "".join(map(spelt, token)) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        if len(token) > 1:
            left, right = _last_merge(token, rank, ranks)
            merges.append((name[left], name[right]))
    vocabulary = {name[token]: rank for token, rank in ranks.items()} | {encoding.eod: ours.eod_id}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    # Oniguruma reads `{1,3}+` as a group repeated and `$` as the end of a line; possessive or not gives the same match.
    pattern = Regex(encoding.pattern.replace("{1,3}+", "{1,3}").replace("$", r"\z"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(encoding.eod, special=True, normalized=False)])
    return model, {}


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a token is made of when only lower ranks are merged."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
        lowest, at = min(pairs)
        if lowest >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise UserError(f"token {rank} is not made of two others", "check the tiktoken file")
    return parts[0], parts[1]


def _byte_names() -> Callable[[int], str]:
    """How byte-level tokenizers write a byte: printable ones as themselves, others from U+0100 on.

    Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(rest)}
    return names.__getitem__
