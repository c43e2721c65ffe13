// Tiny kernels that break the rules of copies, global memory and cores, one each.
#pragma once
#include "model_rules.h"

namespace {

/// Runs `store` on 64 floats of UB that MTE3 may read.
void stored(void (*store)(const LocalTensor<float> &a))
{
    TPipe pipe;
    auto a = ones(pipe, 64);
    mindmoe::Fence<HardEvent::V_MTE3>();
    store(a);
}

const Table kMemory = {
    {"DataCopy of part of a block",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 64);
         DataCopy(b.Get<float>(), input(), 9);
     }},
    {"DataCopy overrun",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         DataCopy(b.Get<float>(), input(), 16);
     }},
    {"4096 blocks",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         DataCopyPad(b.Get<float>(), input(), DataCopyExtParams(4096, 4, 0, 0, 0),
                     DataCopyPadExtParams<float>(false, 0, 0, 0));
     }},
    {"empty block",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         DataCopyPad(b.Get<float>(), input(), DataCopyExtParams(1, 0, 0, 0, 0),
                     DataCopyPadExtParams<float>(false, 0, 0, 0));
     }},
    {"padding of 36 bytes",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 96);
         DataCopyPad(b.Get<float>(), input(), DataCopyExtParams(1, 4, 0, 0, 0),
                     DataCopyPadExtParams<float>(true, 0, 9, 0));
     }},
    {"read past the GlobalTensor",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 2048);
         DataCopy(b.Get<float>(), input()[64], 200);
     }},
    {"GlobalTensor offset", [] { input()[100000]; }},
    {"outside every buffer",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         GlobalTensor<float> g;
         float own[8] = {};
         g.SetGlobalBuffer(own, 8);
         DataCopy(b.Get<float>(), g, 8);
     }},
    {"write to an input",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         DataCopy(input(), a, 8);
     }},
    {"scalar read of an output", [] { output().GetValue(0); }},
    {"two cores write",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         DataCopy(output(), a, 8);
     }},
    {"one core writes, one reads",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         mindmoe::Fence<HardEvent::V_MTE2>();
         if (GetBlockIdx() == 0) {
             DataCopy(output(), a, 8);
         } else {
             DataCopy(a, output(), 8);
         }
     }},
    {"two cores add without atomics on one",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         if (GetBlockIdx() == 0) {
             SetAtomicAdd<float>();
         }
         DataCopy(output(), a, 8);
         SetAtomicNone();
     }},
    {"a core misses the barrier",
     [] {
         if (GetBlockIdx() == 0) {
             SyncAll<true>();
         }
     }},
    {"atomic left on", [] { SetAtomicAdd<float>(); }},
    {"DataCopy to an odd place",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 64);
         DataCopy(b.Get<float>()[1], input(), 8);
     }},
    {"store of part of a block", [] { stored([](const LocalTensor<float> &a) { DataCopy(output(), a, 9); }); }},
    {"store from an odd place", [] { stored([](const LocalTensor<float> &a) { DataCopy(output(), a[1], 8); }); }},
    {"store overrun", [] { stored([](const LocalTensor<float> &a) { DataCopy(output(), a[56], 16); }); }},
    {"store past the GlobalTensor", [] { stored([](const LocalTensor<float> &a) { DataCopy(output()[252], a, 8); }); }},
    {"DataCopy within the machine but past the GlobalTensor",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 64);
         GlobalTensor<float> g = input();
         g.size = 8;
         DataCopy(b.Get<float>(), g, 16);
     }},
    {"store within the machine but past the GlobalTensor",
     [] {
         stored([](const LocalTensor<float> &a) {
             GlobalTensor<float> g = output();
             g.size = 8;
             DataCopy(g, a, 16);
         });
     }},
    {"4096 blocks of a store",
     [] {
         stored([](const LocalTensor<float> &a) { DataCopyPad(output(), a, DataCopyExtParams(4096, 4, 0, 0, 0)); });
     }},
    {"padded load to an odd place",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 96);
         mindmoe::CopyIn(b.Get<float>()[1], input(), 3);
     }},
    {"padded load overrun",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         mindmoe::CopyIn(b.Get<float>(), input(), 9);
     }},
    {"padded load past the GlobalTensor",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         GlobalTensor<float> g = input();
         g.size = 2;
         mindmoe::CopyIn(b.Get<float>(), g, 3);
     }},
    {"padded store from an odd place",
     [] { stored([](const LocalTensor<float> &a) { mindmoe::CopyOut(output(), a[1], 3); }); }},
    {"padded store overrun",
     [] { stored([](const LocalTensor<float> &a) { mindmoe::CopyOut(output(), a[56], 9); }); }},
    {"padded store past the GlobalTensor",
     [] {
         stored([](const LocalTensor<float> &a) {
             GlobalTensor<float> g = output();
             g.size = 2;
             mindmoe::CopyOut(g, a, 3);
         });
     }},
    {"padded load of what MTE3 writes",
     [] {
         stored([](const LocalTensor<float> &a) {
             mindmoe::CopyOut(output(), a, 3);
             mindmoe::Fence<HardEvent::V_MTE2>();
             TPipe p;
             Buf b;
             p.InitBuffer(b, 32);
             mindmoe::CopyIn(b.Get<float>(), output(), 3);
         });
     }},
    {"padded load onto what V reads",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         mindmoe::CopyIn(a, input(), 3);
     }},
    {"padded store of what V writes",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         mindmoe::CopyOut(output(), a, 3);
     }},
    {"store onto a store in flight",
     [] {
         stored([](const LocalTensor<float> &a) {
             DataCopy(output(), a, 8);
             DataCopy(output(), a[8], 8);
         });
     }},
    {"GlobalTensor index", [] { input().GetValue(256); }},
};

}  // namespace
