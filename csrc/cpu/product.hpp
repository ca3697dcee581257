// out[p] = epilogue(x[p] W(p)^T), W(p) a blend of anchors: an indirect GEMM for linear layers and convolutions alike.
//
// Inputs are not packed: a tile reads its rows through pointers (a tap's pixel, or zeros where there is padding). Weights are
// blended while they are packed into panels that stay in the second-level cache. Blocks of K depend on (taps, channels)
// only, so a row's sum is formed in the same order whatever the call's other sizes are.
#pragma once

#include "micro.hpp"
#include "pack.hpp"
#include "parallel.hpp"

namespace mli::MLI_ISA {

constexpr int64_t kDepth = 576;                 // K of one block, at most; measured
constexpr int64_t kPanelBytes = 384 * 1024;     // packed weights of one thread, at most (one panel apart)
constexpr int64_t kGatherBelow = 16;            // fewer channels than this: rows are copied together (im2col of one chunk)

// Zeros for padded taps; as long as the longest run of channels.
template <class T>
inline constexpr T kZeros[kDepth] = {};

MLI_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MLI_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One block of K: taps [tap, tap + taps) and channels [channel, channel + channels) of each.
struct DepthBlock {
  int64_t tap, taps, channel, channels;
  int64_t depth() const { return taps * channels; }
};

// The blocks of K in order: several taps at once where channels are few, parts of a tap where they are many.
struct DepthBlocks {
  int64_t taps, channels, taps_each, channels_each;

  DepthBlocks(int64_t taps_, int64_t channels_) : taps(taps_), channels(channels_) {
    const int64_t parts = ceil_div(channels, kDepth);
    channels_each = parts <= 1 ? channels : (ceil_div(channels, parts) + 7) / 8 * 8;
    const int64_t most = parts <= 1 && channels > 0 ? kDepth / channels : 1;
    taps_each = ceil_div(taps, ceil_div(taps, most < 1 ? 1 : most));
  }
  int64_t depth() const { return taps_each * channels_each; }
  DepthBlock first() const { return at(0, 0); }
  DepthBlock at(int64_t tap, int64_t channel) const {
    return {tap, least(taps_each, taps - tap), channel, least(channels_each, channels - channel)};
  }
  bool is_last(const DepthBlock& b) const { return b.channel + b.channels >= channels && b.tap + b.taps >= taps; }
  DepthBlock after(const DepthBlock& b) const {
    return b.channel + b.channels < channels ? at(b.tap, b.channel + b.channels) : at(b.tap + b.taps, 0);
  }
};

// Where a chunk's rows lie for one block of K.
template <class T>
struct RowTable {
  const T** rows;  // [segments][kChunkRows]
  T* gathered;     // [kChunkRows][depth], or null when tiles read x itself
  int64_t segments, length;
};

template <class T>
MLI_INLINE void point_rows(const ProductArgs& a, const T* x, int64_t row, int64_t count, const DepthBlock& b, RowTable<T>& table) {
  const int64_t depth = a.taps * a.channels;
  table.segments = b.taps;
  table.length = b.channels;
  if (a.offsets == nullptr) {
    for (int64_t i = 0; i < count; ++i) table.rows[i] = x + (row + i) * depth + b.channel;
    return;
  }
  int64_t image = row / a.pixels, pixel = row % a.pixels;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* offsets = a.offsets + pixel * a.taps + b.tap;
    const T* base = x + image * a.image_stride + b.channel;
    for (int64_t s = 0; s < b.taps; ++s) table.rows[s * kChunkRows + i] = offsets[s] < 0 ? kZeros<T> : base + offsets[s];
    if (++pixel == a.pixels) pixel = 0, ++image;
  }
}

// Many short runs per row would spend the tile's time on pointers: copy each row's runs together first.
template <class T>
inline void gather_rows(int64_t count, RowTable<T>& table) {
  const int64_t depth = table.segments * table.length;
  for (int64_t i = 0; i < count; ++i) {
    T* to = table.gathered + i * depth;
    for (int64_t s = 0; s < table.segments; ++s) {
      const T* from = table.rows[s * kChunkRows + i];
      for (int64_t k = 0; k < table.length; ++k) *to++ = from[k];
    }
  }
  for (int64_t i = 0; i < count; ++i) table.rows[i] = table.gathered + i * depth;
  table.segments = 1;
  table.length = depth;
}

template <class T>
struct Task {
  const ProductArgs& args;
  int64_t point, row0, row1, column0, column1;
};

// All rows of a chunk against all packed panels of a group.
template <class T>
MLI_INLINE void multiply_chunk(const Task<T>& task, int64_t row, int64_t count, const DepthBlock& b, bool last, int64_t column0,
                               int64_t column1, const T* panels, const RowTable<T>& table) {
  constexpr int kWide = 2 * kWidth<T>;
  const ProductArgs& a = task.args;
  T* out = static_cast<T*>(a.out) + (task.point * a.rows + row) * a.columns;
  const bool first = b.tap == 0 && b.channel == 0;
  for (int64_t column = column0; column < column1; column += kWide) {
    const bool narrow = a.columns - column <= kWidth<T>;
    const int tile = narrow ? kNarrowRows : kWideRows;
    for (int64_t i = 0; i < count; i += tile) {
      const int rows = static_cast<int>(least(tile, count - i));
      const TileInput<T> in{table.rows + i, table.segments, table.length, panels + (column - column0) * b.depth()};
      const TileOutput<T> o{out + i * a.columns + column, a.columns, a.columns - column, first, last,
                            row_epilogue<T>(a.epilogue, task.point, row + i, a.columns, column)};
      narrow ? micro_up_to<T, kNarrowRows, 1>(rows, in, o) : micro_up_to<T, kWideRows, 2>(rows, in, o);
    }
  }
}

// Activations other than ReLU, while the chunk is still in cache.
template <class T>
MLI_INLINE void activate_chunk(const Task<T>& task, int64_t row, int64_t count, int64_t column0, int64_t column1) {
  const ProductArgs& a = task.args;
  if (a.epilogue.activation == Activation::none || a.epilogue.activation == Activation::relu) return;
  T* out = static_cast<T*>(a.out) + (task.point * a.rows + row) * a.columns + column0;
  for (int64_t i = 0; i < count; ++i) activate_row(a.epilogue.activation, out + i * a.columns, column1 - column0);
}

template <class T>
inline size_t scratch_bytes(const DepthBlocks& blocks, int64_t group) {
  const size_t panels = static_cast<size_t>(blocks.depth() * group) * sizeof(T);
  const size_t pointers = static_cast<size_t>(blocks.taps_each * kChunkRows) * sizeof(T*);
  const size_t gathered = static_cast<size_t>(blocks.depth() * kChunkRows) * sizeof(T);
  return panels + pointers + gathered + 256;
}

template <class T>
MLI_NOINLINE bool run_task(const Task<T>& task) {
  constexpr int64_t kWide = 2 * kWidth<T>;
  const ProductArgs& a = task.args;
  const DepthBlocks blocks(a.taps, a.channels);
  int64_t group = kPanelBytes / static_cast<int64_t>(sizeof(T)) / (blocks.depth() > 0 ? blocks.depth() : 1) / kWide * kWide;
  group = least(group < kWide ? kWide : group, ceil_div(task.column1 - task.column0, kWide) * kWide);
  const size_t anchor_bytes = static_cast<size_t>(a.anchor_count) * (sizeof(T*) + sizeof(T));
  char* memory = static_cast<char*>(thread_scratch(scratch_bytes<T>(blocks, group) + anchor_bytes));
  if (memory == nullptr) return false;
  T* panels = reinterpret_cast<T*>(memory);
  RowTable<T> table{};
  table.gathered = panels + (blocks.depth() * group + 15) / 16 * 16;
  table.rows = reinterpret_cast<const T**>(table.gathered + (blocks.depth() * kChunkRows + 15) / 16 * 16);
  const T** anchors = table.rows + blocks.taps_each * kChunkRows;
  T* factors = reinterpret_cast<T*>(anchors + a.anchor_count);
  const Active<T> active{anchors, factors,
                         active_anchors(a.anchors, a.coefficients + task.point * a.anchor_count, a.anchor_count, anchors, factors)};
  const T* x = static_cast<const T*>(a.x) + task.point * a.x_point_stride;
  const bool gather = a.offsets != nullptr && a.channels < kGatherBelow;

  for (int64_t column = task.column0; column < task.column1; column += group) {
    const int64_t end = least(column + group, task.column1);
    for (DepthBlock b = blocks.first();; b = blocks.after(b)) {
      const bool last = blocks.is_last(b);
      for (int64_t j = column; j < end; j += kWide) {
        const int64_t width = a.columns - j <= kWidth<T> ? kWidth<T> : kWide;
        pack_panel(active, j, a.columns, a.taps * a.channels, b.tap * a.channels + b.channel, b.depth(),
                   panels + (j - column) * b.depth(), width);
      }
      for (int64_t row = task.row0; row < task.row1; row += kChunkRows) {
        const int64_t count = least(kChunkRows, task.row1 - row);
        point_rows(a, x, row, count, b, table);
        if (gather) gather_rows(count, table);
        multiply_chunk(task, row, count, b, last, column, end, panels, table);
        if (last) activate_chunk(task, row, count, column, end);
      }
      if (last) break;
    }
  }
  return true;
}

// How the work is cut: `row_parts` ranges of rows times `column_parts` ranges of the (point, panel) pairs.
struct Cut {
  int64_t row_parts, column_parts;
};

// Rough cost of the busiest thread in register operations; exact enough to compare cuts.
template <class T>
inline Cut choose_cut(const ProductArgs& a) {
  const int64_t panels = ceil_div(a.columns, 2 * kWidth<T>), units = a.points * panels, threads = a.threads < 1 ? 1 : a.threads;
  Cut best{1, 1};
  double least_cost = -1;
  for (int64_t row_parts = 1; row_parts <= threads; ++row_parts) {
    const int64_t column_parts = least(threads / row_parts, units);
    const double rows = static_cast<double>(ceil_div(ceil_div(a.rows, row_parts), kWideRows)) * kWideRows;
    const double packing = 1.5 * static_cast<double>(a.anchor_count + 1);
    const double cost = static_cast<double>(ceil_div(units, column_parts)) * (rows + packing);
    if (least_cost < 0 || cost < least_cost * 0.98) best = {row_parts, column_parts}, least_cost = cost;
  }
  return best;
}

template <class T>
void product(const ProductArgs& a) {
  if (a.points == 0 || a.rows == 0 || a.columns == 0) return;
  constexpr int64_t kWide = 2 * kWidth<T>;
  const Cut cut = choose_cut<T>(a);
  const int64_t panels = ceil_div(a.columns, kWide), units = a.points * panels;
  const int64_t rows_each = ceil_div(ceil_div(a.rows, cut.row_parts), kNarrowRows) * kNarrowRows;
  parallel_for(cut.row_parts * cut.column_parts, a.threads, [&](int64_t part) -> bool {
    const int64_t row0 = part % cut.row_parts * rows_each, row1 = least(row0 + rows_each, a.rows);
    const int64_t index = part / cut.row_parts;
    int64_t unit = units * index / cut.column_parts;
    const int64_t end = units * (index + 1) / cut.column_parts;
    while (unit < end && row0 < row1) {
      const int64_t point = unit / panels, panel = unit % panels, next = least(end, (point + 1) * panels);
      const Task<T> task{a, point, row0, row1, panel * kWide, least((panel + next - unit) * kWide, a.columns)};
      if (!run_task(task)) return false;
      unit = next;
    }
    return true;
  });
}

}  // namespace mli::MLI_ISA
