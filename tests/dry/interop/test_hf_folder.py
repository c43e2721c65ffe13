"""Folders of Hugging Face as strangers leave them: read, or refused in a sentence; no stack trace, no wait."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindmoe.config.load import load_config
from mindmoe.host.errors import UserError
from mindmoe.interop.export import export, weight_shapes
from mindmoe.interop.hf_config import read_config
from mindmoe.interop.importing import check_same_model
from mindmoe.interop.source import INDEX, FolderSource

GATE = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture
def folder(run: Any, known: Any, tmp_path: Path) -> Path:
    """An export in several files, with an index."""
    export(known, tmp_path / "hf", run.model, run.moe, "bf16", max_file=20_000)
    return tmp_path / "hf"


def read_all(folder: Path, run: Any) -> None:
    """All that an import reads."""
    check_same_model(folder, run)
    with FolderSource(folder) as source:
        for name, shape in source.shapes.items():
            source.rows(name, 0, shape[0])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{GATE}_blocks": np.zeros((8, 128, 1, 16), np.uint8), f"{GATE}_scales": np.zeros((8, 128, 1), np.uint8)},
         "both as it is and as MXFP4 blocks"),
        ({"model.layers.0.mlp.experts.3.down_proj.weight": np.zeros((2, 2), np.float32)}, "one by one .* and together"),
        ({"lm_head.weight": np.zeros((61, 32), np.float32)}, "lm_head.weight is in both"),
    ],
)  # fmt: skip
def test_a_weight_in_two_forms_is_refused(folder: Path, tensors: dict, message: str) -> None:
    save_file(tensors, folder / "more.safetensors")
    with pytest.raises(UserError, match=message):
        FolderSource(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "no JSON"),
        (b"[]", "index.json: "),
        (b'{"weight_map": null}', "weight_map: "),
        (b'{"weight_map": {"x": 3}}', r"weight_map\.x: "),
        (b'{"weight_map": {"x": "../other/model.safetensors"}}', "name files of the folder itself"),
        (b'{"weight_map": {"x": "/etc/passwd"}}', "name files of the folder itself"),
        (b'{"weight_map": {"x": "gone.safetensors"}}', "1 tensors are in no file"),
        (b'{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}', "not in the one that"),
        (b'{"weight_map": {"a": "b", "a": "c"}}', "stands twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 10**5, "nested"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(folder: Path, index: bytes, message: str) -> None:
    (folder / INDEX).write_bytes(index)
    with pytest.raises(UserError, match=message) as caught:
        FolderSource(folder)
    assert str(folder) in str(caught.value)


def test_links_of_the_folder_are_read_as_in_hugging_faces_cache(folder: Path, run: Any, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    folder.rename(blobs)
    folder.mkdir()
    for number, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / str(number))
        (folder / file.name).symlink_to(f"../blobs/{number}")
    read_all(folder, run)
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    (folder / "model-00001-of-00002.safetensors").symlink_to("../blobs/gone")
    with pytest.raises(UserError, match="link to nothing"):
        FolderSource(folder)


@pytest.mark.parametrize("name", ["config.json", "z.safetensors", INDEX])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(
    folder: Path, run: Any, name: str, make: Callable[[Path], None]
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(UserError, match=f"{name} is (not a regular file|a directory)"):
        read_all(folder, run)


def test_whatever_the_bytes_the_answer_is_a_sentence(folder: Path, run: Any) -> None:
    """Bits flipped and ends cut off, in the config, the index and the head of a file."""
    rng = random.Random(0)
    first = sorted(folder.glob("*.safetensors"))[0]
    answers = set()
    for file in (folder / "config.json", folder / INDEX, first):
        good = file.read_bytes()
        for trial in range(150):
            bad = bytearray(good)
            if trial % 5 == 0:
                del bad[rng.randrange(len(bad)) :]
            else:
                for _ in range(rng.randrange(1, 4)):
                    bad[rng.randrange(min(len(bad), 3000))] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            try:
                read_all(folder, run)
            except UserError as error:
                assert str(error).isprintable() and len(str(error)) < 10_000
                answers.add(file.name)
        file.write_bytes(good)
    assert len(answers) == 3
    read_all(folder, run)


def test_keys_of_any_type_are_refused_by_name(folder: Path, run: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    values = [None, True, -1, 0, 1.5, 10**30, 1e300, "x", "", [], [1], {}, {"a": 1}]
    for key in raw:
        for value in values:
            (folder / "config.json").write_text(json.dumps(raw | {key: value}))
            try:
                check_same_model(folder, run)
            except UserError as error:
                assert key in str(error) or "differ" in str(error) or "holds another model" in str(error), (key, value)
    for value in values:
        (folder / "config.json").write_text(json.dumps(value))
        with pytest.raises(UserError, match=r"config\.json"):
            read_config(folder)


def test_exports_follow_the_umask(run: Any, known: Any, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        export(known, tmp_path / "hf", run.model, run.moe, "bf16")
    finally:
        os.umask(before)
    assert (tmp_path / "hf").stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "hf").iterdir()} == {0o640}


def test_another_alpha_of_the_swiglu_is_another_model(folder: Path, run: Any) -> None:
    other = run.model_copy(update={"model": run.model.model_copy(update={"swiglu_alpha": 1.5})})
    with pytest.raises(UserError, match=r"model.swiglu_alpha: 1.702 there, 1.5 here"):
        check_same_model(folder, other)


def test_another_routing_is_told(folder: Path, run: Any) -> None:
    router = run.moe.router.model_copy(update={"score": "sigmoid"})
    other = run.model_copy(update={"moe": run.moe.model_copy(update={"router": router})})
    assert check_same_model(folder, run) == []
    assert "moe.router.score=sigmoid" in check_same_model(folder, other)[0]
    assert weight_shapes(other.model, other.moe) == weight_shapes(run.model, run.moe)


def test_the_config_that_gpt_oss_20b_was_released_with_is_read(tmp_path: Path, root: Path) -> None:
    """With the names of OpenAI's own format beside those of transformers."""
    released = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": 201088,
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    assert check_same_model(tmp_path, load_config(str(root / "configs" / "gpt-oss-20b.yaml"))) == []
