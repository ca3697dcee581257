// A thread's place in the emulated machine, and where it meets others: read before anything else.
#pragma once

#include "intrinsics.hpp"
#include "machine.hpp"

struct Index {
  unsigned x;
};
#define threadIdx (Index{static_cast<unsigned>(machine::self().index)})
#define blockIdx (Index{static_cast<unsigned>(machine::cluster->first_block + machine::self().block)})
#define gridDim (Index{static_cast<unsigned>(machine::cluster->grid)})
#define __syncwarp() machine::meet(machine::block().warps[machine::self().index / 32], 32)
#define __syncthreads() machine::meet(machine::block().meetings[0], machine::block_size)
