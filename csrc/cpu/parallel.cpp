#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace mli {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp_parallel{nullptr};

struct Job {
  int64_t tasks;
  bool (*body)(void*, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

// Tasks are claimed, not assigned: right also when the runtime grants fewer threads than asked for.
void work(void* pointer) {
  Job& job = *static_cast<Job*>(pointer);
  for (int64_t task; (task = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) {
    if (!job.body(job.context, task)) job.failed.store(true, std::memory_order_relaxed);
  }
}

void run_on_std_threads(Job& job, int threads) {
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads) - 1);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(work, &job);
  } catch (const std::system_error&) {
    // The system grants no more threads; those there are do the rest.
  }
  work(&job);
  for (std::thread& thread : others) thread.join();
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Scratch {
  std::unique_ptr<void, Free> memory;
  size_t capacity = 0;

#if defined(MLI_SANITIZE)
  // Anew each time, exactly as long, and NaN: what reads past its end or what was never written is found.
  void* grown(size_t bytes) {
    void* fresh = nullptr;
    if (posix_memalign(&fresh, 64, bytes) != 0) fresh = nullptr;
    memory.reset(fresh);
    if (fresh != nullptr) std::memset(fresh, 0xFF, bytes);
    return fresh;
  }
#else
  void* grown(size_t bytes) {
    if (bytes > capacity) {
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      capacity = 0;
      memory.reset(std::aligned_alloc(4096, rounded));
      if (memory != nullptr) capacity = rounded;
    }
    return memory.get();
  }
#endif
};

}  // namespace

void set_openmp(void* address) { gomp_parallel.store(reinterpret_cast<GompParallel>(address)); }

bool has_openmp() { return gomp_parallel.load() != nullptr; }

void parallel_run(int64_t tasks, int threads, bool (*body)(void*, int64_t), void* context) {
  if (tasks <= 0) return;
  Job job{tasks, body, context};
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  const GompParallel fork = gomp_parallel.load(std::memory_order_relaxed);
  if (team == 1) {
    work(&job);
  } else if (fork != nullptr) {
    fork(work, &job, static_cast<unsigned>(team), 0);
  } else {
    run_on_std_threads(job, team);
  }
  if (job.failed.load()) throw std::bad_alloc();
}

void* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.grown(bytes);
}

void* shared_scratch(size_t bytes) {
  thread_local Scratch scratch;
  void* memory = scratch.grown(bytes);
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
  return memory;
}

void pause_thread(int tries) {
  if (tries >= 4096) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace mli
