// The block's kernels for x86-64 with AVX-512 F, VL, BW and DQ (Skylake-X, Zen 4 and later).
#define MSMAMBA_BLOCK_KERNELS kAvx512BlockKernels
#define MSMAMBA_KERNELS_NAME "avx512"
#define MSMAMBA_LANES 16
#include "kernels.h"
