"""The process that compiles a rank's graph with MindSpore's native collectives; started by `compile_check`.

It must not run anything: under simulation MindSpore answers a call with a made-up value, and ops outside of a graph
crash.
"""

import os
import sys
from pathlib import Path


def main(config_file: Path, graphs: Path) -> int:
    """Compiles forward and backward pass of one micro-batch of this rank's first piece; the graphs go to a folder."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    ms.set_context(mode=ms.GRAPH_MODE, save_graphs=2, save_graphs_path=str(graphs))
    ms.set_device("GPU")
    ms.communication.init("nccl")

    from mindmoe.env import Place
    from mindmoe.load import load_config
    from mindmoe.parallel import groups as communicators
    from mindmoe.parallel.mesh import Mesh
    from mindmoe.pipeline.split import build_pieces, stage_pieces
    from mindmoe.train.setup import build_groups, build_kernels, build_model, build_part

    communicators.WORLD["ascend"] = "nccl_world_group"  # the target that can be simulated has the world by this name
    world, rank = int(os.environ["RANK_SIZE"]), int(os.environ["RANK_ID"])
    config = load_config(config_file)
    mesh = Mesh.build(config.parallel, world)
    groups = build_groups(config, mesh, rank)
    kernels = build_kernels(config, Place(rank=rank, world=world, local_world=1))
    piece = stage_pieces(build_pieces(config.model, config.parallel), mesh.places[rank].pp, mesh.pp)[0]
    part = build_part(config, build_model(config, kernels, groups, piece), piece, groups, False)

    class Loss(nn.Cell):
        """A scalar of what the piece makes."""

        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.objective = part.objective

        def construct(self, *arguments: Tensor) -> Tensor:
            """The sum of the piece's output and its balancing losses."""
            (y, balance), _ = self.objective.parts(*arguments)
            return y.sum() + balance

    class Gradient(nn.Cell):
        """The gradient of all inputs and weights."""

        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.loss, self.weights = Loss(), ms.ParameterTuple(part.params)
            self.gradient = ops.GradOperation(get_all=True, get_by_list=True)

        def construct(self, *arguments: Tensor) -> tuple:
            """Of the inputs, and of the weights."""
            return self.gradient(self.loss, self.weights)(*arguments)

    batch, length = config.train.micro_batch_size, config.train.seq_length // mesh.cp
    ids, ones = np.zeros((batch, length), np.int32), np.ones((batch, length), np.float32)
    hidden = np.zeros((batch, length // mesh.tp, config.model.hidden_size), np.float32)
    one, tokens = np.float32(1.0), np.zeros((batch, length, 4), np.int32)
    x = ids if piece.first else hidden
    Gradient().compile(*(Tensor(array) for array in (x, ids, ones, ids, tokens, one, one)))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
