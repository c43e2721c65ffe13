"""What is printed of a text, token by token, with a model that says a script."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindmoe.inference import decoding, generate, opened
from mindmoe.train.folder import RunFolder


class Letters:
    """A tokenizer of bytes."""

    eod_id, has_piece = 0, np.ones(256, bool)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("script", "most", "printed"),
    [
        ("n\u00e9\0", 9, "xn\u00e9\n"),
        ("n\u00e9", 3, "xn\u00e9\n"),
        ("n\u00e9", 2, "xn\ufffd\n"),  # ends in half a character: all of it is printed
        ("\ufffd\ufffd\0", 9, "x\ufffd\ufffd\n"),  # so does one that means it
    ],
)
def test_all_of_the_text_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, most: int, printed: str
) -> None:
    said = iter(script.encode())
    speaker = SimpleNamespace(length=0, extend=lambda tokens: np.eye(256, dtype=np.float32)[[next(said)]] * 9)
    config = SimpleNamespace(
        moe=None, model=SimpleNamespace(vocab_size=256), train=SimpleNamespace(seq_length=64, mode="pynative")
    )
    monkeypatch.setattr(RunFolder, "load_config", lambda self: config)
    monkeypatch.setattr(generate, "_tokenizer_of", lambda config: Letters())
    monkeypatch.setattr(opened, "open_run", lambda run: SimpleNamespace(net=None))
    monkeypatch.setattr(decoding, "Generation", lambda *args, **options: speaker)
    assert generate.generate(Path("run"), "x", most, 0.0, 0) == 0
    assert capsys.readouterr().out == printed
