#include "attention_grad_query.h"

extern "C" __global__ __aicore__ void attention_grad_query(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR lse,
                                                           GM_ADDR delta, GM_ADDR documents, GM_ADDR gradQ,
                                                           GM_ADDR workspace, GM_ADDR tiling)
{
    using namespace AscendC;
    REGISTER_TILING_DEFAULT(AttentionTilingData);
    GET_TILING_DATA(tilingData, tiling);
    TPipe pipe;
    mindmoe::AttentionGradQuery<DTYPE_Q> op;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), op.tile.scores, &tilingData.scores, op.product,
                      &tilingData.product);
    op.tile.Init(q, k, v, grad, lse, delta, documents, GetUserWorkspace(workspace), tilingData, &pipe);
    op.Init(gradQ, tilingData, &pipe);
    op.Process();
}
