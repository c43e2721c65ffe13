#include "moe_combine.h"

extern "C" __global__ __aicore__ void moe_combine(GM_ADDR y, GM_ADDR slot, GM_ADDR weights, GM_ADDR out,
                                                  GM_ADDR workspace, GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(MoeCombineTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::MoeCombine<DTYPE_Y> op;
    op.Init(y, slot, weights, out, tilingData, &pipe);
    op.Process();
}
