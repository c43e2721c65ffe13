// Host model of the part of Ascend C (Atlas A2) that the kernels in ../op_kernel use: the toolkit's header name,
// namespace, names and signatures, so that a kernel source compiles unchanged with g++. See ../README.md.
#pragma once
#include "detail/copy.h"
#include "detail/sort.h"
#include "detail/sync.h"
#include "detail/vector.h"

#define KERNEL_TASK_TYPE_DEFAULT(type)
#define REGISTER_TILING_DEFAULT(type) using HostModelTiling = type
#define GET_TILING_DATA(name, gm)  \
    HostModelTiling name;          \
    memcpy(&name, gm, sizeof name)
