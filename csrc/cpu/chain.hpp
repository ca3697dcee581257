// A chain of blended linear layers in one call: blocks of rows pass through all layers in buffers of cache size, point after
// point. Threads pack the next point's weights while others still multiply with the last one's.
//
// Bit for bit what `combine` and `product` give layer by layer: the same blocks of K, the same order within them, the same
// epilogue. A block of K is passed over in shorter runs whose sums go on where the last run stopped, which changes no bit
// and keeps a run of a panel in the first-level cache.
#pragma once

#include "combine.hpp"
#include "product.hpp"

namespace mli::MLI_ISA {

constexpr int64_t kRun = 288;                      // k of one run, at most
constexpr int64_t kChainBytes = 400 * 1024;        // both buffers of one thread, where that leaves enough rows
constexpr int64_t kChainRows = 192;                // rows of a block, at most
constexpr int64_t kChainWork = 1 << 19;            // multiplications that are worth a thread of their own
constexpr int64_t kChainPad = 16;                  // elements between buffered rows, so that rows do not share cache sets

template <class T>
MLI_INLINE int64_t padded(int64_t columns) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  return ceil_div(columns, kWide) * kWide;
}

// A layer at one point.
template <class T>
MLI_INLINE ChainLayer at_point(ChainLayer layer, int64_t point) {
  const auto at = [&](const void* vectors) { return vectors == nullptr ? nullptr : static_cast<const T*>(vectors) + point * layer.columns; };
  layer.coefficients += point * layer.anchor_count;
  layer.scale = at(layer.scale), layer.shift = at(layer.shift);
  return layer;
}

// The packed weights of one layer at one point: block of K by block of K, each [panels][depth][2 vectors].
template <class T>
inline int64_t packed_elements(const ChainLayer& layer) {
  return padded<T>(layer.columns) * layer.depth;
}

// Walks over the layers' panels as one list: calls f(layer, elements before the layer, panel of the layer).
template <class T, class F>
MLI_INLINE void at_panel(const ChainArgs& a, int64_t panel, F&& f) {
  int64_t before = 0;
  for (int64_t i = 0; i < a.layer_count; ++i) {
    const int64_t panels = ceil_div(a.layers[i].columns, 2 * kWidth<T>);
    if (panel < panels) {
      f(a.layers[i], before, panel);
      return;
    }
    panel -= panels;
    before += packed_elements<T>(a.layers[i]);
  }
}

// Blends and packs one panel for all blocks of K.
template <class T>
MLI_NOINLINE bool pack_chain_panel(const ChainLayer& layer, T* weights, int64_t panel) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const T** anchors = static_cast<const T**>(thread_scratch(static_cast<size_t>(layer.anchor_count) * (sizeof(T*) + sizeof(T))));
  if (anchors == nullptr) return false;
  T* factors = reinterpret_cast<T*>(anchors + layer.anchor_count);
  const Active<T> active{anchors, factors,
                         active_anchors(layer.anchors, layer.coefficients, layer.anchor_count, anchors, factors)};
  const int64_t column = panel * kWide, width = layer.columns - column <= kWidth<T> ? kWidth<T> : kWide;
  const DepthBlocks blocks(1, layer.depth);
  for (DepthBlock b = blocks.first();; b = blocks.after(b)) {
    T* to = weights + padded<T>(layer.columns) * b.channel + column * b.depth();
    pack_panel(active, column, layer.columns, layer.depth, b.channel, b.depth(), to, width);
    if (blocks.is_last(b)) return true;
  }
}

// One run of a tile: sums start at `carry` unless it is the first run of its block, and go back there unless it is the last.
template <class T>
struct Run {
  const T* rows;  // first row's first k
  int64_t stride, length;
  const T* panel;
  T* carry;  // [MR][NV] vectors
  bool first, last;
};

template <class T, int MR, int NV>
MLI_NOINLINE void run_tile(const Run<T>& in, const TileOutput<T>& o) {
  constexpr int64_t W = kWidth<T>;
  Vec<T> sum[MR][NV];
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[i][j] = in.first ? Vec<T>{} : load(in.carry + (i * NV + j) * W);
  }
  const T* row[MR];
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) row[i] = in.rows + i * in.stride;
  const T* panel = in.panel;
  for (int64_t k = 0; k < in.length; ++k) {
    Vec<T> b[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) b[j] = load(panel + j * W);
    panel += NV * W;
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i) {
      const Vec<T> x = broadcast(row[i][k]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[i][j] = multiply_add(x, b[j], sum[i][j]);
    }
  }
  if (in.last) {
    write_tile<T, MR, NV>(sum, o);
    return;
  }
#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) store(in.carry + (i * NV + j) * W, sum[i][j]);
  }
}

template <class T, int MR, int NV>
MLI_INLINE void run_tile_up_to(int rows, const Run<T>& in, const TileOutput<T>& o) {
  if (rows == MR) {
    run_tile<T, MR, NV>(in, o);
  } else if constexpr (MR > 1) {
    run_tile_up_to<T, MR - 1, NV>(rows, in, o);
  }
}

// What a block of rows reads and writes in one layer.
template <class T>
struct Rows {
  const T* in;
  int64_t in_stride;
  T* out;
  int64_t out_stride, count;
  const T* residual;  // of the block's first row, rows as far apart as out's; or null
};

// All rows of a block times one panel over one block of K.
template <class T, int MR, int NV>
MLI_INLINE void multiply_panel(const ChainLayer& layer, const Rows<T>& r, const DepthBlock& b, bool last, int64_t column,
                               const T* panel, T* carry) {
  constexpr int64_t W = kWidth<T>;
  const auto at = [&](const void* base) { return base == nullptr ? nullptr : static_cast<const T*>(base) + column; };
  const int64_t depth = b.depth(), runs = depth == 0 ? 1 : ceil_div(depth, kRun), each = ceil_div(ceil_div(depth, runs), 8) * 8;
  for (int64_t k = 0, n = 0; n < runs; k += each, ++n) {
    for (int64_t i = 0; i < r.count; i += MR) {
      const Run<T> run{r.in + i * r.in_stride + b.channel + k, r.in_stride, least(each, depth - k), panel + k * NV * W,
                       carry + i * NV * W, n == 0, n == runs - 1};
      const TileOutput<T> o{r.out + i * r.out_stride + column, r.out_stride, layer.columns - column, b.channel == 0, last,
                            {at(layer.scale), at(layer.shift), r.residual == nullptr ? nullptr : at(r.residual + i * r.out_stride),
                             layer.activation == Activation::relu}};
      run_tile_up_to<T, MR, NV>(static_cast<int>(least(MR, r.count - i)), run, o);
    }
  }
}

template <class T>
MLI_NOINLINE void multiply_layer(const ChainLayer& layer, const T* weights, const Rows<T>& r, T* carry) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const DepthBlocks blocks(1, layer.depth);
  for (DepthBlock b = blocks.first();; b = blocks.after(b)) {
    const bool last = blocks.is_last(b);
    const T* panels = weights + padded<T>(layer.columns) * b.channel;
    for (int64_t column = 0; column < layer.columns; column += kWide) {
      const T* panel = panels + column * b.depth();
      if (layer.columns - column <= kWidth<T>) {
        multiply_panel<T, kNarrowRows, 1>(layer, r, b, last, column, panel, carry);
      } else {
        multiply_panel<T, kWideRows, 2>(layer, r, b, last, column, panel, carry);
      }
    }
    if (last) break;
  }
  for (int64_t i = 0; i < r.count; ++i) activate_row(layer.activation, r.out + i * r.out_stride, layer.columns);
}

// Rows of a block and the row lengths of the two buffers; the source's combination and even layers' inputs lie in the first.
struct ChainBuffers {
  int64_t rows, strides[2];
};

template <class T>
inline ChainBuffers chain_buffers(const ChainArgs& a) {
  ChainBuffers b{0, {kChainPad, kChainPad}};
  const auto grow = [&](int64_t stage, int64_t columns) {
    const int64_t stride = padded<T>(columns) + kChainPad;
    if (stride > b.strides[stage % 2]) b.strides[stage % 2] = stride;
  };
  if (a.x == nullptr) grow(0, a.source.columns);
  for (int64_t i = 0; i + 1 < a.layer_count; ++i) grow(i + 1, a.layers[i].columns);
  const int64_t fitting = kChainBytes / static_cast<int64_t>(sizeof(T)) / (b.strides[0] + b.strides[1]);
  const int64_t most = least(kChainRows, fitting) / kNarrowRows * kNarrowRows;
  const int64_t rows = most < 2 * kNarrowRows ? 2 * kNarrowRows : most, threads = a.threads < 1 ? 1 : a.threads;
  const int64_t parts = ceil_div(ceil_div(a.rows, rows), threads) * threads;  // as many blocks for every thread
  b.rows = ceil_div(ceil_div(a.rows, parts), kNarrowRows) * kNarrowRows;
  return b;
}

// The source's combination for rows [row, row + count) into a buffer.
template <class T>
MLI_INLINE void combine_block(const ChainLayer& source, const T* const* products, const T* factors, int active, int64_t row,
                              int64_t count, T* out, int64_t stride) {
  const RowEpilogue<T> e{static_cast<const T*>(source.scale), static_cast<const T*>(source.shift), nullptr,
                         source.activation == Activation::relu};
  for (int64_t i = 0; i < count; ++i, out += stride) {
    combine_one_row<T>(products, factors, active, (row + i) * source.columns, source.columns, e, source.activation, out);
  }
}

// Takes rows [row, row + count) of one point through all layers.
template <class T>
MLI_NOINLINE bool run_block(const ChainArgs& a, const ChainBuffers& b, const T* weights, int64_t point, int64_t row, int64_t count) {
  const int64_t carried = b.rows * 2 * kWidth<T>, sources = a.x == nullptr ? a.source.anchor_count : 0;
  const size_t bytes = static_cast<size_t>(b.rows * (b.strides[0] + b.strides[1]) + carried + sources) * sizeof(T) +
                       static_cast<size_t>(sources) * sizeof(T*);
  char* memory = static_cast<char*>(thread_scratch(bytes));
  if (memory == nullptr) return false;
  T* carry = reinterpret_cast<T*>(memory);
  T* buffers[2] = {carry + carried, carry + carried + b.rows * b.strides[0]};
  int64_t in_stride = a.layers[0].depth;
  const T* in = static_cast<const T*>(a.x) + (a.x == nullptr ? 0 : (point * a.rows + row) * in_stride);
  if (a.x == nullptr) {
    const ChainLayer source = at_point<T>(a.source, point);
    const T** products = reinterpret_cast<const T**>(buffers[1] + b.rows * b.strides[1]);
    T* factors = reinterpret_cast<T*>(products + sources);
    const int active = active_anchors(source.anchors, source.coefficients, sources, products, factors);
    combine_block(source, products, factors, active, row, count, buffers[0], b.strides[0]);
    in = buffers[0], in_stride = b.strides[0];
  }
  for (int64_t i = 0; i < a.layer_count; ++i) {
    const ChainLayer layer = at_point<T>(a.layers[i], point);
    const bool last = i + 1 == a.layer_count;
    const int64_t to = (i + 1) % 2, offset = (point * a.rows + row) * layer.columns;
    T* out = last ? static_cast<T*>(a.out) + offset : buffers[to];
    const T* residual = last && a.residual != nullptr ? static_cast<const T*>(a.residual) + offset : nullptr;
    const Rows<T> rows{in, in_stride, out, last ? layer.columns : b.strides[to], count, residual};
    multiply_layer(layer, weights, rows, carry);
    weights += packed_elements<T>(layer);
    in = out, in_stride = rows.out_stride;
  }
  return true;
}

// What the threads of one call share. Items are claimed in one order: point by point its panels, then its blocks of rows. A
// block waits for the panels of its point, a panel for the blocks that still read its place in memory; both were claimed
// before, so whoever waits, waits for somebody at work. Counters only grow, whatever the number of points.
struct ChainProgress {
  int64_t panels, blocks, next = 0;
  int64_t packed[2] = {0, 0}, finished[2] = {0, 0};  // panels and blocks of the even and of the odd points
  bool failed = false;
};

MLI_INLINE void count_up(int64_t& counter) { __atomic_fetch_add(&counter, 1, __ATOMIC_RELEASE); }

MLI_INLINE void wait_for(int64_t& counter, int64_t least) {
  for (int tries = 0; __atomic_load_n(&counter, __ATOMIC_ACQUIRE) < least; ++tries) pause_thread(tries);
}

// One thread's share.
template <class T>
MLI_NOINLINE bool work_on_chain(const ChainArgs& a, const ChainBuffers& buffers, T* memory, int64_t elements, ChainProgress& p) {
  const int64_t each = p.panels + p.blocks;
  for (int64_t item; (item = __atomic_fetch_add(&p.next, 1, __ATOMIC_RELAXED)) < a.points * each;) {
    const int64_t point = item / each, panel = item % each, block = panel - p.panels, slot = point % 2, before = point / 2;
    T* weights = memory + slot * elements;
    bool done = true;
    if (block < 0) {
      wait_for(p.finished[slot], before * p.blocks);
      at_panel<T>(a, panel, [&](const ChainLayer& layer, int64_t start, int64_t of_layer) {
        done = pack_chain_panel(at_point<T>(layer, point), weights + start, of_layer);
      });
    } else {
      wait_for(p.packed[slot], (before + 1) * p.panels);
      const int64_t row = block * buffers.rows;
      done = !__atomic_load_n(&p.failed, __ATOMIC_RELAXED) &&
             run_block(a, buffers, weights, point, row, least(buffers.rows, a.rows - row));
    }
    if (!done) __atomic_store_n(&p.failed, true, __ATOMIC_RELAXED);
    count_up(block < 0 ? p.packed[slot] : p.finished[slot]);
  }
  return !__atomic_load_n(&p.failed, __ATOMIC_RELAXED);
}

template <class T>
void chain(const ChainArgs& given) {
  ChainArgs a = given;
  if (a.points == 0 || a.rows == 0 || a.layer_count == 0 || a.layers[a.layer_count - 1].columns == 0) return;
  ChainProgress progress{};
  int64_t elements = 0, work = a.x == nullptr ? a.rows * a.source.columns * a.source.anchor_count : 0;
  for (int64_t i = 0; i < a.layer_count; ++i) {
    const int64_t weights = packed_elements<T>(a.layers[i]);
    elements += weights;
    work += weights * (a.rows + a.layers[i].anchor_count);
    progress.panels += ceil_div(a.layers[i].columns, 2 * kWidth<T>);
  }
  elements = ceil_div(elements + 1, 16) * 16;  // both points' weights start on a cache line
  a.threads = static_cast<int>(least(a.threads, a.points * work / kChainWork + 1));
  const ChainBuffers buffers = chain_buffers<T>(a);
  progress.blocks = ceil_div(a.rows, buffers.rows);
  T* weights = static_cast<T*>(shared_scratch(static_cast<size_t>(least(a.points, 2) * elements) * sizeof(T)));
  const int64_t threads = a.threads < 1 ? 1 : a.threads;
  parallel_for(threads, a.threads, [&](int64_t) -> bool { return work_on_chain(a, buffers, weights, elements, progress); });
}

}  // namespace mli::MLI_ISA
