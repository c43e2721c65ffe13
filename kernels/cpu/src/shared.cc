// Collectives of ranks that share a host, through memory that all of them have mapped.
//
// The memory holds a counter of arrivals and two slots for each rank, used in turn: a rank fills its slot, waits until
// all have done so, reads everybody's, and may fill the other slot without waiting again, for whoever is still reading
// has not arrived there. Sums run in the order of the ranks, so all get the same bits.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <vector>

#include "custom.h"

namespace mindmoe {
namespace {

constexpr int64_t kLine = 64;
constexpr int kSpins = 200;  // some 10 us, then the core is left to others

MINDMOE_INLINE void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Room {
 public:
  // `set`: address of the memory, ranks, own place, elements of a slot.
  explicit Room(const double *set)
      : base_(reinterpret_cast<char *>(static_cast<uintptr_t>(set[0]))),
        ranks_(static_cast<int64_t>(set[1])),
        index_(static_cast<int64_t>(set[2])),
        elements_(static_cast<int64_t>(set[3])) {}

  int64_t ranks() const { return ranks_; }
  int64_t index() const { return index_; }

  // x (rows, n) goes out in rounds: each is a block of some columns, which read(begin, count, slots) finds in the slot
  // of every rank, (rows, count) dense.
  template <class Read>
  void rounds(const float *x, int64_t rows, int64_t n, Read read) const {
    int64_t most = elements_ / rows;
    for (int64_t begin = 0; begin < n; begin += most) {
      int64_t count = std::min(most, n - begin);
      round(
          [&](float *own) {
            for (int64_t row = 0; row < rows; ++row)
              std::memcpy(own + row * count, x + row * n + begin, count * sizeof(float));
          },
          [&](const std::vector<const float *> &slots) { read(begin, count, slots); });
    }
  }

  // write(own slot), then, once all ranks have done so, read(slots of all ranks).
  template <class Write, class Read>
  void round(Write write, Read read) const {
    int64_t turn = (own_round() + 1) % 2;
    write(slot(turn, index_));
    meet();
    std::vector<const float *> slots(ranks_);
    for (int64_t rank = 0; rank < ranks_; ++rank) slots[rank] = slot(turn, rank);
    read(slots);
  }

  int64_t elements() const { return elements_; }

 private:
  // The first lines: arrivals, sleepers, then each rank's own number of rounds, which nobody else looks at.
  template <class T>
  T &line(int64_t number) const { return *reinterpret_cast<T *>(base_ + number * kLine); }
  std::atomic<uint32_t> &arrivals() const { return line<std::atomic<uint32_t>>(1); }
  std::atomic<uint32_t> &sleepers() const { return line<std::atomic<uint32_t>>(2); }
  uint32_t &own_round() const { return line<uint32_t>(3 + index_); }
  float *slot(int64_t turn, int64_t rank) const {
    return reinterpret_cast<float *>(base_ + (3 + ranks_) * kLine) + (turn * ranks_ + rank) * elements_;
  }

  // Returns once every rank has come here as often as this one; the count may wrap round.
  void meet() const {
    uint32_t wanted = ++own_round() * static_cast<uint32_t>(ranks_);
    uint32_t seen = arrivals().fetch_add(1) + 1;
    if (seen == wanted) {
      if (sleepers().load() > 0) syscall(SYS_futex, &arrivals(), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
      return;
    }
    auto missing = [&] { return static_cast<int32_t>((seen = arrivals().load()) - wanted) < 0; };
    for (int i = 0; i < kSpins; ++i) {
      if (!missing()) return;
      relax();
    }
    sleepers().fetch_add(1);
    timespec second{1, 0};
    while (missing()) syscall(SYS_futex, &arrivals(), FUTEX_WAIT, seen, &second, nullptr, 0);
    sleepers().fetch_sub(1);
  }

  char *base_;
  int64_t ranks_, index_, elements_;
};

// to = the sum of the ranks' values at `offset` in their slots.
void sum_into(float *to, const std::vector<const float *> &slots, int64_t offset, int64_t count) {
  for_lanes(count, [&](int64_t i, auto lanes) {
    Vec total = load(slots[0] + offset + i, lanes);
    for (size_t rank = 1; rank < slots.size(); ++rank) total += load(slots[rank] + offset + i, lanes);
    store(to + i, total, lanes);
  });
}

using Slots = std::vector<const float *>;

// What one rank sends to another in an exchange of rows: `count` elements from `begin` on in the sender's stream, which
// is its rows in order of their target without those that stay.
struct Piece {
  int64_t begin, count;

  // copy(place in the window, place in the piece, elements) of what the window [from, from + size) of the stream holds.
  template <class Copy>
  void inside(int64_t from, int64_t size, Copy copy) const {
    int64_t first = std::max(begin, from), last = std::min(begin + count, from + size);
    if (first < last) copy(first - from, first - begin, last - first);
  }
};

// The rows that every rank sends to every other, (sender, target), from each one's own numbers.
std::vector<int64_t> told(const Room &room, const double *own) {
  int64_t ranks = room.ranks();
  std::vector<int64_t> all(ranks * ranks);
  room.round([&](float *slot) { std::memcpy(slot, own, ranks * sizeof(double)); },
             [&](const Slots &slots) {
               for (int64_t rank = 0; rank < ranks; ++rank)
                 for (int64_t to = 0; to < ranks; ++to) {
                   double rows;
                   std::memcpy(&rows, slots[rank] + 2 * to, sizeof(rows));
                   all[rank * ranks + to] = static_cast<int64_t>(rows);
                 }
             });
  return all;
}

}  // namespace
}  // namespace mindmoe

// All but the last: in: x fp32, [address, ranks, own place, elements of a slot]; every rank calls with an equal shape.

// out: the sum of all x
MINDMOE_OP(shared_all_reduce) {
  float *to = t[2].f32();
  Room(t[1].f64()).rounds(t[0].f32(), 1, t[0].size(), [&](int64_t begin, int64_t count, const Slots &slots) {
    sum_into(to + begin, slots, 0, count);
  });
}

// out (P, x...): every rank's x
MINDMOE_OP(shared_all_gather) {
  float *to = t[2].f32();
  int64_t n = t[0].size();
  Room(t[1].f64()).rounds(t[0].f32(), 1, n, [&](int64_t begin, int64_t count, const Slots &slots) {
    for (size_t rank = 0; rank < slots.size(); ++rank)
      std::memcpy(to + rank * n + begin, slots[rank], count * sizeof(float));
  });
}

// x (P, ...); out (...): the sum of everybody's row of this rank
MINDMOE_OP(shared_reduce_scatter) {
  Room room(t[1].f64());
  float *to = t[2].f32();
  room.rounds(t[0].f32(), room.ranks(), t[2].size(), [&](int64_t begin, int64_t count, const Slots &slots) {
    sum_into(to + begin, slots, room.index() * count, count);
  });
}

// x (P, ...); out (P, ...): everybody's row of this rank
MINDMOE_OP(shared_all_to_all) {
  Room room(t[1].f64());
  float *to = t[2].f32();
  int64_t n = t[0].size() / room.ranks();
  room.rounds(t[0].f32(), room.ranks(), n, [&](int64_t begin, int64_t count, const Slots &slots) {
    for (size_t rank = 0; rank < slots.size(); ++rank)
      std::memcpy(to + rank * n + begin, slots[rank] + room.index() * count, count * sizeof(float));
  });
}

// in: x (R, ...), [address, ranks, own place, elements of a slot, rows for each rank], (rows of out) for its shape
// out: the rows that arrive in order of their source, then zeros. x holds those to send in order of their target.
MINDMOE_OP(shared_all_to_all_v) {
  Room room(t[1].f64());
  int64_t ranks = room.ranks(), me = room.index(), width = t[0].size() / t[0].dim(0), longest = 0, arrived = 0, at = 0;
  std::vector<int64_t> rows = told(room, t[1].f64() + 4);
  std::vector<Piece> leave(ranks), arrive(ranks);
  std::vector<const float *> from(ranks);
  std::vector<float *> into(ranks);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    int64_t stream = 0;
    for (int64_t to = 0; to < ranks; ++to) {
      int64_t count = rows[rank * ranks + to] * width;
      if (rank == me) from[to] = t[0].f32() + at, leave[to] = {stream, to == me ? 0 : count}, at += count;
      if (to == me) {
        into[rank] = t[3].f32() + arrived, arrive[rank] = {stream, rank == me ? 0 : count}, arrived += count;
        if (rank == me) std::memcpy(into[me], from[me], count * sizeof(float));
      }
      if (to != rank) stream += count;
    }
    longest = std::max(longest, stream);
  }
  for (int64_t begin = 0; begin < longest; begin += room.elements())
    room.round(
        [&](float *slot) {
          for (int64_t to = 0; to < ranks; ++to)
            leave[to].inside(begin, room.elements(), [&](int64_t window, int64_t piece, int64_t count) {
              std::memcpy(slot + window, from[to] + piece, count * sizeof(float));
            });
        },
        [&](const Slots &slots) {
          for (int64_t rank = 0; rank < ranks; ++rank)
            arrive[rank].inside(begin, room.elements(), [&](int64_t window, int64_t piece, int64_t count) {
              std::memcpy(into[rank] + piece, slots[rank] + window, count * sizeof(float));
            });
        });
  std::fill(t[3].f32() + arrived, t[3].f32() + t[3].size(), 0.0f);
}
