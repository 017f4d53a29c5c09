// Kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
#define MSMAMBA_KERNELS kAvx2Kernels
#define MSMAMBA_KERNELS_NAME "avx2"
#define MSMAMBA_LANES 8
#include "kernels.h"
