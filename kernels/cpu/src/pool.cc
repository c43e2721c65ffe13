#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mindmoe {
namespace {

// Workers spin this long for the next call before they sleep: ops of one step follow each other within microseconds,
// and a longer spin would take the core from MindSpore's own threads.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

int available_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

class Pool {
 public:
  Pool() { start(available_cpus()); }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void resize(int count) {
    std::lock_guard<std::mutex> busy(busy_);
    if (count == size()) return;
    publish([this] { stopping_ = true; });
    for (std::thread &worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
    start(count);
  }

  // In the child of a fork: its workers stayed with the parent, so it is a pool of one until it is resized.
  void forget_workers() { new std::vector<std::thread>(std::move(workers_)); }

  void run(int64_t count, void (*task)(void *, int64_t), void *context) {
    std::unique_lock<std::mutex> busy(busy_, std::defer_lock);
    if (count <= 1 || workers_.empty() || !busy.try_lock()) {
      for (int64_t index = 0; index < count; ++index) task(context, index);
      return;
    }
    count_ = count;
    task_ = task;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    publish([] {});
    drain();
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < kSpins) relax();
      else std::this_thread::yield();
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void start(int count) {
    uint64_t seen = generation_.load();
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, seen] { work(seen); });
  }

  // Makes prior writes visible to the workers and wakes them.
  template <class Change>
  void publish(Change change) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      change();
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void work(uint64_t seen) {
    for (;;) {
      for (int spins = 0; generation_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) relax();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (stopping_) return;
      drain();
      running_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void drain() {
    for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      try {
        task_(context_, index);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  std::vector<std::thread> workers_;
  std::mutex busy_;   // held during a call
  std::mutex mutex_;  // guards the sleep of workers and error_
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0};
  int64_t count_ = 0;
  void (*task_)(void *, int64_t) = nullptr;
  void *context_ = nullptr;
  std::exception_ptr error_;
  bool stopping_ = false;
};

// Never destroyed: its threads may outlive static destruction, and the process's end stops them.
Pool &pool();

Pool *make_pool() {
  pthread_atfork(nullptr, nullptr, [] { pool().forget_workers(); });
  return new Pool;
}

Pool &pool() {
  static Pool *instance = make_pool();
  return *instance;
}

}  // namespace

void set_threads(int count) { pool().resize(std::max(1, count)); }
int threads() { return pool().size(); }

void run_tasks(int64_t count, void (*task)(void *, int64_t), void *context) { pool().run(count, task, context); }

}  // namespace mindmoe
