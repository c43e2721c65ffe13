#include "swiglu_grad.h"

extern "C" __global__ __aicore__ void swiglu_grad(GM_ADDR grad, GM_ADDR x, GM_ADDR gradX, GM_ADDR workspace,
                                                  GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(SwigluTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::SwigluGrad<DTYPE_X> op;
    op.Init(grad, x, gradX, tilingData, &pipe);
    op.Process();
}
