// The block's kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
#define MSMAMBA_BLOCK_KERNELS kAvx2BlockKernels
#define MSMAMBA_KERNELS_NAME "avx2"
#define MSMAMBA_LANES 8
#include "kernels.h"
