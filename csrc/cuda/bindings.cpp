// Python bindings of the CUDA kernels: addresses, sizes and a stream in, nothing of torch. Checked in mli_fast/native/cuda.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "device.hpp"
#include "kernels.hpp"
#include "linear.hpp"

namespace py = pybind11;

namespace mli::cuda {
namespace {

using Address = std::uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream(Address address) { return at<CUstream_st>(address); }

// Why no kernel can run here, or None. Asked anew each time: a process may come to see its GPUs late.
py::object why_missing() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    return py::str(std::string("no usable GPU: ") + (error == cudaSuccess ? "none found" : cudaGetErrorString(error)));
  }
  return py::none();
}

// Either tables in device memory, or the entry of a single tensor.
void py_blend(std::tuple<Address, Address, std::vector<int64_t>> plan, int64_t chunk_count, int anchors, int points, Address coefficients,
              int64_t coefficients_tensor_stride, std::tuple<int, int> types, bool scale_wide, bool streaming, int device,
              Address on) {
  const auto& [tensors, chunks, single] = plan;
  BlendArgs args{at<const int64_t>(tensors),
                 at<const int64_t>(chunks),
                 chunk_count,
                 anchors,
                 points,
                 at<const double>(coefficients),
                 coefficients_tensor_stride,
                 static_cast<Type>(std::get<0>(types)),
                 static_cast<Type>(std::get<1>(types)),
                 scale_wide,
                 streaming,
                 {}};
  if (single.size() > std::size(args.single)) throw std::invalid_argument("blend: too many anchors for a single entry");
  std::copy(single.begin(), single.end(), args.single);
  const Current current(device);
  check(blend(args, stream(on)), "blend: launch");
}

void py_split(Address x, Address parts, int64_t count, int device, Address on) {
  const Current current(device);
  check(split(at<const float>(x), at<float>(parts), count, stream(on)), "split: launch");
}

// x: address, bytes from row to row and from plane to plane; sizes: P, M, N, K;
// terms (scale, shift, residual): address and whether float32 beside a narrower x.
using Term = std::tuple<Address, bool>;

void py_linear(int kind, std::tuple<Address, int64_t, int64_t> x, bool shared, const std::vector<std::tuple<Address, int64_t>>& weights,
               Address coefficients, std::tuple<int, int, int, int> sizes, std::array<Term, 3> terms, Term out, bool vectors, int activation,
               int cluster, int device, Address on) {
  LinearOperands operands{at<const void>(std::get<0>(x)), std::get<1>(x), std::get<2>(x), {}, {}};
  for (const auto& [address, pitch] : weights) {
    operands.weights.push_back(at<const void>(address));
    operands.weight_pitches.push_back(pitch);
  }
  LinearArgs args{};
  args.coefficients = at<const double>(coefficients);
  args.out = at(std::get<0>(out));
  args.scale = at<const void>(std::get<0>(terms[0]));
  args.shift = at<const void>(std::get<0>(terms[1]));
  args.residual = at<const void>(std::get<0>(terms[2]));
  std::tie(args.points, args.rows, args.columns, args.depth) = sizes;
  args.shared = shared;
  args.activation = activation;
  args.wide_out = std::get<1>(out);
  args.wide_scale = std::get<1>(terms[0]);
  args.wide_shift = std::get<1>(terms[1]);
  args.wide_residual = std::get<1>(terms[2]);
  args.vectors = vectors;
  linear(static_cast<Kind>(kind), operands, args, cluster, device, stream(on));
}

}  // namespace

void bind(py::module_& parent) {
  auto m = parent.def_submodule("cuda", "CUDA kernels; called through mli_fast.native.cuda.");
  m.attr("architectures") = py::str(MLI_CUDA_ARCHITECTURES);
  m.attr("blend_header") = blend_header;
  m.attr("blend_single_anchors") = blend_single_anchors;
  m.attr("blend_chunk") = blend_chunk;
  m.attr("most_anchors") = most_anchors;
  m.def("why_missing", &why_missing);
  m.def("blend", &py_blend);
  m.def("split", &py_split);
  m.def("linear", &py_linear);
}

}  // namespace mli::cuda
