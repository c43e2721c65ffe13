"""Hugging Face GptOss as the oracle: the same folder gives the same logits, loss and gradients."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.host.errors import UserError
from mindmoe.interop import hf
from mindmoe.interop.hf_config import read_config
from mindmoe.models.gpt_oss.parameters import param_specs

torch = pytest.importorskip("torch", reason="the parity oracle needs the extra hf")
transformers = pytest.importorskip("transformers", reason="the parity oracle needs the extra hf")

YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
BASE = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "sliding_window": 8,
    "rope_parameters": YARN,
}
CASES = {
    "window shorter than the sequence": {},
    "window longer than the sequence": {"sliding_window": 64},
    "one kv head per query head": {"num_key_value_heads": 4},
    "plain rope": {"rope_parameters": PLAIN},
    "4 experts, all chosen": {"num_local_experts": 4},
    "32 experts, 3 layers": {"num_local_experts": 32, "num_hidden_layers": 3},
    "odd sizes": {"hidden_size": 37, "intermediate_size": 29, "vocab_size": 67, "num_experts_per_tok": 3},
    "truncated yarn": {"rope_parameters": {**YARN, "truncate": True}},
}


def peer(folder: Path, changes: dict) -> "torch.nn.Module":
    """A random HF model, saved; biases and sinks are randomised too, they are born as zeros or nearly so."""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **{**BASE, **changes},
        max_position_embeddings=512,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
        tie_word_embeddings=False,
    )
    config._attn_implementation = config._experts_implementation = "eager"
    net = transformers.GptOssForCausalLM(config)
    with torch.no_grad():
        for name, param in net.named_parameters():
            if "bias" in name or "sinks" in name:
                param.normal_(0, 0.3)
            elif "norm" not in name:
                param.mul_(3.0)
    net.save_pretrained(folder)
    return net


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case, tmp_path):
    net = peer(tmp_path, CASES[case])
    vocab, batch, length = net.config.vocab_size, 2, 20
    rng = np.random.default_rng(1)
    ids, labels = rng.integers(0, vocab, (2, batch, length)).astype(np.int32)
    mask = (rng.random((batch, length)) < 0.8).astype(np.float32)
    theirs = net(input_ids=torch.tensor(ids).long()).logits
    nll = torch.nn.functional.cross_entropy(
        theirs.reshape(-1, vocab), torch.tensor(labels).long().reshape(-1), reduction="none"
    )
    loss = (nll * torch.tensor(mask).reshape(-1)).sum() / mask.sum()
    loss.backward()

    ours = hf.load(tmp_path)
    segments = Tensor(np.zeros((batch, length), np.int32))
    logits = ours.logits(Tensor(ids), segments).asnumpy()
    assert np.abs(logits - theirs.detach().numpy()).max() < 1e-4
    params = ours.trainable_params()

    def mean_loss(*args: Tensor) -> Tensor:
        return ours(*args)[0] / float(mask.sum())

    value, grads = ms.value_and_grad(mean_loss, None, params)(Tensor(ids), Tensor(labels), Tensor(mask), segments)
    assert abs(float(value.asnumpy()) - loss.item()) < 1e-5
    wanted = dict(net.named_parameters())
    assert {param.name for param in params} == wanted.keys()
    for param, grad in zip(params, grads, strict=True):
        want = wanted[param.name].grad.numpy()
        assert np.linalg.norm(grad.asnumpy() - want) <= 1e-3 * np.linalg.norm(want), param.name
    assert sum(spec.size for spec in param_specs(*read_config(tmp_path)).values()) == sum(
        param.numel() for param in net.parameters()
    )


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.json not found"):
        hf.load(tmp_path)
    peer(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no .safetensors"):
        hf.load(tmp_path)


def test_weights_of_another_shape_are_all_named(tmp_path):
    peer(tmp_path, {})
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"vocab_size": 61', '"vocab_size": 62'))
    with pytest.raises(UserError, match=r"2 tensors of the folder do not fit.*lm_head.*embed_tokens"):
        hf.load(tmp_path)


def test_bf16_folders_load_exactly(tmp_path):
    net = peer(tmp_path, {}).to(torch.bfloat16)
    net.save_pretrained(tmp_path)
    ours = {param.name: param.asnumpy() for param in hf.load(tmp_path).get_parameters()}
    for name, param in net.named_parameters():
        assert np.array_equal(ours[name], param.detach().float().numpy()), name
