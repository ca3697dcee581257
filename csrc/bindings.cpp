// Python bindings: addresses, sizes and strides in, nothing of torch. Shapes and dtypes are checked in mli_fast/native.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/parallel.hpp"
#ifdef MLI_CUDA
#include "cuda/bindings.hpp"
#endif

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

const void* in(Address address) { return reinterpret_cast<const void*>(address); }
void* out(Address address) { return reinterpret_cast<void*>(address); }

std::vector<const void*> in(const std::vector<Address>& addresses) {
  std::vector<const void*> pointers(addresses.size());
  for (size_t i = 0; i < addresses.size(); ++i) pointers[i] = in(addresses[i]);
  return pointers;
}

// (scale, shift, residual, scale stride, shift stride, residual stride, activation)
using EpilogueTuple = std::tuple<Address, Address, Address, int64_t, int64_t, int64_t, int>;

mli::Epilogue epilogue(const EpilogueTuple& e) {
  return {in(std::get<0>(e)),  in(std::get<1>(e)),  in(std::get<2>(e)), std::get<3>(e),
          std::get<4>(e), std::get<5>(e), static_cast<mli::Activation>(std::get<6>(e))};
}

void product(bool wide, Address to, Address x, std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> sizes,
             int64_t x_point_stride, const std::vector<Address>& anchors, Address coefficients, const EpilogueTuple& tail,
             Address offsets, int64_t pixels, int64_t image_stride, int threads) {
  const auto pointers = in(anchors);
  const auto [points, rows, columns, taps, channels] = sizes;
  const mli::ProductArgs args{out(to),
                              in(x),
                              points,
                              rows,
                              columns,
                              taps,
                              channels,
                              x_point_stride,
                              pointers.data(),
                              static_cast<const double*>(in(coefficients)),
                              static_cast<int64_t>(pointers.size()),
                              epilogue(tail),
                              static_cast<const int32_t*>(in(offsets)),
                              pixels,
                              image_stride,
                              threads};
  py::gil_scoped_release release;
  (wide ? mli::kernels().product_f64 : mli::kernels().product_f32)(args);
}

void winograd(Address to, Address x, std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> sizes,
              std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> place, int64_t x_point_stride,
              const std::vector<Address>& anchors, Address coefficients, const EpilogueTuple& tail, int threads) {
  const auto pointers = in(anchors);
  const auto [points, images, height, width, channels, columns] = sizes;
  const auto [out_height, out_width, pad_y, pad_x, stride] = place;
  const mli::WinogradArgs args{out(to),
                               in(x),
                               points,
                               images,
                               height,
                               width,
                               channels,
                               columns,
                               out_height,
                               out_width,
                               pad_y,
                               pad_x,
                               stride,
                               x_point_stride,
                               pointers.data(),
                               static_cast<const double*>(in(coefficients)),
                               static_cast<int64_t>(pointers.size()),
                               epilogue(tail),
                               threads};
  py::gil_scoped_release release;
  mli::kernels().winograd_f32(args);
}

void combine(bool wide, Address to, const std::vector<Address>& products, Address coefficients,
             std::tuple<int64_t, int64_t, int64_t> sizes, const EpilogueTuple& tail, int threads) {
  const auto pointers = in(products);
  const auto [points, rows, columns] = sizes;
  const mli::CombineArgs args{out(to),
                              pointers.data(),
                              static_cast<const double*>(in(coefficients)),
                              points,
                              rows,
                              columns,
                              static_cast<int64_t>(pointers.size()),
                              epilogue(tail),
                              threads};
  py::gil_scoped_release release;
  (wide ? mli::kernels().combine_f64 : mli::kernels().combine_f32)(args);
}

void blend(bool wide, const std::vector<Address>& outs, const std::vector<Address>& anchors, Address coefficients,
           const std::vector<int64_t>& sizes, int threads) {
  if (outs.empty()) return;
  const auto pointers = in(anchors);
  std::vector<void*> targets(outs.size());
  std::vector<int64_t> starts(outs.size() + 1);
  for (size_t t = 0; t < outs.size(); ++t) {
    targets[t] = out(outs[t]);
    starts[t + 1] = starts[t] + sizes.at(t);
  }
  const auto tensors = static_cast<int64_t>(outs.size());
  const mli::BlendArgs args{targets.data(),
                            pointers.data(),
                            static_cast<const double*>(in(coefficients)),
                            starts.data(),
                            tensors,
                            static_cast<int64_t>(pointers.size()) / tensors,
                            threads};
  py::gil_scoped_release release;
  (wide ? mli::kernels().blend_f64 : mli::kernels().blend_f32)(args);
}

// (anchors, coefficients, columns, depth, scale, shift, activation)
using ChainTuple = std::tuple<std::vector<Address>, Address, int64_t, int64_t, Address, Address, int>;

void chain(bool wide, Address to, Address x, const ChainTuple& source, const std::vector<ChainTuple>& layers,
           int64_t points, int64_t rows, Address residual, int threads) {
  static_assert(sizeof(Address) == sizeof(const void*));
  const auto layer = [](const ChainTuple& t) {
    const auto& [anchors, coefficients, columns, depth, scale, shift, activation] = t;
    return mli::ChainLayer{reinterpret_cast<const void* const*>(anchors.data()), static_cast<const double*>(in(coefficients)),
                           static_cast<int64_t>(anchors.size()), columns, depth, in(scale), in(shift),
                           static_cast<mli::Activation>(activation)};
  };
  std::vector<mli::ChainLayer> all;
  all.reserve(layers.size());
  for (const ChainTuple& t : layers) all.push_back(layer(t));
  const mli::ChainArgs args{out(to),    in(x),      in(residual), layer(source), all.data(), static_cast<int64_t>(all.size()),
                            points,     rows,       threads};
  py::gil_scoped_release release;
  (wide ? mli::kernels().chain_f64 : mli::kernels().chain_f32)(args);
}

// Targets index memory: they are checked before a kernel sees them.
void check_targets(const int64_t* targets, int64_t rows, int64_t classes, int64_t ignore_index) {
  for (int64_t i = 0; i < rows; ++i) {
    if (targets[i] != ignore_index && (targets[i] < 0 || targets[i] >= classes)) {
      throw py::value_error("targets[" + std::to_string(i) + "] is " + std::to_string(targets[i]) + ", expected 0 to " +
                            std::to_string(classes - 1) + " or ignore_index " + std::to_string(ignore_index));
    }
  }
}

void cross_entropy(bool wide, Address logits, Address targets, std::tuple<int64_t, int64_t, int64_t> sizes, int64_t ignore_index,
                   Address losses, Address predictions, int threads) {
  const auto [points, rows, classes] = sizes;
  const auto* target = static_cast<const int64_t*>(in(targets));
  check_targets(target, rows, classes, ignore_index);
  const int64_t chunk_rows = std::max<int64_t>(8, 16384 / std::max<int64_t>(classes, 1) / 8 * 8);
  const mli::CrossEntropyArgs args{in(logits), target, static_cast<double*>(out(losses)), static_cast<int64_t*>(out(predictions)),
                                   points,     rows,   classes, ignore_index, chunk_rows, threads};
  py::gil_scoped_release release;
  (wide ? mli::kernels().cross_entropy_f64 : mli::kernels().cross_entropy_f32)(args);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled CPU kernels of mli_fast; called through mli_fast.native.";
  mli::kernels();  // a wrong MLI_FAST_ISA is an error of the import
  m.def("isa", [] { return std::string(mli::kernels().name); });
  m.def("usable_isas", &mli::usable_isas);
  m.def("set_isa", &mli::select, py::arg("name"));
  m.def("set_openmp", [](Address fork) { mli::set_openmp(out(fork)); }, py::arg("gomp_parallel"));
  m.def("has_openmp", &mli::has_openmp);
  m.def("product", &product);
  m.def("winograd", &winograd);
  m.def("combine", &combine);
  m.def("blend", &blend);
  m.def("cross_entropy", &cross_entropy);
  m.def("chain", &chain);
#ifdef MLI_CUDA
  mli::cuda::bind(m);
#endif
}
