"""What is a document and what is refused, with the reason a user can act on."""

import pytest

from mindmoe.data.records import BadRecord, Record, parse


def record(payload: bytes, is_json: bool = True) -> Record:
    return Record("corpus.jsonl", 1, payload, is_json, len(payload))


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"text": "a\\nb"}\n', "a\nb"),
        (b'{"id": 3, "meta": {"text": 1}, "text": "x"}\r\n', "x"),
        (b'\xef\xbb\xbf{"text": "after a byte order mark"}', "after a byte order mark"),
        ('{"text": "\u00e9\u6f22\\ud83d\\ude00"}'.encode(), "\u00e9\u6f22\U0001f600"),
        (b'{"text": ""}', ""),
    ],
)
def test_json_records(payload: bytes, text: str) -> None:
    assert parse(record(payload), "text") == text


def test_text_is_kept_to_the_letter() -> None:
    text = "  tab\there\r\nno-break\u00a0space \u2028 end  \n\n"
    assert parse(record(text.encode(), is_json=False), "text") == text
    assert parse(record(b"\xef\xbb\xbf" + text.encode(), is_json=False), "text") == text


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"text": "caf\xe9"}', "invalid UTF-8 at byte 13: 0xe9"),
        (b'{"text": "x"', "bad JSON"),
        (b'{"text": "x"} {"text": "y"}', "bad JSON: Extra data"),
        (b'{"body": "x", "id": 1}', "no key 'text'; it has 'body', 'id'"),
        (b'{"text": 5}', "'text' is not a string but int"),
        (b'{"text": null}', "'text' is not a string but NoneType"),
        (b'["text"]', "not a JSON object but list"),
        (b'{"text": "a\\u0000b"}', "NUL character at 1"),
        (b'{"text": "a\\ud800b"}', r"lone surrogate U\+D800 at 1"),
        (b'{"text": "x", "score": NaN}', "NaN is not JSON"),
        (b'{"text": "x", "score": -Infinity}', "-Infinity is not JSON"),
        (b'{"text": "x", "text": "y"}', "key 'text' appears twice"),
        (b'{"text": ' + b"[" * 100_000, "bad JSON: nested too deep"),
        (b'{"text": ' + b'{"a":' * 100_000, "bad JSON: nested too deep"),
        (b'{"text": "x", "n": ' + b"9" * 10_000 + b"}", "bad JSON: Exceeds the limit"),
        (b"\x80", "invalid UTF-8 at byte 0"),
    ],
)
def test_bad_json_records(payload: bytes, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        parse(record(payload), "text")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"\x89PNG\r\n", "invalid UTF-8 at byte 0: 0x89"), (b"a\x00b", "NUL"), (b"\xed\xa0\x80", "invalid UTF-8")],
)
def test_bad_text(payload: bytes, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        parse(record(payload, is_json=False), "text")


def test_another_key() -> None:
    assert parse(record(b'{"content": "x", "text": 1}'), "content") == "x"
