// Scratch memory of the current thread, as a stack: buffers taken from a Scratch are given back when it ends.
// Memory stays with the thread between calls, so ops of a training step do not fault pages in again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace mindmoe {

class Arena {
 public:
  static Arena &local() {
    static thread_local Arena arena;
    return arena;
  }
  ~Arena() {
    for (Chunk &chunk : chunks_) std::free(chunk.data);
  }

  void *take(size_t bytes) {
    bytes = (bytes + kAlign - 1) / kAlign * kAlign;
    if (chunks_.empty() || chunks_.back().used + bytes > chunks_.back().size) grow(bytes);
    Chunk &chunk = chunks_.back();
    void *data = chunk.data + chunk.used;
    chunk.used += bytes;
    in_use_ += bytes;
    peak_ = in_use_ > peak_ ? in_use_ : peak_;
    return data;
  }

  struct Mark {
    size_t chunks, used, in_use;
  };
  Mark mark() const { return {chunks_.size(), chunks_.empty() ? 0 : chunks_.back().used, in_use_}; }

  // Gives back what was taken since `mark`. Once empty, the arena is one chunk as large as its peak.
  void release(Mark mark) {
    in_use_ = mark.in_use;
    if (in_use_ > 0) {
      while (chunks_.size() > mark.chunks) drop();
      chunks_.back().used = mark.used;
    } else if (chunks_.size() > 1 || peak_ > chunks_.front().size) {
      while (!chunks_.empty()) drop();
      grow(peak_);
    } else {
      chunks_.front().used = 0;
    }
  }

 private:
  struct Chunk {
    char *data;
    size_t size, used;
  };
  static constexpr size_t kAlign = 64;
  static constexpr size_t kChunk = size_t{1} << 20;

  void grow(size_t bytes) {
    size_t size = (bytes + kChunk - 1) / kChunk * kChunk;
    void *data = std::aligned_alloc(kAlign, size);
    if (data == nullptr) throw std::bad_alloc();
    chunks_.push_back({static_cast<char *>(data), size, 0});
  }
  void drop() {
    std::free(chunks_.back().data);
    chunks_.pop_back();
  }

  size_t in_use_ = 0;
  size_t peak_ = 0;
  std::vector<Chunk> chunks_;
};

class Scratch {
 public:
  Scratch() : arena_(Arena::local()), mark_(arena_.mark()) {}
  ~Scratch() {
    if (taken_) arena_.release(mark_);
  }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;

  // Room for `count` values, not initialised.
  template <class T>
  T *take(int64_t count) {
    taken_ = true;
    return static_cast<T *>(arena_.take(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  Arena &arena_;
  Arena::Mark mark_;
  bool taken_ = false;
};

}  // namespace mindmoe
