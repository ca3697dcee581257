// Runs csrc/cuda/linear_sm90.cuh on the emulated machine; called from test_emulated.py.
#include "host.hpp"
#include "linear_sm90.cuh"

namespace {

using namespace mli::cuda;

void describe(CUtensorMap& map, const void* start, int64_t columns, int64_t rows, int64_t planes, int element, int box_rows, int round) {
  const ptx::Map here{static_cast<const char*>(start), {columns, rows, planes}, {columns * element, rows * columns * element},
                      128 / element, box_rows, element, round};
  std::memcpy(&map, &here, sizeof(here));
}

template <Kind KIND, int R, int BN, int G>
int emulate(LinearArgs args, const void* x, const void* const* weights, int cluster, int clusters) {
  using L = linear::Layout<KIND, R, BN, G>;
  constexpr int element = sizeof(typename linear::Element<KIND>::type);
  describe(args.x, x, args.depth, args.rows, int64_t{args.shared ? 1 : args.points} * L::parts, element, BN, KIND == Kind::tf32);
  for (int r = 0; r < R; ++r) describe(args.weights[r], weights[r], args.depth, args.columns, 1, element, linear::tile_n / cluster, 0);
  return machine::run(clusters, cluster, L::shared_bytes, [&] { linear::linear_kernel<KIND, R, BN, G>(args, cluster); }) ? 0 : 1;
}

}  // namespace

// sizes: kind, R, BN, G, P, M, N, K, shared, cluster, clusters, activation, vectors, wide: out, scale, shift, residual
extern "C" int emulated_linear(const int* sizes, const void* x, const void* const* weights, const double* coefficients, void* out,
                               const void* scale, const void* shift, const void* residual) {
  LinearArgs args{};
  args.coefficients = coefficients;
  args.out = out;
  args.scale = scale;
  args.shift = shift;
  args.residual = residual;
  args.points = sizes[4];
  args.rows = sizes[5];
  args.columns = sizes[6];
  args.depth = sizes[7];
  args.shared = sizes[8];
  args.activation = sizes[11];
  args.vectors = sizes[12];
  args.wide_out = sizes[13];
  args.wide_scale = sizes[14];
  args.wide_shift = sizes[15];
  args.wide_residual = sizes[16];
#define MLI_CASE(kind, r, bn, g)                                                                     \
  if (sizes[0] == static_cast<int>(Kind::kind) && sizes[1] == r && sizes[2] == bn && sizes[3] == g) { \
    return emulate<Kind::kind, r, bn, g>(args, x, weights, sizes[9], sizes[10]);                     \
  }
  MLI_CASE(bf16, 2, 256, 1)
  MLI_CASE(bf16, 1, 128, 2)
  MLI_CASE(bf16, 2, 64, 4)
  MLI_CASE(bf16, 4, 16, 16)
  MLI_CASE(fp16, 3, 64, 4)
  MLI_CASE(tf32, 2, 128, 2)
  MLI_CASE(tf32, 3, 16, 16)
  MLI_CASE(split, 2, 128, 1)
  MLI_CASE(split, 1, 128, 1)
  MLI_CASE(split, 2, 16, 8)
  return 2;
}
