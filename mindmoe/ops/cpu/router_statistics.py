"""Sums over tokens that balancing losses and reports need, by the CPU pack."""

from mindspore import Tensor, float32, nn

from mindmoe.ops.cpu.pack import Pack, load, no_gradient, settings


class RouterStatistics(nn.Cell):
    """Counts, normalised scores, squared log-sum-exp and entropy of a router, each summed over tokens.

    Args:
        sigmoid: whether the scores are sigmoids divided by their sum, else a softmax.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, sigmoid: bool = False, pack: Pack | None = None):
        super().__init__(auto_prefix=False)
        pack = pack or load()
        self.settings = settings(sigmoid)
        self.forward = pack.op(
            "router_statistics_forward",
            # (1) rather than (): see cpu/optimizer.py.
            lambda x, ids, s: ((x[1],), (x[1],), (1,), (1,)),
            lambda *_: (float32, float32, float32, float32),
        )
        self.backward = pack.op("router_statistics_backward", lambda dp, dz, x, s: x, lambda *_: float32)

    def construct(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums of logits (T, E) fp32 and ids (T, K) int32; an id outside 0..E-1 counts for no expert.

        Returns:
            counts (E), probability sum (E), z sum (1), entropy sum (1) [nats]. Probabilities and z have gradients.
        """
        return self.forward(logits, ids, self.settings)

    def bprop(self, logits: Tensor, ids: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        """Gradient of the logits."""
        # Counts and entropy have no gradient: dout[0] and dout[3] are left unread.
        return self.backward(dout[1], dout[2], logits, self.settings), no_gradient(ids)
