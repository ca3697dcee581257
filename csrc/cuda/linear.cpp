// See linear.hpp.
#include "linear.hpp"

#include "device.hpp"
#include "tensor_map.hpp"

namespace mli::cuda {

#define MLI_DECLARE(kind)                              \
  const LinearKernel* linear_kernels_##kind##_1(int*); \
  const LinearKernel* linear_kernels_##kind##_2(int*); \
  const LinearKernel* linear_kernels_##kind##_3(int*); \
  const LinearKernel* linear_kernels_##kind##_4(int*);
MLI_DECLARE(bf16)
MLI_DECLARE(fp16)
MLI_DECLARE(tf32)
MLI_DECLARE(split)
#undef MLI_DECLARE

#define MLI_ALL(kind) {linear_kernels_##kind##_1, linear_kernels_##kind##_2, linear_kernels_##kind##_3, linear_kernels_##kind##_4}

const LinearKernel* linear_kernels(Kind kind, int anchors, int* count) {
  static constexpr const LinearKernel* (*all[][most_anchors])(int*) = {MLI_ALL(bf16), MLI_ALL(fp16), MLI_ALL(tf32), MLI_ALL(split)};
  *count = 0;
  return anchors < 1 || anchors > most_anchors ? nullptr : all[static_cast<int>(kind)][anchors - 1](count);
}

#undef MLI_ALL

namespace {

constexpr int tile_n = 128, row_bytes = 128;

// The tile that wastes least: rows of x rounded up, and what blending for fewer of them costs. The points have no say in it.
const LinearKernel& pick(const LinearKernel* kernels, int count, int64_t rows) {
  const LinearKernel* best = kernels;
  double least = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t tile = kernels[i].rows_per_tile, padded = (rows + tile - 1) / tile * tile;
    const double cost = static_cast<double>(padded) * (1.0 + 32.0 / static_cast<double>(tile));
    if (i == 0 || cost < least) {
      best = kernels + i;
      least = cost;
    }
  }
  return *best;
}

}  // namespace

void linear(Kind kind, const LinearOperands& operands, LinearArgs& args, int cluster, int device, cudaStream_t stream) {
  const auto anchors = static_cast<int>(operands.weights.size());
  int count = 0;
  const LinearKernel* kernels = linear_kernels(kind, anchors, &count);
  if (kernels == nullptr) throw std::invalid_argument("linear: 1 to 4 anchors, got " + std::to_string(anchors));
  const LinearKernel& kernel = pick(kernels, count, args.rows);
  const bool narrow = kind == Kind::bf16 || kind == Kind::fp16;
  const int box_columns = row_bytes / (narrow ? 2 : 4);
  const int64_t m_tiles = (args.rows + kernel.rows_per_tile - 1) / kernel.rows_per_tile;
  const int64_t columns = (args.points + kernel.points_per_tile - 1) / kernel.points_per_tile * m_tiles;
  const int64_t n_tiles = (static_cast<int64_t>(args.columns) + tile_n - 1) / tile_n;
  if ((n_tiles + 16) * (columns + 1) >= int64_t{1} << 31) throw std::invalid_argument("linear: too many tiles for one launch");
  if (cluster == 0) cluster = columns > 1 ? 2 : 1;

  const auto weight_type = kind == Kind::bf16   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                           : kind == Kind::fp16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  // TMA rounds x to TF32 as it loads; the weights are rounded after they are blended.
  const auto x_type = kind == Kind::tf32 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 : weight_type;
  const Current current(device);
  const int64_t planes = (args.shared ? 1 : args.points) * (kind == Kind::split ? 2 : 1);
  args.x = tensor_map(x_type, operands.x, args.depth, args.rows, planes, operands.x_row_pitch, operands.x_plane_pitch, box_columns,
                      kernel.rows_per_tile);
  for (int r = 0; r < anchors; ++r) {
    args.weights[r] = tensor_map(weight_type, operands.weights[static_cast<size_t>(r)], args.depth, args.columns, 0,
                                 operands.weight_pitches[static_cast<size_t>(r)], 0, box_columns, tile_n / cluster);
  }
  const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
  check(kernel.launch(args, cluster, processors, stream), "linear: launch");
}

}  // namespace mli::cuda
