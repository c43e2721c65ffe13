#include "moe_combine_grad.h"

extern "C" __global__ __aicore__ void moe_combine_grad(GM_ADDR grad, GM_ADDR y, GM_ADDR slot, GM_ADDR weights,
                                                       GM_ADDR counts, GM_ADDR gradY, GM_ADDR gradWeights,
                                                       GM_ADDR workspace, GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(MoeCombineTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::MoeCombineGrad<DTYPE_GRAD> op;
    op.Init(grad, y, slot, weights, counts, gradY, gradWeights, tilingData, &pipe);
    op.Process();
}
