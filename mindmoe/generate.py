"""`mindmoe generate RUN --prompt TEXT`: sampling from a trained model."""

import sys
from pathlib import Path

import numpy as np

from mindmoe.errors import UserError
from mindmoe.train.folder import RunFolder


def choose(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature), the likeliest one at temperature 0.

    Args:
        logits: (V).
        temperature: at least 0.
        rng: source of randomness.
    """
    if temperature == 0.0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def main(run: Path, prompt: str, max_new_tokens: int, temperature: float, seed: int) -> int:
    """Prints the prompt and what the newest checkpoint of the run makes of it; stops at the end of a document."""
    if temperature < 0:
        raise UserError(f"--temperature {temperature} must be at least 0", "use 0 for the likeliest token")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1", "raise it")
    from mindmoe.data.tokenizer import load_tokenizer, tokenizer_file

    config = RunFolder(run).load_config()
    if config.moe is not None and not config.moe.router.causal:
        raise UserError(
            f"moe.router.type={config.moe.router.type} is not causal: it cannot route a token before the later ones",
            "generate from a run with another router",
        )
    tokenizer = load_tokenizer(tokenizer_file(config.data.tokenizer or config.data.sources[0].path))
    tokens = tokenizer.encode(prompt) or [tokenizer.eod_id]
    from mindmoe.train.inference import open_run

    opened = open_run(run)
    from mindmoe.model.generation import Generation

    window = config.train.seq_length
    generation = Generation(opened.net, window, graph=config.train.mode == "graph")
    unseen = tokens[-window:]
    rng = np.random.default_rng(seed)
    sys.stdout.write(tokenizer.decode(tokens))
    written = len(tokenizer.decode(tokens))
    for _ in range(max_new_tokens):
        if generation.length + len(unseen) > window:  # no longer than in training: go on from the last half
            generation.restart()
            unseen = tokens[-(window + 1) // 2 :]
        token = choose(generation.extend(np.array([unseen], np.int32))[0], temperature, rng)
        if token == tokenizer.eod_id:
            break
        tokens.append(token)
        unseen = [token]
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
            sys.stdout.write(text[written:])
            sys.stdout.flush()
            written = len(text)
    sys.stdout.write("\n")
    return 0
