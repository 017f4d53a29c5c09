// Kernels for what every machine of the platform has: SSE2 on x86-64, NEON on aarch64.
#define MSMAMBA_KERNELS kBaselineKernels
#include "baseline.h"
#include "kernels.h"
