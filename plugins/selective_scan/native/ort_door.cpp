// The door for ONNX Runtime: `SessionOptions.register_custom_ops_library(path)` calls RegisterCustomOps, which adds the
// native operators of the domain msmamba to the session. They run on the session's own threads.
#include <mutex>

#include "export.h"
#include "ort_support.h"

namespace msmamba::ort {
namespace {

// The domain with its operators, made once: it has to outlive every session that uses it.
Status* shared_domain(const Api& api, CustomOpDomain** domain) {
  static std::mutex mutex;
  static CustomOpDomain* shared = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (shared == nullptr) {
    CustomOpDomain* fresh = nullptr;
    if (Status* failed = api.create_custom_op_domain("msmamba", &fresh)) return failed;
    for (const Operators& source : {scan_operators(api), block_operators(api)}) {
      for (size_t i = 0; i < source.count; ++i) {
        if (Status* failed = api.custom_op_domain_add(fresh, source.ops[i])) return failed;
      }
    }
    shared = fresh;
  }
  *domain = shared;
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
  if (Status* failed = shared_domain(*api, &domain)) return failed;
  return api->add_custom_op_domain(options, domain);
}
