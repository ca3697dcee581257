// What csrc/cuda/split.cu asks of csrc/cuda/ptx.cuh is in intrinsics.hpp.
#pragma once
