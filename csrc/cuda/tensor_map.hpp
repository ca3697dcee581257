// Descriptions of tensors for TMA. The driver makes them; it is looked up when the first is asked for, not linked.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device.hpp"

namespace mli::cuda {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

inline EncodeTiled encoder() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
          "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)");
    if (result != cudaDriverEntryPointSuccess || function == nullptr) {
      throw std::runtime_error("this driver has no cuTensorMapEncodeTiled; CUDA 12.0 or newer is needed");
    }
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

// [planes, rows, columns] (two dimensions if planes is 0), read in boxes of box_rows by box_columns of 128 bytes, swizzled to match.
// What lies beyond the edge reads as 0.
inline CUtensorMap tensor_map(CUtensorMapDataType type, const void* start, int64_t columns, int64_t rows, int64_t planes, int64_t row_pitch,
                              int64_t plane_pitch, int box_columns, int box_rows) {
  const auto u64 = [](int64_t v) { return static_cast<cuuint64_t>(v); };
  const cuuint64_t sizes[3] = {u64(columns), u64(rows), u64(planes)};
  const cuuint64_t pitches[2] = {u64(row_pitch), u64(plane_pitch)};  // bytes
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult error =
      encoder()(&map, type, planes == 0 ? 2 : 3, const_cast<void*>(start), sizes, pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(error)));
  return map;
}

}  // namespace mli::cuda
