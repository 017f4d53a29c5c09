// The custom operator msmamba::SelectiveScan2D, whatever executes it: inputs and output of the contract
// (plugins/selective_scan/__init__.py), float32 or float16. Shapes are checked on every call, since a model file may
// say anything.
#pragma once

#include "ort_support.h"

namespace msmamba::ort {

// The operator for one element type of x, delta, B, C and y; A, D and delta_bias are float32 for both.
struct ScanOp : CustomOp {
  ElementType element;
  const Api* api;

  msmamba::ElementType type() const {
    return element == kFloat16 ? msmamba::ElementType::kFloat16 : msmamba::ElementType::kFloat32;
  }
};

// All of the operator but its provider and its kernel.
ScanOp scan_op(const Api& api, ElementType element);

// What one call of the operator computes.
struct ScanCall {
  ScanShape shape = {};
  ScanInputs inputs = {};
  void* y = nullptr;

  // Reads and checks the inputs, and makes the output. Returns null, or what is wrong.
  Status* read(const Api& api, KernelContext* context, msmamba::ElementType element);

  // Whether there is nothing to compute.
  bool is_empty() const { return shape.batch == 0; }
};

}  // namespace msmamba::ort
