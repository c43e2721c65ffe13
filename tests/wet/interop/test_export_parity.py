"""What we export loads in Hugging Face's transformers and computes what we compute."""

import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.interop import hf
from mindmoe.interop.compare import exported_difference
from mindmoe.interop.export import export, weight_shapes
from mindmoe.interop.mxfp4 import dequantize
from mindmoe.interop.source import FolderSource
from mindmoe.models.gpt_oss.config import ModelConfig, YarnConfig
from mindmoe.moe.config import MoeConfig

torch = pytest.importorskip("torch", reason="the parity oracle needs the extra hf")
transformers = pytest.importorskip("transformers", reason="the parity oracle needs the extra hf")

MODEL = ModelConfig(
    vocab_size=67,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=96,
    sliding_window=8,
    max_position_embeddings=512,
    rope_scaling=YarnConfig(original_max_position_embeddings=16),
)
MOE = MoeConfig(num_experts=8, num_experts_per_tok=2)
# Rounding may tip the choice between two experts that are nearly equal, which is a jump in the logits. Where it is
# the rounding itself that is measured, all experts are chosen.
SMOOTH = MoeConfig(num_experts=8, num_experts_per_tok=8)


class Known:
    """Random weights, scaled so that logits are of order 1 and biases and sinks matter."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.shapes = weight_shapes(MODEL, MOE)
        self.tensors = {
            name: np.float32(1.0 if "norm" in name else 0.0) + np.float32(0.15) * rng.standard_normal(shape, np.float32)
            for name, shape in self.shapes.items()
        }

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.tensors[name][start:stop]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, MODEL.vocab_size, (2, 24)).astype(np.int32)


def our_logits(net, tokens: np.ndarray) -> np.ndarray:
    return net.logits(Tensor(tokens), Tensor(np.zeros(tokens.shape, np.int32))).asnumpy()


def their_logits(folder, tokens: np.ndarray, **options) -> np.ndarray:
    net = transformers.GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    net.config._attn_implementation = net.config._experts_implementation = "eager"
    with torch.no_grad():
        return net.float()(input_ids=torch.tensor(tokens).long()).logits.numpy()


def test_bf16(tmp_path, tokens) -> None:
    known = Known()
    folder = tmp_path / "bf16"
    export(known, folder, MODEL, MOE, "bf16", max_file=100_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").exists()
    theirs = their_logits(folder, tokens)
    assert np.abs(our_logits(hf.load(folder), tokens) - theirs).max() < 1e-4, "the same weights, the same logits"
    export(known, tmp_path / "smooth", MODEL, SMOOTH, "bf16")
    against_fp32 = exported_difference(known, MODEL, SMOOTH, tmp_path / "smooth", tokens)
    assert against_fp32.relative_rms < 0.02 and against_fp32.divergence < 1e-3  # bf16 keeps 8 bits of a weight


def test_mxfp4(tmp_path, tokens) -> None:
    known = Known()
    folder = tmp_path / "mxfp4"
    error = export(known, folder, MODEL, MOE, "mxfp4")
    theirs = their_logits(folder, tokens, quantization_config=transformers.Mxfp4Config(dequantize=True))
    assert np.abs(our_logits(hf.load(folder), tokens) - theirs).max() < 1e-4, "dequantised, the same logits"
    export(known, tmp_path / "smooth", MODEL, SMOOTH, "mxfp4")
    found = exported_difference(known, MODEL, SMOOTH, tmp_path / "smooth", tokens)
    assert 0.05 < error.relative_rms < 0.13 and error.largest_in_block <= 0.25
    assert 1e-4 < found.relative_rms < 3 * error.relative_rms, "the logits are off by no more than the weights"


def test_transformers_dequantises_as_we_do(tmp_path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tmp_path / "mxfp4"
    export(Known(), folder, MODEL, MOE, "mxfp4")
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (4, 6, 3, 16), dtype=np.uint8)
    scales = rng.integers(10, 240, (4, 6, 3), dtype=np.uint8)
    theirs = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
    ours = dequantize(blocks, scales)
    theirs = theirs.reshape(ours.shape) if theirs.shape == ours.shape else theirs.reshape(4, 6, 96).transpose(1, 2)
    assert np.array_equal(ours, theirs.contiguous().numpy())
    with FolderSource(folder) as source:
        assert source.shapes == weight_shapes(MODEL, MOE)
