// Adds the submodule `cuda` to the compiled module.
#pragma once

#include <pybind11/pybind11.h>

namespace mli::cuda {

void bind(pybind11::module_& parent);

}  // namespace mli::cuda
