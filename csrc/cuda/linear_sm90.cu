// The blended linear kernels of one kind and one number of anchors: MLI_KIND and MLI_ANCHORS are set by the build.
#include "linear_sm90.cuh"

namespace mli::cuda {

#define MLI_NAME_OF(kind, anchors) linear_kernels_##kind##_##anchors
#define MLI_NAME(kind, anchors) MLI_NAME_OF(kind, anchors)

const LinearKernel* MLI_NAME(MLI_KIND, MLI_ANCHORS)(int* count) {
  constexpr Kind kind = Kind::MLI_KIND;
  if constexpr (kind == Kind::split) {  // room for sums of sums: half the columns
    static const LinearKernel kernels[] = {{128, 1, &linear::launch<kind, MLI_ANCHORS, 128, 1>},
                                           {64, 2, &linear::launch<kind, MLI_ANCHORS, 64, 2>},
                                           {16, 8, &linear::launch<kind, MLI_ANCHORS, 16, 8>}};
    *count = 3;
    return kernels;
  } else {
    static const LinearKernel kernels[] = {{256, 1, &linear::launch<kind, MLI_ANCHORS, 256, 1>},
                                           {128, 2, &linear::launch<kind, MLI_ANCHORS, 128, 2>},
                                           {64, 4, &linear::launch<kind, MLI_ANCHORS, 64, 4>},
                                           {16, 16, &linear::launch<kind, MLI_ANCHORS, 16, 16>}};
    *count = 4;
    return kernels;
  }
}

}  // namespace mli::cuda
