#include "swiglu.h"

extern "C" __global__ __aicore__ void swiglu(GM_ADDR x, GM_ADDR out, GM_ADDR workspace, GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(SwigluTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::Swiglu<DTYPE_X> op;
    op.Init(x, out, tilingData, &pipe);
    op.Process();
}
