// The resize's kernels for x86-64 with AVX-512 F, VL, BW and DQ (Skylake-X, Zen 4 and later).
#define MSMAMBA_RESIZE_KERNELS kAvx512ResizeKernels
#define MSMAMBA_KERNELS_NAME "avx512"
#define MSMAMBA_LANES 16
#include "resize_kernels.h"
