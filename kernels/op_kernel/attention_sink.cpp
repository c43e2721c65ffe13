#include "attention_sink.h"

extern "C" __global__ __aicore__ void attention_sink(GM_ADDR out, GM_ADDR max, GM_ADDR sum, GM_ADDR sinks,
                                                     GM_ADDR newOut, GM_ADDR newMax, GM_ADDR newSum, GM_ADDR lse,
                                                     GM_ADDR workspace, GM_ADDR tiling)
{
    (void)workspace;
    REGISTER_TILING_DEFAULT(AttentionRowsTilingData);
    GET_TILING_DATA(tilingData, tiling);
    AscendC::TPipe pipe;
    mindmoe::AttentionSink<DTYPE_OUT> op;
    op.Init(out, max, sum, sinks, newOut, newMax, newSum, lse, tilingData, &pipe);
    op.Process();
}
