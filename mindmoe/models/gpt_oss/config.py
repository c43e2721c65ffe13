"""The shape of the network, in Hugging Face's names so that export is near identity."""

from typing import Literal

from pydantic import Field, model_validator

from mindmoe.config.schema import Epsilon, PositiveInt32, Scale, Section, Share, Width

LayerType = Literal["sliding_attention", "full_attention"]


class YarnConfig(Section):
    """YaRN length extension of RoPE (arXiv 2309.00071), as gpt-oss sets it."""

    # Defaults, here and of the model, are gpt-oss's: 4096 positions in pretraining, 32 times as many afterwards.
    factor: float = Field(32.0, ge=1.0, le=1e6)
    original_max_position_embeddings: PositiveInt32 = 4096
    beta_fast: Scale = 32.0
    beta_slow: Scale = 1.0
    truncate: bool = False


class ModelConfig(Section):
    """A gpt-oss decoder. With `moe` absent from the run the FFN is dense, same activation."""

    vocab_size: int = Field(gt=0, le=2**24)
    hidden_size: Width
    num_hidden_layers: int = Field(gt=0, le=10_000)
    num_attention_heads: Width
    num_key_value_heads: Width
    head_dim: Width
    intermediate_size: Width
    max_position_embeddings: PositiveInt32 = 131072
    rope_theta: float = Field(150000.0, ge=2.0, le=1e12)
    rope_scaling: YarnConfig | None = YarnConfig()  # None is plain RoPE
    sliding_window: PositiveInt32 = 128
    layer_types: Literal["alternating", "full", "sliding"] | list[LayerType] = "alternating"
    attention_bias: bool = True
    attention_sinks: bool = True
    rms_norm_eps: Epsilon = 1e-5
    swiglu_alpha: Scale = 1.702  # x * sigmoid(1.702 x) approximates GELU
    swiglu_limit: Scale = 7.0
    tie_word_embeddings: bool = False
    initializer_range: Share = 0.02

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        # All problems are told at once, each with its remedy.
        problems = []
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: change one of them"
            )
        if self.head_dim % 2:
            problems.append(f"head_dim={self.head_dim} must be even (RoPE rotates pairs): use {self.head_dim + 1}")
        if isinstance(self.layer_types, list) and len(self.layer_types) != self.num_hidden_layers:
            problems.append(
                f"layer_types=[{len(self.layer_types)} entries] must have one for each of "
                f"num_hidden_layers={self.num_hidden_layers}: list one per layer, or write alternating"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def window(self, layer: int) -> int:
        """The attention window of a layer [tokens], 0 for full attention."""
        if isinstance(self.layer_types, list):
            sliding = self.layer_types[layer] == "sliding_attention"
        else:
            # Layer 0 slides, as in Hugging Face's GptOssConfig.
            sliding = self.layer_types == "sliding" or (self.layer_types == "alternating" and layer % 2 == 0)
        return self.sliding_window if sliding else 0
