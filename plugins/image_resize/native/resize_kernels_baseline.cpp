// The resize's kernels for what every machine of the platform has: SSE2 on x86-64, NEON on aarch64.
#define MSMAMBA_RESIZE_KERNELS kBaselineResizeKernels
#define MSMAMBA_KERNELS_NAME "baseline"
#define MSMAMBA_LANES 4
#include "resize_kernels.h"
