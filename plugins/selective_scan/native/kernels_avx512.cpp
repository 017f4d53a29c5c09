// Kernels for x86-64 with AVX-512 F, VL, BW and DQ (Skylake-X, Zen 4 and later).
#define MSMAMBA_KERNELS kAvx512Kernels
#define MSMAMBA_KERNELS_NAME "avx512"
#define MSMAMBA_LANES 16
#include "kernels.h"
