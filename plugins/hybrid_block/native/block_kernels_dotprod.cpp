// The block's int8 kernels for ARM64 with the dot products of ARMv8.2 (Cortex-A76 and later, Apple's since the A13). All
// others are the baseline's.
#define MSMAMBA_DOT_PRODUCTS
#include "../../selective_scan/native/baseline.h"
#include "operator_tables.h"

namespace msmamba {

extern const Int8Kernels kDotProductInt8Kernels;
const Int8Kernels kDotProductInt8Kernels = int8_kernels();

}  // namespace msmamba
