// The scan by compiled GPU kernels: their machine code as it was handed over, and launches on a stream.
//
// How the work is cut into launches is plugins/selective_scan/gpu_launch.py's arithmetic once more.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gpu_driver.h"
#include "problem.h"

namespace msmamba::gpu {

enum KernelName : int { kChunkState, kScan, kSumDirections, kKernelNames };

// One kernel for one compute capability (plugins/selective_scan/gpu_package.py).
struct Kernel {
  std::string entry;
  std::string cubin;
  unsigned threads = 0;
  unsigned shared_bytes = 0;
  int hidden_pointers = 0;
};

// What distinguishes one set of three kernels from another.
struct Kind {
  ElementType element;
  int64_t states;
  int compute_capability;  // 10 * major + minor
  bool operator<(const Kind& other) const;
};

// What one program of the scan owns, on every GPU: BLOCK_SHAPES.
struct Block {
  int channels;
  int steps;
};

// The kernels of a model, and what they hold on each GPU: one for as long as the process lives.
class Package {
 public:
  Package(const Driver& driver, Block block) : driver_(driver), block_(block) {}

  void add(const Kind& kind, KernelName name, Kernel kernel) { kernels_[kind][name] = std::move(kernel); }

  // Enqueues the scan, y (batch, H, W, D), on a stream; any number of threads may, each on streams of its own.
  // Returns what went wrong, or nothing. Allocates only where a stream's workspace has to grow.
  std::string scan(const ScanShape& shape, const ScanInputs& inputs, void* y, Stream stream);

  // Nodes that use the package; when the last one is gone the workspaces are given back.
  void enter();
  void leave();

 private:
  struct Launch {
    KernelName kernel;
    unsigned grid[3];
    int32_t scalars[4];
    int scalar_count;
  };
  // As gpu_launch.LaunchPlan.
  struct Plan {
    std::vector<Launch> launches;
    size_t partial_bytes, state_bytes, decay_bytes;
    size_t workspace_bytes() const { return partial_bytes + state_bytes + decay_bytes; }
  };
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

  std::string plan(const ScanShape& shape, int multiprocessors, Plan* plan) const;
  std::string load(const Kind& kind, OnContext* on);
  std::string grow(Stream stream, size_t bytes, OnContext* on);
  std::string enqueue(Context context, const ScanShape& shape, const ScanInputs& inputs, void* y, Stream stream);
  std::string known_capabilities() const;

  const Driver driver_;
  const Block block_;
  std::map<Kind, std::map<KernelName, Kernel>> kernels_;
  std::mutex mutex_;  // of what follows
  int64_t users_ = 0;
  std::map<Context, OnContext> contexts_;
};

}  // namespace msmamba::gpu
