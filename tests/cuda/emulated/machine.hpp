// A cluster of thread blocks on the CPU: threads are coroutines, and the instructions of ptx.cuh and wgmma.cuh are functions.
//
// Asynchronous work is done at the worst time that is allowed: TMA writes at once, matrix products read shared memory when
// they are waited for. So a buffer given back too early gives wrong numbers, and a lost arrival a deadlock, which is reported.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace machine {

constexpr int block_size = 384;
constexpr uint32_t shared_start = 16;  // where dynamic shared memory begins: not aligned, as nothing promises it

struct Barrier {
  int expected = 0, pending = 0;
  long bytes = 0;
  uint32_t phase = 0;
  void settle() {
    if (pending == 0 && bytes == 0) {
      phase ^= 1;
      pending = expected;
    }
  }
};

struct Meeting {  // of a fixed number of threads
  int arrived = 0;
  long round = 0;
};

struct Product {  // a wgmma of a warp group, from its first thread's arrival
  int arrived = 0, waiting = 0, columns = 0, kind = 0, accumulate = 0;
  long group = 0;
  uint64_t descriptor = 0;
  uint32_t a[128][4];
  float* d[128];
};

struct Group {  // a warp group
  std::deque<Product> products;
  long done = 0;  // number of the first product still in the queue
};

struct Block {
  std::vector<unsigned char> memory;
  std::map<uint32_t, Barrier> barriers;
  std::map<int, Meeting> meetings;
  Meeting warps[block_size / 32];
  uint32_t addresses[block_size];
  Group groups[block_size / 128];
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  int block, index;
  long products = 0, commits = 0, awaited = 0;
  bool done = false;
};

struct Cluster {
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  Meeting all;
  ucontext_t scheduler;
  Thread* current = nullptr;
  long progress = 0;
  int first_block = 0, grid = 0;
};

inline Cluster* cluster;

inline Thread& self() { return *cluster->current; }
inline Block& block() { return cluster->blocks[self().block]; }
inline void yield() { swapcontext(&self().context, &cluster->scheduler); }

inline void meet(Meeting& meeting, int size) {
  ++cluster->progress;
  const long round = meeting.round;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  while (meeting.round == round) yield();
}

inline unsigned char* shared(int of, uint32_t address, uint32_t bytes) {
  auto& memory = cluster->blocks[of].memory;
  if (address < shared_start || address - shared_start + bytes > memory.size()) {
    std::fprintf(stderr, "shared address %u + %u is outside\n", address, bytes);
    std::abort();
  }
  return memory.data() + (address - shared_start);
}

inline void enter(unsigned low, unsigned high) {
  (*reinterpret_cast<const std::function<void()>*>(static_cast<uintptr_t>(low) | static_cast<uintptr_t>(high) << 32))();
  self().done = true;
  ++cluster->progress;
  yield();
}

// Runs the kernel on all clusters of a grid, one after the other. False: deadlock.
inline bool run(int clusters, int cluster_size, uint32_t shared_bytes, const std::function<void()>& kernel) {
  for (int c = 0; c < clusters; ++c) {
    Cluster here;
    cluster = &here;
    here.first_block = c * cluster_size;
    here.grid = clusters * cluster_size;
    here.blocks.resize(cluster_size);
    for (auto& b : here.blocks) b.memory.assign(shared_bytes, 0xff);
    const auto address = reinterpret_cast<uintptr_t>(&kernel);
    for (int i = 0; i < cluster_size * block_size; ++i) {
      auto thread = std::make_unique<Thread>();
      thread->block = i / block_size;
      thread->index = i % block_size;
      thread->stack.resize(128 * 1024);
      getcontext(&thread->context);
      thread->context.uc_stack.ss_sp = thread->stack.data();
      thread->context.uc_stack.ss_size = thread->stack.size();
      thread->context.uc_link = nullptr;
      makecontext(&thread->context, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
                  static_cast<unsigned>(address >> 32));
      here.threads.push_back(std::move(thread));
    }
    for (int idle = 0;;) {
      const long before = here.progress;
      bool alive = false;
      for (auto& thread : here.threads) {
        if (thread->done) continue;
        alive = true;
        here.current = thread.get();
        swapcontext(&here.scheduler, &thread->context);
      }
      if (!alive) break;
      idle = here.progress == before ? idle + 1 : 0;
      if (idle > 3) return false;
    }
  }
  return true;
}

}  // namespace machine
