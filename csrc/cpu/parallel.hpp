// Fork-join over numbered tasks, and the scratch memory of the thread that runs one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mli {

// Runs body(context, i) for i in [0, tasks), each once, on up to `threads` threads, in any order. A body that returns false
// (out of memory) makes the call throw std::bad_alloc after all threads have joined.
void parallel_run(int64_t tasks, int threads, bool (*body)(void*, int64_t), void* context);

// Hands over `GOMP_parallel` of the OpenMP runtime the process already uses; null goes back to std::thread.
void set_openmp(void* gomp_parallel);
bool has_openmp();

// At least `bytes` bytes, 64-byte aligned, owned by the calling thread and valid until its next call; null if there are none.
void* thread_scratch(size_t bytes);

// A second such memory, for what a call shares with the threads it forks. Throws std::bad_alloc.
void* shared_scratch(size_t bytes);

// Between two looks at what another thread is to finish: lets others run after many `tries`.
void pause_thread(int tries);

template <class F>
inline void parallel_for(int64_t tasks, int threads, F&& body) {
  parallel_run(
      tasks, threads, [](void* context, int64_t task) -> bool { return (*static_cast<F*>(context))(task); }, &body);
}

}  // namespace mli
