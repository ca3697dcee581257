// The blended linear layer for sm_90a: Y^T = W(p) X^T, W(p) = sum_r c[p, r] W_r blended in registers, where wgmma takes it from.
//
// A block of threads computes tiles of 128 weight rows (n) by BN rows of x (m) at each of G points. One thread brings in
// K blocks of 128 bytes by TMA; two warp groups of 64 weight rows each blend and multiply. The fragments of W_r are
// read from shared memory once for G points. Blocks of a cluster have different rows or points and the same n: each
// reads its share of the weights and gives it to all.
//
// The sums of an output element depend on its point, row and column alone: one order over K, one blend, whatever shares the tile.
#pragma once

#include "activation.cuh"
#include "kernels.hpp"
#include "numbers.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"

namespace mli::cuda::linear {

constexpr int tile_n = 128;                    // weight rows of a tile
constexpr int group_n = 64;                    // of them, rows of a warp group
constexpr int row_bytes = 128;                 // of a K block
constexpr int steps = 4;                       // wgmmas of 32 bytes in a K block
constexpr int weight_bytes = tile_n * row_bytes;
constexpr int consumers = 2;                   // warp groups that multiply
constexpr int threads = 128 * (1 + consumers);
constexpr int staging_columns = 64;            // columns of the tile that a warp group stores at a time
constexpr int staging_floats = group_n * staging_columns;
constexpr int shared_limit = 227 * 1024;
constexpr int band = 16;                       // n tiles whose weights are kept near while all rows of x pass by

template <Kind KIND>
struct Element {
  using type = float;
  static constexpr wgmma::Operand operand = wgmma::Operand::tf32;
};
template <>
struct Element<Kind::bf16> {
  using type = __nv_bfloat16;
  static constexpr wgmma::Operand operand = wgmma::Operand::bf16;
};
template <>
struct Element<Kind::fp16> {
  using type = __half;
  static constexpr wgmma::Operand operand = wgmma::Operand::fp16;
};

// Sizes and the map of shared memory: stages of [R weight tiles | x tiles by point and part], staging, coefficients, barriers.
template <Kind KIND, int R, int BN, int G>
struct Layout {
  static constexpr int parts = KIND == Kind::split ? 2 : 1;
  static constexpr int block_k = row_bytes / static_cast<int>(sizeof(typename Element<KIND>::type));
  static constexpr int x_bytes = BN * row_bytes;
  static constexpr int stage_bytes = R * weight_bytes + G * parts * x_bytes;
  static constexpr int staging_bytes = consumers * staging_floats * 4;
  static constexpr int coefficient_bytes = consumers * G * R * 4;
  static constexpr int alignment = 1024;  // of a swizzled tile
  static constexpr int fixed_bytes = alignment + staging_bytes + coefficient_bytes + 128;
  static constexpr int fitting = (shared_limit - fixed_bytes) / stage_bytes;
  static constexpr int stages = fitting < 4 ? fitting : 4;
  static constexpr int staging_at = stages * stage_bytes;
  static constexpr int coefficients_at = staging_at + staging_bytes;
  static constexpr int barriers_at = coefficients_at + coefficient_bytes;  // full[stages], empty[stages]
  static constexpr int shared_bytes = fixed_bytes + stages * stage_bytes;
  // Fragments under way: while a product reads one, the next is blended. Short products need more of them, if there is room.
  static constexpr int ring = BN >= 128 || R == most_anchors ? 2 : 4;

  static_assert(stages >= 2 && coefficient_bytes % 8 == 0 && 16 * stages <= 128 && x_bytes % alignment == 0);
  static_assert(G * BN % staging_columns == 0 && steps * G >= ring);
};

// Where the tile with this number lies.
struct Place {
  int n, point, m;
  bool real;  // else a copy of the last one, to keep a cluster's blocks in step: not stored
};

struct Tiles {
  int n_tiles, m_tiles, columns, groups, total;  // columns: (points, m) tiles; groups: of one column per block of a cluster

  __host__ __device__ Tiles(int points, int rows, int n, int bn, int g, int cluster) {
    n_tiles = (n + tile_n - 1) / tile_n;
    m_tiles = (rows + bn - 1) / bn;
    columns = (points + g - 1) / g * m_tiles;
    groups = (columns + cluster - 1) / cluster;
    total = n_tiles * groups;
  }

  // In bands of n tiles; within a band the n tiles of one group of columns come one after the other.
  __device__ Place place(int number, int rank, int cluster, int bn, int g) const {
    const int in_band = number % (band * groups), first = number / (band * groups) * band;
    const int width = min(band, n_tiles - first);
    const int column = in_band / width * cluster + rank, at = min(column, columns - 1);
    return {(first + in_band % width) * tile_n, at / m_tiles * g, at % m_tiles * bn, column < columns};
  }
};

// ---- the blend of a fragment

// What a thread holds of one anchor's 64 rows by 32 bytes, as floats: V of them, two per register or one.
template <Kind KIND>
constexpr int fragment_values = sizeof(typename Element<KIND>::type) == 2 ? 8 : 4;

template <Kind KIND>
__device__ __forceinline__ void unpack(float (&to)[fragment_values<KIND>], const uint32_t (&from)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (KIND == Kind::bf16) {
      to[2 * i] = __uint_as_float(from[i] << 16);
      to[2 * i + 1] = __uint_as_float(from[i] & 0xffff0000u);
    } else if constexpr (KIND == Kind::fp16) {
      to[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(from[i] & 0xffffu)));
      to[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(from[i] >> 16)));
    } else {
      to[i] = __uint_as_float(from[i]);
    }
  }
}

template <Kind KIND>
__device__ __forceinline__ void pack(uint32_t (&to)[4], const float (&from)[fragment_values<KIND>]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (KIND == Kind::bf16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      to[i] = static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
    } else if constexpr (KIND == Kind::fp16) {
      const __half2 pair = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
      to[i] = static_cast<uint32_t>(__half_as_ushort(pair.x)) | static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16;
    } else {
      to[i] = ptx::to_tf32(from[i]);
    }
  }
}

// Address of the 16 bytes that lane `lane` names to ldmatrix for the 16 rows from `row` on, in k step `step` of a swizzled tile.
__device__ __forceinline__ uint32_t fragment_address(uint32_t tile, int row, int step, int lane) {
  const int r = row + lane % 16, chunk = 2 * step + lane / 16;
  return tile + r * row_bytes + ((chunk ^ (r & 7)) << 4);
}

// ---- the warp group that loads

template <Kind KIND, int R, int BN, int G>
__device__ __forceinline__ void load_tiles(const LinearArgs& args, uint32_t memory, int cluster, int rank, int number, int count) {
  using L = Layout<KIND, R, BN, G>;
  const Tiles tiles(args.points, args.rows, args.columns, BN, G, cluster);
  const int k_blocks = (args.depth + L::block_k - 1) / L::block_k;
  const int planes = args.shared ? 1 : args.points;
  const int share = tile_n / cluster;  // weight rows that this block reads for the cluster
  const uint32_t full = memory + L::barriers_at, empty = full + 8 * L::stages;
  int stage = 0;
  uint32_t phase = 0;
  for (; number < tiles.total; number += count) {
    const Place place = tiles.place(number, rank, cluster, BN, G);
    for (int block = 0; block < k_blocks; ++block) {
      const int k = block * L::block_k;
      const uint32_t to = memory + stage * L::stage_bytes, ready = full + 8 * stage;
      ptx::barrier_wait(empty + 8 * stage, phase ^ 1);
      ptx::barrier_arrive_expect(ready, L::stage_bytes);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const uint32_t at = to + r * weight_bytes + rank * share * row_bytes;
        if (cluster == 1) {
          ptx::load_2d(at, &args.weights[r], ready, k, place.n);
        } else {
          ptx::load_2d_to_all(at, &args.weights[r], ready, k, place.n + rank * share, static_cast<uint16_t>((1 << cluster) - 1));
        }
      }
#pragma unroll 1
      for (int g = 0; g < G; ++g) {
        const int plane = args.shared ? 0 : min(place.point + g, args.points - 1);
#pragma unroll
        for (int part = 0; part < L::parts; ++part) {
          const uint32_t at = to + R * weight_bytes + (g * L::parts + part) * L::x_bytes;
          ptx::load_3d(at, &args.x, ready, k, place.m, plane + part * planes);
        }
      }
      if (++stage == L::stages) {
        stage = 0;
        phase ^= 1;
      }
    }
  }
}

// ---- the warp groups that multiply

__device__ __forceinline__ float load_value(const void* from, int64_t at, bool wide, const float*) {
  (void)wide;
  return static_cast<const float*>(from)[at];
}

template <class T>
__device__ __forceinline__ float load_value(const void* from, int64_t at, bool wide, const T*) {
  return wide ? static_cast<const float*>(from)[at] : Convert<float>::from(static_cast<const T*>(from)[at]);
}

// Eight neighbours along n of one row of the output, from their sums to memory.
template <class T>
__device__ __forceinline__ void finish(const LinearArgs& args, float (&v)[8], int point, int m, int n) {
  const T* own = nullptr;
  const int64_t vector = static_cast<int64_t>(point) * args.columns + n;
  const int64_t at = (static_cast<int64_t>(point) * args.rows + m) * args.columns + n;
  const int valid = min(8, args.columns - n);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < valid) {
      const float shift = args.shift ? load_value(args.shift, vector + i, args.wide_shift, own) : 0.0f;
      if (args.scale) {
        const float scale = load_value(args.scale, vector + i, args.wide_scale, own);
        v[i] = args.shift ? __fmaf_rn(v[i], scale, shift) : __fmul_rn(v[i], scale);
      } else if (args.shift) {
        v[i] = __fadd_rn(v[i], shift);
      }
    }
  }
  if (args.residual) {
    if (args.vectors && valid == 8 && !args.wide_residual && sizeof(T) == 2) {
      const auto added = *reinterpret_cast<const Pack<T, 16 / sizeof(T)>*>(static_cast<const T*>(args.residual) + at);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = __fadd_rn(v[i], Convert<float>::from(added.at[i % (16 / sizeof(T))]));
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < valid) v[i] = __fadd_rn(v[i], load_value(args.residual, at + i, args.wide_residual, own));
      }
    }
  }
  activate(v, args.activation);
  if (args.wide_out || sizeof(T) == 4) {
    float* to = static_cast<float*>(args.out) + at;
    if (args.vectors && valid == 8) {
      *reinterpret_cast<Pack<float, 4>*>(to) = {v[0], v[1], v[2], v[3]};
      *reinterpret_cast<Pack<float, 4>*>(to + 4) = {v[4], v[5], v[6], v[7]};
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < valid) to[i] = v[i];
      }
    }
  } else {
    T* to = static_cast<T*>(args.out) + at;
    if (args.vectors && valid == 8) {
      Pack<T, 8> packed;
#pragma unroll
      for (int i = 0; i < 8; ++i) packed.at[i] = Convert<T>::from(v[i]);
      *reinterpret_cast<Pack<T, 8>*>(to) = packed;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < valid) to[i] = Convert<T>::from(v[i]);
      }
    }
  }
}

// Where staging keeps column q, row n of 64 x 64 sums: 16-byte groups of a row exchanged so that neither way meets bank conflicts.
__device__ __forceinline__ int staged(int q, int n) { return q * group_n + (n ^ ((q >> 1 & 3) << 3)); }

// Sums of a warp group, from registers through shared memory to rows of the output.
template <class T, int BN, int G>
__device__ __forceinline__ void store(const LinearArgs& args, const float (&sums)[G][BN / 2], float* staging, int barrier,
                                      const Place& place, int n_first) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4, pair = lane % 4 * 2;
#pragma unroll 1
  for (int chunk = 0; chunk < G * BN / staging_columns; ++chunk) {
    ptx::named_barrier(barrier, 128);  // what was staged before has been read
#pragma unroll
    for (int group = 0; group < G * BN / 8; ++group) {  // of 8 columns, counted through all points; registers have no index
      if (group / (staging_columns / 8) == chunk) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          staging[staged(group * 8 % staging_columns + pair + i % 2, row + i / 2 * 8)] = sums[group / (BN / 8)][group % (BN / 8) * 4 + i];
        }
      }
    }
    ptx::named_barrier(barrier, 128);
    // 8 threads a row of 64
    const int n = thread % 8 * 8;
#pragma unroll 1
    for (int q = thread / 8; q < staging_columns; q += 16) {
      const int column = chunk * staging_columns + q;
      const int point = place.point + column / BN, m = place.m + column % BN;
      if (place.real && point < args.points && m < args.rows && n_first + n < args.columns) {
        const auto low = *reinterpret_cast<const Pack<float, 4>*>(staging + staged(q, n));
        const auto high = *reinterpret_cast<const Pack<float, 4>*>(staging + staged(q, n + 4));
        float v[8] = {low.at[0], low.at[1], low.at[2], low.at[3], high.at[0], high.at[1], high.at[2], high.at[3]};
        finish<T>(args, v, point, m, n_first + n);
      }
    }
  }
}

template <Kind KIND, int R, int BN, int G>
__device__ __forceinline__ void multiply_tiles(const LinearArgs& args, uint32_t memory, char* generic, int cluster, int rank,
                                               int number, int count) {
  using L = Layout<KIND, R, BN, G>;
  using T = typename Element<KIND>::type;
  constexpr int V = fragment_values<KIND>;
  constexpr bool promote = KIND == Kind::split;
  constexpr bool held = G == 1 || (G <= 4 && G * R <= 8 && R <= 3);  // coefficients stay in registers
  const Tiles tiles(args.points, args.rows, args.columns, BN, G, cluster);
  const int k_blocks = (args.depth + L::block_k - 1) / L::block_k;
  const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = thread % 32;
  const int first_row = group * group_n + thread / 32 * 16;  // of the tile, of this warp
  const uint32_t full = memory + L::barriers_at, empty = full + 8 * L::stages;
  float* staging = reinterpret_cast<float*>(generic + L::staging_at) + group * staging_floats;
  float* shared_coefficients = reinterpret_cast<float*>(generic + L::coefficients_at) + group * G * R;

  const auto release = [&](int stage) {
    __syncwarp();
    if (lane < cluster) ptx::barrier_arrive_at(empty + 8 * stage, lane);
  };

  int stage = 0;
  uint32_t phase = 0;
  for (; number < tiles.total; number += count) {
    const Place place = tiles.place(number, rank, cluster, BN, G);
    if (thread < G * R) {
      const int point = min(place.point + thread / R, args.points - 1);
      shared_coefficients[thread] = static_cast<float>(args.coefficients[static_cast<int64_t>(point) * R + thread % R]);
    }
    ptx::named_barrier(1 + group, 128);
    float coefficients[held ? G : 1][R];
    if constexpr (held) {
#pragma unroll
      for (int i = 0; i < G * R; ++i) coefficients[i / R][i % R] = shared_coefficients[i];
    }

    float sums[G][BN / 2];
    float totals[promote ? G : 1][promote ? BN / 2 : 1];
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < BN / 2; ++i) {
        sums[g][i] = 0.0f;
        if constexpr (promote) totals[g][i] = 0.0f;
      }
      wgmma::hold(sums[g]);
    }
    uint32_t fragments[L::ring][4];
    uint32_t rests[promote ? L::ring : 1][4];
    float values[R][V], blended[V];

    const auto load = [&](int step) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        uint32_t raw[4];
        ptx::load_matrices(raw, fragment_address(memory + stage * L::stage_bytes + r * weight_bytes, first_row, step, lane));
        unpack<KIND>(values[r], raw);
      }
    };
    const auto blend = [&](int g) {
#pragma unroll
      for (int i = 0; i < V; ++i) blended[i] = 0.0f;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float c = held ? coefficients[held ? g : 0][r] : shared_coefficients[g * R + r];
#pragma unroll
        for (int i = 0; i < V; ++i) blended[i] = add_weighted(blended[i], c, values[r][i]);
      }
    };

    ptx::barrier_wait(full + 8 * stage, phase);
    load(0);
    blend(0);
    for (int block = 0; block < k_blocks; ++block) {
      const uint32_t x = memory + stage * L::stage_bytes + R * weight_bytes;
#pragma unroll
      for (int turn = 0; turn < steps * G; ++turn) {
        const int step = turn / G, g = turn % G, slot = turn % L::ring, next = turn + 1;
        const uint32_t tile = x + g * L::parts * L::x_bytes + step * 32;
        wgmma::wait<L::ring - 1>();  // the product that read this slot is over
        pack<KIND>(fragments[slot], blended);
        if constexpr (promote) {
#pragma unroll
          for (int i = 0; i < V; ++i) blended[i] = __fsub_rn(blended[i], __uint_as_float(fragments[slot][i]));
          pack<KIND>(rests[slot], blended);
          wgmma::fence();
          wgmma::multiply<wgmma::Operand::tf32, BN>(sums[g], rests[slot], wgmma::descriptor(tile), step > 0);
          wgmma::multiply<wgmma::Operand::tf32, BN>(sums[g], fragments[slot], wgmma::descriptor(tile + L::x_bytes), 1);
          wgmma::multiply<wgmma::Operand::tf32, BN>(sums[g], fragments[slot], wgmma::descriptor(tile), 1);
        } else {
          wgmma::fence();
          wgmma::multiply<Element<KIND>::operand, BN>(sums[g], fragments[slot], wgmma::descriptor(tile), 1);
        }
        wgmma::commit();
        // While that runs:
        if (next < steps * G) {
          if (next % G == 0) load(next / G);
          blend(next % G);
        }
      }
      const int read = stage;
      if (++stage == L::stages) {
        stage = 0;
        phase ^= 1;
      }
      if (block + 1 < k_blocks) {
        ptx::barrier_wait(full + 8 * stage, phase);
        load(0);
        blend(0);
      }
      wgmma::wait<0>();
      release(read);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        wgmma::hold(sums[g]);
        if constexpr (promote) {
          // The matrix units truncate: their sums stay short, and are added up here, rounded to nearest.
#pragma unroll
          for (int i = 0; i < BN / 2; ++i) totals[g][i] = __fadd_rn(totals[g][i], sums[g][i]);
        }
      }
    }
    if constexpr (promote) {
      store<T, BN, G>(args, totals, staging, 1 + group, place, place.n + group * group_n);
    } else {
      store<T, BN, G>(args, sums, staging, 1 + group, place, place.n + group * group_n);
    }
  }
}

// The kernel: warp group 0 loads, 1 and 2 multiply. Blocks take every (number of clusters)th tile.
template <Kind KIND, int R, int BN, int G>
__global__ void __launch_bounds__(threads, 1) linear_kernel(const __grid_constant__ LinearArgs args, int cluster) {
  using L = Layout<KIND, R, BN, G>;
  extern __shared__ char dynamic[];
  const uint32_t start = ptx::shared_address(dynamic), memory = (start + L::alignment - 1) / L::alignment * L::alignment;
  char* generic = dynamic + (memory - start);
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int number = static_cast<int>(blockIdx.x) / cluster, count = static_cast<int>(gridDim.x) / cluster;
  if (threadIdx.x == 0) {
    const uint32_t full = memory + L::barriers_at, empty = full + 8 * L::stages;
    for (int stage = 0; stage < L::stages; ++stage) {
      ptx::barrier_init(full + 8 * stage, 1);
      ptx::barrier_init(empty + 8 * stage, cluster * consumers * 4);  // every warp of the cluster that multiplies
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::cluster_barrier();
  if (threadIdx.x < 128) {
    ptx::give_registers_back<40>();
    if (threadIdx.x == 0) load_tiles<KIND, R, BN, G>(args, memory, cluster, rank, number, count);
  } else {
    ptx::take_registers<232>();
    multiply_tiles<KIND, R, BN, G>(args, memory, generic, cluster, rank, number, count);
  }
  // No block leaves while another may still write into its memory or arrive at its barriers.
  __syncwarp();
  ptx::cluster_barrier();
}

template <Kind KIND, int R, int BN, int G>
cudaError_t launch(const LinearArgs& args, int cluster, int processors, cudaStream_t stream) {
  using L = Layout<KIND, R, BN, G>;
  const auto kernel = linear_kernel<KIND, R, BN, G>;
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::shared_bytes)) return error;
  const Tiles tiles(args.points, args.rows, args.columns, BN, G, cluster);
  const int clusters = tiles.total < processors / cluster ? tiles.total : processors / cluster;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  const cudaLaunchConfig_t config{dim3(static_cast<unsigned>(clusters * cluster)), dim3(threads), L::shared_bytes, stream, &attribute, 1};
  return cudaLaunchKernelEx(&config, kernel, args, cluster);
}

}  // namespace mli::cuda::linear
