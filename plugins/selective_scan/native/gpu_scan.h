// The scan by compiled GPU kernels: its launches, which are plugins/selective_scan/gpu_launch.py's arithmetic once
// more.
#pragma once

#include "gpu_package.h"

namespace msmamba::gpu {

// Enqueues the scan, y (batch, H, W, D), on a stream. Returns what went wrong, or nothing.
std::string scan(Package* package, const ScanShape& shape, const ScanInputs& inputs, void* y, Stream stream);

}  // namespace msmamba::gpu
