"""transformers as the oracle of config.json: what each key, each spelling and each absence means to the computation."""

import json

import mindspore as ms
import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.interop import hf
from mindmoe.interop.hf_config import _SAME_NAME, IRRELEVANT, _GptOss, read_config
from mindmoe.ops.rope import rope_tables

torch = pytest.importorskip("torch", reason="the parity oracle needs the extra hf")
transformers = pytest.importorskip("transformers", reason="the parity oracle needs the extra hf")

SMALL = {
    "model_type": "gpt_oss",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
AS_MEANT = 0.1 * float(np.log(8.0)) + 1.0


@pytest.fixture
def folder(tmp_path):
    """Writes config.json of the small model with changes; a key set to ... is left out."""

    def folder(**changes):
        config = {key: value for key, value in (SMALL | changes).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return folder


def test_every_attribute_of_the_installed_config_is_classified():
    config = transformers.GptOssConfig()
    keys = {key for key in {**vars(config), **config.to_dict()} if not key.startswith("_")}
    assert keys - set(_GptOss.model_fields) - IRRELEVANT == set()
    assert not set(_GptOss.model_fields) & IRRELEVANT


def test_absent_keys_mean_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    model, moe = read_config(tmp_path)
    theirs = transformers.GptOssConfig()
    for key in set(_SAME_NAME) - {"layer_types"}:
        assert getattr(model, key) == getattr(theirs, key), key
    kinds = ["sliding_attention" if model.window(n) else "full_attention" for n in range(model.num_hidden_layers)]
    assert kinds == theirs.layer_types
    assert (moe.num_experts, moe.num_experts_per_tok) == (theirs.num_local_experts, theirs.num_experts_per_tok)
    rope = theirs.rope_parameters
    assert model.rope_theta == rope["rope_theta"]
    assert model.rope_scaling.model_dump().items() <= rope.items()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": {}},
        {"rope_theta": 500.0},
        {"rope_parameters": {}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}, "rope_theta": 500.0},
        {"rope_scaling": {"type": "default"}, "rope_theta": 500.0},
        {"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}},
        {"rope_scaling": YARN, "rope_theta": 500.0},
        {"rope_scaling": YARN, "rope_parameters": {}, "rope_theta": 150000.0},
        {"rope_parameters": YARN},
        {"rope_parameters": {**YARN, "truncate": False}},
        {"rope_parameters": {**YARN, "beta_fast": 20, "beta_slow": 2.0}},
        {"rope_parameters": {**YARN, "beta_fast": 0, "beta_slow": None}},
        {"rope_parameters": {**YARN, "factor": None}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 1.0}},
        {"rope_parameters": {**YARN, "attention_factor": AS_MEANT}},
        {"rope_parameters": {**YARN, "mscale": 1.0}},
        {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0}},
        {"rope_parameters": YARN, "original_max_position_embeddings": 32},
    ],
)
def test_both_spellings_of_rope_give_the_tables_of_transformers(folder, keys):
    where = folder(**({"rope_parameters": ..., "max_position_embeddings": 64} | keys))
    if keys.get("rope_scaling") and keys.get("rope_parameters") == {}:
        with pytest.raises(UserError, match="rope_scaling and rope_parameters disagree"):
            read_config(where)
        return
    model, _ = read_config(where)
    ours = rope_tables(model, 48)
    config = transformers.GptOssConfig.from_pretrained(where)
    rotary = transformers.models.gpt_oss.modeling_gpt_oss.GptOssRotaryEmbedding(config)
    theirs = rotary(torch.zeros(1, 48, 8), torch.arange(48)[None])
    for mine, table in zip(ours, theirs, strict=True):
        assert np.abs(mine - table[0].numpy()[:, :4]).max() < 2e-5


@pytest.mark.parametrize(
    "change",
    [
        {"swiglu_alpha": 1.2},
        {"swiglu_limit": 0.5},
        {"rms_norm_eps": 0.1},
        {"attention_bias": False},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        {"tie_word_embeddings": True},
        {"num_experts_per_tok": 1},
    ],
)
def test_every_carried_key_gives_the_logits_of_transformers(tmp_path, change):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**{**SMALL, **change})
    config._attn_implementation = config._experts_implementation = "eager"
    net = transformers.GptOssForCausalLM(config)
    with torch.no_grad():
        for name, param in net.named_parameters():
            if "norm" not in name:
                param.mul_(10.0).add_(0.05 * torch.randn_like(param))
    net.save_pretrained(tmp_path)
    ids = np.random.default_rng(1).integers(0, 61, (2, 24)).astype(np.int32)
    with torch.no_grad():
        theirs = net(input_ids=torch.tensor(ids).long()).logits.numpy()
    ours = hf.load(tmp_path)(ms.Tensor(ids)).asnumpy()
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4 * max(1.0, np.abs(theirs).max())


def test_more_tokens_than_the_model_was_built_for_are_refused(tmp_path):
    transformers.GptOssForCausalLM(transformers.GptOssConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="33 tokens: this model was built for at most 32"):
        hf.load(tmp_path, max_length=32)(ms.Tensor(np.zeros((1, 33), np.int32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {**YARN, "attention_factor": 1.0}}, "attention_factor=1.0"),
        ({"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}}, "mscale=1.0, mscale_all_dim=0.7"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type=\"'linear'\""),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor is missing"),
        ({"rope_parameters": {**YARN, "short_factor": [1.0]}}, "rope_parameters.short_factor"),
        ({"rope_parameters": {"full_attention": YARN}}, "rope_parameters.full_attention: each kind of layer"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": YARN}, "rope_scaling and rope_parameters disagree"),
        ({"rope_parameters": YARN, "initial_context_length": 4096}, "initial_context_length=4096"),
        ({"num_experts_per_tok": ..., "experts_per_token": 2}, "experts_per_token=2"),
        ({"num_experts": 4}, "num_experts=4 but num_local_experts=8"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"sliding_window": None}, "sliding_window is null"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config.quant_method"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types.0"),
        ({"layer_types": ["full_attention"]}, "one for each of num_hidden_layers=2"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(folder, change, message):
    with pytest.raises(UserError) as caught:
        read_config(folder(**change))
    assert message.replace("\"'", "").replace("'\"", "") in str(caught.value).replace("'", ""), caught.value
    assert "config.json" in str(caught.value) and caught.value.remedy
