#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

namespace msmamba {
namespace {

// About 20 microseconds: jobs of one network follow each other closer than that; beyond it, sleep.
constexpr int kSpins = 500;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(Condition condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    relax();
  }
  return condition();
}

class Pool {
 public:
  void run(int width, Body body, void* data) {
    std::unique_lock<std::mutex> only_job(job_mutex_, std::try_to_lock);
    if (!only_job.owns_lock() || width < 2) return body(data);
    start_threads(width - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      data_ = data;
      seats_ = width - 1;
      jobs_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    body(data);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      seats_ = 0;
    }
    if (spin_until([this] { return busy_.load(std::memory_order_acquire) == 0; })) return;
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return busy_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void start_threads(int wanted) {
    for (; threads_ < wanted; ++threads_) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // the system grants no more threads; those that run, and the caller, do the work
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      const auto has_job = [&] { return jobs_.load(std::memory_order_acquire) != seen; };
      spin_until(has_job);
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, has_job);
      seen = jobs_.load(std::memory_order_acquire);
      if (seats_ == 0) continue;
      --seats_;
      busy_.fetch_add(1, std::memory_order_relaxed);
      const Body body = body_;
      void* const data = data_;
      lock.unlock();
      body(data);
      lock.lock();
      if (busy_.fetch_sub(1, std::memory_order_release) == 1) idle_.notify_one();
    }
  }

  std::mutex job_mutex_;  // held by the caller throughout its job
  std::mutex mutex_;      // guards the members below
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::atomic<uint64_t> jobs_{0};  // changed under the mutex, polled without
  std::atomic<int> busy_{0};       // likewise
  Body body_ = nullptr;
  void* data_ = nullptr;
  int seats_ = 0;  // threads that may still join the job
  int threads_ = 0;
};

// A forked child inherits the pool's memory but none of its threads: it gets a pool of its own. Pools are
// never destroyed, since their threads outlive every destructor.
Pool& pool_of_this_process() {
  struct Owned {
    pid_t process;
    Pool pool;
  };
  static std::atomic<Owned*> current{nullptr};
  const pid_t process = getpid();
  Owned* owned = current.load(std::memory_order_acquire);
  while (owned == nullptr || owned->process != process) {
    Owned* fresh = new Owned{process, {}};
    if (current.compare_exchange_strong(owned, fresh, std::memory_order_acq_rel)) return fresh->pool;
    delete fresh;  // another thread was first; it has started nothing
  }
  return owned->pool;
}

int processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

std::atomic<int>& width_setting() {
  static std::atomic<int> width{processors()};
  return width;
}

}  // namespace

void run_in_pool(int width, Body body, void* data) { pool_of_this_process().run(width, body, data); }

int pool_width() { return width_setting().load(std::memory_order_relaxed); }

void set_pool_width(int width) { width_setting().store(width < 1 ? 1 : width, std::memory_order_relaxed); }

}  // namespace msmamba
