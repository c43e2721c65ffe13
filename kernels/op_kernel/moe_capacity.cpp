#include "moe_capacity.h"

extern "C" __global__ __aicore__ void moe_capacity(GM_ADDR ids, GM_ADDR weights, GM_ADDR kept, GM_ADDR workspace,
                                                   GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs all cores to be scheduled together
    REGISTER_TILING_DEFAULT(MoeCapacityTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::MoeCapacity op;
    op.Init(ids, weights, kept, AscendC::GetUserWorkspace(workspace), tilingData, &pipe);
    op.Process();
}
