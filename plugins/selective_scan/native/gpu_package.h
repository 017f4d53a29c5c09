// Compiled GPU kernels: their machine code as it was handed over, what of it is loaded on which GPU, and launches on a
// stream.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gpu_driver.h"
#include "problem.h"

namespace msmamba::gpu {

// The scan's kernels, and behind them the hybrid block's; named in kKernelNames.
enum KernelName : int {
  kChunkState,
  kScan,
  kSumDirections,
  kScanKernels,
  kLocalDepthwise = kScanKernels,
  kLocalExpansion,
  kGroupedNorm,
  kGatedConvolution,
  kGatedNorm,
  kMergedGroups,
  kShuffledNorm,
  kWeightedBranches,
  kRowSums,
  kChannelAttention,
  kKernels,
};

constexpr const char* kKernelNames[kKernels] = {
    "chunk_state",       "scan",       "sum_directions", "local_depthwise", "local_expansion",
    "grouped_norm",      "gated_convolution", "gated_norm", "merged_groups", "shuffled_norm",
    "weighted_branches", "row_sums",   "channel_attention"};

constexpr int64_t kAlignment = 16;  // bytes; what the kernels assume of every tensor
constexpr int64_t kMostGridYZ = 65535;
constexpr int64_t kMostElements = int64_t{1} << 29;  // of an image, since the kernels count four times them in 32 bits

// One kernel for one compute capability (plugins/selective_scan/gpu_package.py).
struct Kernel {
  std::string entry;
  std::string cubin;
  unsigned threads = 0;
  unsigned shared_bytes = 0;
  int hidden_pointers = 0;
};

// What distinguishes one set of kernels from another.
struct Kind {
  ElementType element;
  int64_t states;          // N of the scan; 0 for the block's kernels, which know none
  int compute_capability;  // 10 * major + minor
  bool operator<(const Kind& other) const;
};

// What one program of the scan owns, on every GPU: BLOCK_SHAPES.
struct Block {
  int channels;
  int steps;
};

// A tensor's address, or a place in the workspace.
struct Pointer {
  Address address;
  bool in_workspace;

  Pointer(const void* tensor) : address(reinterpret_cast<Address>(tensor)), in_workspace(false) {}
  static Pointer workspace(size_t offset) { return Pointer(offset, true); }

 private:
  Pointer(Address address, bool in_workspace) : address(address), in_workspace(in_workspace) {}
};

// One launch: a kernel, its grid, and its arguments in order.
struct Launch {
  Launch(KernelName kernel, std::initializer_list<int64_t> grid, std::vector<Pointer> pointers,
         const std::vector<int64_t>& scalars);

  KernelName kernel;
  unsigned grid[3];
  std::vector<Pointer> pointers;
  std::vector<int32_t> scalars;
};

// What one call enqueues, in order.
struct Plan {
  std::vector<Launch> launches;
  size_t workspace_bytes = 0;
};

// The kernels of a model, and what they hold on each GPU: one for as long as the process lives.
class Package {
 public:
  Package(const Driver& driver, Block block) : driver_(driver), block_(block) {}

  void add(const Kind& kind, KernelName name, Kernel kernel) { kernels_[kind][name] = std::move(kernel); }

  Block block() const { return block_; }
  // Whether there is a kernel of the block, for some GPU.
  bool has(ElementType element, KernelName name) const;

  // Makes the plan of a call for a GPU with so many multiprocessors; returns what is wrong, or nothing.
  using Planner = std::function<std::string(int multiprocessors, Plan*)>;

  // Enqueues a call on a stream; any number of threads may, each on streams of its own. Returns what went wrong, or
  // nothing. Allocates memory of the GPU only where a stream's workspace has to grow. `states` as in Kind.
  std::string run(Stream stream, ElementType element, int64_t states, const Planner& planner);

  // Nodes that use the package; when the last one is gone the workspaces are given back.
  void enter();
  void leave();

 private:
  struct Workspace {
    Address address = 0;
    size_t bytes = 0;
  };
  struct Loaded {
    const Kernel* kernel;
    Function function;
  };
  struct OnContext {
    int compute_capability = 0;
    int multiprocessors = 0;
    std::map<Kind, std::map<KernelName, Loaded>> functions;
    std::map<Stream, Workspace> workspaces;
    std::vector<Address> outgrown;  // captured graphs may use them still
  };

  std::string load(const Kind& kind, OnContext* on);
  std::string grow(Stream stream, size_t bytes, OnContext* on);
  std::string enqueue(Context context, Stream stream, ElementType element, int64_t states, const Planner& planner);
  std::string known_capabilities() const;

  const Driver driver_;
  const Block block_;
  std::map<Kind, std::map<KernelName, Kernel>> kernels_;
  std::mutex mutex_;  // of what follows
  int64_t users_ = 0;
  std::map<Context, OnContext> contexts_;
};

inline int64_t ceil_div(int64_t numerator, int64_t denominator) { return (numerator + denominator - 1) / denominator; }

// Bytes up to where the next array of a workspace may begin.
inline size_t aligned(int64_t bytes) { return static_cast<size_t>(ceil_div(bytes, kAlignment) * kAlignment); }

}  // namespace msmamba::gpu
