"""`mindmoe generate RUN --prompt TEXT`: sampling from a trained model."""

import math
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindmoe.config.run import RunConfig
from mindmoe.data.dataset import locate
from mindmoe.data.inspect import harmless
from mindmoe.data.tokenizer import Tokenizer, load_tokenizer
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown
from mindmoe.train.folder import RunFolder


def choose(logits: NDArray, temperature: float, rng: np.random.Generator, has_piece: NDArray[np.bool_]) -> int:
    """A token drawn from softmax(logits / temperature) over those that stand for something; at 0 the likeliest one.

    Args:
        logits: (V).
        temperature: at least 0.
        rng: source of randomness.
        has_piece: (U) whether the tokenizer has a piece for an id; ids from U on have none.

    Raises:
        UserError: there is no such distribution, because a logit is not a number.
    """
    # Models may have more logits than the tokenizer has pieces, as padding.
    ids = np.flatnonzero(has_piece[: len(logits)])
    known = logits[ids].astype(np.float64)
    if not np.isfinite(known).all():
        raise UserError("the model's logits are not finite: its training diverged", "generate from an earlier run")
    if temperature == 0.0:
        return int(ids[np.argmax(known)])
    with np.errstate(over="ignore"):  # far below the largest is minus infinity
        weights = np.exp((known - known.max()) / temperature)
    return int(rng.choice(ids, p=weights / weights.sum()))


def encode_prompt(prompt: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """The ids a generation starts from: those of the prompt, or the end of a document for an empty one.

    Args:
        prompt: as it came from the command line, where bytes that are no UTF-8 are lone surrogates.
        tokenizer: of the run.
        vocab_size: of the model.

    Raises:
        UserError: it is no text, or the model has no place for it.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        # Python keeps a byte that is no UTF-8 as U+DC80 to U+DCFF; any other surrogate was given as such.
        at = os.fsencode(prompt[error.start]) if 0xDC80 <= ord(prompt[error.start]) <= 0xDCFF else b"?"
        raise UserError(
            f"--prompt is not UTF-8: 0x{at.hex()} at character {error.start}", "give a text encoded as UTF-8"
        ) from None
    tokens = tokenizer.encode(prompt)
    if not tokens and tokenizer.eod_id < 0:
        raise UserError(
            "--prompt is empty, and the tokenizer has no end-of-document token to start from", "give a prompt"
        )
    tokens = tokens or [tokenizer.eod_id]
    if max(tokens) >= vocab_size:
        raise UserError(
            f"the tokenizer makes the id {max(tokens)} of the prompt, the model has a vocabulary of {vocab_size}",
            "set data.tokenizer of the run to the tokenizer of its data",
        )
    return tokens


def _tokenizer_of(config: RunConfig) -> Tokenizer:
    """The tokenizer of a run: the configured one, or that of the first source."""
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer)
    source = config.data.sources[0].path
    if os.path.isdir(source):
        return load_tokenizer(source)
    prefix, manifest = locate(source, "train")
    if manifest is None:
        raise UserError(
            f"the tokenizer of the run is not known: {shown(source, 300)} does not record one",
            "set data.tokenizer in the config of the run",
        )
    return load_tokenizer(prefix.parent / manifest.tokenizer)


def generate(run: Path, prompt: str, max_new_tokens: int, temperature: float, seed: int) -> int:
    """Prints the prompt and what the newest checkpoint of the run makes of it; stops at the end of a document."""
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature} must be at least 0", "use 0 for the likeliest token")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1", "raise it")
    config = RunFolder(run).load_config()
    if config.moe is not None and not config.moe.router.causal:
        raise UserError(
            f"moe.router.type={config.moe.router.tag} is not causal: it cannot route a token before the later ones",
            "generate from a run with another router",
        )
    tokenizer = _tokenizer_of(config)
    tokens = encode_prompt(prompt, tokenizer, config.model.vocab_size)
    window = config.train.seq_length
    if len(tokens) > window:
        print(f"the prompt has {len(tokens)} tokens: the model sees the last {window} of them", file=sys.stderr)
    # Imported late, as it brings MindSpore: everything above is refused in no time.
    from mindmoe.inference.opened import open_run

    opened = open_run(run)
    from mindmoe.inference.decoding import Generation

    generation = Generation(opened.net, window, graph=config.train.mode == "graph")
    unseen = tokens[-window:]
    rng = np.random.default_rng(seed)
    text = tokenizer.decode(tokens)
    _write(text)
    written = len(text)
    for _ in range(max_new_tokens):
        if generation.length + len(unseen) > window:  # no longer than in training: go on from the last half
            generation.restart()
            unseen = tokens[-(window + 1) // 2 :]
        logits = generation.extend(np.array([unseen], np.int32))[0]
        token = choose(logits, temperature, rng, tokenizer.has_piece)
        if token == tokenizer.eod_id:
            break
        tokens.append(token)
        unseen = [token]
        # All tokens anew, and only what is new is written: a token by itself may be half a character or lose its space.
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
            _write(text[written:])
            written = len(text)
    _write(text[written:] + "\n")
    return 0


def _write(text: str) -> None:
    """Prints text as it is into a file or pipe; to a terminal, so that it cannot steer it."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
