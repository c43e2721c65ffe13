// LocalTensor and GlobalTensor: typed views that know their bounds.
#pragma once
#include "types.h"

namespace AscendC {

template <typename T> class LocalTensor {
public:
    LocalTensor() = default;
    LocalTensor(uint8_t *a, uint32_t n, int h) : addr(a), bytes(n), handle(h) {}

    LocalTensor operator[](uint32_t offset) const
    {
        HOST_MODEL_REQUIRE(static_cast<uint64_t>(offset) * sizeof(T) <= bytes, "tensor[%u] is past its %u bytes",
                           offset, bytes);
        const uint32_t skip = offset * static_cast<uint32_t>(sizeof(T));
        return LocalTensor(addr + skip, bytes - skip, handle);
    }
    template <typename U> LocalTensor<U> ReinterpretCast() const { return LocalTensor<U>(addr, bytes, handle); }
    uint32_t GetSize() const { return bytes / sizeof(T); }

    T GetValue(uint32_t index) const
    {
        host_model::beginInstruction("GetValue", PIPE_S);
        T value;
        memcpy(&value, scalar(index, false), sizeof(T));
        return value;
    }
    template <typename U> void SetValue(uint32_t index, U value) const
    {
        host_model::beginInstruction("SetValue", PIPE_S);
        const T converted = static_cast<T>(value);
        memcpy(scalar(index, true), &converted, sizeof(T));
    }

    uint8_t *addr = nullptr;
    uint32_t bytes = 0;
    int handle = -1;  // buffer number inside the owning queue

private:
    uint8_t *scalar(uint32_t index, bool write) const
    {
        HOST_MODEL_REQUIRE((static_cast<uint64_t>(index) + 1) * sizeof(T) <= bytes, "index %u of %u elements", index,
                           GetSize());
        uint8_t *p = addr + static_cast<size_t>(index) * sizeof(T);
        host_model::touchUb(p, sizeof(T), PIPE_S, write);
        return p;
    }
};

template <typename T> class GlobalTensor {
public:
    void SetGlobalBuffer(__gm__ T *buffer, uint64_t elements)
    {
        ptr = buffer;
        size = elements;
    }
    GlobalTensor operator[](uint64_t offset) const
    {
        HOST_MODEL_REQUIRE(offset <= size, "GlobalTensor offset %llu of %llu", static_cast<unsigned long long>(offset),
                           static_cast<unsigned long long>(size));
        GlobalTensor view;
        view.SetGlobalBuffer(ptr + offset, size - offset);
        return view;
    }
    // The scalar unit reads GM through a data cache that other cores' writes do not invalidate, so only inputs may be
    // read this way. There is no SetValue: scalar stores of two cores to one 64-byte line lose data.
    T GetValue(uint64_t index) const
    {
        host_model::beginInstruction("GlobalTensor::GetValue", PIPE_S);
        HOST_MODEL_REQUIRE(index < size, "GlobalTensor index %llu of %llu", static_cast<unsigned long long>(index),
                           static_cast<unsigned long long>(size));
        const auto &buffer = host_model::core->launch->find(ptr + index, sizeof(T));
        HOST_MODEL_REQUIRE(buffer.readOnly, "scalar read of %s, which this kernel writes (stale cache line)",
                           buffer.name.c_str());
        return ptr[index];
    }

    T *ptr = nullptr;
    uint64_t size = 0;
};

}  // namespace AscendC

namespace host_model {

template <typename T> inline void requireAligned(const AscendC::LocalTensor<T> &t, const char *what, uint32_t to = 32)
{
    HOST_MODEL_REQUIRE((t.addr - core->ub) % to == 0, "%s must start on %u bytes (UB+%ld)", what, to,
                       static_cast<long>(t.addr - core->ub));
}

template <typename T> inline T load(const uint8_t *p, pipe_t pipe = PIPE_V)
{
    touchUb(p, sizeof(T), pipe, false);
    T value;
    memcpy(&value, p, sizeof(T));
    return value;
}
template <typename T> inline void store(uint8_t *p, T value, pipe_t pipe = PIPE_V)
{
    touchUb(p, sizeof(T), pipe, true);
    memcpy(p, &value, sizeof(T));
}

}  // namespace host_model
