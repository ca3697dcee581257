// Convolution with 3 x 3 kernels and stride 1 as F(2 x 2, 3 x 3) of Lavin & Gray (2015): 16 multiplications instead of 36 for
// four output pixels, with blended weights and the epilogue of `product`.
//
//   V = B^T d B per 4 x 4 tile of the input and channel,  U = G g G^T per kernel,
//   16 products M = V U over the channels,                out = epilogue(A^T M A).
//
// Weights are blended, then transformed, once per call and point into panels all threads read. Tiles go through in blocks whose
// V and M stay in the second-level cache. A tile's arithmetic does not depend on the block it is in.
#pragma once

#include "product.hpp"

namespace mli::MLI_ISA {

constexpr int kTaps = 9, kPlaces = 16;              // of a kernel, and of a tile: the products of one tile are one per place
constexpr int64_t kTileBytes = 384 * 1024;          // V of one block, at most (one row of registers apart)
constexpr int64_t kSharedBytes = 4 * 1024 * 1024;   // transformed weights, at most (one panel apart)
constexpr int64_t kPackRun = 32;                    // channels transformed at a time

// Places lie this much apart beyond their size: at multiples of 4 KiB they would all fall into one set of the first-level cache.
template <class T>
constexpr int64_t kStagger = 64 / sizeof(T);

template <class V>
MLI_INLINE void weights_1d(V g0, V g1, V g2, V half, V* to, int step) {
  const V sum = g0 + g2;
  to[0] = g0;
  to[step] = (sum + g1) * half;
  to[2 * step] = (sum - g1) * half;
  to[3 * step] = g2;
}

template <class V>
MLI_INLINE void input_1d(V d0, V d1, V d2, V d3, V* to, int step) {
  to[0] = d0 - d2;
  to[step] = d1 + d2;
  to[2 * step] = d2 - d1;
  to[3 * step] = d1 - d3;
}

template <class V>
MLI_INLINE void output_1d(V m0, V m1, V m2, V m3, V* to, int step) {
  to[0] = m0 + m1 + m2;
  to[step] = m1 - m2 - m3;
}

// Columns [column, column + kBlock) of N: blended, then U for every channel; panel[place][channel][width] from this column on.
template <class T>
MLI_NOINLINE void pack_transformed(const Active<T>& w, int64_t column, int64_t columns, int64_t channels, T* panel, int64_t width) {
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
      Block<T> g[kTaps], t[12], u[kPlaces];
      for (int tap = 0; tap < kTaps; ++tap) g[tap] = load<T, kBlockBytes>(taps + (tap * kPackRun + c) * B);
      for (int i = 0; i < 3; ++i) weights_1d(g[i], g[3 + i], g[6 + i], half, t + i, 3);
      for (int i = 0; i < 4; ++i) weights_1d(t[3 * i], t[3 * i + 1], t[3 * i + 2], half, u + 4 * i, 1);
      for (int i = 0; i < kPlaces; ++i) store<T, kBlockBytes>(panel + (i * channels + from + c) * width, u[i]);
    }
  }
}

// Where a tile's four pixels go: the row of the first one in [images * pixels, N], and how many of the 2 x 2 there are.
struct Tile {
  int64_t row;
  int down, right;
};

// A block's memory, owned by the thread that works on it.
template <class T>
struct TileBlock {
  T* input;         // V: [place][tile][channel], places input_step apart, tiles channel_step
  T* products;      // M of one panel: [place][tile][width], places product_step apart
  const T** rows;   // [part of the channels][place][kChunkRows]: rows of V
  T* zeros;         // a pixel of padding
  Tile* tiles;      // [kChunkRows]
  int64_t tile_count, channel_step, input_step, product_step;
};

template <class T>
struct TileLayout {
  int64_t tiles, channel_step, input_step, product_step, parts, depth;

  TileLayout(const WinogradArgs& a, int64_t tiles_) : tiles(tiles_) {
    channel_step = ceil_div(a.channels, kWidth<T>) * kWidth<T>;
    input_step = tiles * channel_step + kStagger<T>;
    product_step = tiles * 2 * kWidth<T> + kStagger<T>;
    parts = ceil_div(a.channels, kDepth);
    depth = parts > 1 ? ceil_div(ceil_div(a.channels, parts), 8) * 8 : a.channels;
  }
  size_t bytes() const {
    const auto values = static_cast<size_t>(kPlaces * (input_step + product_step) + channel_step);
    return values * sizeof(T) + static_cast<size_t>(parts * kPlaces * kChunkRows) * sizeof(T*) + kChunkRows * sizeof(Tile);
  }
  TileBlock<T> place(void* memory) const {
    TileBlock<T> b{};
    b.input = static_cast<T*>(memory);
    b.products = b.input + kPlaces * input_step;
    b.zeros = b.products + kPlaces * product_step;
    b.rows = reinterpret_cast<const T**>(b.zeros + channel_step);
    b.tiles = reinterpret_cast<Tile*>(b.rows + parts * kPlaces * kChunkRows);
    b.channel_step = channel_step, b.input_step = input_step, b.product_step = product_step;
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t p = 0; p < kPlaces; ++p) {
        for (int64_t i = 0; i < tiles; ++i) {
          b.rows[(part * kPlaces + p) * kChunkRows + i] = b.input + p * input_step + i * channel_step + part * depth;
        }
      }
    }
    for (int64_t c = 0; c < channel_step; ++c) b.zeros[c] = T(0);
    return b;
  }
};

// V of one tile; pixels[16] point to its pixels, or to zeros.
template <class T>
MLI_NOINLINE void transform_input(const T* const* pixels, int64_t channels, T* to, int64_t step) {
  for (int64_t c = 0; c < channels; c += kWidth<T>) {
    const int64_t n = channels - c;
    Vec<T> t[kPlaces], v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Vec<T> d[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) d[j] = load_first(pixels[4 * j + i] + c, n);
      input_1d(d[0], d[1], d[2], d[3], t + i, 4);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      input_1d(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3], v, 1);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * step + c, v[j]);
    }
  }
}

// V of the block's tiles, `first` counting through all images of the point.
template <class T>
MLI_INLINE void transform_inputs(const WinogradArgs& a, const T* x, int64_t first, TileBlock<T>& b) {
  const int64_t across = ceil_div(a.out_width, 2), per_image = ceil_div(a.out_height, 2) * across;
  int64_t image = first / per_image, ty = first % per_image / across, tx = first % across;
  for (int64_t i = 0; i < b.tile_count; ++i) {
    const int64_t y0 = 2 * ty - a.pad_y, x0 = 2 * tx - a.pad_x;
    const T* pixels[kPlaces];
    for (int64_t j = 0; j < 4; ++j) {
      const bool inside = y0 + j >= 0 && y0 + j < a.height;
      const T* row = x + ((image * a.height + y0 + j) * a.width + x0) * a.channels;
      for (int64_t k = 0; k < 4; ++k) {
        pixels[4 * j + k] = inside && x0 + k >= 0 && x0 + k < a.width ? row + k * a.channels : b.zeros;
      }
    }
    transform_input(pixels, a.channels, b.input + i * b.channel_step, b.input_step);
    b.tiles[i] = {(image * a.out_height + 2 * ty) * a.out_width + 2 * tx, static_cast<int>(least(2, a.out_height - 2 * ty)),
                  static_cast<int>(least(2, a.out_width - 2 * tx))};
    if (++tx == across) {
      tx = 0;
      if (++ty * across == per_image) ty = 0, ++image;
    }
  }
}

// The 16 products of a block with one panel.
template <class T>
MLI_INLINE void multiply_tiles(int64_t channels, const TileLayout<T>& layout, const TileBlock<T>& b, const T* panel) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  for (int64_t p = 0; p < kPlaces; ++p) {
    for (int64_t part = 0; part < layout.parts; ++part) {
      const int64_t from = part * layout.depth, depth = least(layout.depth, channels - from);
      const T* const* rows = b.rows + (part * kPlaces + p) * kChunkRows;
      for (int64_t i = 0; i < b.tile_count; i += kWideRows) {
        const TileInput<T> in{rows + i, 1, depth, panel + (p * channels + from) * kWide};
        const TileOutput<T> o{b.products + p * b.product_step + i * kWide, kWide, kWide, part == 0, false, {}};
        micro_up_to<T, kWideRows, 2>(static_cast<int>(least(kWideRows, b.tile_count - i)), in, o);
      }
    }
  }
}

// out = epilogue(A^T M A) for the columns [column, column + 2 vectors) of the block's tiles.
template <class T>
MLI_NOINLINE void transform_outputs(const WinogradArgs& a, int64_t point, int64_t column, const TileBlock<T>& b) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const int64_t rows = a.images * a.out_height * a.out_width, columns = least(kWide, a.columns - column);
  T* out = static_cast<T*>(a.out) + point * rows * a.columns + column;
  const RowEpilogue<T> shared = row_epilogue<T>(a.epilogue, point, 0, a.columns, column);
  for (int64_t i = 0; i < b.tile_count; ++i) {
    const Tile& tile = b.tiles[i];
    for (int64_t at = 0; at < columns; at += kWidth<T>) {
      const T* m = b.products + i * kWide + at;
      Vec<T> t[8], y[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        output_1d(load(m + j * b.product_step), load(m + (4 + j) * b.product_step), load(m + (8 + j) * b.product_step),
                  load(m + (12 + j) * b.product_step), t + j, 4);
      }
      output_1d(t[0], t[1], t[2], t[3], y, 1);
      output_1d(t[4], t[5], t[6], t[7], y + 2, 1);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if (j / 2 >= tile.down || j % 2 >= tile.right) continue;
        const int64_t row = (tile.row + j / 2 * a.out_width + j % 2) * a.columns;
        RowEpilogue<T> e = shared;
        if (e.residual != nullptr) e.residual += row;
        store_first(out + row + at, finish(y[j], e, at, columns - at), columns - at);
      }
    }
    if (a.epilogue.activation == Activation::none || shared.relu) continue;
    for (int j = 0; j < 4; ++j) {
      if (j / 2 >= tile.down || j % 2 >= tile.right) continue;
      activate_row(a.epilogue.activation, out + (tile.row + j / 2 * a.out_width + j % 2) * a.columns, columns);
    }
  }
}

// Tiles of a block: what fits the cache, and blocks enough for every thread to have its share.
template <class T>
inline int64_t tiles_per_block(const WinogradArgs& a, int64_t tiles) {
  const int64_t threads = a.threads < 1 ? 1 : a.threads;
  const int64_t fitting = kTileBytes / (kPlaces * static_cast<int64_t>(sizeof(T)) * (a.channels + 1)) / kWideRows * kWideRows;
  const int64_t most = least(kChunkRows, fitting < kWideRows ? kWideRows : fitting);
  const int64_t blocks = ceil_div(ceil_div(tiles, most), threads) * threads;
  return least(most, ceil_div(ceil_div(tiles, blocks), kWideRows) * kWideRows);
}

// One point's columns [column, end): all weights first, then all tiles.
template <class T>
inline void winograd_columns(const WinogradArgs& a, const Active<T>& active, int64_t point, int64_t column, int64_t end, T* panels) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const int64_t blocks = ceil_div(end - column, kWide) * (kWide / kBlock<T>), panel_size = kPlaces * a.channels * kWide;
  parallel_for(blocks, a.threads, [&](int64_t i) -> bool {
    const int64_t at = i * kBlock<T>;
    pack_transformed(active, column + at, a.columns, a.channels, panels + at / kWide * panel_size + at % kWide, kWide);
    return true;
  });
  const int64_t tiles = a.images * ceil_div(a.out_height, 2) * ceil_div(a.out_width, 2), each = tiles_per_block<T>(a, tiles);
  const TileLayout<T> layout(a, each);
  const T* x = static_cast<const T*>(a.x) + point * a.x_point_stride;
  parallel_for(ceil_div(tiles, each), a.threads, [&](int64_t i) -> bool {
    void* memory = thread_scratch(layout.bytes());
    if (memory == nullptr) return false;
    TileBlock<T> block = layout.place(memory);
    block.tile_count = least(each, tiles - i * each);
    transform_inputs(a, x, i * each, block);
    for (int64_t j = column; j < end; j += kWide) {
      multiply_tiles(a.channels, layout, block, panels + (j - column) / kWide * panel_size);
      transform_outputs(a, point, j, block);
    }
    return true;
  });
}

template <class T>
void winograd(const WinogradArgs& a) {
  if (a.points == 0 || a.images == 0 || a.columns == 0 || a.out_height == 0 || a.out_width == 0) return;
  constexpr int64_t kWide = 2 * kWidth<T>;
  const int64_t panel_bytes = kPlaces * a.channels * kWide * static_cast<int64_t>(sizeof(T));
  const int64_t panels = least(ceil_div(a.columns, kWide), panel_bytes < kSharedBytes ? kSharedBytes / (panel_bytes + 1) + 1 : 1);
  const auto anchor_bytes = static_cast<size_t>(a.anchor_count) * (sizeof(T*) + sizeof(T));
  T* memory = static_cast<T*>(shared_scratch(static_cast<size_t>(panels * panel_bytes) + anchor_bytes));
  const T** anchors = reinterpret_cast<const T**>(memory + panels * panel_bytes / static_cast<int64_t>(sizeof(T)));
  T* factors = reinterpret_cast<T*>(anchors + a.anchor_count);
  for (int64_t point = 0; point < a.points; ++point) {
    const int count = active_anchors(a.anchors, a.coefficients + point * a.anchor_count, a.anchor_count, anchors, factors);
    for (int64_t column = 0; column < a.columns; column += panels * kWide) {
      winograd_columns(a, Active<T>{anchors, factors, count}, point, column, least(column + panels * kWide, a.columns), memory);
    }
  }
}

}  // namespace mli::MLI_ISA
