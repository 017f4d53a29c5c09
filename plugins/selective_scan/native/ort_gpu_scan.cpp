#include "ort_gpu_scan.h"

#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "../../hybrid_block/native/ort_gpu_block.h"
#include "export.h"
#include "gpu_scan.h"
#include "ort_scan_call.h"

namespace msmamba::ort {
namespace {

struct GpuScanOp : ScanOp {
  gpu::Package* package;
};

// A package with its operators, which live as long as the process: ONNX Runtime keeps pointers to them.
struct Offered {
  Offered(const gpu::Driver& driver, gpu::Block block) : package(driver, block) {}

  gpu::Package package;
  std::once_flag made;
  std::vector<std::shared_ptr<CustomOp>> held;
  std::vector<const CustomOp*> ops;
};

thread_local Offered* offered = nullptr;

// What one node holds between calls.
struct Kernel {
  const Api& api;
  msmamba::ElementType element;
  gpu::Package& package;
};

Status* compute(void* kernel_, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(kernel_);
  const Api& api = kernel.api;
  ScanCall call;
  if (Status* failed = call.read(api, context, kernel.element)) return failed;
  if (call.is_empty()) return nullptr;
  void* stream = nullptr;
  if (Status* failed = api.get_gpu_stream(context, &stream)) return failed;
  std::string failure;
  try {
    failure = gpu::scan(&kernel.package, call.shape, call.inputs, call.y, static_cast<gpu::Stream>(stream));
  } catch (const std::exception& error) {
    failure = error.what();  // out of memory
  }
  return failure.empty() ? nullptr : api.create_status(kFail, ("SelectiveScan2D: " + failure).c_str());
}

Status* create_kernel(const CustomOp* op_, const Api* api, const KernelInfo*, void** kernel) {
  const GpuScanOp& op = *static_cast<const GpuScanOp*>(op_);
  *kernel = new (std::nothrow) Kernel{*api, op.type(), *op.package};
  if (*kernel == nullptr) return api->create_status(kFail, "out of memory");
  op.package->enter();
  return nullptr;
}

void destroy_kernel(void* kernel_) {
  Kernel* kernel = static_cast<Kernel*>(kernel_);
  kernel->package.leave();
  delete kernel;
}

std::shared_ptr<CustomOp> gpu_op(const Api& api, ElementType element, gpu::Package* package) {
  auto op = std::make_shared<GpuScanOp>();
  static_cast<ScanOp&>(*op) = scan_op(api, element);
  op->package = package;
  op->get_execution_provider = [](const CustomOp*) { return "CUDAExecutionProvider"; };
  op->create_kernel_v2 = create_kernel;
  op->compute_v2 = compute;
  op->destroy_kernel = destroy_kernel;
  return op;
}

}  // namespace

Operators offered_gpu_operators(const Api& api) {
  Offered* taken = offered;
  offered = nullptr;
  if (taken == nullptr) return {nullptr, 0};
  std::call_once(taken->made, [&] {
    for (ElementType element : {kFloat, kFloat16}) {
      taken->held.push_back(gpu_op(api, element, &taken->package));
      for (auto& op : block_steps(element, &taken->package)) taken->held.push_back(std::move(op));
    }
    for (const auto& op : taken->held) taken->ops.push_back(op.get());
  });
  return {taken->ops.data(), taken->ops.size()};
}

}  // namespace msmamba::ort

// One kernel as ctypes hands it over: CompiledKernel of plugins/selective_scan/gpu_package.py.
struct MsmambaGpuKernel {
  int32_t element;  // msmamba::ElementType
  int32_t compute_capability;
  int64_t states;  // 0 of the block's
  const char* name;   // one of kKernelNames
  const char* entry;  // in the machine code
  const void* cubin;
  int64_t cubin_bytes;
  int32_t threads;
  int32_t shared_bytes;
  int32_t hidden_pointers;
};

// Keeps kernels for good, to be launched by a driver's functions; null where one of them cannot be launched.
MSMAMBA_EXPORT void* msmamba_gpu_package(const void* const* functions, int32_t function_count, int32_t block_channels,
                                         int32_t block_steps, int32_t count, const MsmambaGpuKernel* kernels) {
  using namespace msmamba::gpu;
  constexpr int kMostHidden = 4;
  if (function_count != kDriverFunctions) return nullptr;
  Driver driver;
  std::memcpy(&driver, functions, sizeof driver);
  try {
    auto made = std::make_unique<msmamba::ort::Offered>(driver, Block{block_channels, block_steps});
    for (int32_t i = 0; i < count; ++i) {
      const MsmambaGpuKernel& given = kernels[i];
      int name = 0;
      while (name < kKernels && std::string(kKernelNames[name]) != given.name) ++name;
      if (name == kKernels || (name >= kScanKernels) != (given.states == 0)) return nullptr;
      if (given.hidden_pointers < 0 || given.hidden_pointers > kMostHidden) return nullptr;
      made->package.add({static_cast<msmamba::ElementType>(given.element), given.states, given.compute_capability},
                        static_cast<KernelName>(name),
                        {given.entry, std::string(static_cast<const char*>(given.cubin), given.cubin_bytes),
                         static_cast<unsigned>(given.threads), static_cast<unsigned>(given.shared_bytes),
                         given.hidden_pointers});
    }
    return made.release();
  } catch (const std::exception&) {
    return nullptr;
  }
}

// Lets the next session options that this thread registers the library with have the package's operators, in the
// place of those for the CPU; null takes an offer back.
MSMAMBA_EXPORT void msmamba_gpu_offer(void* package) {
  msmamba::ort::offered = static_cast<msmamba::ort::Offered*>(package);
}
