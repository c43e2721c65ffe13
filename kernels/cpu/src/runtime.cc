// Settings of the pack, called once after loading.
#include "gemm.h"
#include "pool.h"

#define MINDMOE_EXPORT extern "C" __attribute__((visibility("default")))

MINDMOE_EXPORT void mindmoe_set_threads(int count) { mindmoe::set_threads(count); }
MINDMOE_EXPORT int mindmoe_threads() { return mindmoe::threads(); }

// 1 if matrix products now come from the oneDNN at `path`, 0 if from our own; see use_onednn.
MINDMOE_EXPORT int mindmoe_use_onednn(const char *path, int native_half) {
  return mindmoe::use_onednn(path, native_half != 0) ? 1 : 0;
}

// 1 if products of bf16 now run on the tile unit; see use_tiles.
MINDMOE_EXPORT int mindmoe_use_tiles(int wanted) { return mindmoe::use_tiles(wanted != 0) ? 1 : 0; }

MINDMOE_EXPORT int mindmoe_gemm() { return static_cast<int>(mindmoe::gemm_source()); }

// Floats in a vector: tells which instruction set this library was compiled for.
MINDMOE_EXPORT int mindmoe_vector_width() { return mindmoe::kWidth; }
