// Calls every CPU kernel with random shapes: what `make sanitize` runs under the compiler's sanitizers.
//
// Buffers are exactly as long as a kernel may touch, anchors whose coefficient is 0 at all points are null, outputs and
// scratch memory start as NaN. Every call is made by one thread and by several: both must give the same bits, none NaN.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/cpu/dispatch.hpp"

namespace {

std::mt19937_64 bits;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(bits); }
bool one_in(int64_t n) { return between(1, n) == 1; }

// Of one dimension: empty, single, or anything up to `most`.
int64_t size(int64_t most) { return one_in(16) ? 0 : one_in(6) ? 1 : between(1, most); }

// `count` values, not always on a vector's boundary; null where there are none, as torch's empty tensors are.
template <class T>
class Buffer {
 public:
  Buffer(int64_t count, T value) : skipped_(one_in(2)), count_(count), values_(static_cast<size_t>(count + skipped_), value) {}
  explicit Buffer(int64_t count) : Buffer(count, T(0)) {
    for (int64_t i = 0; i < count; ++i) data()[i] = static_cast<T>(std::uniform_real_distribution<double>(-1, 1)(bits));
  }
  T* data() { return count_ == 0 ? nullptr : values_.data() + skipped_; }
  int64_t count() const { return count_; }

 private:
  int64_t skipped_, count_;
  std::vector<T> values_;
};

// R tensors, some left out, and the coefficients [P, R] that say so.
template <class T>
struct Anchors {
  std::vector<Buffer<T>> tensors;
  std::vector<const void*> pointers;
  Buffer<double> coefficients;
  int64_t count;

  Anchors(int64_t points, int64_t each) : coefficients(0), count(between(1, 6)) {
    coefficients = Buffer<double>(points * count);
    tensors.reserve(static_cast<size_t>(count));
    for (int64_t r = 0; r < count; ++r) {
      tensors.emplace_back(each);
      const bool left_out = one_in(5);
      pointers.push_back(left_out ? nullptr : tensors.back().data());
      for (int64_t p = 0; p < points; ++p) {
        if (left_out || one_in(5)) coefficients.data()[p * count + r] = 0;
      }
    }
  }
};

// One term of an epilogue: absent, one for all points, or one for each.
template <class T>
struct Term {
  Buffer<T> values{0};
  int64_t stride = 0;

  Term(int64_t points, int64_t each) {
    if (one_in(3)) return;
    stride = one_in(2) ? each : 0;
    values = Buffer<T>(stride == 0 ? each : points * each);
  }
};

mli::Activation activation() { return static_cast<mli::Activation>(between(0, 5)); }

template <class T>
struct Tail {
  Term<T> scale, shift, residual;
  mli::Activation act = activation();

  Tail(int64_t points, int64_t rows, int64_t columns)
      : scale(points, columns), shift(points, columns), residual(points, rows * columns) {}
  mli::Epilogue epilogue() {
    return {scale.values.data(), shift.values.data(), residual.values.data(), scale.stride, shift.stride, residual.stride, act};
  }
};

// call(out, threads) by one thread and by several.
template <class T, class Call>
void twice(const char* kernel, int64_t count, Call&& call) {
  const T poison = std::is_floating_point_v<T> ? std::numeric_limits<T>::quiet_NaN() : T(-1);
  Buffer<T> alone(count, poison), together(count, poison);
  call(alone.data(), 1);
  call(together.data(), static_cast<int>(between(2, 5)));
  bool good = count == 0 || std::memcmp(alone.data(), together.data(), static_cast<size_t>(count) * sizeof(T)) == 0;
  for (int64_t i = 0; good && i < count; ++i) {
    good = std::is_floating_point_v<T> ? std::isfinite(static_cast<double>(alone.data()[i])) : alone.data()[i] != poison;
  }
  if (good) return;
  std::fprintf(stderr, "%s on %s: values that were not written, or that depend on threads\n", kernel, mli::kernels().name);
  std::exit(1);
}

template <class T>
constexpr bool kWide = std::is_same_v<T, double>;

template <class T>
void linear() {
  const int64_t points = size(4), rows = size(120), columns = size(90), depth = one_in(5) ? size(1300) : size(150);
  const bool shared = one_in(2);
  Buffer<T> x((shared ? 1 : points) * rows * depth);
  Anchors<T> anchors(points, columns * depth);
  Tail<T> tail(points, rows, columns);
  twice<T>("linear", points * rows * columns, [&](T* out, int threads) {
    const mli::ProductArgs args{out, x.data(), points, rows, columns, 1, depth, shared ? 0 : rows * depth, anchors.pointers.data(),
                                anchors.coefficients.data(), anchors.count, tail.epilogue(), nullptr, 0, 0, threads};
    (kWide<T> ? mli::kernels().product_f64 : mli::kernels().product_f32)(args);
  });
}

// Taps anywhere in the image: a table of offsets says all that the kernel knows of a convolution's geometry.
template <class T>
void conv() {
  const int64_t points = size(3), images = size(4), pixels = size(40), columns = size(70), taps = between(1, 9);
  const int64_t channels = one_in(4) ? between(1, 700) : between(1, 40), image = channels * between(1, 30);
  const int64_t rows = images * pixels;
  const bool shared = one_in(2);
  Buffer<T> x((shared ? 1 : points) * images * image);
  Buffer<int32_t> offsets(pixels * taps, -1);
  for (int64_t i = 0; i < pixels * taps; ++i) {
    if (!one_in(4)) offsets.data()[i] = static_cast<int32_t>(between(0, image / channels - 1) * channels);
  }
  Anchors<T> anchors(points, columns * taps * channels);
  Tail<T> tail(points, rows, columns);
  twice<T>("conv", points * rows * columns, [&](T* out, int threads) {
    const mli::ProductArgs args{out, x.data(), points, rows, columns, taps, channels, shared ? 0 : images * image,
                                anchors.pointers.data(), anchors.coefficients.data(), anchors.count, tail.epilogue(), offsets.data(),
                                pixels, image, threads};
    (kWide<T> ? mli::kernels().product_f64 : mli::kernels().product_f32)(args);
  });
}

void winograd() {
  const int64_t points = size(3), images = size(3), height = between(2, 15), width = between(2, 15), columns = size(70);
  const int64_t channels = one_in(4) ? size(300) : size(40), pad_y = between(0, 2), pad_x = between(0, 2), stride = between(1, 2);
  const int64_t out_height = (height + 2 * pad_y - 3 + stride) / stride, out_width = (width + 2 * pad_x - 3 + stride) / stride;
  const int64_t image = height * width * channels, rows = images * out_height * out_width;
  const bool shared = one_in(2);
  Buffer<float> x((shared ? 1 : points) * images * image);
  Anchors<float> anchors(points, columns * 9 * channels);
  Tail<float> tail(points, rows, columns);
  twice<float>("winograd", points * rows * columns, [&](float* out, int threads) {
    mli::kernels().winograd_f32({out, x.data(), points, images, height, width, channels, columns, out_height, out_width, pad_y, pad_x,
                                 stride, shared ? 0 : images * image, anchors.pointers.data(), anchors.coefficients.data(),
                                 anchors.count, tail.epilogue(), threads});
  });
}

template <class T>
void combine() {
  const int64_t points = size(4), rows = size(200), columns = one_in(8) ? size(20000) : size(300);
  Anchors<T> products(points, rows * columns);
  Tail<T> tail(points, rows, columns);
  twice<T>("combine", points * rows * columns, [&](T* out, int threads) {
    const mli::CombineArgs args{out, products.pointers.data(), products.coefficients.data(), points, rows, columns, products.count,
                                tail.epilogue(), threads};
    (kWide<T> ? mli::kernels().combine_f64 : mli::kernels().combine_f32)(args);
  });
}

// The tensors lie in one output, one after the other, so that it can be compared as a whole.
template <class T>
void blend() {
  const int64_t tensors = between(1, 6), count = between(1, 6);
  std::vector<int64_t> starts{0};
  std::vector<Buffer<T>> kept;
  std::vector<const void*> pointers;
  Buffer<double> coefficients(tensors * count);
  for (int64_t t = 0; t < tensors; ++t) {
    const int64_t each = one_in(3) ? size(60000) : size(300);
    starts.push_back(starts.back() + each);
    for (int64_t r = 0; r < count; ++r) {
      kept.emplace_back(each);
      const bool left_out = one_in(5);
      if (left_out) coefficients.data()[t * count + r] = 0;
      pointers.push_back(left_out ? nullptr : kept.back().data());
    }
  }
  twice<T>("blend", starts.back(), [&](T* out, int threads) {
    std::vector<void*> outs;
    for (int64_t t = 0; t < tensors; ++t) outs.push_back(out == nullptr ? nullptr : out + starts[static_cast<size_t>(t)]);
    const mli::BlendArgs args{outs.data(), pointers.data(), coefficients.data(), starts.data(), tensors, count, threads};
    (kWide<T> ? mli::kernels().blend_f64 : mli::kernels().blend_f32)(args);
  });
}

template <class T>
void cross_entropy() {
  const int64_t points = size(4), rows = size(300), classes = one_in(3) ? between(1, 700) : between(1, 70), ignored = -100;
  Buffer<T> logits(points * rows * classes);
  Buffer<int64_t> targets(rows, ignored);
  for (int64_t i = 0; i < rows; ++i) {
    if (!one_in(5)) targets.data()[i] = between(0, classes - 1);
  }
  const int64_t chunk_rows = 8 * between(1, 8);
  const auto run = mli::kernels().*(kWide<T> ? &mli::Kernels::cross_entropy_f64 : &mli::Kernels::cross_entropy_f32);
  Buffer<double> losses(points * rows);
  Buffer<int64_t> predictions(points * rows, 0);
  const auto call = [&](double* to, int64_t* at, int threads) {
    run({logits.data(), targets.data(), to, at, points, rows, classes, ignored, chunk_rows, threads});
  };
  twice<double>("cross entropy", points * rows, [&](double* to, int threads) { call(to, predictions.data(), threads); });
  twice<int64_t>("argmax", points * rows, [&](int64_t* at, int threads) { call(losses.data(), at, threads); });
}

template <class T>
struct Layer {
  int64_t columns, depth;
  Anchors<T> anchors;
  Buffer<T> scale, shift;
  mli::Activation act = activation();

  Layer(int64_t points, int64_t each, int64_t columns_, int64_t depth_)
      : columns(columns_), depth(depth_), anchors(points, each), scale(one_in(2) ? 0 : points * columns),
        shift(one_in(2) ? 0 : points * columns) {}
  mli::ChainLayer layer() {
    return {anchors.pointers.data(), anchors.coefficients.data(), anchors.count, columns, depth, scale.data(), shift.data(), act};
  }
};

// Large enough now and then that several threads take part.
template <class T>
void chain() {
  const int64_t points = size(5), rows = one_in(3) ? size(700) : size(60), width = one_in(6) ? 700 : 80;
  int64_t depth = size(width);
  const bool combined = one_in(2);
  Layer<T> source(points, rows * depth, depth, 0);
  // A chain whose input is empty takes it from no source: a null x is what tells them apart.
  Buffer<T> x(combined ? 0 : points * rows * depth);
  std::vector<Layer<T>> layers;
  for (int64_t i = between(1, 4); i > 0; --i) {
    const int64_t columns = size(width);
    layers.emplace_back(points, columns * depth, columns, depth);
    depth = columns;
  }
  std::vector<mli::ChainLayer> table;
  for (Layer<T>& layer : layers) table.push_back(layer.layer());
  Buffer<T> residual(one_in(2) ? 0 : points * rows * depth);
  twice<T>("chain", points * rows * depth, [&](T* out, int threads) {
    const mli::ChainArgs args{out, x.data(), residual.data(), source.layer(), table.data(), static_cast<int64_t>(table.size()), points,
                              rows, threads};
    (kWide<T> ? mli::kernels().chain_f64 : mli::kernels().chain_f32)(args);
  });
}

template <class T>
void every_kernel() {
  linear<T>(), conv<T>(), combine<T>(), blend<T>(), cross_entropy<T>(), chain<T>();
}

}  // namespace

// The first finding ends the program, as those of the other sanitizers do.
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
  for (const std::string& isa : mli::usable_isas()) {
    mli::select(isa);
    for (int round = 0; round < rounds; ++round) {
      bits.seed(static_cast<unsigned>(round));
      every_kernel<float>(), every_kernel<double>(), winograd();
    }
    std::printf("%s: %d random calls of every kernel\n", isa.c_str(), rounds);
  }
}
