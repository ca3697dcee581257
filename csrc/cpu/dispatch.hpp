// Which instruction set's kernels are used.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace mli {

// The table in use: the widest set this processor has, unless MLI_FAST_ISA or select() names another.
const Kernels& kernels();

// The instruction sets that are compiled in and that this processor can run, widest last.
std::vector<std::string> usable_isas();

// Throws std::invalid_argument for a set that is not usable here.
void select(const std::string& name);

}  // namespace mli
