// The resize's kernels for what every machine of the platform has: SSE2 on x86-64, NEON on aarch64.
#define MSMAMBA_RESIZE_KERNELS kBaselineResizeKernels
#include "../../selective_scan/native/baseline.h"
#include "resize_kernels.h"
