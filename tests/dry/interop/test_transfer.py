"""Weights out and in again: bit for bit, whole or not at all, and of the size that was predicted."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindmoe.checkpoint import store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.identity import run_meta
from mindmoe.checkpoint.retention import Retention
from mindmoe.cli.main import main
from mindmoe.config.load import dump_config, load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.interop.export import export, plan, predicted_size, weight_shapes
from mindmoe.interop.hf_config import read_config
from mindmoe.interop.importing import check_same_model
from mindmoe.interop.mxfp4 import dequantize, quantize
from mindmoe.interop.source import FolderSource, to_bf16, widen
from mindmoe.train.folder import RunFolder

Contents = Callable[[Path], dict[str, bytes]]
EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = bits.view(np.float32)
    finite = np.isfinite(values) & (np.abs(values) < 3e38)
    ours = widen(to_bf16(values), "BF16")
    below = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    above = ((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    gap = np.abs(ours.astype(np.float64) - values)[finite]
    other = np.minimum(np.abs(below.astype(np.float64) - values), np.abs(above.astype(np.float64) - values))[finite]
    assert (gap <= other).all()
    ties = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert to_bf16(ties).tolist() == [0x3F80, 0x3F82]
    assert np.isnan(widen(to_bf16(np.array([np.nan, np.uint32(0x7F800001).view(np.float32)])), "BF16")).all()


@pytest.mark.parametrize("form", ["bf16", "mxfp4"])
@pytest.mark.parametrize("max_file", [10**9, 20_000])
def test_out_and_in_and_out_again(
    run: RunConfig, known: Any, tmp_path: Path, contents: Contents, form: str, max_file: int
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    error = export(known, one, run.model, run.moe, form, max_file=max_file)
    parts = plan(weight_shapes(run.model, run.moe), form, max_file)
    weights = list(one.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) == predicted_size(parts) and len(weights) == len(parts)
    assert (len(parts) > 1) == (max_file < 10**9) == (one / "model.safetensors.index.json").exists()
    assert main_import(one, run, tmp_path) == 0
    with store.open_step(list_steps(RunFolder.of(run).checkpoints)[0]) as checkpoint:
        assert checkpoint.manifest.step == 0 and checkpoint.manifest.meta.state["weights_only"] is True
        tensors = checkpoint.read_all()
    assert tensors.keys() == known.tensors.keys()
    for name, values in known.tensors.items():
        packed = form == "mxfp4" and name.endswith(EXPERTS)
        wanted = dequantize(*quantize(values)) if packed else widen(to_bf16(values), "BF16")
        assert tensors[name].tobytes() == wanted.tobytes(), name
    assert (error.count > 0) == (form == "mxfp4") and error.relative_rms < 0.13
    export(type(known)(tensors), two, run.model, run.moe, form, max_file=max_file)
    assert contents(one) == contents(two), "importing and exporting again gives the same bytes"


def main_import(folder: Path, run: RunConfig, tmp_path: Path, *words: str) -> int:
    (tmp_path / "small.yaml").write_text(dump_config(run))
    return main(["import", str(folder), str(tmp_path / "small.yaml"), *words])


def test_the_command_line(run: RunConfig, known: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.umask(umask := os.umask(0))
    home = RunFolder.of(run)
    home.create(run)
    root = home.checkpoints
    moments = {f"adam_m.{name}": Chunk(array) for name, array in known.tensors.items()}
    chunks = {name: Chunk(array) for name, array in known.tensors.items()} | moments
    store.save(root, 7, chunks, run_meta(run, 1, store.claim(root)), Retention(), 0)
    assert main(["export", str(home.path), "--form", "mxfp4"]) == 0
    for path in (home.path / "hf-mxfp4", *(home.path / "hf-mxfp4").iterdir()):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, "others may read an export"
    out = capsys.readouterr().out
    assert "step 7 as mxfp4" in out and "relative RMS error" in out
    assert main(["export", str(home.path), "--form", "mxfp4"]) == 2 and "exists" in capsys.readouterr().err
    assert main_import(home.path / "hf-mxfp4", run, tmp_path, "name=again") == 0
    assert "content" in capsys.readouterr().out
    assert main_import(home.path / "hf-mxfp4", run, tmp_path, "name=again") == 2
    assert "already holds checkpoints" in capsys.readouterr().err
    assert main_import(home.path / "hf-mxfp4", run, tmp_path, "name=x", "model.hidden_size=64") == 2
    assert "model.hidden_size: 32 there, 64 here" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "small.yaml")]) == 0 and "as bf16" in capsys.readouterr().out


def test_the_size_of_gpt_oss_is_what_was_released(root: Path) -> None:
    run = load_config(str(root / "configs" / "gpt-oss-120b.yaml"))
    size = predicted_size(plan(weight_shapes(run.model, run.moe), "mxfp4"))
    assert abs(size / 2**30 / 60.8 - 1) < 0.005


def test_an_interrupted_export_leaves_nothing(run: RunConfig, known: Any, tmp_path: Path) -> None:
    known.tensors["lm_head.weight"] = np.full_like(known.tensors["lm_head.weight"], 1)
    known.tensors["model.layers.1.mlp.experts.down_proj"][3, 5, 7] = np.nan
    with pytest.raises(UserError, match="not finite"):
        export(known, tmp_path / "out", run.model, run.moe, "mxfp4")
    assert os.listdir(tmp_path) == []


def test_what_gpt_oss_cannot_express_is_refused(run: RunConfig, known: Any, tmp_path: Path) -> None:
    assert run.moe is not None
    odd = run.moe.model_copy(
        update={"num_shared_experts": 1, "router": run.moe.router.model_copy(update={"score": "sigmoid"})}
    )
    with pytest.raises(UserError, match=r"moe.router.score=sigmoid, moe.num_shared_experts=1"):
        export(known, tmp_path / "out", run.model, odd, "bf16")
    with pytest.raises(UserError, match="dense"):
        export(known, tmp_path / "out", run.model, None, "bf16")
    bias = "model.layers.0.mlp.router.selection_bias"
    known = type(known)(known.tensors | {bias: np.zeros(8, np.float32)})
    export(known, tmp_path / "zero", run.model, run.moe, "bf16")
    known.tensors[bias][2] = 0.1
    with pytest.raises(UserError, match="--drop-selection-bias"):
        export(known, tmp_path / "out", run.model, run.moe, "bf16")
    export(known, tmp_path / "dropped", run.model, run.moe, "bf16", drop_selection_bias=True)


def test_damaged_folders_are_refused(run: RunConfig, known: Any, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    export(known, folder, run.model, run.moe, "mxfp4", max_file=20_000)
    first = sorted(folder.glob("*.safetensors"))[0]
    good = first.read_bytes()
    for bad, message in (
        (good[:-1], "the data ends"),
        (good[:40], "no safetensors file"),
        (b"", "no safetensors file"),
    ):
        first.write_bytes(bad)
        with pytest.raises(UserError, match=message):
            FolderSource(folder)
    first.unlink()
    with pytest.raises(UserError, match="are in no file"):
        FolderSource(folder)
    first.write_bytes(good)
    save_file({"x.experts.down_proj_blocks": np.zeros((2, 4, 1, 16), np.uint8)}, folder / "more.safetensors")
    with pytest.raises(UserError, match="no MXFP4 tensor"):
        FolderSource(folder)
    save_file({"x": np.zeros(3, np.int32)}, folder / "more.safetensors")
    with pytest.raises(UserError, match="stored as I32"):
        FolderSource(folder)


def test_config_json_reads_back(run: RunConfig, known: Any, tmp_path: Path) -> None:
    plain = run.model.model_copy(update={"rope_scaling": None, "layer_types": "full", "tie_word_embeddings": False})
    for name, model in (("yarn", run.model), ("plain", plain)):
        export(known, tmp_path / name, model, run.moe, "mxfp4")
        there, moe = read_config(tmp_path / name)
        assert there.rope_scaling == model.rope_scaling and there.rope_theta == model.rope_theta
        check_same_model(tmp_path / name, run.model_copy(update={"model": model}))
        assert moe.num_experts == 8
        raw = json.loads((tmp_path / name / "config.json").read_text())
        assert raw["quantization_config"]["quant_method"] == "mxfp4"
