// A small thread pool. Work is cut into tasks by its shape alone, never by the number of threads, and a task writes
// only its own results: so results are bitwise equal for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace mindmoe {

// Threads used from the next call on, the caller's own included. Waits for a call in progress.
void set_threads(int count);
int threads();

// Calls task(context, 0) ... task(context, count - 1), each once, on any thread; returns when all are done.
// A call made while the pool is busy (another thread's op, or a nested call) runs on the calling thread.
// The first exception of a task is thrown here, after the others have finished.
void run_tasks(int64_t count, void (*task)(void *context, int64_t index), void *context);

template <class Body>
void parallel(int64_t count, Body &&body) {
  using Plain = std::remove_reference_t<Body>;
  run_tasks(
      count, [](void *context, int64_t index) { (*static_cast<Plain *>(context))(index); },
      const_cast<std::remove_const_t<Plain> *>(&body));
}

// body(begin, end) over [0, n) in blocks of `grain`.
template <class Body>
void parallel_blocks(int64_t n, int64_t grain, Body &&body) {
  parallel((n + grain - 1) / grain, [&](int64_t block) {
    body(block * grain, std::min(n, (block + 1) * grain));
  });
}

}  // namespace mindmoe
