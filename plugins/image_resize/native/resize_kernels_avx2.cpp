// The resize's kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
#define MSMAMBA_RESIZE_KERNELS kAvx2ResizeKernels
#define MSMAMBA_KERNELS_NAME "avx2"
#define MSMAMBA_LANES 8
#include "resize_kernels.h"
