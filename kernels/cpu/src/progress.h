// How a thread that waits for the pack's ops sleeps. MindSpore's own wait for a value spins, which takes a core from
// the very ops it waits for; here the waiting thread sleeps until the op `arrive` has run.
#pragma once

namespace mindmoe {

// Called as every op of the pack ends.
void op_ended();

}  // namespace mindmoe
