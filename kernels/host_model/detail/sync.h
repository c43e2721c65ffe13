// Flags, barriers, TPipe, TQue and TBuf.
#pragma once
#include <algorithm>

#include "tensor.h"

namespace AscendC {

template <HardEvent event> inline host_model::Flag &flagOf(const char *instruction, int32_t id)
{
    using namespace host_model;
    core->instruction = instruction;
    HOST_MODEL_REQUIRE(id >= 0 && id < kEventIds, "event id %d is outside [0, 8)", id);
    return core->flags[static_cast<int>(event) * kEventIds + id];
}

template <HardEvent event> inline void SetFlag(int32_t id)
{
    using namespace host_model;
    Flag &flag = flagOf<event>("SetFlag", id);
    HOST_MODEL_REQUIRE(!flag.set, "event %d id %d is set twice without a wait", static_cast<int>(event), id);
    const pipe_t source = pipesOf(event).first;
    flag.set = true;
    flag.clock = core->seen[source];
    flag.clock[source] = core->now[source];
}

template <HardEvent event> inline void WaitFlag(int32_t id)
{
    using namespace host_model;
    Flag &flag = flagOf<event>("WaitFlag", id);
    HOST_MODEL_REQUIRE(flag.set, "event %d id %d is waited for before it is set (the device would hang)",
                       static_cast<int>(event), id);
    Clock &clock = core->seen[pipesOf(event).second];
    flag.set = false;
    for (int q = 0; q < kPipes; ++q) {
        clock[q] = std::max(clock[q], flag.clock[q]);
    }
}

template <pipe_t pipe> inline void PipeBarrier()
{
    using namespace host_model;
    static_assert(pipe != PIPE_S, "PipeBarrier does not take PIPE_S");
    if constexpr (pipe != PIPE_ALL) {
        core->seen[pipe][pipe] = core->now[pipe];
    } else {
        for (int p = 0; p < kPipes; ++p) {
            const uint32_t cube = core->seen[p][kCube];  // the barrier does not wait for the other core
            core->seen[p] = core->now;
            core->seen[p][kCube] = cube;
        }
    }
}

inline int64_t GetBlockIdx() { return host_model::core->index; }

template <bool isAIVOnly = true> inline void SyncAll()
{
    using namespace host_model;
    PipeBarrier<PIPE_ALL>();
    core->launch->syncAll(*core);
    ++core->phase;
    core->gmShadow.clear();
}

template <typename T> inline void SetAtomicAdd()
{
    static_assert(host_model::isArithmetic<T>, "model: atomic add of float or int32");
    host_model::core->atomicAdd = true;
}
inline void SetAtomicNone() { host_model::core->atomicAdd = false; }

template <TPosition position> class TBuf {
public:
    template <typename T> LocalTensor<T> Get() { return LocalTensor<T>(addr, bytes, -1); }
    template <typename T> LocalTensor<T> Get(uint32_t n)
    {
        HOST_MODEL_REQUIRE(n * sizeof(T) <= bytes, "TBuf::Get(%u) of %u bytes", n, bytes);
        return LocalTensor<T>(addr, n * static_cast<uint32_t>(sizeof(T)), -1);
    }
    uint8_t *addr = nullptr;
    uint32_t bytes = 0;
};

class TPipe {
public:
    TPipe() { host_model::core->pipe = this; }

    template <class Que> bool InitBuffer(Que &que, uint8_t num, uint32_t len)
    {
        using namespace host_model;
        core->instruction = "InitBuffer";
        HOST_MODEL_REQUIRE(que.state == nullptr && num > 0 && len > 0, "InitBuffer(num %d, len %u)", num, len);
        core->queues.push_back(std::make_unique<Queue>());
        Queue *queue = que.state = core->queues.back().get();
        for (int i = 0; i < num; ++i) {
            queue->buffers.push_back({take(len), roundUp(len)});
        }
        core->atEnd.push_back([queue] { Que::finish(*queue); });
        return true;
    }
    template <TPosition position> bool InitBuffer(TBuf<position> &buffer, uint32_t len)
    {
        host_model::core->instruction = "InitBuffer";
        buffer.addr = take(len);
        buffer.bytes = roundUp(len);
        return true;
    }

    template <HardEvent event> static TEventID AllocEventID()
    {
        const TEventID id = FetchEventID(event);
        host_model::core->eventIdsInUse[static_cast<int>(event)] |= static_cast<uint8_t>(1u << id);
        return id;
    }
    template <HardEvent event> static void ReleaseEventID(TEventID id)
    {
        host_model::core->eventIdsInUse[static_cast<int>(event)] &= static_cast<uint8_t>(~(1u << id));
    }
    /// A free id, not reserved: two nested uses of the same kind of event would share it.
    static TEventID FetchEventID(HardEvent event)
    {
        const uint8_t used = host_model::core->eventIdsInUse[static_cast<int>(event)];
        for (TEventID id = 0; id < host_model::kEventIds; ++id) {
            if (!(used >> id & 1)) {
                return id;
            }
        }
        host_model::fail("all 8 ids of event %d are in use", static_cast<int>(event));
    }

private:
    static uint32_t roundUp(uint32_t len) { return (len + 31) / 32 * 32; }
    static uint8_t *take(uint32_t len)
    {
        using namespace host_model;
        HOST_MODEL_REQUIRE(++core->buffers <= kMaxBuffers, "more than 64 buffers in one kernel");
        HOST_MODEL_REQUIRE(core->ubUsed + roundUp(len) <= kUbUsable, "UB overflow: %u + %u > %u", core->ubUsed, len,
                           kUbUsable);
        uint8_t *p = core->ub + core->ubUsed;
        core->ubUsed += roundUp(len);
        return p;
    }
};

inline TPipe *GetTPipePtr() { return static_cast<TPipe *>(host_model::core->pipe); }

/// Buffers that travel FREE -> OCCUPIED (Alloc) -> ENQUE -> DEQUE -> FREE; `filled` and `freed` are the events that
/// the queue sets on the way there and back.
template <HardEvent filled, HardEvent freed, int32_t depth> class QueueBase {
public:
    host_model::Queue *state = nullptr;

    template <typename T> LocalTensor<T> AllocTensor()
    {
        using namespace host_model;
        core->instruction = "AllocTensor";
        HOST_MODEL_REQUIRE(state != nullptr, "InitBuffer was not called");
        auto &buffers = state->buffers;
        for (size_t n = 0; n < buffers.size(); ++n) {
            const size_t i = state->cursor;
            state->cursor = (state->cursor + 1) % buffers.size();
            if (buffers[i].state == BufferState::FREE) {
                buffers[i].state = BufferState::OCCUPIED;
                await<freed>(buffers[i].freedEvent);
                return LocalTensor<T>(buffers[i].addr, buffers[i].bytes, static_cast<int>(i));
            }
        }
        fail("no free buffer of %zu (is a FreeTensor missing?)", buffers.size());
    }
    template <typename T> bool EnQue(const LocalTensor<T> &tensor)
    {
        using namespace host_model;
        core->instruction = "EnQue";
        QueueBuffer &buffer = own(tensor);
        HOST_MODEL_REQUIRE(static_cast<int>(state->fifo.size()) < depth, "queue depth %d exceeded", depth);
        HOST_MODEL_REQUIRE(buffer.state == BufferState::OCCUPIED || buffer.state == BufferState::DEQUE,
                           "the buffer is not held");
        buffer.state = BufferState::ENQUE;
        buffer.filledEvent = TPipe::AllocEventID<filled>();
        SetFlag<filled>(buffer.filledEvent);
        state->fifo.push_back(tensor.handle);
        return true;
    }
    template <typename T> LocalTensor<T> DeQue()
    {
        using namespace host_model;
        core->instruction = "DeQue";
        HOST_MODEL_REQUIRE(state != nullptr && !state->fifo.empty(), "the queue is empty (the device would hang)");
        const int i = state->fifo.front();
        state->fifo.erase(state->fifo.begin());
        QueueBuffer &buffer = state->buffers[i];
        buffer.state = BufferState::DEQUE;
        await<filled>(buffer.filledEvent);
        return LocalTensor<T>(buffer.addr, buffer.bytes, i);
    }
    template <typename T> void FreeTensor(LocalTensor<T> &tensor)
    {
        using namespace host_model;
        core->instruction = "FreeTensor";
        QueueBuffer &buffer = own(tensor);
        HOST_MODEL_REQUIRE(buffer.state == BufferState::OCCUPIED || buffer.state == BufferState::DEQUE,
                           "the buffer is not held");
        buffer.freedEvent = TPipe::AllocEventID<freed>();
        SetFlag<freed>(buffer.freedEvent);
        buffer.state = BufferState::FREE;
    }
    static void finish(host_model::Queue &queue)
    {
        for (auto &buffer : queue.buffers) {
            HOST_MODEL_REQUIRE(buffer.state == host_model::BufferState::FREE, "a queue buffer was never freed");
            await<freed>(buffer.freedEvent);
        }
    }

private:
    template <HardEvent event> static void await(int8_t &id)
    {
        if (id >= 0) {
            WaitFlag<event>(id);
            TPipe::ReleaseEventID<event>(id);
            id = -1;
        }
    }
    template <typename T> host_model::QueueBuffer &own(const LocalTensor<T> &t)
    {
        HOST_MODEL_REQUIRE(state != nullptr && t.handle >= 0 &&
                               static_cast<size_t>(t.handle) < state->buffers.size() &&
                               state->buffers[t.handle].addr == t.addr,
                           "the tensor does not belong to this queue");
        return state->buffers[t.handle];
    }
};

template <TPosition position, int32_t depth>
class TQue : public QueueBase<position == TPosition::VECIN ? HardEvent::MTE2_V : HardEvent::V_MTE3,
                              position == TPosition::VECIN ? HardEvent::V_MTE2 : HardEvent::MTE3_V, depth> {
    static_assert(position == TPosition::VECIN || position == TPosition::VECOUT, "model: VECIN or VECOUT");
};

/// A queue whose buffers are filled by MTE2 and drained by MTE3, untouched by the vector pipe.
template <TPosition source, TPosition target, int32_t depth>
class TQueBind : public QueueBase<HardEvent::MTE2_MTE3, HardEvent::MTE3_MTE2, depth> {
    static_assert(source == TPosition::VECIN && target == TPosition::VECOUT, "model: VECIN to VECOUT");
};

}  // namespace AscendC
