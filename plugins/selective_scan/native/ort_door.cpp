// The door for ONNX Runtime: `SessionOptions.register_custom_ops_library(path)` calls RegisterCustomOps, which adds the
// native operators of the domain msmamba to the session: those for the CPU, which run on the session's own threads,
// or the scan for the GPU where its kernels were offered to the calling thread. Never both: a session on CUDA would
// carry the maps to the CPU and back for those that it has no kernels for, whose functions run on the GPU.
#include <map>
#include <mutex>

#include "export.h"
#include "ort_gpu_scan.h"
#include "ort_support.h"

namespace msmamba::ort {
namespace {

// A domain with its operators, made once: it has to outlive every session that uses it.
Status* shared_domain(const Api& api, const Operators* sources, size_t count, CustomOpDomain** domain) {
  static std::mutex mutex;
  static std::map<const CustomOp*, CustomOpDomain*> shared;
  const std::lock_guard<std::mutex> lock(mutex);
  const CustomOp* first = sources[0].ops[0];
  if (shared.find(first) == shared.end()) {
    CustomOpDomain* fresh = nullptr;
    if (Status* failed = api.create_custom_op_domain("msmamba", &fresh)) return failed;
    for (size_t k = 0; k < count; ++k) {
      for (size_t i = 0; i < sources[k].count; ++i) {
        if (Status* failed = api.custom_op_domain_add(fresh, sources[k].ops[i])) return failed;
      }
    }
    shared[first] = fresh;
  }
  *domain = shared[first];
  return nullptr;
}

}  // namespace
}  // namespace msmamba::ort

// ONNX Runtime's entry into a library of custom operators.
MSMAMBA_EXPORT msmamba::ort::Status* RegisterCustomOps(msmamba::ort::SessionOptions* options,
                                                       const msmamba::ort::ApiBase* base) {
  using namespace msmamba::ort;
  const Api* api = base->get_api(kApiVersion);
  if (api == nullptr) {
    // Version 1 has the first slot, and every ONNX Runtime has version 1.
    return base->get_api(1)->create_status(kFail, "msmamba's scan needs ONNX Runtime 1.17 or later");
  }
  CustomOpDomain* domain = nullptr;
  const Operators for_gpu = offered_gpu_operators(*api);
  if (for_gpu.count != 0) {
    if (Status* failed = shared_domain(*api, &for_gpu, 1, &domain)) return failed;
  } else {
    const Operators for_cpu[] = {scan_operators(*api), block_operators(*api)};
    if (Status* failed = shared_domain(*api, for_cpu, 2, &domain)) return failed;
  }
  return api->add_custom_op_domain(options, domain);
}
