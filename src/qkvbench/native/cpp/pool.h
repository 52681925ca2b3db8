// A thread pool, kept between calls and independent of the framework's.
#pragma once

#include <functional>

// Calls `work` once on each of `threads` threads, including the caller's, and returns when all are
// done. If the system gives fewer threads, there are fewer calls: `work` must take tasks from a queue.
void run_on_threads(int threads, const std::function<void()>& work);
