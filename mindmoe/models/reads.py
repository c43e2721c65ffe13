"""What routers read of tokens of which nothing is known but their ids, as in inference."""

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.router.base import Named
from mindmoe.ops.zeros import zeros_like


def reads_of(
    names: tuple[str, ...],
    input_ids: Tensor,
    segment_ids: Tensor | None = None,
    start: Tensor | int = 0,
    before: Tensor | None = None,
) -> Named:
    """Of input_ids (B, S) int32, each (B, S) int32 by name: domains are unknown.

    Args:
        names: what is read.
        input_ids: consecutive tokens.
        segment_ids: (B, S) int32 document of each token, None where there is one.
        start: place of the first.
        before: (B, 1) int32 tokens before the first ones, -1 where a sequence begins, as by default.
    """
    found = {}
    if "token_id" in names:
        found["token_id"] = input_ids
    if "position" in names:
        found["position"] = zeros_like(input_ids) + ops.arange(0, input_ids.shape[1], dtype=ms.int32) + start
    if "domain" in names:
        # 0 is the number of an unknown source.
        found["domain"] = zeros_like(input_ids)
    if "previous" in names:
        # Each token's predecessor: the inputs one place to the right, `before` in front of them.
        previous = zeros_like(input_ids)[:, :1] - 1 if before is None else before
        if input_ids.shape[1] > 1:
            inside = input_ids[:, :-1]
            # The first token of a document has no predecessor, whatever lies before it in the row.
            if segment_ids is not None:
                none = zeros_like(inside) - 1
                inside = ops.select(segment_ids[:, 1:] == segment_ids[:, :-1], inside, none)
            previous = ops.concat((previous, inside), 1)
        found["previous"] = previous
    return found
