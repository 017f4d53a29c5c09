// A small pool of threads for callers that bring none of their own (the ctypes door).
#pragma once

namespace msmamba {

// Runs `body(data)` on up to `width` threads, the caller's among them, and returns when all have. The body
// shares out its work itself (a counter), so a thread that never gets a core delays nothing: once the
// caller's own body returns, threads that have not begun are no longer wanted.
//
// One job at a time: a call that finds the pool busy runs the body on its own thread only.
using Body = void (*)(void* data);
void run_in_pool(int width, Body body, void* data);

// Threads that a job may use, the caller's included. At first: the processors this process may run on.
int pool_width();
void set_pool_width(int width);

}  // namespace msmamba
