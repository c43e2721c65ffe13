// Tiny kernels, each of which breaks one rule of the machine, and a few that show what an instruction does.
#include "model_examples.h"
#include "model_memory.h"
#include "model_operands.h"

namespace {

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
