#include "moe_gating.h"

extern "C" __global__ __aicore__ void moe_gating(GM_ADDR logits, GM_ADDR bias, GM_ADDR weights, GM_ADDR ids,
                                                 GM_ADDR workspace, GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(MoeGatingTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::MoeGating<DTYPE_LOGITS> op;
    op.Init(logits, bias, weights, ids, tilingData, &pipe);
    op.Process();
}
