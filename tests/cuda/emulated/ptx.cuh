// csrc/cuda/ptx.cuh on the emulated machine.
#pragma once

#include <cuda.h>

#include <cmath>

#include "host.hpp"

namespace mli::cuda::ptx {

// What stands in a CUtensorMap here.
struct Map {
  const char* start;
  int64_t sizes[3], pitches[2];
  int box_columns, box_rows, element, round;
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - machine::block().memory.data()) + machine::shared_start;
}
template <int COUNT>
void give_registers_back() {}
template <int COUNT>
void take_registers() {}
inline void named_barrier(int id, int threads) { machine::meet(machine::block().meetings[id], threads); }
inline uint32_t cluster_rank() { return static_cast<uint32_t>(machine::self().block); }
inline void cluster_barrier() { machine::meet(machine::cluster->all, static_cast<int>(machine::cluster->threads.size())); }

inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
  if (barrier % 8) std::abort();
  machine::block().barriers[barrier] = {static_cast<int>(arrivals), static_cast<int>(arrivals), 0, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  ++machine::cluster->progress;
  auto& b = machine::block().barriers.at(barrier);
  b.bytes += bytes;
  --b.pending;
  b.settle();
}
inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  ++machine::cluster->progress;
  auto& b = machine::cluster->blocks.at(rank).barriers.at(barrier);
  if (--b.pending < 0) std::abort();
  b.settle();
  machine::yield();  // whoever waits goes first
}
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (machine::block().barriers.at(barrier).phase == parity) machine::yield();
}

inline float nearest_even_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return std::isfinite(x) ? __uint_as_float((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu) : x;
}

inline void load(int block, uint32_t to, const CUtensorMap* tensor, uint32_t barrier, int column, int row, int plane) {
  const Map& map = *reinterpret_cast<const Map*>(tensor);
  if (to % 1024 || plane >= map.sizes[2]) std::abort();
  for (int r = 0; r < map.box_rows; ++r) {
    for (int c = 0; c < map.box_columns; ++c) {
      const uint32_t plain = to + r * 128 + c * map.element;
      unsigned char* at = machine::shared(block, plain ^ ((plain >> 7 & 7) << 4), map.element);
      if (row + r < map.sizes[1] && column + c < map.sizes[0]) {
        std::memcpy(at, map.start + plane * map.pitches[1] + (row + r) * map.pitches[0] + int64_t{column + c} * map.element, map.element);
        if (map.round) {
          float x;
          std::memcpy(&x, at, 4);
          x = nearest_even_tf32(x);
          std::memcpy(at, &x, 4);
        }
      } else {
        std::memset(at, 0, map.element);
      }
    }
  }
  ++machine::cluster->progress;
  auto& b = machine::cluster->blocks.at(block).barriers.at(barrier);
  b.bytes -= int64_t{map.box_rows} * 128;
  b.settle();
}
inline void load_2d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row) {
  load(machine::self().block, to, map, barrier, column, row, 0);
}
inline void load_2d_to_all(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row, uint16_t blocks) {
  for (int b = 0; b < 16; ++b) {
    if (blocks >> b & 1) load(b, to, map, barrier, column, row, 0);
  }
}
inline void load_3d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row, int plane) {
  load(machine::self().block, to, map, barrier, column, row, plane);
}

inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
  auto& b = machine::block();
  const int index = machine::self().index, warp = index / 32, lane = index % 32;
  if (address % 16) std::abort();
  b.addresses[index] = address;
  machine::meet(b.warps[warp], 32);
  for (int m = 0; m < 4; ++m) {
    const uint32_t row = b.addresses[warp * 32 + m * 8 + lane / 4];
    std::memcpy(&to[m], machine::shared(machine::self().block, row + lane % 4 * 4, 4), 4);
  }
  machine::meet(b.warps[warp], 32);
}

}  // namespace mli::cuda::ptx
