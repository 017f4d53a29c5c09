#include "gpu_package.h"

#include <cstring>
#include <set>
#include <tuple>

namespace msmamba::gpu {
namespace {

constexpr size_t kMostArguments = 24;

std::string dotted(int compute_capability) {
  return std::to_string(compute_capability / 10) + "." + std::to_string(compute_capability % 10);
}

const char* element_name(ElementType element) { return element == ElementType::kFloat16 ? "float16" : "float32"; }

// Leaves the thread with the context that it had.
class Entered {
 public:
  Entered(const Driver& driver, Context context) : driver_(driver), failed_(driver.push_context(context)) {}
  ~Entered() {
    Context before;
    if (failed_ == 0) driver_.pop_context(&before);
  }
  Result failed() const { return failed_; }

 private:
  const Driver& driver_;
  const Result failed_;
};

}  // namespace

bool Kind::operator<(const Kind& other) const {
  return std::tie(element, states, compute_capability) <
         std::tie(other.element, other.states, other.compute_capability);
}

Launch::Launch(KernelName kernel, std::initializer_list<int64_t> grid, std::vector<Pointer> pointers,
               const std::vector<int64_t>& scalars)
    : kernel(kernel), grid{1, 1, 1}, pointers(std::move(pointers)) {
  size_t axis = 0;
  for (int64_t blocks : grid) this->grid[axis++] = static_cast<unsigned>(blocks);
  for (int64_t scalar : scalars) this->scalars.push_back(static_cast<int32_t>(scalar));
}

bool Package::has(ElementType element, KernelName name) const {
  for (const auto& [kind, kernels] : kernels_) {
    if (kind.element == element && kernels.count(name) != 0) return true;
  }
  return false;
}

std::string Package::known_capabilities() const {
  std::set<int> found;
  for (const auto& [kind, kernels] : kernels_) found.insert(kind.compute_capability);
  std::string text;
  for (int capability : found) text += (text.empty() ? "" : ", ") + dotted(capability);
  return text;
}

std::string Package::load(const Kind& kind, OnContext* on) {
  const auto found = kernels_.find(kind);
  if (found == kernels_.end()) {
    const std::string whose = kind.states == 0 ? "block" : "scan";
    const std::string with = kind.states == 0 ? "" : " with " + std::to_string(kind.states) + " states";
    return "no " + whose + " kernels for " + element_name(kind.element) + with + " on compute capability " +
           dotted(kind.compute_capability) + "; there are some for " + known_capabilities() +
           ": export the bundle again, where Triton is installed";
  }
  std::map<KernelName, Loaded> functions;
  for (const auto& [name, kernel] : found->second) {
    Module module = nullptr;  // stays loaded, as the context does
    if (const Result result = driver_.load_module(&module, kernel.cubin.data())) {
      return driver_.failed("cuModuleLoadData (where the driver is older than the kernels, update it)", result);
    }
    Function function = nullptr;
    if (const Result result = driver_.get_function(&function, module, kernel.entry.c_str())) {
      return driver_.failed("cuModuleGetFunction", result);
    }
    functions[name] = {&kernel, function};
  }
  on->functions[kind] = std::move(functions);
  return "";
}

std::string Package::grow(Stream stream, size_t bytes, OnContext* on) {
  int capturing = 0;
  if (const Result result = driver_.stream_is_capturing(stream, &capturing)) {
    return driver_.failed("cuStreamIsCapturing", result);
  }
  if (capturing != 0) {
    return "the kernels need more memory than before, which cannot be had while a CUDA graph is captured: run a batch "
           "of this size once before";
  }
  Workspace& workspace = on->workspaces[stream];
  Address fresh = 0;
  if (const Result result = driver_.allocate(&fresh, bytes)) {
    return driver_.failed("cuMemAlloc(" + std::to_string(bytes) + ")", result);
  }
  if (workspace.address != 0) on->outgrown.push_back(workspace.address);
  workspace = {fresh, bytes};
  return "";
}

std::string Package::enqueue(Context context, Stream stream, ElementType element, int64_t states,
                             const Planner& planner) {
  Plan plan;
  std::map<KernelName, Loaded> functions;
  Address workspace = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    OnContext& on = contexts_[context];
    if (on.compute_capability == 0) {
      Device device = 0;
      int major = 0, minor = 0;
      Result result = driver_.get_device(&device);
      if (result == 0) result = driver_.get_attribute(&on.multiprocessors, kMultiprocessorCount, device);
      if (result == 0) result = driver_.get_attribute(&major, kCapabilityMajor, device);
      if (result == 0) result = driver_.get_attribute(&minor, kCapabilityMinor, device);
      if (result != 0) return driver_.failed("cuDeviceGetAttribute", result);
      on.compute_capability = 10 * major + minor;
    }
    std::string failure = planner(on.multiprocessors, &plan);
    if (!failure.empty()) return failure;
    const Kind kind = {element, states, on.compute_capability};
    if (on.functions.find(kind) == on.functions.end()) failure = load(kind, &on);
    if (!failure.empty()) return failure;
    functions = on.functions[kind];
    if (plan.workspace_bytes > 0) {
      if (plan.workspace_bytes > on.workspaces[stream].bytes) failure = grow(stream, plan.workspace_bytes, &on);
      if (!failure.empty()) return failure;
      workspace = on.workspaces[stream].address;
    }
  }
  for (const Launch& launch : plan.launches) {
    for (const Pointer& pointer : launch.pointers) {
      if (pointer.address % kAlignment == 0) continue;
      return "a tensor lies at an address that is no multiple of " + std::to_string(kAlignment);
    }
  }
  for (const Launch& launch : plan.launches) {
    const auto found = functions.find(launch.kernel);
    if (found == functions.end()) return std::string("there is no kernel ") + kKernelNames[launch.kernel];
    const Loaded& loaded = found->second;
    Address words[kMostArguments] = {};  // the null pointers that Triton appends are at the end
    void* slots[kMostArguments];
    size_t count = 0;
    for (const Pointer& pointer : launch.pointers) {
      words[count++] = pointer.address + (pointer.in_workspace ? workspace : 0);
    }
    for (int32_t scalar : launch.scalars) std::memcpy(&words[count++], &scalar, sizeof scalar);
    count += static_cast<size_t>(loaded.kernel->hidden_pointers);
    for (size_t i = 0; i < count; ++i) slots[i] = &words[i];
    const Result result = driver_.launch(loaded.function, launch.grid[0], launch.grid[1], launch.grid[2],
                                        loaded.kernel->threads, 1, 1, loaded.kernel->shared_bytes, stream, slots,
                                        nullptr);
    if (result != 0) return driver_.failed("cuLaunchKernel", result);
  }
  return "";
}

std::string Package::run(Stream stream, ElementType element, int64_t states, const Planner& planner) {
  Context context = nullptr;
  if (const Result result = driver_.stream_get_context(stream, &context)) {
    return driver_.failed("cuStreamGetCtx", result);
  }
  // The stream's own, on whichever GPU that is.
  const Entered entered(driver_, context);
  if (entered.failed() != 0) return driver_.failed("cuCtxPushCurrent", entered.failed());
  return enqueue(context, stream, element, states, planner);
}

void Package::enter() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++users_;
}

void Package::leave() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--users_ > 0) return;
  for (auto& [context, on] : contexts_) {
    // Fails where the context is gone, and the memory with it.
    const Entered entered(driver_, context);
    if (entered.failed() == 0) {
      for (const auto& [stream, workspace] : on.workspaces) driver_.release(workspace.address);
      for (Address address : on.outgrown) driver_.release(address);
    }
    on.workspaces.clear();
    on.outgrown.clear();
  }
}

}  // namespace msmamba::gpu
