"""An exported run works in transformers as it is: AutoTokenizer, AutoModelForCausalLM, generate."""

import inspect
import json
import random

import numpy as np
import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.identity import run_meta
from mindmoe.checkpoint.retention import Retention
from mindmoe.cli.main import main
from mindmoe.config.run import RunConfig
from mindmoe.data.bpe import train_sentencepiece
from mindmoe.data.tokenizer import load_tokenizer
from mindmoe.interop.export import weight_shapes
from mindmoe.train.folder import RunFolder

torch = pytest.importorskip("torch", reason="the parity oracle needs the extra hf")
transformers = pytest.importorskip("transformers", reason="the parity oracle needs the extra hf")

TEXT = inspect.getsource(random)
TEXTS = ["def shuffle(self, x):", "    " * 7 + "x", "\u4f60\u597d \u4e16\u754c", "</s><|endoftext|><unk>", "\u2581 \0"]


@pytest.fixture
def exported(tmp_path, capsys):
    """Exports a run whose data has a tokenizer of this content, or none; the folder, and what was printed."""

    def exported(tokenizer: bytes | None):
        data = tmp_path / "data"
        data.mkdir()
        if tokenizer is not None:
            (data / "tokenizer.model").write_bytes(tokenizer)
        model = {
            "vocab_size": 640,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
        }
        run = RunConfig.model_validate(
            {
                "name": "small",
                "output_dir": str(tmp_path / "runs"),
                "model": model,
                "moe": {"num_experts": 4, "num_experts_per_tok": 2},
                "train": {"steps": 1, "seq_length": 16, "global_batch_size": 1, "micro_batch_size": 1},
                "optim": {"warmup_steps": 0},
                "data": {"sources": str(data)},
            }
        )
        home = RunFolder.of(run)
        home.create(run)
        rng = np.random.default_rng(0)
        shapes = weight_shapes(run.model, run.moe)
        chunks = {
            name: Chunk(np.float32(0.3) * rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()
        }
        root = home.checkpoints
        store.save(root, 1, chunks, run_meta(run, 1, store.claim(root)), Retention(), 0)
        assert main(["export", str(home.path), "--out", str(tmp_path / "hf")]) == 0
        return tmp_path / "hf", capsys.readouterr().out

    return exported


def test_auto_classes_and_generate(exported, tmp_path):
    folder, said = exported(train_sentencepiece([TEXT], 600))
    assert "AutoTokenizer" in said
    ours = load_tokenizer(tmp_path / "data")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, *(TEXT[start : start + 50] for start in range(0, 5000, 50))]:
        ids = ours.encode(text)
        assert theirs(text).input_ids == ids and theirs.decode(ids) == ours.decode(ids)
    assert theirs.eos_token_id == ours.eod_id == 1 and theirs.eos_token == "<|endoftext|>"
    assert theirs.bos_token_id == theirs.pad_token_id == 1 and theirs.model_max_length == 128
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert net.config.eos_token_id == net.generation_config.eos_token_id == 1
    batch = theirs(["def x", "for"], return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    made = net.generate(**batch, max_new_tokens=60, do_sample=True, temperature=5.0)
    assert made.shape[1] > batch.input_ids.shape[1] and int(made.max()) < ours.vocab_size < net.config.vocab_size
    assert isinstance(theirs.batch_decode(made)[0], str)
    assert net.generate(max_new_tokens=2).shape[0] == 1, "a text from nothing begins behind the end of another"


def test_a_run_without_a_tokenizer_says_so(exported):
    folder, said = exported(None)
    assert "no tokenizer is exported" in said and "data" in said
    names = {file.name for file in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json"}
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] is None
