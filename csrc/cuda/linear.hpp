// The blended linear layer: picks a kernel for the shape, describes the operands, launches.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace mli::cuda {

struct LinearOperands {
  const void* x;  // [P, M, K] or [M, K]; split: [2, ...]
  int64_t x_row_pitch, x_plane_pitch;  // bytes
  std::vector<const void*> weights;    // R x [N, K]
  std::vector<int64_t> weight_pitches;  // bytes
};

// Fills what `args` lacks (maps) and launches. cluster 0: chosen here. Throws what went wrong.
void linear(Kind kind, const LinearOperands& operands, LinearArgs& args, int cluster, int device, cudaStream_t stream);

}  // namespace mli::cuda
