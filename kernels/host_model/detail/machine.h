// The modelled machine: vector cores with their pipes, unified buffer (UB) and view of global memory (GM).
//
// A kernel is executed in program order, one core at a time, so the numbers are those of a correct run. Beside the
// values the model keeps a vector clock per pipe and the last accesses of every memory cell; an access that the
// kernel's flags, queues and barriers do not order after a conflicting earlier one is a Violation even though the
// in-order execution happened to produce the right number.
#pragma once
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

enum pipe_t { PIPE_S = 0, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };

namespace host_model {

constexpr int kPipes = 8;                  // the seven above and the cube core behind the Matmul object
constexpr pipe_t kCube = PIPE_ALL;         // PIPE_ALL is never the pipe of an access, so its slot serves the cube
constexpr int kEventIds = 8;               // per kind of event
constexpr uint32_t kMaxBuffers = 64;       // per kernel
constexpr uint32_t kUbBytes = 192 * 1024;
constexpr uint32_t kUbUsable = 184 * 1024;  // the last 8 KB are scratch of some APIs
constexpr uint32_t kBlockBytes = 32;
constexpr uint32_t kRepeatBytes = 256;
constexpr uint32_t kUbGranule = 4;  // bytes of UB per shadow cell
constexpr uint32_t kGmGranule = 2;  // bytes of GM per shadow cell: the smallest element we store

struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Clock = std::array<uint32_t, kPipes>;

/// Last accesses of one memory cell by one core.
struct Cell {
    uint32_t writeTime = 0;  // 0: never written
    uint32_t writeStep = 0;  // repeat number inside the writing instruction
    pipe_t writePipe = PIPE_S;
    Clock readTime{};
    uint32_t earlierVectorRead = 0;  // by V, before its running instruction: an in-place instruction reads as well
};

/// Shadow of GM, allocated page by page because a core touches little of it.
class PagedShadow {
public:
    Cell &at(size_t index)
    {
        auto &page = pages_[index / kPage];
        if (!page) {
            page = std::make_unique<std::array<Cell, kPage>>();
        }
        return (*page)[index % kPage];
    }
    void clear() { pages_.clear(); }

private:
    static constexpr size_t kPage = 512;
    std::unordered_map<size_t, std::unique_ptr<std::array<Cell, kPage>>> pages_;
};

/// Which cores touched a GM cell since the last SyncAll.
struct Sharing {
    uint32_t phase = 0;
    int16_t writer = -1, reader = -1;
    bool atomic = false, manyReaders = false;
};

struct GmBuffer {
    uint8_t *begin, *end;
    bool readOnly;
    std::string name;
    std::vector<Sharing> sharing;
};

enum class BufferState : uint8_t { FREE, OCCUPIED, ENQUE, DEQUE };

struct QueueBuffer {
    uint8_t *addr;
    uint32_t bytes;
    BufferState state = BufferState::FREE;
    int8_t filledEvent = -1, freedEvent = -1;
};

/// State of a TQue. The pipe owns it, as on the device: it outlives the TQue object of the kernel class.
struct Queue {
    std::vector<QueueBuffer> buffers;
    std::vector<int> fifo;
    size_t cursor = 0;
};

struct Flag {
    bool set = false;
    Clock clock{};
};

class Launch;

struct Core {
    Launch *launch = nullptr;
    int rank = 0;   // position in the (shuffled) execution order
    int index = 0;  // GetBlockIdx()
    std::vector<uint8_t> ubStorage;
    uint8_t *ub = nullptr;
    uint32_t ubUsed = 0, buffers = 0;
    std::vector<Cell> ubShadow;
    PagedShadow gmShadow;
    Clock now{};                         // instructions issued per pipe
    std::array<Clock, kPipes> seen{};    // seen[p][q]: how far of pipe q is finished before p's next instruction
    std::unordered_map<int, Flag> flags;  // event * kEventIds + id
    std::unordered_map<int, uint8_t> eventIdsInUse;
    std::vector<std::unique_ptr<Queue>> queues;
    std::vector<std::function<void()>> atEnd;
    const char *instruction = "";
    uint32_t step = 0;   // repeat number of the running instruction
    uint32_t phase = 0;  // number of SyncAll passed
    bool atomicAdd = false;
    uint64_t instructions = 0;
    void *pipe = nullptr;

    bool ownsUb(const void *p) const { return p >= ub && p < ub + kUbBytes; }
};

inline thread_local Core *core = nullptr;

[[noreturn]] inline void fail(const char *format, ...)
{
    char message[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    throw Violation("[core " + std::to_string(core->index) + "] " + core->instruction + ": " + message);
}

#define HOST_MODEL_REQUIRE(condition, ...)      \
    do {                                        \
        if (!(condition)) {                     \
            ::host_model::fail(__VA_ARGS__);    \
        }                                       \
    } while (0)

inline const char *pipeName(int pipe)
{
    static const char *const names[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "CUBE"};
    return names[pipe];
}

inline void beginInstruction(const char *name, pipe_t pipe)
{
    core->instruction = name;
    core->step = 0;
    ++core->instructions;
    ++core->now[pipe];
}

/// Requires that pipe `pipe` is ordered after instruction number `time` of pipe `other`.
inline void requireOrder(pipe_t pipe, int other, uint32_t time, const char *hazard, const void *where)
{
    const bool sameInstruction = other == pipe && time == core->now[pipe];
    const bool scalar = pipe == PIPE_S && other == PIPE_S;  // the scalar pipe is in order by itself
    if (time == 0 || sameInstruction || scalar || core->seen[pipe][other] >= time) {
        return;
    }
    const bool local = core->ownsUb(where);
    fail("%s hazard in %s+%ld: pipe %s is not ordered after pipe %s (missing %s)", hazard, local ? "UB" : "GM",
         local ? static_cast<long>(static_cast<const uint8_t *>(where) - core->ub) : 0L, pipeName(pipe),
         pipeName(other), pipe == other ? "PipeBarrier" : "SetFlag/WaitFlag or EnQue/DeQue");
}

inline void touch(Cell &cell, pipe_t pipe, bool write, const void *where)
{
    requireOrder(pipe, cell.writePipe, cell.writeTime, write ? "WAW" : "RAW", where);
    const uint32_t now = core->now[pipe];
    if (!write) {
        HOST_MODEL_REQUIRE(cell.writeTime != now || cell.writePipe != pipe || cell.writeStep == core->step,
                           "a repeat reads what an earlier repeat of the same instruction wrote");
        if (pipe == PIPE_V && cell.readTime[pipe] != now) {
            cell.earlierVectorRead = cell.readTime[pipe];
        }
        cell.readTime[pipe] = now;
        return;
    }
    requireOrder(pipe, PIPE_V, cell.earlierVectorRead, "WAR", where);
    for (int other = 0; other < kPipes; ++other) {
        requireOrder(pipe, other, cell.readTime[other], "WAR", where);
    }
    cell.writePipe = pipe;
    cell.writeTime = now;
    cell.writeStep = core->step;
    cell.readTime.fill(0);
    cell.earlierVectorRead = 0;
}

inline void touchUb(const void *address, size_t bytes, pipe_t pipe, bool write)
{
    if (bytes == 0) {
        return;
    }
    const size_t begin = static_cast<const uint8_t *>(address) - core->ub;
    for (size_t i = begin / kUbGranule; i <= (begin + bytes - 1) / kUbGranule; ++i) {
        Cell &cell = core->ubShadow[i];
        HOST_MODEL_REQUIRE(write || cell.writeTime != 0, "read of uninitialised UB+%zu", i * kUbGranule);
        touch(cell, pipe, write, core->ub + i * kUbGranule);
    }
}

/// One kernel launch: the registered GM buffers, the cores and the turn-taking between them.
class Launch {
public:
    uint64_t instructions = 0;

    void add(const std::string &name, const void *data, size_t bytes, bool readOnly)
    {
        auto *begin = static_cast<uint8_t *>(const_cast<void *>(data));
        if (begin != nullptr) {
            gm_.push_back({begin, begin + bytes, readOnly, name, std::vector<Sharing>(bytes / kGmGranule + 1)});
        }
    }

    /// Runs `body` on every core in an order drawn from `seed`; returns "" or the first violation.
    std::string run(int cores, uint32_t seed, const std::function<void()> &body)
    {
        makeCores(cores, seed);
        std::vector<std::thread> threads;
        for (auto &c : cores_) {
            threads.emplace_back([this, &c, &body] { runCore(*c, body); });
        }
        for (auto &t : threads) {
            t.join();
        }
        for (auto &c : cores_) {
            instructions += c->instructions;
        }
        return error_;
    }

    /// UB bytes of the core that took most.
    uint32_t ubUsed() const
    {
        uint32_t most = 0;
        for (auto &c : cores_) {
            most = std::max(most, c->ubUsed);
        }
        return most;
    }

    GmBuffer &find(const void *address, size_t bytes)
    {
        const auto *a = static_cast<const uint8_t *>(address);
        for (auto &buffer : gm_) {
            if (a >= buffer.begin && a + bytes <= buffer.end) {
                return buffer;
            }
        }
        fail("GM access of %zu bytes is outside every buffer", bytes);
    }

    void syncAll(Core &c)
    {
        std::unique_lock<std::mutex> lock(mutex_);
        state_[c.rank] = State::WAITING;
        passTurn();
        changed_.wait(lock, [&] { return aborted_ || (turn_ == c.rank && state_[c.rank] == State::READY); });
        if (aborted_) {
            throw Violation("aborted");
        }
    }

private:
    enum class State { READY, WAITING, DONE };

    void makeCores(int cores, uint32_t seed)
    {
        std::vector<int> order(cores);
        for (int i = 0; i < cores; ++i) {
            order[i] = i;
        }
        for (int i = cores - 1; i > 0; --i) {
            seed = seed * 1664525u + 1013904223u;
            std::swap(order[i], order[(seed >> 8) % (i + 1)]);
        }
        state_.assign(cores, State::READY);
        for (int rank = 0; rank < cores; ++rank) {
            auto c = std::make_unique<Core>();
            c->launch = this;
            c->rank = rank;
            c->index = order[rank];
            c->ubStorage.assign(kUbBytes + 512, 0xFF);  // every float of it is NaN
            c->ub = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(c->ubStorage.data()) + 511) & ~511ull);
            c->ubShadow.resize(kUbBytes / kUbGranule);
            cores_.push_back(std::move(c));
        }
    }

    void runCore(Core &c, const std::function<void()> &body)
    {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [&] { return aborted_ || turn_ == c.rank; });
        }
        core = &c;
        try {
            if (!aborted_) {
                body();
                finish(c);
            }
        } catch (const std::exception &e) {
            std::unique_lock<std::mutex> lock(mutex_);
            if (error_.empty()) {
                error_ = e.what();
            }
            aborted_ = true;
        }
        core = nullptr;
        std::unique_lock<std::mutex> lock(mutex_);
        state_[c.rank] = State::DONE;
        passTurn();
    }

    static void finish(Core &c)
    {
        c.instruction = "end of kernel";
        for (auto &check : c.atEnd) {
            check();
        }
        for (auto &[key, flag] : c.flags) {
            HOST_MODEL_REQUIRE(!flag.set, "SetFlag without WaitFlag (event %d, id %d)", key / kEventIds,
                               key % kEventIds);
        }
        HOST_MODEL_REQUIRE(!c.atomicAdd, "atomic add left on");
    }

    // Gives the turn to the next core that can run; opens the barrier when every live core waits at it.
    void passTurn()
    {
        const int n = static_cast<int>(state_.size());
        int waiting = 0, done = 0;
        for (State s : state_) {
            waiting += s == State::WAITING;
            done += s == State::DONE;
        }
        if (waiting > 0 && waiting + done == n) {
            if (done > 0) {
                aborted_ = true;
                if (error_.empty()) {
                    error_ = "SyncAll: some cores finished without reaching it (the device would hang)";
                }
            }
            for (State &s : state_) {
                s = s == State::WAITING ? State::READY : s;
            }
        }
        for (int i = 1; i <= n; ++i) {
            const int next = (turn_ + i) % n;
            if (state_[next] == State::READY) {
                turn_ = next;
                break;
            }
        }
        changed_.notify_all();
    }

    std::vector<GmBuffer> gm_;
    std::vector<std::unique_ptr<Core>> cores_;
    std::vector<State> state_;
    std::mutex mutex_;
    std::condition_variable changed_;
    int turn_ = 0;
    bool aborted_ = false;
    std::string error_;
};

/// Two cores may not touch a cell in the same SyncAll phase when one of them writes; pairs of atomic adds may.
inline void checkSharing(Sharing &s, bool write, const GmBuffer &buffer, size_t cell)
{
    const auto me = static_cast<int16_t>(core->index);
    if (s.phase != core->phase) {
        s = Sharing{core->phase, -1, -1, false, false};
    }
    const bool bothAtomic = write && core->atomicAdd && s.atomic;
    const bool otherWrote = s.writer >= 0 && s.writer != me && !bothAtomic;
    const bool otherRead = s.manyReaders || (s.reader >= 0 && s.reader != me);
    HOST_MODEL_REQUIRE(!otherWrote && !(write && otherRead), "cross-core race on %s+%zu with core %d",
                       buffer.name.c_str(), cell * kGmGranule, otherWrote ? s.writer : s.reader);
    if (write) {
        s.writer = me;
        s.atomic = core->atomicAdd;
    } else {
        s.manyReaders = s.manyReaders || (s.reader >= 0 && s.reader != me);
        s.reader = me;
    }
}

inline void touchGm(const void *address, size_t bytes, pipe_t pipe, bool write)
{
    if (bytes == 0) {
        return;
    }
    GmBuffer &buffer = core->launch->find(address, bytes);
    HOST_MODEL_REQUIRE(!write || !buffer.readOnly, "write to the input %s", buffer.name.c_str());
    if (buffer.readOnly) {
        return;
    }
    const size_t begin = static_cast<const uint8_t *>(address) - buffer.begin;
    const size_t base = reinterpret_cast<uintptr_t>(buffer.begin) / kGmGranule;
    for (size_t i = begin / kGmGranule; i <= (begin + bytes - 1) / kGmGranule; ++i) {
        checkSharing(buffer.sharing[i], write, buffer, i);
        touch(core->gmShadow.at(base + i), pipe, write, buffer.begin + i * kGmGranule);
    }
}

}  // namespace host_model
