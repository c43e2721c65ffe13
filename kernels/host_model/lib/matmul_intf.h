#pragma once
#include "../detail/matmul.h"
