// Compiled once per instruction set with MLI_ISA naming it: the table of kernels built for that set.
#include "blend.hpp"
#include "chain.hpp"
#include "combine.hpp"
#include "cross_entropy.hpp"
#include "product.hpp"
#include "winograd.hpp"

#define MLI_TEXT_(x) #x
#define MLI_TEXT(x) MLI_TEXT_(x)

namespace mli::MLI_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    MLI_TEXT(MLI_ISA), product<float>, product<double>, combine<float>,       combine<double>,
    blend<float>,      blend<double>,  cross_entropy<float>, cross_entropy<double>, winograd<float>,
    chain<float>,      chain<double>,
};

}  // namespace mli::MLI_ISA
