#include "pool.h"

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

struct Pool {
    std::mutex one_call;  // at a time: a second caller waits for the first
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
            const auto* mine = work;
            lock.unlock();
            (*mine)();
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    void grow(int to) {
        while (threads < to) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;  // the system gives no more
            }
            ++threads;
        }
    }

    void call(int count, const std::function<void()>& given) {
        std::lock_guard<std::mutex> whole(one_call);
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
        // Whoever has not begun by now finds nothing left to do.
        wanted = 0;
        done.wait(lock, [this] { return running == 0; });
    }
};

// Never destroyed: its threads may outlive the end of the program's own.
Pool* pool;

// A child process has its parent's memory and none of its threads: it begins anew.
void begin() { pool = new Pool; }

}  // namespace

void on_threads(int threads, const std::function<void()>& work) {
    static const bool begun = [] {
        begin();
        pthread_atfork(nullptr, nullptr, begin);
        return true;
    }();
    (void)begun;
    if (threads <= 1) return work();
    pool->call(threads, work);
}
