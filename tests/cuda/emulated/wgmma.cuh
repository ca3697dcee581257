// csrc/cuda/wgmma.cuh on the emulated machine.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "machine.hpp"
#include "ptx.cuh"

namespace mli::cuda::wgmma {

enum class Operand { bf16, fp16, tf32 };

inline void fence() {}
inline void commit() { ++machine::self().commits; }
template <int COUNT>
void hold(float (&)[COUNT]) {}

inline uint64_t descriptor(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | (address >> 4);
}

inline float value(const unsigned char* bytes, int kind) {
  if (kind == static_cast<int>(Operand::tf32)) {
    uint32_t bits;
    std::memcpy(&bits, bytes, 4);
    return __uint_as_float(bits & ~0x1fffu);
  }
  unsigned short bits;
  std::memcpy(&bits, bytes, 2);
  return kind == static_cast<int>(Operand::bf16) ? __uint_as_float(static_cast<uint32_t>(bits) << 16) : __half2float(__ushort_as_half(bits));
}

inline void execute(const machine::Product& product, int block) {
  const auto start = static_cast<uint32_t>(product.descriptor & 0x3fff) << 4, eight = static_cast<uint32_t>(product.descriptor >> 32 & 0x3fff) << 4;
  if (product.descriptor >> 62 != 1) std::abort();
  const int size = product.kind == static_cast<int>(Operand::tf32) ? 4 : 2, depth = 32 / size;
  static float a[64][16], b[256][16];
  for (int thread = 0; thread < 128; ++thread) {
    const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 4 / size; ++e) {
        a[16 * warp + g + i % 2 * 8][(t + i / 2 * 4) * 4 / size + e] =
            value(reinterpret_cast<const unsigned char*>(&product.a[thread][i]) + e * size, product.kind);
      }
    }
  }
  for (int n = 0; n < product.columns; ++n) {
    for (int k = 0; k < depth; ++k) {
      const uint32_t plain = start + n / 8 * eight + n % 8 * 128 + k * size;
      b[n][k] = value(machine::shared(block, plain ^ ((plain >> 7 & 7) << 4), size), product.kind);
    }
  }
  for (int thread = 0; thread < 128; ++thread) {
    const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < product.columns / 2; ++i) {
      const int row = 16 * warp + g + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
      double sum = product.accumulate ? product.d[thread][i] : 0.0;
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(a[row][k]) * b[column][k];
      product.d[thread][i] = static_cast<float>(sum);
    }
  }
}

// A product is taken to run as late as it can: when the last thread waits for it.
template <int PENDING>
void wait() {
  auto& thread = machine::self();
  auto& group = machine::block().groups[thread.index / 128];
  for (; thread.awaited < thread.products; ++thread.awaited) {
    auto& product = group.products[thread.awaited - group.done];
    if (product.group >= thread.commits - PENDING) break;
    ++product.waiting;
  }
  while (group.done < thread.awaited) {
    if (group.products.front().waiting < 128) {
      machine::yield();
      continue;
    }
    execute(group.products.front(), thread.block);
    group.products.pop_front();
    ++group.done;
    ++machine::cluster->progress;
  }
}

template <Operand OPERAND, int N>
void multiply(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  auto& thread = machine::self();
  auto& group = machine::block().groups[thread.index / 128];
  const long number = thread.products++ - group.done;
  if (number < 0) std::abort();
  while (static_cast<long>(group.products.size()) <= number) group.products.emplace_back();
  auto& product = group.products[number];
  const int lane = thread.index % 128;
  if (product.arrived++ == 0) {
    product.columns = N;
    product.kind = static_cast<int>(OPERAND);
    product.accumulate = accumulate;
    product.group = thread.commits;
    product.descriptor = b;
  } else if (product.descriptor != b || product.group != thread.commits || product.columns != N) {
    std::abort();  // the threads of a warp group do not agree
  }
  std::memcpy(product.a[lane], a, sizeof(product.a[lane]));
  product.d[lane] = d;
  ++machine::cluster->progress;
}

}  // namespace mli::cuda::wgmma
