// C interface through which the Python tests launch a kernel on the host model.
#pragma once
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernel_operator.h"

struct Buffer {
    void *data;
    uint64_t bytes;
};

/// One launch as the test describes it: attributes in the order of the op's registration, inputs, outputs.
struct Call {
    const int64_t *ints;
    const double *reals;
    std::vector<Buffer> inputs, outputs;
    bool bf16;
    uint32_t cores, seed;
    bool planOnly;  // do not run: write cores, UB bytes and workspace bytes of the plan to the first output

    GM_ADDR in(size_t i) const { return static_cast<GM_ADDR>(inputs[i].data); }
    GM_ADDR out(size_t i) const { return static_cast<GM_ADDR>(outputs[i].data); }
    uint32_t u(size_t i) const { return static_cast<uint32_t>(ints[i]); }
    float f(size_t i) const { return static_cast<float>(reals[i]); }
    uint32_t elementBytes() const { return bf16 ? 2 : 4; }
};

/// Runs `kernel(workspace, tiling)` under a plan on as many cores as it asks for; "" or the violation.
template <typename Plan, typename Kernel>
std::string launch(const Call &call, Plan plan, Kernel kernel)
{
    if (plan.error != nullptr) {
        return plan.error;
    }
    if (call.planOnly) {
        auto *figures = static_cast<uint64_t *>(call.outputs[0].data);
        figures[0] = plan.cores;
        figures[1] = plan.ubBytes;
        figures[2] = plan.workspaceBytes;
        return "";
    }
    host_model::Launch machine;
    for (size_t i = 0; i < call.inputs.size(); ++i) {
        machine.add("input " + std::to_string(i), call.inputs[i].data, call.inputs[i].bytes, true);
    }
    for (size_t i = 0; i < call.outputs.size(); ++i) {
        machine.add("output " + std::to_string(i), call.outputs[i].data, call.outputs[i].bytes, false);
    }
    std::vector<uint8_t> workspace(plan.workspaceBytes + 64, 0xFF);
    machine.add("workspace", workspace.data(), plan.workspaceBytes, false);
    auto *tiling = reinterpret_cast<GM_ADDR>(&plan.data);
    const std::string violation =
        machine.run(static_cast<int>(plan.cores), call.seed, [&] { kernel(workspace.data(), tiling); });
    if (violation.empty() && machine.ubUsed() > plan.ubBytes) {
        return "the kernel takes " + std::to_string(machine.ubUsed()) + " bytes of UB, the plan says " +
               std::to_string(plan.ubBytes);
    }
    return violation;
}

using Entry = std::string (*)(const Call &);
const std::map<std::string, Entry> &entries();  // defined by each driver

/// Returns 0, or 1 with a message in `error`; "plan <kernel>" only plans. The last `numOutputs` buffers are outputs.
extern "C" int run_kernel(const char *name, int bf16, const int64_t *ints, const double *reals, void **data,
                          const uint64_t *bytes, int numInputs, int numOutputs, uint32_t cores, uint32_t seed,
                          char *error, int errorBytes)
{
    const std::string prefix = "plan ", request = name;
    const bool planOnly = request.rfind(prefix, 0) == 0;
    Call call{ints, reals, {}, {}, bf16 != 0, cores, seed, planOnly};
    for (int i = 0; i < numInputs + numOutputs; ++i) {
        (i < numInputs ? call.inputs : call.outputs).push_back({data[i], bytes[i]});
    }
    const std::string message = entries().at(planOnly ? request.substr(prefix.size()) : request)(call);
    snprintf(error, static_cast<size_t>(errorBytes), "%s", message.c_str());
    return message.empty() ? 0 : 1;
}
