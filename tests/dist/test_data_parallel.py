"""Two ranks compute what one rank computes."""

import math

import numpy as np
import pytest


def assert_bits_of_the_evaluated_tokens(cli, name):
    """Bits per byte, of which the bytes are those that SentencePiece itself decodes the evaluated tokens to."""
    import sentencepiece

    from mindmoe.data.manifest import load_manifest
    from mindmoe.observe.metrics import read_metrics

    model = sentencepiece.SentencePieceProcessor(model_file=str(cli.corpus / "tokenizer.model"))
    eod = load_manifest(cli.corpus).eod_id
    records = [record for record in read_metrics(cli.metrics(name)) if record["kind"] == "eval"]
    assert records
    for record in records:
        ids = np.fromfile(cli.corpus / "valid.bin", np.uint16)[1 : record["tokens"] + 1]
        documents = np.split(ids, np.flatnonzero(ids == eod) + 1)
        texts = [model.decode([int(i) for i in part if i != eod]) for part in documents]
        num_bytes = sum(len(text.encode()) for text in texts)
        expected = record["loss"] * record["tokens"] / math.log(2) / num_bytes
        assert record["bits_per_byte"] == pytest.approx(expected, rel=1e-3)  # a character may be cut at either end


def test_two_ranks_equal_one(cli, trace):
    code, output = cli.run("launch", "--cards", "2", "name=two")
    assert code == 0, output
    code, output = cli.run("train", "name=one", "train.micro_batch_size=4")
    assert code == 0, output
    two, one = np.array(trace("two")), np.array(trace("one"))
    assert np.abs(two[:, 0] - one[:, 0]).max() < 1e-5
    assert_bits_of_the_evaluated_tokens(cli, "one")
    assert_bits_of_the_evaluated_tokens(cli, "two")
    assert two[:, 1:] == pytest.approx(one[:, 1:], rel=1e-3, abs=1e-4)  # norms and loads after Adam's small divisors
