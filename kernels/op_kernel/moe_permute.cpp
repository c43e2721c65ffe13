#include "moe_permute.h"

extern "C" __global__ __aicore__ void moe_permute(GM_ADDR x, GM_ADDR ids, GM_ADDR y, GM_ADDR slot, GM_ADDR counts,
                                                  GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs all cores to be scheduled together
    REGISTER_TILING_DEFAULT(MoePermuteTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::MoePermute<DTYPE_X> op;
    op.Init(x, ids, y, slot, counts, AscendC::GetUserWorkspace(workspace), tilingData, &pipe);
    op.Process();
}
