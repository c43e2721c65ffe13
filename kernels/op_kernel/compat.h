// The one place that knows how CANN 8.1 and 9.x differ. Kernel sources include this and nothing of the toolkit.
#ifndef MINDMOE_COMPAT_H
#define MINDMOE_COMPAT_H
#include "kernel_operator.h"
// 9.x moved the Matmul interface into a folder of its own; vector kernels define nothing and skip it.
#ifdef MINDMOE_USES_MATMUL
#if __has_include("lib/matmul_intf.h")
#include "lib/matmul_intf.h"
#else
#include "lib/matmul/matmul_intf.h"
#endif
#endif
// GetTaskRation (8.1) became GetTaskRatio (9.x) and GetBlockNum counts cube cores in MIX kernels: the number of
// vector cores therefore travels in the tiling data and neither function is used. WholeReduce*, BlockReduce*,
// GatherMask and CompareScalar are deprecated names in 9.x that keep their 8.1 signatures. TCubeTiling is global in 8.1,
// and a member of AscendC::tiling that the global name stands for in 9.x: everything here says ::TCubeTiling.
#endif
