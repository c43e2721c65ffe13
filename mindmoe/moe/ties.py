"""Decisions of a router that rounding may turn.

Another order of summation moves a logit by some units of its last place. Where two experts of a token lie closer than
that, either may be chosen, and both choices are right.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.moe.router.base import Named, Route


def undecided(route: Route, given: tuple[Tensor, Named, Named], off: float) -> np.ndarray:
    """Which experts of each token (T, E) rounding may bring in or throw out.

    The router is asked again with one logit of every token moved up, then down, by twice `off`: two experts may be off
    in opposite directions. It holds for every router that decides token by token.

    Args:
        route: the router.
        given: its arguments: logits (T, E), its weights, and what it reads.
        off: how far rounding may move a logit, relative to the root mean square of the logits of its token.
    """
    logits, *others = given[0].asnumpy(), *given[1:]
    step = 2.0 * off * np.sqrt(np.square(logits).mean(1))  # (T)

    # The set of experts, not their order: a token whose slots change places has decided nothing anew.
    def chosen(moved: np.ndarray) -> np.ndarray:
        ids = route(Tensor(moved, ms.float32), *others)["ids"].asnumpy()
        mask = np.zeros((logits.shape[0], logits.shape[1] + 1), bool)  # the last column takes unused slots
        np.put_along_axis(mask, ids, True, 1)
        return mask[:, :-1]

    usual, found = chosen(logits), np.zeros(logits.shape, bool)
    # One expert at a time against all others; 2 E runs of the router.
    for expert in range(logits.shape[1]):
        for direction in (step, -step):
            moved = logits.copy()
            moved[:, expert] += direction
            found |= chosen(moved) != usual
    return found
