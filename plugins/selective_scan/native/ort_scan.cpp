// The custom operator msmamba::SelectiveScan2D on the CPU.
#include <new>

#include "ort_scan_call.h"

namespace msmamba::ort {
namespace {

// What one node holds between calls.
struct Kernel {
  const Api& api;
  msmamba::ElementType element;
};

Status* compute(void* kernel_, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(kernel_);
  const Api& api = kernel.api;
  ScanCall call;
  if (Status* failed = call.read(api, context, kernel.element)) return failed;
  if (call.is_empty()) return nullptr;
  SessionThreads threads(api, context);
  const char* failure = forward_scan(call.shape, call.inputs, call.y, threads.parallel());
  if (threads.failure() != nullptr) return threads.failure();
  return failure == nullptr ? nullptr : api.create_status(kFail, failure);
}

Status* create_kernel(const CustomOp* op, const Api* api, const KernelInfo*, void** kernel) {
  *kernel = new (std::nothrow) Kernel{*api, static_cast<const ScanOp*>(op)->type()};
  return *kernel == nullptr ? api->create_status(kFail, "out of memory") : nullptr;
}

ScanOp cpu_op(const Api& api, ElementType element) {
  ScanOp op = scan_op(api, element);
  op.get_execution_provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.create_kernel_v2 = create_kernel;
  op.compute_v2 = compute;
  op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

Operators scan_operators(const Api& api) {
  static const ScanOp single = cpu_op(api, kFloat);
  static const ScanOp half = cpu_op(api, kFloat16);
  static const CustomOp* const ops[] = {&single, &half};
  return {ops, sizeof ops / sizeof *ops};
}

}  // namespace msmamba::ort
