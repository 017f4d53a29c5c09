// The block's int8 kernels for x86-64 with AVX2 and AVX-VNNI (Alder Lake and later, which have no AVX-512). All others are
// AVX2's.
#include "../../selective_scan/native/processor.h"

#if defined(MSMAMBA_HAS_DOT_PRODUCTS)
#define MSMAMBA_DOT_PRODUCTS
#define MSMAMBA_LANES 8
#include "operator_tables.h"

namespace msmamba {

extern const Int8Kernels kDotProductInt8Kernels;
const Int8Kernels kDotProductInt8Kernels = int8_kernels();

}  // namespace msmamba
#endif
