// What operators behind the door for ONNX Runtime have in common: reading inputs, saying what is wrong with them,
// and running on ONNX Runtime's threads.
#pragma once

#include "ort_abi.h"
#include "scan.h"

namespace msmamba::ort {

// One input tensor: its memory and dimensions.
struct Input {
  static constexpr size_t kMostDimensions = 5;
  void* data = nullptr;
  size_t rank = 0;
  int64_t dimensions[kMostDimensions] = {};  // left zero where the rank is larger

  // Returns null, or a failure of ONNX Runtime's own.
  Status* read(const Api& api, const KernelContext* context, size_t index);
  Status* read(const Api& api, const Value* value);

  const float* floats() const { return static_cast<const float*>(data); }
};

// The dimensions that an input must have.
struct Expected {
  const char* name;
  const int64_t* dimensions;
  size_t rank;
};

// Null if the input has the dimensions expected, otherwise a failure that names both.
Status* check_dimensions(const Api& api, const char* op, const Input& found, const Expected& expected);

// The threads of the session that a kernel runs in. Must outlive the `Parallel` made from it.
class SessionThreads {
 public:
  SessionThreads(const Api& api, const KernelContext* context) : api_(api), context_(context) {}

  Parallel parallel();

  // Why ONNX Runtime did not run what it was given, or null.
  Status* failure() const { return failure_; }

 private:
  static void run(void* self, int width, void (*body)(void*), void* data);

  const Api& api_;
  const KernelContext* context_;
  Status* failure_ = nullptr;
};

// Gives output 0 the element type's shape of input 0, as far as it is known.
Status* infer_like_first_input(const Api& api, ShapeInferContext* context);

// What every operator of ours says of itself: that its inputs and outputs are all there, where its provider works, and
// that it is of any version.
void set_what_all_share(CustomOp* op);

// How many entries a table has before the one without a name that ends it.
template <typename Spec>
constexpr size_t count(const Spec* named) {
  size_t n = 0;
  while (named[n].name != nullptr) ++n;
  return n;
}

// The operators of one source: pointers that stay valid for good.
struct Operators {
  const CustomOp* const* ops;
  size_t count;
};

Operators scan_operators(const Api& api);   // ort_scan.cpp
Operators block_operators(const Api& api);  // hybrid_block/native/ort_block.cpp

}  // namespace msmamba::ort
