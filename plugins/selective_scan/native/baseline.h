// What the kernels that every machine of a platform runs are called, and their lanes: NEON has a name of its own, since
// these are its best; SSE2 is there for want of something better.
#pragma once

#if defined(__aarch64__)
#define MSMAMBA_KERNELS_NAME "neon"
#else
#define MSMAMBA_KERNELS_NAME "baseline"
#endif
#define MSMAMBA_LANES 4
