#include "moe_gating_grad.h"

extern "C" __global__ __aicore__ void moe_gating_grad(GM_ADDR logits, GM_ADDR ids, GM_ADDR gradWeights,
                                                      GM_ADDR gradLogits, GM_ADDR workspace, GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(MoeGatingTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::MoeGatingGrad<DTYPE_LOGITS> op;
    op.Init(logits, ids, gradWeights, gradLogits, tilingData, &pipe);
    op.Process();
}
