#include "attention_delta.h"

extern "C" __global__ __aicore__ void attention_delta(GM_ADDR grad, GM_ADDR out, GM_ADDR lse, GM_ADDR sinks,
                                                      GM_ADDR delta, GM_ADDR gradSinks, GM_ADDR workspace,
                                                      GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs all cores to be scheduled together
    REGISTER_TILING_DEFAULT(AttentionRowsTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::AttentionDelta<DTYPE_GRAD> op;
    op.Init(grad, out, lse, sinks, delta, gradSinks, AscendC::GetUserWorkspace(workspace), tilingData, &pipe);
    op.Process();
}
