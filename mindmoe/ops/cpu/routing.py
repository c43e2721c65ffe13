"""Selection of experts by the CPU pack."""

from mindspore import Tensor, float32, int32, nn

from mindmoe.ops.cpu.pack import Pack, load, no_gradient, settings
from mindmoe.ops.routing import SCORES, Score


class Route(nn.Cell):
    """Gates and numbers of the k experts with the largest score + bias, ties to the lowest number.

    Scores are the logits (`softmax_after_topk`: the gates are a softmax over the chosen ones), their softmax, or their
    sigmoid (the gates are the chosen scores). The bias takes part in the choice only, and has no gradient.

    Args:
        k: experts per token.
        score: see above.
        norm_topk: whether the chosen scores are divided by their sum; `softmax_after_topk` needs none.
        scale: factor of the gates.
        groups: of equal size and consecutive numbers; only the best `topk_groups` may be chosen from. A group's worth
            is the sum of its two best score + bias.
        topk_groups: see groups.
        pack: the library, by default the best of this machine.
    """

    def __init__(
        self,
        k: int,
        score: Score = "softmax_after_topk",
        norm_topk: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        topk_groups: int = 1,
        pack: Pack | None = None,
    ):
        super().__init__()
        pack = pack or load()
        self.settings = settings(SCORES.index(score), norm_topk, scale, groups, topk_groups)
        # k, which the shapes close over, is the variant.
        self.forward = pack.op("route_forward", lambda x, b, s: ((x[0], k), (x[0], k)), lambda *_: (float32, int32), k)
        self.backward = pack.op("route_backward", lambda dg, x, ids, s: x, lambda *_: float32)

    def construct(self, logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (T, K) fp32 and ids (T, K) int32 of logits (T, E) and bias (E), largest choice first."""
        return self.forward(logits, bias, self.settings)

    def bprop(self, logits: Tensor, bias: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        """Gradient of the logits through the gates."""
        return self.backward(dout[0], logits, out[1], self.settings), no_gradient(bias)
