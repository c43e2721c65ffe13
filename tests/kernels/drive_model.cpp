// Tiny kernels, each of which breaks one rule of the machine, and a few that show what an instruction does.
#include "model_memory.h"
#include "model_operands.h"

namespace {

using Plain = MatmulType<TPosition::GM, CubeFormat::ND, float>;
using Mm = Matmul<Plain, MatmulType<TPosition::GM, CubeFormat::ND, float, true>, Plain>;

void matmul(Mm &mm)  // output[0..63] = input[0..63] as 8x8 times itself transposed
{
    static const tiling::TCubeTiling shape{8, 8, 8, 8, 8, 8, 8};
    TPipe pipe;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &shape);
    mm.SetTensorA(input());
    mm.SetTensorB(input(), true);
}

const Table kCube = {
    {"transposed A not declared",
     [] {
         Mm m;
         matmul(m);
         m.SetTensorA(input(), true);
     }},
    {"transposed B not declared",
     [] {
         Matmul<Plain, Plain, Plain> m;
         m.SetTensorB(input(), true);
     }},
    {"right operand past the tensor",
     [] {
         Mm m;
         matmul(m);
         m.SetTensorB(input()[250], true);
         m.IterateAll(output());
     }},
    {"larger than the tiling",
     [] {
         Mm m;
         matmul(m);
         m.SetTail(9, 8, 8);
     }},
    {"object not initialised",
     [] {
         Mm m;
         m.IterateAll(output());
     }},
    {"operand past the tensor",
     [] {
         Mm m;
         matmul(m);
         m.SetTensorA(input()[250]);
         m.IterateAll(output());
     }},
    {"columns exceed the pitch",
     [] {
         Mm m;
         matmul(m);
         m.SetOrgShape(8, 4, 8, 8, 4);
         m.IterateAll(output());
     }},
    {"cube overwrites what MTE2 reads",
     [] {
         Mm m;
         matmul(m);
         m.IterateAll(output());
         TPipe p;
         Buf b;
         p.InitBuffer(b, 256);
         DataCopy(b.Get<float>(), output(), 64);
         m.IterateAll(output());
     }},
};

// What an instruction does, on input[0..] and into output[0..]: one core, values checked by the test.
void show(void (*body)(const LocalTensor<float> &dst, const LocalTensor<float> &src))
{
    TPipe pipe;
    Buf source, target;
    pipe.InitBuffer(source, 1024);
    pipe.InitBuffer(target, 1024);
    LocalTensor<float> src = source.Get<float>(), dst = target.Get<float>();
    DataCopy(src, input(), 256);
    Duplicate(dst, -1.0f, 256);
    mindmoe::Fence<HardEvent::MTE2_V>();
    PipeBarrier<PIPE_V>();
    body(dst, src);
    mindmoe::Fence<HardEvent::V_MTE3>();
    DataCopy(output(), dst, 256);
}

using T = LocalTensor<float>;
const Table kExamples = {
    {"Sort32",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 128);
             CreateVecIndex(o.Get<int32_t>(), 0, 32u);
             PipeBarrier<PIPE_V>();
             Sort32(d, s, o.Get<uint32_t>(), 1);
         });
     }},
    {"MrgSort",
     [] {
         show([](const T &d, const T &s) {
             const uint16_t n[4] = {4, 4, 4, 4};
             MrgSort(d, MrgSortSrcList<float>(s, s[8], s[16], s[24]), MrgSort4Info(n, false, 15, 1));
         });
     }},
    {"GatherMask 2",
     [] {
         show([](const T &d, const T &s) {
             uint64_t n = 0;
             GatherMask(d, s, static_cast<uint8_t>(2), true, 6, GatherMaskParams(1, 2, 2, 0), n);
         });
     }},
    {"GatherMask 4",
     [] {
         show([](const T &d, const T &s) {
             uint64_t n = 0;
             GatherMask(d, s, static_cast<uint8_t>(4), true, 16, GatherMaskParams(1, 1, 8, 0), n);
         });
     }},
    {"Brcb", [] { show([](const T &d, const T &s) { Brcb(d, s, 2, BrcbRepeatParams(1, 8)); }); }},
    {"BlockReduceSum",
     [] {
         show([](const T &d, const T &s) {
             const uint64_t m[2] = {0x0f000000000000ffULL, 0};
             BlockReduceSum(d, s, 1, m, 1, 1, 8);
         });
     }},
    {"WholeReduceMax",
     [] {
         show([](const T &d, const T &s) { WholeReduceMax(d, s, 10, 3, 2, 1, 8, ReduceOrder::ORDER_ONLY_VALUE); });
     }},
    {"broadcast block",
     [] { show([](const T &d, const T &s) { Add(d, s, s, 64, 2, BinaryRepeatParams(1, 1, 0, 8, 8, 1)); }); }},
    {"Gather",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 32);
             auto i = o.Get<int32_t>();
             CreateVecIndex(i, 0, 8u);
             PipeBarrier<PIPE_V>();
             Muls(i, i, -8, 8);
             PipeBarrier<PIPE_V>();
             Adds(i, i, 56, 8);
             PipeBarrier<PIPE_V>();
             Gather(d, s, i.ReinterpretCast<uint32_t>(), 4, 8);
         });
     }},
    {"CompareScalar and Select",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 32);
             auto m = o.Get<uint8_t>();
             CompareScalar(m, s, 3.0f, CMPMODE::GE, 64);
             PipeBarrier<PIPE_V>();
             Select(d, m, s, 0.5f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 64);
         });
     }},
    {"Cast to bf16 and back",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 128);
             auto b = o.Get<bfloat16_t>();
             Cast(b, s, RoundMode::CAST_RINT, 64);
             PipeBarrier<PIPE_V>();
             Cast(d, b, RoundMode::CAST_NONE, 64);
         });
     }},
    {"DataCopyPad",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 1024);
         auto t = b.Get<float>();
         Duplicate(t, -1.0f, 256);
         mindmoe::Fence<HardEvent::V_MTE2>();
         DataCopyPad(t, input(), DataCopyExtParams(2, 12, 8, 1, 0), DataCopyPadExtParams<float>(true, 1, 4, 9.0f));
         mindmoe::Fence<HardEvent::MTE2_MTE3>();
         mindmoe::Fence<HardEvent::V_MTE3>();
         DataCopy(output(), t, 256);
     }},
    {"atomic add of two cores",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         SetAtomicAdd<float>();
         DataCopy(output(), a, 8);
         SetAtomicNone();
     }},
    {"barrier between two cores",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         if (GetBlockIdx() == 0) {
             DataCopy(output(), a, 8);
         }
         SyncAll<true>();
         if (GetBlockIdx() == 1) {
             DataCopy(a, output(), 8);
             mindmoe::Fence<HardEvent::MTE2_V>();
             Adds(a, a, 1.0f, 8);
             mindmoe::Fence<HardEvent::V_MTE3>();
             DataCopy(output()[8], a, 8);
         }
     }},
    {"Matmul",
     [] {
         Mm m;
         matmul(m);
         m.IterateAll(output());
     }},
};

struct NoTiling {
    uint32_t unused = 0;
};

Table everything()
{
    Table all;
    for (const auto &part : {kOrdering, kQueues, kOperands, kMemory, kCube, kExamples}) {
        all.insert(part.begin(), part.end());
    }
    return all;
}

// ints: number of cores. The name of the body arrives as the second input.
std::string runBody(const Call &c)
{
    struct {
        NoTiling data;
        uint32_t cores;
        uint64_t workspaceBytes = 0;
        uint32_t ubBytes = host_model::kUbUsable;
        const char *error = nullptr;
    } plan{{}, c.u(0)};
    static const auto bodies = everything();
    const std::string name(reinterpret_cast<const char *>(c.in(1)), c.inputs[1].bytes);
    call = &c;
    return launch(c, plan, [&](GM_ADDR, GM_ADDR) { bodies.at(name)(); });
}

std::string listBodies(const Call &)
{
    std::string names;
    for (const auto &part : {kOrdering, kQueues, kOperands, kMemory, kCube}) {
        for (const auto &entry : part) {
            names += entry.first + "\n";
        }
    }
    return names;
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"run", runBody}, {"list", listBodies}};
    return table;
}
