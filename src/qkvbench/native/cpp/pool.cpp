#include "pool.h"

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

struct Pool {
    std::mutex one_call;  // a second caller waits for the first
    std::mutex mutex;
    std::condition_variable wake, done;
    const std::function<void()>* work = nullptr;
    int threads = 0, wanted = 0, running = 0;

    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [this] { return wanted > 0; });
            --wanted;
            ++running;
            const auto* current = work;
            lock.unlock();
            (*current)();
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    void grow(int to) {
        while (threads < to) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;  // the system's limit
            }
            ++threads;
        }
    }

    void call(int count, const std::function<void()>& given) {
        std::lock_guard<std::mutex> exclusive(one_call);
        {
            std::lock_guard<std::mutex> lock(mutex);
            grow(count - 1);
            work = &given;
            wanted = count - 1 < threads ? count - 1 : threads;
            if (wanted == 1) wake.notify_one();
            if (wanted > 1) wake.notify_all();
        }
        given();
        std::unique_lock<std::mutex> lock(mutex);
        // A thread that has not started by now would find an empty queue.
        wanted = 0;
        done.wait(lock, [this] { return running == 0; });
    }
};

// Never destroyed: its threads may outlive static destruction.
Pool* pool;

// A forked child has none of its parent's threads and needs a new pool.
void reset() { pool = new Pool; }

}  // namespace

void run_on_threads(int threads, const std::function<void()>& work) {
    static const bool initialized = [] {
        reset();
        pthread_atfork(nullptr, nullptr, reset);
        return true;
    }();
    (void)initialized;
    if (threads <= 1) return work();
    pool->call(threads, work);
}
