"""What a run costs at the number of experts that it really used (dry)."""

from mindmoe.config.run import RunConfig
from mindmoe.lab.dmr.config import Dmr
from mindmoe.models.gpt_oss.parameters import flops_per_token


def training_flops(config: RunConfig, mean_k: float) -> float:
    """Training FLOPs of a whole run [FLOP]: the model at `mean_k` experts, and what dynamic routing adds to it.

    The count is linear in the number of experts. Difficulty heads cost D multiply-adds forward and twice that backward
    per token and layer; measuring difficulty at the output projects onto the vocabulary once more, forward only.
    """
    model, moe, seq_length = config.model, config.moe, config.train.seq_length
    tokens = float(config.train.steps * config.train.global_batch_size * seq_length)
    if moe is None:
        return tokens * flops_per_token(model, None, seq_length)
    one, two = (flops_per_token(model, moe.model_copy(update={"num_experts_per_tok": k}), seq_length) for k in (1, 2))
    per_token = one + (mean_k - 1.0) * (two - one)
    if isinstance(moe.router, Dmr) and moe.router.uses_difficulty:
        heads = 6.0 * model.hidden_size * model.num_hidden_layers if moe.router.features.difficulty_head else 0.0
        per_token += heads + 2.0 * model.hidden_size * model.vocab_size
    return tokens * per_token
