// Threads of our own, kept between calls: none of the framework's, so the two never wait on each other.
#pragma once

#include <functional>

// Calls `work` once on each of `threads` threads, the caller's among them, and returns when all are
// done. Where the system gives fewer threads, fewer calls are made: work must be there to be taken.
void on_threads(int threads, const std::function<void()>& work);
