// Host model of the part of Ascend C (Atlas A2) that the kernels in ../op_kernel use: the toolkit's header name,
// namespace, names and signatures, so that a kernel source compiles unchanged with g++. See ../README.md.
#pragma once
#include "detail/copy.h"
#include "detail/sort.h"
#include "detail/sync.h"
#include "detail/vector.h"

namespace AscendC {
/// The part of the workspace after what the library keeps for itself; the model gives the kernel all of it.
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }
}  // namespace AscendC

#define KERNEL_TASK_TYPE_DEFAULT(type)
#define REGISTER_TILING_DEFAULT(type) using HostModelTiling = type
#define GET_TILING_DATA(name, gm)  \
    HostModelTiling name;          \
    memcpy(&name, gm, sizeof name)
