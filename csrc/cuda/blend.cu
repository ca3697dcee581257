// The multi-tensor blend: out[t][p] = round(scale[t][p, row] * sum_r c[p, r] * anchor[t][r]), all tensors and points in one launch.
//
// A thread holds its elements of the R anchors in registers and writes them at every point, so each anchor is read once.
#include <cuda_runtime.h>

#include "kernels.hpp"
#include "numbers.cuh"

namespace mli::cuda {
namespace {

constexpr int block_threads = 256;
constexpr int points_at_once = 4;  // with any number of anchors: sums held at a time

template <class T>
struct Tensor {
  T* out;             // [P, elements]
  const void* scale;  // [P, rows], or null
  int64_t elements, per_row, rows;
  bool vectors;            // rows of the output and all anchors are aligned for 16-byte stores
  const int64_t* anchors;  // addresses
};

template <class T>
__device__ __forceinline__ Tensor<T> tensor_of(const BlendArgs& args, int64_t number) {
  const int64_t* entry = args.tensors ? args.tensors + number * (blend_header + args.anchors) : args.single;
  const auto* scale = reinterpret_cast<const void*>(entry[1]);
  const int64_t rows = scale ? entry[2] / entry[3] : 0;
  return {reinterpret_cast<T*>(entry[0]), scale, entry[2], entry[3], rows, entry[4] != 0, entry + blend_header};
}

// COUNT neighbours of an anchor, as sums are taken; the loads are as wide as 16 bytes. Addresses out of a table are of
// memory that the compiler knows nothing of: the intrinsics say that it is global.
template <class In, int COUNT, class W>
__device__ __forceinline__ void load(W (&to)[COUNT], const In* from) {
  if constexpr (COUNT == 1) {
    to[0] = Convert<W>::from(__ldg(from));
  } else {
    constexpr int piece = 16 / static_cast<int>(sizeof(In));
    static_assert(COUNT % piece == 0);
#pragma unroll
    for (int i = 0; i < COUNT; i += piece) {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from + i));
      const auto& loaded = reinterpret_cast<const Pack<In, piece>&>(bits);
#pragma unroll
      for (int j = 0; j < piece; ++j) to[i + j] = Convert<W>::from(loaded.at[j]);
    }
  }
}

template <class Out, int COUNT, class W>
__device__ __forceinline__ void save(Out* to, const W (&from)[COUNT], bool streaming) {
  if constexpr (COUNT == 1) {
    *to = Convert<Out>::from(from[0]);
  } else {
    Pack<Out, COUNT> packed;
    static_assert(sizeof(packed) == 16);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) packed.at[i] = Convert<Out>::from(from[i]);
    const uint4 bits = reinterpret_cast<const uint4&>(packed);
    if (streaming) {
      __stcs(reinterpret_cast<uint4*>(to), bits);
    } else {
      asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                   "r"(bits.w)
                   : "memory");
    }
  }
}

// Multiplies COUNT neighbours by the factors of their rows; the first lies in `row`, which has `left` elements more from there on.
template <class W, int COUNT, class T>
__device__ __forceinline__ void scale_rows(W (&sums)[COUNT], const BlendArgs& args, const Tensor<T>& tensor, int point, int64_t row,
                                           int64_t left) {
  const auto factor = [&](int64_t r) {
    const int64_t at = point * tensor.rows + r;
    return args.scale_wide ? Convert<W>::from(static_cast<const double*>(tensor.scale)[at])
                           : static_cast<W>(static_cast<const float*>(tensor.scale)[at]);
  };
  if (left >= COUNT) {
    const W common = factor(row);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sums[i] = sums[i] * common;
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    sums[i] = sums[i] * factor(row);
    if (--left == 0) {
      ++row;
      left = tensor.per_row;
    }
  }
}

template <class W>
__device__ __forceinline__ W coefficient(const double* row, int r) {
  return Convert<W>::from(__ldg(row + r));
}

// COUNT neighbours from `index` on, at all points.
template <class In, class Out, int R, int COUNT>
__device__ __forceinline__ void blend_at(const BlendArgs& args, const Tensor<Out>& tensor, const double* coefficients, int64_t index) {
  using W = typename Wide<In>::type;
  const int64_t row = tensor.scale ? index / tensor.per_row : 0;
  const int64_t left = tensor.per_row - (index - row * tensor.per_row);  // elements until the next row
  Out* to = tensor.out + index;
  if constexpr (R > 0) {
    W values[R][COUNT];
#pragma unroll
    for (int r = 0; r < R; ++r) load<In>(values[r], reinterpret_cast<const In*>(tensor.anchors[r]) + index);
#pragma unroll 1
    for (int p = 0; p < args.points; ++p) {
      W sums[COUNT] = {};
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const W c = coefficient<W>(coefficients + static_cast<int64_t>(p) * R, r);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sums[i] = add_weighted(sums[i], c, values[r][i]);
      }
      if (tensor.scale) scale_rows(sums, args, tensor, p, row, left);
      save(to + p * tensor.elements, sums, args.streaming);
    }
  } else {
#pragma unroll 1
    for (int first = 0; first < args.points; first += points_at_once) {
      W sums[points_at_once][COUNT] = {};
#pragma unroll 1
      for (int r = 0; r < args.anchors; ++r) {
        W values[COUNT];
        load<In>(values, reinterpret_cast<const In*>(tensor.anchors[r]) + index);
#pragma unroll
        for (int p = 0; p < points_at_once; ++p) {
          const int64_t point = min(first + p, args.points - 1);
          const W c = coefficient<W>(coefficients + point * args.anchors, r);
#pragma unroll
          for (int i = 0; i < COUNT; ++i) sums[p][i] = add_weighted(sums[p][i], c, values[i]);
        }
      }
#pragma unroll
      for (int p = 0; p < points_at_once; ++p) {
        if (first + p < args.points) {
          if (tensor.scale) scale_rows(sums[p], args, tensor, first + p, row, left);
          save(to + (first + p) * tensor.elements, sums[p], args.streaming);
        }
      }
    }
  }
}

template <class In, class Out, int R>
__global__ void __launch_bounds__(block_threads, R == 1 || R == 2 ? 3 : 2) blend_kernel(const __grid_constant__ BlendArgs args) {
  constexpr int count = 16 / static_cast<int>(sizeof(Out));
  constexpr int64_t chunk = blend_chunk / static_cast<int64_t>(sizeof(Out));
  const int64_t entry = args.tensors ? args.chunks[blockIdx.x] : blockIdx.x, number = entry >> 40;
  const Tensor<Out> tensor = tensor_of<Out>(args, number);
  const double* coefficients = args.coefficients + number * args.coefficients_tensor_stride;
  const int64_t first = (entry & ((int64_t{1} << 40) - 1)) * chunk;
  const int64_t end = min(first + chunk, tensor.elements);
  int64_t scalars = first;  // elements from here on go one by one
  if (tensor.vectors) {
    scalars = end - (end - first) % count;
    for (int64_t i = first + threadIdx.x * count; i < scalars; i += block_threads * count) {
      blend_at<In, Out, R, count>(args, tensor, coefficients, i);
    }
  }
  for (int64_t i = scalars + threadIdx.x; i < end; i += block_threads) blend_at<In, Out, R, 1>(args, tensor, coefficients, i);
}

template <class In, class Out>
cudaError_t launch(const BlendArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.chunk_count));
  switch (args.anchors) {
    case 1: blend_kernel<In, Out, 1><<<grid, block_threads, 0, stream>>>(args); break;
    case 2: blend_kernel<In, Out, 2><<<grid, block_threads, 0, stream>>>(args); break;
    case 3: blend_kernel<In, Out, 3><<<grid, block_threads, 0, stream>>>(args); break;
    case 4: blend_kernel<In, Out, 4><<<grid, block_threads, 0, stream>>>(args); break;
    default: blend_kernel<In, Out, 0><<<grid, block_threads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t blend(const BlendArgs& args, cudaStream_t stream) {
  const auto is = [&](Type in, Type out) { return args.in == in && args.out == out; };
  if (is(Type::f32, Type::f32)) return launch<float, float>(args, stream);
  if (is(Type::f32, Type::bf16)) return launch<float, __nv_bfloat16>(args, stream);
  if (is(Type::f32, Type::f16)) return launch<float, __half>(args, stream);
  if (is(Type::bf16, Type::bf16)) return launch<__nv_bfloat16, __nv_bfloat16>(args, stream);
  if (is(Type::f16, Type::f16)) return launch<__half, __half>(args, stream);
  if (is(Type::f64, Type::f64)) return launch<double, double>(args, stream);
  if (is(Type::f64, Type::f32)) return launch<double, float>(args, stream);
  return cudaErrorInvalidValue;
}

}  // namespace mli::cuda
