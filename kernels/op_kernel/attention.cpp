#include "attention.h"

extern "C" __global__ __aicore__ void attention(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR sinks, GM_ADDR documents,
                                                GM_ADDR out, GM_ADDR lse, GM_ADDR workspace, GM_ADDR tiling)
{
    using namespace AscendC;
    REGISTER_TILING_DEFAULT(AttentionTilingData);
    GET_TILING_DATA(tilingData, tiling);
    TPipe pipe;
    mindmoe::Attention<DTYPE_Q> op;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), op.scores, &tilingData.scores, op.product, &tilingData.product);
    op.Init(q, k, v, sinks, documents, out, lse, GetUserWorkspace(workspace), tilingData, &pipe);
    op.Process();
}
