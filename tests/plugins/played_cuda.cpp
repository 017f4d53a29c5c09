// NVIDIA's driver played on the CPU, for whoever loads it by dlopen. Its memory is the host's, poisoned with NaN; its
// streams run at once; a stream's context is its handle without the last three hexadecimal digits.
//
// "Machine code" that begins with EMULATED names a kernel of the PTX emulator (tests/ptx), which a launch runs with all
// of the emulator's checks; any other is taken and launched without effect, and DAMAGED is refused.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Buffer {
  void* base;
  uint64_t size;
  int writable;
};
struct Module {
  std::string code;
};
using EmulatedLaunch = int (*)(const uint32_t*, uint32_t, uint32_t, void**, int, int, void**, const uint64_t*,
                               const int*, int, int, uint32_t, char*, int);

std::mutex mutex;
std::map<std::string, int> failing;
std::vector<Buffer> buffers;
std::map<uint64_t, uint64_t> allocated;
std::string log_text, problem;
int capability = 87, multiprocessors = 1, capturing = 0, order = 0, ulps = 0;
thread_local std::vector<uint64_t> contexts;

int answer(const char* call) {
  const std::lock_guard<std::mutex> lock(mutex);
  log_text += std::string(call) + "\n";
  const auto found = failing.find(call);
  return found == failing.end() ? 0 : found->second;
}

}  // namespace

extern "C" {

// What a test sets and asks.
void played_reset(int compute_capability, int multiprocessor_count) {
  capability = compute_capability, multiprocessors = multiprocessor_count, capturing = order = ulps = 0;
  failing.clear(), buffers.clear(), log_text.clear(), problem.clear();
}
void played_fail(const char* call, int status) { failing[call] = status; }
void played_capture(int status) { capturing = status; }
void played_order(int threads) { order = threads; }  // of ptx.emulator.ORDERS
void played_ulps(int off) { ulps = off; }            // of approximate functions
void played_buffer(void* base, uint64_t size, int writable) { buffers.push_back({base, size, writable}); }
int played_allocations() { return static_cast<int>(allocated.size()); }
const char* played_log() { return log_text.c_str(); }
const char* played_problem() { return problem.c_str(); }

// The driver.
int cuInit(unsigned) { return answer("cuInit"); }
int cuGetErrorName(int status, const char** name) {
  static const std::map<int, const char*> names = {{2, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                   {100, "CUDA_ERROR_NO_DEVICE"},
                                                   {200, "CUDA_ERROR_INVALID_IMAGE"},
                                                   {201, "CUDA_ERROR_INVALID_CONTEXT"},
                                                   {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
                                                   {719, "CUDA_ERROR_LAUNCH_FAILED"}};
  const auto found = names.find(status);
  if (found == names.end()) return 1;
  *name = found->second;
  return 0;
}
int cuStreamGetCtx(uint64_t stream, uint64_t* context) {
  *context = stream & ~uint64_t{0xFFF};
  return answer("cuStreamGetCtx");
}
int cuStreamIsCapturing(uint64_t, int* status) {
  *status = capturing;
  return answer("cuStreamIsCapturing");
}
int cuCtxPushCurrent_v2(uint64_t context) {
  const int status = answer("cuCtxPushCurrent");
  if (status == 0) contexts.push_back(context);
  return status;
}
int cuCtxPopCurrent_v2(uint64_t* context) {
  *context = contexts.back();
  contexts.pop_back();
  return answer("cuCtxPopCurrent");
}
int cuCtxGetDevice(int* device) {
  *device = static_cast<int>(contexts.back() >> 12);
  return answer("cuCtxGetDevice");
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : multiprocessors;
  return answer("cuDeviceGetAttribute");
}
int cuModuleLoadData(Module** module, const void* image) {
  const std::string code = static_cast<const char*>(image);
  if (code == "DAMAGED") return 200;
  *module = new Module{code};
  return answer("cuModuleLoadData");
}
int cuModuleGetFunction(Module** function, Module* module, const char*) {
  *function = module;
  return answer("cuModuleGetFunction");
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  if (const int status = answer("cuMemAlloc")) return status;
  log_text += "cuMemAlloc " + std::to_string(bytes) + "\n";
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xFF, bytes);
  *address = reinterpret_cast<uint64_t>(memory);
  allocated[*address] = bytes;
  return 0;
}
int cuMemFree_v2(uint64_t address) {
  if (allocated.erase(address) == 0) problem = "memory is freed that is none";
  std::free(reinterpret_cast<void*>(address));
  return answer("cuMemFree");
}
int cuLaunchKernel(Module* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned,
                   unsigned, unsigned shared_bytes, uint64_t stream, void** parameters, void**) {
  std::ostringstream call;
  call << "cuLaunchKernel " << grid_x << " " << grid_y << " " << grid_z << " x " << block_x;
  if (contexts.empty() || contexts.back() != (stream & ~uint64_t{0xFFF})) problem = "launched in another context";
  if (const int status = answer("cuLaunchKernel")) return status;
  log_text += call.str() + "\n";
  std::istringstream code(function->code);
  std::string kind, path;
  int count = 0;
  code >> kind >> count >> path;
  if (kind != "EMULATED") return 0;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    problem = dlerror();
    return 719;
  }
  std::vector<Buffer> all = buffers;
  for (const auto& [address, bytes] : allocated) all.push_back({reinterpret_cast<void*>(address), bytes, 1});
  std::vector<void*> bases;
  std::vector<uint64_t> sizes;
  std::vector<int> writable;
  for (const Buffer& buffer : all) {
    bases.push_back(buffer.base), sizes.push_back(buffer.size), writable.push_back(buffer.writable);
  }
  const uint32_t grid[] = {grid_x, grid_y, grid_z};
  char message[512] = "";
  const auto launch = reinterpret_cast<EmulatedLaunch>(dlsym(library, "launch"));
  if (launch(grid, block_x, shared_bytes, parameters, count, static_cast<int>(all.size()), bases.data(), sizes.data(),
             writable.data(), order, ulps, 1, message, sizeof message)) {
    problem = message;
    return 719;
  }
  return 0;
}

}  // extern "C"
