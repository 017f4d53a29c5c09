#include "gpu_driver.h"

#include <cstring>

namespace msmamba::gpu {
namespace {

// As in plugins/cuda_driver.py.
constexpr struct {
  const char* name;
  const char* remedy;
} kRemedies[] = {
    {"CUDA_ERROR_OUT_OF_MEMORY",
     "the GPU's memory is full: close what else uses it, or take smaller batches"},
    {"CUDA_ERROR_NO_BINARY_FOR_GPU", "the machine code is for another GPU: export the bundle again"},
    {"CUDA_ERROR_INVALID_IMAGE", "the machine code is damaged, or newer than the driver: update the driver"},
    {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the driver is older than the kernels: update it"},
};

}  // namespace

std::string Driver::failed(const std::string& call, Result result) const {
  const char* name = nullptr;
  if (get_error_name(result, &name) != 0 || name == nullptr) name = "an error without a name";
  std::string message = "CUDA driver call " + call + " failed: " + name;
  for (const auto& known : kRemedies) {
    if (std::strcmp(known.name, name) == 0) message += std::string(": ") + known.remedy;
  }
  return message;
}

}  // namespace msmamba::gpu
