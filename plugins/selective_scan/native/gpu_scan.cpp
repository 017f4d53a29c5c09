#include "gpu_scan.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

namespace msmamba::gpu {
namespace {

// As in gpu_launch.py.
constexpr int64_t kAlignment = 16;
constexpr int64_t kSumElements = 1024;
constexpr int64_t kMostGridYZ = 65535;
constexpr int64_t kMostChunks = 32;
constexpr int64_t kFloatBytes = 4;

constexpr int kMostArguments = 20;

int64_t ceil_div(int64_t numerator, int64_t denominator) { return (numerator + denominator - 1) / denominator; }

size_t aligned(int64_t bytes) { return static_cast<size_t>(ceil_div(bytes, kAlignment) * kAlignment); }

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

std::string Package::known_capabilities() const {
  std::set<int> found;
  for (const auto& [kind, kernels] : kernels_) found.insert(kind.compute_capability);
  std::string text;
  for (int capability : found) text += (text.empty() ? "" : ", ") + dotted(capability);
  return text;
}

std::string Package::plan(const ScanShape& shape, int multiprocessors, Plan* plan) const {
  const int64_t elements = shape.height * shape.width * shape.channels, planes = shape.batch * kDirections;
  const int64_t blocks = ceil_div(shape.channels, block_.channels);
  const int64_t length = shape.height * shape.width, widest = std::max(shape.channels, shape.states);
  const int64_t most = int64_t{1} << 31;
  // One by one, since a product of what a file says may overflow.
  if (shape.height >= most || shape.width >= most || widest >= most || length >= most ||
      length * widest >= most / kDirections) {
    return "a map of " + std::to_string(shape.height) + "x" + std::to_string(shape.width) + " with " +
           std::to_string(shape.channels) + " channels has too many elements for the scan kernel: at most " +
           std::to_string(most / kDirections) + " in an image";
  }
  if (shape.batch > kMostGridYZ / kDirections || blocks > kMostGridYZ) {
    return "a scan of batch " + std::to_string(shape.batch) + " and " + std::to_string(shape.channels) +
           " channels exceeds the launch grid: at most batch " + std::to_string(kMostGridYZ / kDirections) + " and " +
           std::to_string(kMostGridYZ * block_.channels) + " channels";
  }
  const int64_t lines = std::max(shape.height, shape.width);
  const int64_t tiles_per_line = ceil_div(std::min(shape.height, shape.width), block_.steps);
  const int64_t wanted = ceil_div(int64_t{8} * multiprocessors, planes * blocks);
  const int64_t useful = lines * tiles_per_line / 8;
  int64_t chunks = std::min(std::min(wanted, useful), std::min(lines, kMostChunks));
  if (chunks < 4) chunks = 1;
  const int64_t lines_per_chunk = ceil_div(lines, chunks);
  chunks = ceil_div(lines, lines_per_chunk);

  const auto scalar = [](int64_t value) { return static_cast<int32_t>(value); };
  const auto grid = [](int64_t value) { return static_cast<unsigned>(value); };
  const int32_t sizes[] = {scalar(shape.height), scalar(shape.width), scalar(shape.channels), scalar(lines_per_chunk)};
  const auto walk = [&](KernelName kernel, int64_t of_chunks) {
    return Launch{kernel,
                  {grid(of_chunks), grid(blocks), grid(planes)},
                  {sizes[0], sizes[1], sizes[2], sizes[3]},
                  4};
  };
  if (chunks > 1) plan->launches.push_back(walk(kChunkState, chunks - 1));
  plan->launches.push_back(walk(kScan, chunks));
  plan->launches.push_back(
      {kSumDirections, {grid(ceil_div(elements, kSumElements)), grid(shape.batch), 1}, {scalar(elements)}, 1});
  const int64_t kept = chunks > 1 ? planes * chunks * shape.channels : 0;
  plan->partial_bytes = aligned(planes * elements * kFloatBytes);
  plan->state_bytes = aligned(kept * shape.states * kFloatBytes);
  plan->decay_bytes = aligned(kept * kFloatBytes);
  return "";
}

std::string Package::load(const Kind& kind, OnContext* on) {
  const auto found = kernels_.find(kind);
  if (found == kernels_.end()) {
    return std::string("no scan kernels for ") + element_name(kind.element) + " with " + std::to_string(kind.states) +
           " states on compute capability " + dotted(kind.compute_capability) + "; there are some for " +
           known_capabilities() + ": export the bundle again, where Triton is installed";
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
    return "the scan needs more memory than before, which cannot be had while a CUDA graph is captured: run a batch "
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

std::string Package::enqueue(Context context, const ScanShape& shape, const ScanInputs& inputs, void* y,
                             Stream stream) {
  Plan plan;
  std::map<KernelName, Loaded> functions;
  Workspace workspace;
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
    std::string failure = this->plan(shape, on.multiprocessors, &plan);
    if (!failure.empty()) return failure;
    const Kind kind = {inputs.type, shape.states, on.compute_capability};
    if (on.functions.find(kind) == on.functions.end()) failure = load(kind, &on);
    if (!failure.empty()) return failure;
    functions = on.functions[kind];
    if (on.workspaces[stream].bytes < plan.workspace_bytes()) {
      failure = grow(stream, plan.workspace_bytes(), &on);
      if (!failure.empty()) return failure;
    }
    workspace = on.workspaces[stream];
  }
  const auto at = [](const void* pointer) { return reinterpret_cast<Address>(pointer); };
  const Address partial = workspace.address, state = partial + plan.partial_bytes;
  const Address decay = state + plan.state_bytes;
  const Address x = at(inputs.x), delta = at(inputs.delta), A = at(inputs.A), B = at(inputs.B), C = at(inputs.C);
  const Address D = at(inputs.D), delta_bias = at(inputs.delta_bias);
  // As in gpu_launch.KERNEL_POINTERS.
  const std::vector<Address> pointers[kKernelNames] = {
      {x, delta, A, B, delta_bias, state, decay},
      {x, delta, A, B, C, D, delta_bias, state, decay, partial},
      {partial, at(y)},
  };
  for (const auto& each : pointers) {
    for (Address address : each) {
      if (address % kAlignment != 0) {
        return "a tensor of the scan lies at an address that is no multiple of " + std::to_string(kAlignment);
      }
    }
  }
  for (const Launch& launch : plan.launches) {
    const Loaded& loaded = functions[launch.kernel];
    Address words[kMostArguments] = {};  // the null pointers that Triton appends are at the end
    void* slots[kMostArguments];
    int count = 0;
    for (Address pointer : pointers[launch.kernel]) words[count++] = pointer;
    for (int i = 0; i < launch.scalar_count; ++i) std::memcpy(&words[count++], &launch.scalars[i], sizeof(int32_t));
    count += loaded.kernel->hidden_pointers;
    for (int i = 0; i < count; ++i) slots[i] = &words[i];
    const Result result = driver_.launch(loaded.function, launch.grid[0], launch.grid[1], launch.grid[2],
                                        loaded.kernel->threads, 1, 1, loaded.kernel->shared_bytes, stream, slots,
                                        nullptr);
    if (result != 0) return driver_.failed("cuLaunchKernel", result);
  }
  return "";
}

std::string Package::scan(const ScanShape& shape, const ScanInputs& inputs, void* y, Stream stream) {
  Context context = nullptr;
  if (const Result result = driver_.stream_get_context(stream, &context)) {
    return driver_.failed("cuStreamGetCtx", result);
  }
  // The stream's own, on whichever GPU that is.
  const Entered entered(driver_, context);
  if (entered.failed() != 0) return driver_.failed("cuCtxPushCurrent", entered.failed());
  return enqueue(context, shape, inputs, y, stream);
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
