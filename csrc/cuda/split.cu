// float32 as the sum of two TF32 values, for products in split precision.
#include <cuda_runtime.h>

#include "kernels.hpp"
#include "numbers.cuh"
#include "ptx.cuh"

namespace mli::cuda {
namespace {

constexpr int block_threads = 256;

__device__ __forceinline__ void split_one(float x, float& high, float& low) {
  high = __uint_as_float(ptx::to_tf32(x));
  low = __uint_as_float(ptx::to_tf32(__fsub_rn(x, high)));
}

__global__ void __launch_bounds__(block_threads) split_kernel(const float* x, float* parts, int64_t count, bool vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  int64_t scalars = 0;
  if (vectors) {
    scalars = count / 4 * 4;
    for (int64_t i = thread * 4; i < scalars; i += step * 4) {
      const auto from = *reinterpret_cast<const Pack<float, 4>*>(x + i);
      Pack<float, 4> high, low;
#pragma unroll
      for (int j = 0; j < 4; ++j) split_one(from.at[j], high.at[j], low.at[j]);
      *reinterpret_cast<Pack<float, 4>*>(parts + i) = high;
      *reinterpret_cast<Pack<float, 4>*>(parts + count + i) = low;
    }
  }
  for (int64_t i = scalars + thread; i < count; i += step) split_one(x[i], parts[i], parts[count + i]);
}

}  // namespace

cudaError_t split(const float* x, float* parts, int64_t count, cudaStream_t stream) {
  const bool vectors = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(parts)) % 16 == 0 && count % 4 == 0;
  const int64_t blocks = (count / 4 + block_threads) / block_threads;
  const int64_t most = 1 << 20;
  split_kernel<<<static_cast<unsigned>(blocks < most ? blocks : most), block_threads, 0, stream>>>(x, parts, count, vectors);
  return cudaGetLastError();
}

}  // namespace mli::cuda
