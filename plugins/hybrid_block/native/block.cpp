#include "block.h"

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <new>
#include <thread>

#include "../../selective_scan/native/aligned_memory.h"
#include "../../selective_scan/native/processor.h"

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

const OperatorKernels& kernels_of(BlockOperator op, ElementType element) {
  const BlockKernels& kernels = block_kernels();
  const int number = static_cast<int>(op);
  if (number < kFloatOperators) return kernels.elements[static_cast<int>(element)].operators[number];
#if defined(__x86_64__)
  // Those of AVX-512 multiply with VNNI, which its first processors lack.
  if (&kernels == &kAvx512BlockKernels && !this_processor().avx512_vnni) {
    return kAvx2BlockKernels.int8[number - kFloatOperators];
  }
#endif
  return kernels.int8[number - kFloatOperators];
}

// Memory that a thread keeps from one call to the next: fresh memory costs a page fault every 4 KiB, more than
// the arithmetic done in it.
class KeptMemory {
 public:
  KeptMemory() = default;
  ~KeptMemory() { free_aligned(memory_); }
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;

  // At least `bytes`, contents undefined; null when out of memory.
  void* at_least(size_t bytes) {
    if (bytes > bytes_) {
      free_aligned(memory_);
      memory_ = allocate_aligned(bytes);
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

// How one phase's work is cut into tiles, shared out by a counter.
struct PhaseTiles {
  int64_t units = 0;  // positions or rows of an image
  int64_t tiles = 0;  // of an image
  int64_t count = 0;  // of all images
  std::atomic<int64_t> taken{0};
  std::atomic<int64_t> done{0};

  void cut(const Phase& phase, const MapShape& map, int threads) {
    const bool by_rows = phase.unit == Phase::kRows;
    units = by_rows ? map.height : map.positions();
    int64_t most = by_rows ? phase.tile_positions / map.width : phase.tile_positions;
    if (most < 1) most = 1;
    tiles = divided_up(units, most);
    // The same number for every thread, where there are so many positions or rows.
    const int64_t even = divided_up(divided_up(tiles * map.batch, threads) * threads, map.batch);
    if (tiles < even) tiles = even < units ? even : units;
    count = tiles * map.batch;
  }

  Tile tile(int64_t index) const {
    const int64_t part = index % tiles;
    return {index / tiles, units * part / tiles, units * (part + 1) / tiles};
  }
};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Some tenths of a millisecond, longer than most tiles take; who waits longer than that lets others have its core.
constexpr int kSpins = 20000;

// One call, on all threads that take part.
struct Job {
  const OperatorKernels& kernels;
  const BlockCall& call;
  size_t scratch_bytes;
  PhaseTiles phases[kMostPhases];

  Job(const OperatorKernels& kernels_, const BlockCall& call_, int threads)
      : kernels(kernels_), call(call_), scratch_bytes(kernels.scratch_bytes(call.sizes, call.map)) {
    for (int i = 0; i < kernels.phases; ++i) phases[i].cut(kernels.phase[i], call.map, threads);
  }

  // One thread's share of every phase. The next phase begins when the last tile of this one is done, not
  // when all threads have come: one that never gets a core delays nothing.
  void work() {
    void* const scratch = scratch_memory.at_least(scratch_bytes);
    if (scratch == nullptr) return;
    for (int i = 0; i < kernels.phases; ++i) {
      PhaseTiles& tiles = phases[i];
      for (int64_t index; (index = tiles.taken.fetch_add(1, std::memory_order_relaxed)) < tiles.count;) {
        kernels.phase[i].run(call, tiles.tile(index), scratch);
        tiles.done.fetch_add(1, std::memory_order_release);
      }
      if (i + 1 == kernels.phases) break;
      for (int spins = 0; tiles.done.load(std::memory_order_acquire) < tiles.count; ++spins) {
        spins < kSpins ? relax() : std::this_thread::yield();
      }
    }
  }

  // Whether all is done: a thread that gets no memory leaves its tiles to the others, if there are any.
  bool finished() const {
    const PhaseTiles& last = phases[kernels.phases - 1];
    return last.done.load(std::memory_order_acquire) == last.count;
  }
};

}  // namespace

bool too_wide(const BlockSizes& sizes) {
  for (int64_t size : {sizes.half, sizes.groups, sizes.model, sizes.inner, sizes.steps, sizes.states, sizes.convolved}) {
    if (size > kMostWidth) return true;
  }
  return false;
}

const char* unfit_sizes(BlockOperator op, const BlockSizes& sizes) {
  if (too_wide(sizes)) return kTooWide;
  if (sizes.half < 1) return "there are no channels";
  switch (op) {
    case BlockOperator::kLocalBranch:
    case BlockOperator::kLocalBranchInt8:
      return nullptr;
    case BlockOperator::kScanInputs:
    case BlockOperator::kScanInputsInt8:
    case BlockOperator::kScanOutputs:
    case BlockOperator::kScanOutputsInt8:
      if (sizes.model < 1 || sizes.inner < 1) return "a group or the scan has no channels";
      if (sizes.half % sizes.model != 0) return "the channels do not divide into groups";
      if (op == BlockOperator::kScanInputs || op == BlockOperator::kScanInputsInt8) {
        if (sizes.steps < 1 || sizes.states < 1) return "the scan has no step features or no states";
        const bool whole = sizes.steps % kDirections == 0 && sizes.states % kDirections == 0;
        return whole ? nullptr : "step features or states do not divide into 4 directions";
      }
      if (sizes.model % 2 != 0) return "a group has an odd number of channels, which cannot be shuffled in pairs";
      return sizes.convolved <= sizes.model ? nullptr : "more channels are convolved than there are";
    case BlockOperator::kMIFA:
      return sizes.half % 4 == 0 ? nullptr : "the channels cannot be shuffled: not a multiple of 4";
  }
  return "no such operator";
}

const char* unfit_map(const MapShape& map) {
  if (map.height < 1 || map.width < 1) return "the map is empty";
  const bool many = map.height > kMostPositions / map.width || map.batch > kMostPositions / map.positions();
  return many ? "the maps have more than 268,435,456 positions" : nullptr;
}

PackedOperator::PackedOperator(const OperatorKernels& kernels, const BlockSizes& sizes, void* packed)
    : kernels_(kernels), sizes_(sizes), packed_(packed) {}

PackedOperator::~PackedOperator() { free_aligned(packed_); }

std::unique_ptr<PackedOperator> PackedOperator::create(BlockOperator op, ElementType element, const BlockSizes& sizes,
                                                       const float* const* weights) {
  const OperatorKernels& kernels = kernels_of(op, element);
  void* const packed = allocate_aligned(kernels.packed_bytes(sizes));
  if (packed == nullptr) return nullptr;
  kernels.pack(sizes, weights, packed);
  std::unique_ptr<PackedOperator> made(new (std::nothrow) PackedOperator(kernels, sizes, packed));
  if (made == nullptr) free_aligned(packed);
  return made;
}

const char* PackedOperator::run(const MapShape& map, const void* const* inputs, void* const* outputs,
                                const Parallel& parallel) const {
  if (const char* reason = unfit_map(map)) return reason;
  if (map.batch < 1) return nullptr;
  void* const shared = shared_memory.at_least(kernels_.shared_bytes(sizes_, map));
  if (shared == nullptr) return "out of memory";
  const BlockCall call = {sizes_, map, packed_, inputs, outputs, shared};
  Job job(kernels_, call, parallel.width);
  const auto work = [](void* data) { static_cast<Job*>(data)->work(); };
  parallel.run(parallel.owner, parallel.width, work, &job);
  return job.finished() ? nullptr : "out of memory";
}

}  // namespace msmamba
