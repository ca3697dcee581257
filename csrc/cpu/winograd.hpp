// Convolution with 3 x 3 kernels by fewer multiplications, with blended weights and the epilogue of `product`.
//
//   V = B^T d B per tile of the input and channel,  U = G g G^T per kernel,
//   one product M = V U over the channels for each place of V,  2 x 2 pixels of the output = epilogue(A^T M A).
//
// Stride 1 is F(2 x 2, 3 x 3) of Lavin & Gray (2015), 16 multiplications instead of 36 for four pixels. At stride 2 the even
// and the odd inputs meet kernels of 2 taps and of 1: F(2, 2) for the first, 25 multiplications in two dimensions.
//
// Weights are blended, then transformed, once per call and point into panels all threads read. Tiles go through in blocks whose
// V and M stay in the second-level cache. A tile's arithmetic does not depend on the block it is in.
#pragma once

#include "product.hpp"

namespace mli::MLI_ISA {

constexpr int kTaps = 9;                            // of a kernel
constexpr int kTransformed = 4;                     // numbers made of its three along one dimension
constexpr int64_t kTileBytes = 384 * 1024;          // V of one block, at most (one row of registers apart)
constexpr int64_t kSharedBytes = 4 * 1024 * 1024;   // transformed weights, at most (one panel apart)
constexpr int64_t kPackRun = 32;                    // channels transformed at a time
constexpr int64_t kPartChannels = 128;              // summed in one go, at most: longer costs accuracy, gains no time

// Places lie this much further apart than their size: at multiples of 4 KiB all would share one set of the first-level cache.
template <class T>
constexpr int64_t kStagger = 64 / sizeof(T);

// One dimension of the transforms at a stride: two outputs of three taps from `inputs` pixels by `places` products. Place i
// is multiplied by transformed weight `weight[i]`.
template <int Stride>
struct Axis;

template <>
struct Axis<1> {
  static constexpr int stride = 1, inputs = 4, places = 4;
  static constexpr int weight[places] = {0, 1, 2, 3};

  template <class V>
  static MLI_INLINE void weights(V g0, V g1, V g2, V half, V* to, int step) {
    const V sum = g0 + g2;
    to[0] = g0;
    to[step] = (sum + g1) * half;
    to[2 * step] = (sum - g1) * half;
    to[3 * step] = g2;
  }
  template <class V>
  static MLI_INLINE void input(const V (&d)[inputs], V* to, int step) {
    to[0] = d[0] - d[2];
    to[step] = d[1] + d[2];
    to[2 * step] = d[2] - d[1];
    to[3 * step] = d[1] - d[3];
  }
  template <class V>
  static MLI_INLINE void output(const V (&m)[places], V* to, int step) {
    to[0] = m[0] + m[1] + m[2];
    to[step] = m[1] - m[2] - m[3];
  }
};

template <>
struct Axis<2> {
  static constexpr int stride = 2, inputs = 5, places = 5;
  static constexpr int weight[places] = {0, 1, 2, 3, 3};

  template <class V>
  static MLI_INLINE void weights(V g0, V g1, V g2, V, V* to, int step) {
    to[0] = g0;
    to[step] = g0 + g2;
    to[2 * step] = g2;
    to[3 * step] = g1;
  }
  template <class V>
  static MLI_INLINE void input(const V (&d)[inputs], V* to, int step) {
    to[0] = d[0] - d[2];
    to[step] = d[2];
    to[2 * step] = d[4] - d[2];
    to[3 * step] = d[1];
    to[4 * step] = d[3];
  }
  template <class V>
  static MLI_INLINE void output(const V (&m)[places], V* to, int step) {
    to[0] = m[0] + m[1] + m[3];
    to[step] = m[1] + m[2] + m[4];
  }
};

// Products of one tile, and the panel's part that place p of them meets.
template <class A>
constexpr int kPlaces = A::places * A::places;
constexpr int kWeights = kTransformed * kTransformed;
template <class A>
constexpr int weight_of(int p) {
  return A::weight[p / A::places] * kTransformed + A::weight[p % A::places];
}

// Columns [column, column + kBlock) of N: blended, then U for every channel; panel[weight][channel][width] from this column on.
template <class T, class A>
MLI_NOINLINE void pack_transformed(const Active<T>& w, int64_t column, int64_t columns, int64_t channels, T* panel,
                                   int64_t width) {
  constexpr int B = kBlock<T>;
  alignas(64) T taps[kTaps * kPackRun * B];
  const int rows = w.count == 0 ? 0 : static_cast<int>(least(B, columns - column < 0 ? 0 : columns - column));
  const Block<T> half = broadcast<T, kBlockBytes>(T(0.5));
  for (int64_t from = 0; from < channels; from += kPackRun) {
    const int64_t run = least(kPackRun, channels - from);
    for (int tap = 0; tap < kTaps; ++tap) {
      const int64_t first = (column * kTaps + tap) * channels + from;
      T* to = taps + tap * kPackRun * B;
      if (rows == B) {
        with_count(w.count, [&]<int R>() { pack_rows<T, R>(w, first, kTaps * channels, B, run, to, B); });
      } else {
        with_count(w.count, [&]<int R>() { pack_rows<T, R>(w, first, kTaps * channels, rows, run, to, B); });
      }
    }
    for (int64_t c = 0; c < run; ++c) {
      Block<T> g[kTaps], t[3 * kTransformed], u[kWeights];
      for (int tap = 0; tap < kTaps; ++tap) g[tap] = load<T, kBlockBytes>(taps + (tap * kPackRun + c) * B);
      for (int i = 0; i < 3; ++i) A::weights(g[i], g[3 + i], g[6 + i], half, t + i, 3);
      for (int i = 0; i < kTransformed; ++i) A::weights(t[3 * i], t[3 * i + 1], t[3 * i + 2], half, u + kTransformed * i, 1);
      for (int i = 0; i < kWeights; ++i) store<T, kBlockBytes>(panel + (i * channels + from + c) * width, u[i]);
    }
  }
}

// Where a tile's four pixels go: the row of the first one in [images * pixels, N], and how many of the 2 x 2 there are.
struct Tile {
  int64_t row;
  int down, right;
};

// M of one panel: [place][tile][width], places this far apart.
template <class T>
constexpr int64_t kProductStep = kChunkRows * 2 * kWidth<T> + kStagger<T>;

// A block's memory, owned by the thread that works on it.
template <class T, class A>
struct TileBlock {
  T* input;     // V: [place][tile][channel], places input_step apart, tiles channel_step
  T* products;  // M of one panel
  T* zeros;     // a pixel of padding
  Tile* tiles;  // [kChunkRows]
  int64_t count, channel_step, input_step;

  static TileBlock sized(int64_t channels, int64_t tiles) {
    TileBlock b{};
    b.count = tiles;
    b.channel_step = ceil_div(channels, kWidth<T>) * kWidth<T>;
    b.input_step = tiles * b.channel_step + kStagger<T>;
    return b;
  }
  size_t bytes() const {
    return static_cast<size_t>(kPlaces<A> * (input_step + kProductStep<T>) + channel_step) * sizeof(T) + kChunkRows * sizeof(Tile);
  }
  void place(void* memory) {
    input = static_cast<T*>(memory);
    products = input + kPlaces<A> * input_step;
    zeros = products + kPlaces<A> * kProductStep<T>;
    tiles = reinterpret_cast<Tile*>(zeros + channel_step);
    for (int64_t c = 0; c < channel_step; ++c) zeros[c] = T(0);
  }
};

// V of one tile in the channels [c, c + width), of which n are there.
template <class T, class A>
MLI_INLINE void transform_channels(const T* const* pixels, int64_t c, int64_t n, T* to, int64_t step) {
  constexpr int I = A::inputs, P = A::places;
  Vec<T> t[P * I], v[P];
#pragma GCC unroll 5
  for (int i = 0; i < I; ++i) {
    Vec<T> d[I];
#pragma GCC unroll 5
    for (int j = 0; j < I; ++j) d[j] = load_first(pixels[I * j + i] + c, n);
    A::input(d, t + i, I);
  }
#pragma GCC unroll 5
  for (int i = 0; i < P; ++i) {
    Vec<T> d[I];
#pragma GCC unroll 5
    for (int j = 0; j < I; ++j) d[j] = t[I * i + j];
    A::input(d, v, 1);
#pragma GCC unroll 5
    for (int j = 0; j < P; ++j) store(to + (P * i + j) * step + c, v[j]);
  }
}

// V of one tile; pixels point to its pixels, or to zeros.
template <class T, class A>
MLI_NOINLINE void transform_input(const T* const* pixels, int64_t channels, T* to, int64_t step) {
  int64_t c = 0;
  for (; c + kWidth<T> <= channels; c += kWidth<T>) transform_channels<T, A>(pixels, c, kWidth<T>, to, step);
  if (c < channels) transform_channels<T, A>(pixels, c, channels - c, to, step);
}

// V of the block's tiles, `first` counting through all images of the point.
template <class T, class A>
MLI_INLINE void transform_inputs(const WinogradArgs& a, const T* x, int64_t first, TileBlock<T, A>& b) {
  constexpr int I = A::inputs;
  const int64_t per_row = ceil_div(a.out_width, 2), per_image = ceil_div(a.out_height, 2) * per_row;
  int64_t image = first / per_image, ty = first % per_image / per_row, tx = first % per_row;
  for (int64_t i = 0; i < b.count; ++i) {
    const int64_t y0 = 2 * A::stride * ty - a.pad_y, x0 = 2 * A::stride * tx - a.pad_x;
    const int64_t corner = ((image * a.height + y0) * a.width + x0) * a.channels;
    const T* pixels[I * I];
    for (int64_t j = 0; j < I * I; ++j) {
      const int64_t y = y0 + j / I, across = x0 + j % I;
      const bool inside = y >= 0 && y < a.height && across >= 0 && across < a.width;
      pixels[j] = inside ? x + (corner + (j / I * a.width + j % I) * a.channels) : b.zeros;
    }
    transform_input<T, A>(pixels, a.channels, b.input + i * b.channel_step, b.input_step);
    b.tiles[i] = {(image * a.out_height + 2 * ty) * a.out_width + 2 * tx, static_cast<int>(least(2, a.out_height - 2 * ty)),
                  static_cast<int>(least(2, a.out_width - 2 * tx))};
    if (++tx == per_row) {
      tx = 0;
      if (++ty * per_row == per_image) ty = 0, ++image;
    }
  }
}

// MR rows of V, `step` apart, times one panel: the loop of `micro` without its pointers and epilogue, which cost more than they
// do when the only depth is the channels.
template <class T, int MR>
MLI_INLINE void multiply_rows(const T* rows, int64_t step, const T* panel, int64_t depth, bool first, T* out) {
  constexpr int W = kWidth<T>;
  Vec<T> sum[MR][2];
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) sum[i][0] = sum[i][1] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<T> b0 = load(panel + k * 2 * W), b1 = load(panel + k * 2 * W + W);
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i) {
      const Vec<T> v = broadcast(rows[i * step + k]);
      sum[i][0] = multiply_add(v, b0, sum[i][0]);
      sum[i][1] = multiply_add(v, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) {
    for (int j = 0; j < 2; ++j) {
      T* to = out + (2 * i + j) * W;
      store(to, first ? sum[i][j] : load(to) + sum[i][j]);
    }
  }
}

// All rows of one place: whole tiles of registers, then the remainder with the same arithmetic per row.
template <class T, int MR = kWideRows>
MLI_NOINLINE void multiply_place(int64_t count, const T* rows, int64_t step, const T* panel, int64_t depth, bool first,
                                 T* out) {
  for (; count >= MR; count -= MR, rows += MR * step, out += MR * 2 * kWidth<T>) {
    multiply_rows<T, MR>(rows, step, panel, depth, first, out);
  }
  if constexpr (MR > 1) {
    if (count > 0) multiply_place<T, MR / 2>(count, rows, step, panel, depth, first, out);
  }
}

// The products of a block with one panel; the channels in parts that depend on their number only.
template <class T, class A>
MLI_INLINE void multiply_tiles(int64_t channels, const TileBlock<T, A>& b, const T* panel) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const int64_t parts = ceil_div(channels, kPartChannels), depth = parts > 0 ? ceil_div(channels, parts) : 0;
  for (int p = 0; p < kPlaces<A>; ++p) {
    const T* weights = panel + weight_of<A>(p) * channels * kWide;
    T* to = b.products + p * kProductStep<T>;
    int64_t from = 0;
    do {
      multiply_place(b.count, b.input + p * b.input_step + from, b.channel_step, weights + from * kWide,
                     least(depth, channels - from), from == 0, to);
      from += depth;
    } while (from < channels);
  }
}

// act(A^T M A * scale + shift + residual) for one vector of columns of the block's tiles, of which n are there.
template <class T, class A, bool Residual>
MLI_INLINE void transform_columns(const WinogradArgs& a, const TileBlock<T, A>& b, const T* m, const RowEpilogue<T>& e, int64_t n,
                                  T* out) {
  constexpr int P = A::places;
  // Absent terms are 1 and -0: they change no bit.
  const Vec<T> scale = e.scale == nullptr ? broadcast(T(1)) : load_first(e.scale, n);
  const Vec<T> shift = e.shift == nullptr ? broadcast(T(-0.0)) : load_first(e.shift, n);
  const int64_t below = a.out_width * a.columns;
  for (int64_t i = 0; i < b.count; ++i, m += 2 * kWidth<T>) {
    Vec<T> t[2][P], y[4];
#pragma GCC unroll 5
    for (int j = 0; j < P; ++j) {
      Vec<T> at[P];
#pragma GCC unroll 5
      for (int k = 0; k < P; ++k) at[k] = load(m + (P * k + j) * kProductStep<T>);
      A::output(at, t[0] + j, P);
    }
    A::output(t[0], y, 1);
    A::output(t[1], y + 2, 1);
    const Tile tile = b.tiles[i];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if (j / 2 >= tile.down || j % 2 >= tile.right) continue;
      const int64_t at = tile.row * a.columns + j / 2 * below + j % 2 * a.columns;
      Vec<T> value = multiply_add(y[j], scale, shift);
      if constexpr (Residual) value = value + load_first(e.residual + at, n);
      store_first(out + at, e.relu ? relu<T>(value) : value, n);
    }
  }
}

// Activations other than ReLU, while the pixels are still in cache.
template <class T, class A>
MLI_INLINE void activate_tiles(const WinogradArgs& a, const TileBlock<T, A>& b, int64_t columns, T* out) {
  for (int64_t i = 0; i < b.count; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      if (j / 2 >= b.tiles[i].down || j % 2 >= b.tiles[i].right) continue;
      activate_row(a.epilogue.activation, out + (b.tiles[i].row + j / 2 * a.out_width + j % 2) * a.columns, columns);
    }
  }
}

// The output in columns [column, column + 2 vectors).
template <class T, class A>
MLI_NOINLINE void transform_outputs(const WinogradArgs& a, int64_t point, int64_t column, const TileBlock<T, A>& b) {
  T* out = static_cast<T*>(a.out) + point * a.images * a.out_height * a.out_width * a.columns;
  for (int64_t at = 0; at < 2 * kWidth<T> && column + at < a.columns; at += kWidth<T>) {
    const int64_t n = a.columns - column - at;
    const RowEpilogue<T> e = row_epilogue<T>(a.epilogue, point, 0, a.columns, column + at);
    const T* m = b.products + at;
    T* to = out + column + at;
    if (n < kWidth<T>) {
      e.residual != nullptr ? transform_columns<T, A, true>(a, b, m, e, n, to) : transform_columns<T, A, false>(a, b, m, e, n, to);
    } else if (e.residual != nullptr) {
      transform_columns<T, A, true>(a, b, m, e, kWidth<T>, to);
    } else {
      transform_columns<T, A, false>(a, b, m, e, kWidth<T>, to);
    }
  }
  if (a.epilogue.activation == Activation::none || a.epilogue.activation == Activation::relu) return;
  activate_tiles(a, b, least(2 * kWidth<T>, a.columns - column), out + column);
}

// Tiles of a block: what fits the cache, and blocks enough for every thread to have its share.
template <class T, class A>
inline int64_t tiles_per_block(const WinogradArgs& a, int64_t tiles) {
  const int64_t threads = a.threads < 1 ? 1 : a.threads;
  const int64_t fitting = kTileBytes / (kPlaces<A> * static_cast<int64_t>(sizeof(T)) * (a.channels + 1)) / kWideRows * kWideRows;
  const int64_t most = least(kChunkRows, fitting < kWideRows ? kWideRows : fitting);
  const int64_t blocks = ceil_div(ceil_div(tiles, most), threads) * threads;
  return least(most, ceil_div(ceil_div(tiles, blocks), kWideRows) * kWideRows);
}

// One point's columns [column, end): all weights first, then all tiles.
template <class T, class A>
inline void winograd_columns(const WinogradArgs& a, const Active<T>& active, int64_t point, int64_t column, int64_t end,
                             T* panels) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const int64_t blocks = ceil_div(end - column, kWide) * (kWide / kBlock<T>), panel_size = kWeights * a.channels * kWide;
  parallel_for(blocks, a.threads, [&](int64_t i) -> bool {
    const int64_t at = i * kBlock<T>;
    pack_transformed<T, A>(active, column + at, a.columns, a.channels, panels + at / kWide * panel_size + at % kWide, kWide);
    return true;
  });
  const int64_t tiles = a.images * ceil_div(a.out_height, 2) * ceil_div(a.out_width, 2), each = tiles_per_block<T, A>(a, tiles);
  const auto layout = TileBlock<T, A>::sized(a.channels, each);
  const T* x = static_cast<const T*>(a.x) + point * a.x_point_stride;
  parallel_for(ceil_div(tiles, each), a.threads, [&](int64_t i) -> bool {
    void* memory = thread_scratch(layout.bytes());
    if (memory == nullptr) return false;
    TileBlock<T, A> block = layout;
    block.place(memory);
    block.count = least(each, tiles - i * each);
    transform_inputs(a, x, i * each, block);
    for (int64_t j = column; j < end; j += kWide) {
      multiply_tiles(a.channels, block, panels + (j - column) / kWide * panel_size);
      transform_outputs(a, point, j, block);
    }
    return true;
  });
}

template <class T, class A>
void winograd_at(const WinogradArgs& a) {
  if (a.points == 0 || a.images == 0 || a.columns == 0 || a.out_height == 0 || a.out_width == 0) return;
  constexpr int64_t kWide = 2 * kWidth<T>;
  const int64_t panel_bytes = kWeights * a.channels * kWide * static_cast<int64_t>(sizeof(T));
  const int64_t fitting = kSharedBytes / (panel_bytes + 1) + 1;  // one at least, of whatever size
  const int64_t panels = least(ceil_div(a.columns, kWide), fitting);
  const auto anchor_bytes = static_cast<size_t>(a.anchor_count) * (sizeof(T*) + sizeof(T));
  T* memory = static_cast<T*>(shared_scratch(static_cast<size_t>(panels * panel_bytes) + anchor_bytes));
  const T** anchors = reinterpret_cast<const T**>(memory + panels * panel_bytes / static_cast<int64_t>(sizeof(T)));
  T* factors = reinterpret_cast<T*>(anchors + a.anchor_count);
  for (int64_t point = 0; point < a.points; ++point) {
    const int count = active_anchors(a.anchors, a.coefficients + point * a.anchor_count, a.anchor_count, anchors, factors);
    for (int64_t column = 0; column < a.columns; column += panels * kWide) {
      winograd_columns<T, A>(a, Active<T>{anchors, factors, count}, point, column, least(column + panels * kWide, a.columns), memory);
    }
  }
}

template <class T>
void winograd(const WinogradArgs& a) {
  a.stride == 1 ? winograd_at<T, Axis<1>>(a) : winograd_at<T, Axis<2>>(a);
}

}  // namespace mli::MLI_ISA
