// The block's kernels for what every machine of the platform has: SSE2 on x86-64, NEON on aarch64.
#define MSMAMBA_BLOCK_KERNELS kBaselineBlockKernels
#include "../../selective_scan/native/baseline.h"
#include "kernels.h"
