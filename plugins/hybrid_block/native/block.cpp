#include "block.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>

namespace msmamba {

extern const BlockKernels kBaselineBlockKernels;
#if defined(__x86_64__)
extern const BlockKernels kAvx2BlockKernels;
extern const BlockKernels kAvx512BlockKernels;
#endif

namespace {

// The block's kernels for the instruction set that the scan uses.
const BlockKernels& block_kernels() {
#if defined(__x86_64__)
  const char* const name = active_kernels().name;
  for (const BlockKernels* kernels : {&kAvx512BlockKernels, &kAvx2BlockKernels}) {
    if (std::strcmp(kernels->name, name) == 0) return *kernels;
  }
#endif
  return kBaselineBlockKernels;
}

constexpr size_t kAlignment = 64;

void* allocate(size_t bytes) { return std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment); }

// Memory that a thread keeps from one call to the next: fresh memory costs a page fault every 4 KiB, more than
// the arithmetic done in it.
class KeptMemory {
 public:
  KeptMemory() = default;
  ~KeptMemory() { std::free(memory_); }
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;

  // At least `bytes`, contents undefined; null when out of memory.
  void* at_least(size_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      memory_ = allocate(bytes);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

thread_local KeptMemory shared_memory;   // of the thread that calls
thread_local KeptMemory scratch_memory;  // of every thread that works

int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// One phase of one call, its tiles shared out by a counter.
struct PhaseJob {
  const BlockCall& call;
  const Phase& phase;
  size_t scratch_bytes;
  int64_t units;  // of an image
  int64_t tiles;  // of an image
  int64_t tasks;
  std::atomic<int64_t> next{0};

  PhaseJob(const BlockCall& call_, const Phase& phase_, size_t scratch_bytes_, int width)
      : call(call_), phase(phase_), scratch_bytes(scratch_bytes_) {
    const bool by_rows = phase.unit == Phase::kRows;
    units = by_rows ? call.map.height : call.map.positions();
    int64_t most = by_rows ? phase.tile_positions / call.map.width : phase.tile_positions;
    if (most < 1) most = 1;
    // Small maps: something for every thread.
    tiles = divided_up(units, most);
    const int64_t wanted = divided_up(width, call.map.batch);
    if (tiles < wanted) tiles = wanted < units ? wanted : units;
    // The same for every thread, where that is possible.
    const int64_t even = divided_up(tiles * call.map.batch, width) * width / call.map.batch;
    if (tiles < even && even < units) tiles = even;
    tasks = tiles * call.map.batch;
  }

  // One thread's share.
  void work() {
    void* const scratch = scratch_memory.at_least(scratch_bytes);
    if (scratch == nullptr) return;
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const int64_t image = index / tiles, part = index % tiles;
      phase.run(call, {image, units * part / tiles, units * (part + 1) / tiles}, scratch);
    }
  }
};

}  // namespace

PackedOperator::PackedOperator(const OperatorKernels& kernels, const BlockSizes& sizes, void* packed)
    : kernels_(kernels), sizes_(sizes), packed_(packed) {}

PackedOperator::~PackedOperator() { std::free(packed_); }

std::unique_ptr<PackedOperator> PackedOperator::create(BlockOperator op, const BlockSizes& sizes,
                                                       const float* const* weights) {
  const OperatorKernels& kernels = block_kernels().operators[static_cast<int>(op)];
  void* const packed = allocate(kernels.packed_bytes(sizes));
  if (packed == nullptr) return nullptr;
  kernels.pack(sizes, weights, packed);
  std::unique_ptr<PackedOperator> made(new (std::nothrow) PackedOperator(kernels, sizes, packed));
  if (made == nullptr) std::free(packed);
  return made;
}

const char* PackedOperator::run(const MapShape& map, const float* const* inputs, float* const* outputs,
                                const Parallel& parallel) const {
  void* const shared = shared_memory.at_least(kernels_.shared_bytes(sizes_, map));
  if (shared == nullptr) return "out of memory";
  const BlockCall call = {sizes_, map, packed_, inputs, outputs, shared};
  const size_t scratch_bytes = kernels_.scratch_bytes(sizes_, map);
  for (int i = 0; i < kernels_.phases; ++i) {
    PhaseJob job(call, kernels_.phase[i], scratch_bytes, parallel.width);
    const int64_t width = job.tasks < parallel.width ? job.tasks : parallel.width;
    parallel.run(
        parallel.owner, static_cast<int>(width), [](void* data) { static_cast<PhaseJob*>(data)->work(); }, &job);
    if (job.next.load(std::memory_order_relaxed) < job.tasks) return "out of memory";
  }
  return nullptr;
}

}  // namespace msmamba
