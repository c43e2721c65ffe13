// The Matmul object as a vector core of a MIX kernel sees it: operands and result in GM, the work done by the cube
// core that the request reaches as an MTE3 message.
#pragma once
#include <algorithm>

#include "kernel_tiling/kernel_tiling.h"
#include "sync.h"

enum class CubeFormat { ND = 0, NZ };

namespace AscendC {

template <TPosition position, CubeFormat layout, typename TYPE, bool transposable = false> struct MatmulType {
    static constexpr TPosition pos = position;
    static constexpr CubeFormat format = layout;
    static constexpr bool isTrans = transposable;
    using T = TYPE;
};

template <class A, class B, class C> class Matmul {
    using In = typename A::T;
    static_assert(A::pos == TPosition::GM && B::pos == TPosition::GM && C::pos == TPosition::GM, "model: GM operands");
    static_assert(A::format == CubeFormat::ND && B::format == CubeFormat::ND && C::format == CubeFormat::ND,
                  "model: ND");
    static_assert(std::is_same_v<In, typename B::T> && host_model::isFloat<typename C::T> &&
                      (std::is_same_v<In, bfloat16_t> || host_model::isFloat<In>),
                  "A2: bfloat16 or float in, float out");

public:
    void Init(const ::TCubeTiling *t)
    {
        SetOrgShape(t->M, t->N, t->Ka, t->Kb);
        maxM_ = t->singleCoreM;
        maxN_ = t->singleCoreN;
        maxK_ = t->singleCoreK;
        SetTail(maxM_, maxN_, maxK_);
    }
    void SetOrgShape(int m, int n, int ka, int kb, int kc = 0)
    {
        orgM_ = m;
        orgN_ = n;
        orgKa_ = ka;
        orgKb_ = kb;
        orgC_ = kc != 0 ? kc : n;
    }
    void SetTail(int m, int n, int k)
    {
        host_model::core->instruction = "Matmul::SetTail";
        HOST_MODEL_REQUIRE(m >= 1 && m <= maxM_ && n >= 1 && n <= maxN_ && k >= 1 && k <= maxK_,
                           "%dx%dx%d exceeds the single-core shape %dx%dx%d of the tiling", m, n, k, maxM_, maxN_,
                           maxK_);
        m_ = m;
        n_ = n;
        k_ = k;
    }
    void SetTensorA(const GlobalTensor<In> &t, bool transposed = false)
    {
        host_model::core->instruction = "Matmul::SetTensorA";
        HOST_MODEL_REQUIRE(!transposed || A::isTrans, "MatmulType A is not declared transposable");
        a_ = t;
        transposedA_ = transposed;
    }
    void SetTensorB(const GlobalTensor<In> &t, bool transposed = false)
    {
        host_model::core->instruction = "Matmul::SetTensorB";
        HOST_MODEL_REQUIRE(!transposed || B::isTrans, "MatmulType B is not declared transposable");
        b_ = t;
        transposedB_ = transposed;
    }

    /// C[m, n] = A[m, k] B[k, n], synchronous.
    void IterateAll(const GlobalTensor<float> &c)
    {
        using namespace host_model;
        beginInstruction("Matmul::IterateAll", kCube);
        HOST_MODEL_REQUIRE(k_ > 0, "the object is not initialised");
        // The request is an MTE3 message: the cube is ordered after what MTE3 has finished and nothing else.
        PipeBarrier<PIPE_MTE3>();
        Clock &clock = core->seen[kCube];
        for (int q = 0; q < kPipes; ++q) {
            clock[q] = std::max(clock[q], core->seen[PIPE_MTE3][q]);
        }
        clock[kCube] = core->now[kCube] - 1;
        touchRows(a_, transposedA_ ? k_ : m_, transposedA_ ? orgM_ : orgKa_, transposedA_ ? m_ : k_, false);
        touchRows(b_, transposedB_ ? n_ : k_, transposedB_ ? orgKb_ : orgN_, transposedB_ ? k_ : n_, false);
        touchRows(c, m_, orgC_, n_, true);
        multiply(c);
        for (Clock &seen : core->seen) {  // the scalar unit polls for the answer before it issues anything else
            seen[kCube] = core->now[kCube];
        }
    }
    void End() {}

private:
    template <typename T>
    static void touchRows(const GlobalTensor<T> &t, int rows, int pitch, int columns, bool write)
    {
        HOST_MODEL_REQUIRE(columns <= pitch, "%d columns exceed the row pitch %d", columns, pitch);
        const uint64_t elements = static_cast<uint64_t>(rows - 1) * pitch + columns;
        HOST_MODEL_REQUIRE(elements <= t.size, "element %llu of a GlobalTensor of %llu",
                           static_cast<unsigned long long>(elements), static_cast<unsigned long long>(t.size));
        for (int i = 0; i < rows; ++i) {
            host_model::touchGm(t.ptr + static_cast<uint64_t>(i) * pitch, columns * sizeof(T), host_model::kCube,
                                write);
        }
    }
    void multiply(const GlobalTensor<float> &c) const
    {
        std::vector<float> a(static_cast<size_t>(m_) * k_), b(static_cast<size_t>(k_) * n_);
        for (int i = 0; i < m_; ++i) {
            for (int x = 0; x < k_; ++x) {
                a[i * k_ + x] =
                    a_.ptr[transposedA_ ? static_cast<size_t>(x) * orgM_ + i : static_cast<size_t>(i) * orgKa_ + x];
            }
        }
        for (int x = 0; x < k_; ++x) {
            for (int j = 0; j < n_; ++j) {
                b[x * n_ + j] =
                    b_.ptr[transposedB_ ? static_cast<size_t>(j) * orgKb_ + x : static_cast<size_t>(x) * orgN_ + j];
            }
        }
        for (int i = 0; i < m_; ++i) {
            float *row = c.ptr + static_cast<size_t>(i) * orgC_;
            std::fill(row, row + n_, 0.0f);
            for (int x = 0; x < k_; ++x) {
                for (int j = 0; j < n_; ++j) {
                    row[j] += a[i * k_ + x] * b[x * n_ + j];
                }
            }
        }
    }

    GlobalTensor<In> a_, b_;
    bool transposedA_ = false, transposedB_ = false;
    int orgM_ = 0, orgN_ = 0, orgKa_ = 0, orgKb_ = 0, orgC_ = 0, m_ = 0, n_ = 0, k_ = 0;
    int maxM_ = 0, maxN_ = 0, maxK_ = 0;
};

inline uint8_t *GetSysWorkSpacePtr() { return nullptr; }

}  // namespace AscendC

namespace host_model {

inline void registerMatmuls() {}
template <class M, class... Rest>
inline void registerMatmuls(M &matmul, const ::TCubeTiling *t, Rest &&...rest)
{
    matmul.Init(t);
    registerMatmuls(rest...);
}

}  // namespace host_model

#define REGIST_MATMUL_OBJ(pipe, workspace, ...) \
    ((void)(pipe), (void)(workspace), host_model::registerMatmuls(__VA_ARGS__))
