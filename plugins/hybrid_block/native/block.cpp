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
#if defined(MSMAMBA_HAS_DOT_PRODUCTS)
extern const Int8Kernels kDotProductInt8Kernels;
#endif

namespace {

// The block's kernels for the instruction set that the scan uses.
const BlockKernels& block_kernels() {
#if defined(__x86_64__)
  for (const BlockKernels* kernels : {&kAvx512BlockKernels, &kAvx2BlockKernels}) {
    if (active_kernels_are(kernels->name)) return *kernels;
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
    return kAvx2BlockKernels.int8.operators[number - kFloatOperators];
  }
#endif
#if defined(MSMAMBA_HAS_DOT_PRODUCTS)
  if (std::strcmp(active_kernels().name, kDotProductName) == 0) {
    return kDotProductInt8Kernels.operators[number - kFloatOperators];
  }
#endif
  return kernels.int8.operators[number - kFloatOperators];
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

constexpr const char* kOutOfMemory = "out of memory";

int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// How one phase's work is cut into tiles. Every thread has a share of them, neighbours in the map, and begins with it: in
// each phase of each operator the same part of the map, so that what a thread wrote lies in its own core's cache when it
// reads it. Who is done with its own takes what is left of the others'.
class PhaseTiles {
 public:
  void cut(const Phase& phase, const BlockCall& call, int threads) {
    MapShape map = call.map;
    if (phase.unit == Phase::kImages || phase.unit == Phase::kImagesByDirection) {
      units_ = map.batch;
      tiles_ = call.image_tiles;
      return deal(phase.unit == Phase::kImages ? tiles_ : kDirections * tiles_, threads);
    }
    if (phase.unit == Phase::kPositionsByImages) map.batch = call.image_tiles;
    const bool by_rows = phase.unit == Phase::kRows;
    units_ = by_rows ? map.height : map.positions();
    int64_t most = by_rows ? phase.tile_positions / map.width : phase.tile_positions;
    if (most < 1) most = 1;
    tiles_ = divided_up(units_, most);
    // The same number for every thread, where there are so many positions or rows.
    const int64_t even = divided_up(divided_up(tiles_ * map.batch, threads) * threads, map.batch);
    if (tiles_ < even) tiles_ = even < units_ ? even : units_;
    deal(tiles_ * map.batch, threads);
  }

  void deal(int64_t count, int threads) {
    count_ = count;
    shares_ = static_cast<int>(count_ < threads ? count_ : threads);
    if (shares_ > kMostShares) shares_ = kMostShares;
    for (int i = 0; i < shares_; ++i) share_[i].next.store(count_ * i / shares_, std::memory_order_relaxed);
  }

  // Calls `run(tile)` for tiles that no other thread has taken, until there are none; `thread` counts those that came.
  template <typename Run>
  void take(int thread, Run run) {
    const int first = static_cast<int>(shares_ * fraction_of(thread));
    for (int i = 0; i < shares_; ++i) {
      const int share = (first + i) % shares_;
      const int64_t end = count_ * (share + 1) / shares_;
      for (int64_t index; (index = share_[share].next.fetch_add(1, std::memory_order_relaxed)) < end;) {
        run(tile(index));
        done_.fetch_add(1, std::memory_order_release);
      }
    }
  }

  bool finished() const { return done_.load(std::memory_order_acquire) == count_; }

 private:
  static constexpr int kMostShares = 32;

  struct alignas(64) Share {
    std::atomic<int64_t> next;  // tile; of a share in use
  };

  // 0, 1/2, 1/4, 3/4, 1/8, ...: however many of the threads come, they begin far apart.
  static float fraction_of(int thread) {
    float fraction = 0.0f, digit = 0.5f;
    for (; thread > 0; thread /= 2, digit /= 2) fraction += static_cast<float>(thread % 2) * digit;
    return fraction;
  }

  Tile tile(int64_t index) const {
    const int64_t part = index % tiles_;
    return {index / tiles_, units_ * part / tiles_, units_ * (part + 1) / tiles_};
  }

  int64_t units_ = 0;  // positions or rows of an image, or images
  int64_t tiles_ = 0;  // of an image, or of a direction
  int64_t count_ = 0;  // of all images
  int shares_ = 0;
  Share share_[kMostShares];
  std::atomic<int64_t> done_{0};
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

// Phases of one call, on all threads that take part.
struct Job {
  const Phase* phase;
  const int count;  // of phases
  const BlockCall& call;
  size_t scratch_bytes;
  PhaseTiles phases[kMostPhases];
  std::atomic<int> threads{0};  // that have come

  Job(const OperatorKernels& kernels, const Phase* phase_, int count_, const BlockCall& call_, int width)
      : phase(phase_), count(count_), call(call_), scratch_bytes(kernels.scratch_bytes(call.sizes, call.map)) {
    for (int i = 0; i < count; ++i) phases[i].cut(phase[i], call, width);
  }

  // One thread's share of every phase. The next phase begins when the last tile of this one is done, not
  // when all threads have come: one that never gets a core delays nothing.
  void work() {
    void* const scratch = scratch_memory.at_least(scratch_bytes);
    if (scratch == nullptr) return;
    const int thread = threads.fetch_add(1, std::memory_order_relaxed);
    for (int i = 0; i < count; ++i) {
      phases[i].take(thread, [&](const Tile& tile) { phase[i].run(call, tile, scratch); });
      if (i + 1 == count) break;
      for (int spins = 0; !phases[i].finished(); ++spins) {
        spins < kSpins ? relax() : std::this_thread::yield();
      }
    }
  }

  // Whether all is done: a thread that gets no memory leaves its tiles to the others, if there are any.
  bool finished() const { return phases[count - 1].finished(); }

  // Null, or what went wrong.
  const char* run(const Parallel& parallel) {
    parallel.run(parallel.owner, parallel.width, [](void* job) { static_cast<Job*>(job)->work(); }, this);
    return finished() ? nullptr : kOutOfMemory;
  }
};

bool is_scan(BlockOperator op) {
  return op == BlockOperator::kProjectedScan2D || op == BlockOperator::kProjectedScan2DInt8;
}

// Whether so many tiles keep so many threads at work, but for a fifth of their time.
bool suffice(int64_t tiles, int threads) { return 5 * tiles >= 4 * divided_up(tiles, threads) * threads; }

}  // namespace

bool too_wide(const BlockSizes& sizes) {
  for (int64_t size : {sizes.half, sizes.groups, sizes.model, sizes.inner, sizes.steps, sizes.states, sizes.convolved}) {
    if (size > kMostWidth) return true;
  }
  return false;
}

const char* unfit_sizes(BlockOperator op, const BlockSizes& sizes) {
  if (too_wide(sizes)) return kTooWide;
  const bool scans = is_scan(op);
  if (!scans && sizes.half < 1) return "there are no channels";
  switch (op) {
    case BlockOperator::kLocalBranch:
    case BlockOperator::kLocalBranchInt8:
    case BlockOperator::kPatchMerging:
    case BlockOperator::kPatchMergingInt8:
      return nullptr;
    case BlockOperator::kScanInputs:
    case BlockOperator::kScanInputsInt8:
    case BlockOperator::kScanFeatures:
    case BlockOperator::kScanFeaturesInt8:
    case BlockOperator::kProjectedScan2D:
    case BlockOperator::kProjectedScan2DInt8:
    case BlockOperator::kScanOutputs:
    case BlockOperator::kScanOutputsInt8:
      if ((!scans && sizes.model < 1) || sizes.inner < 1) return "a group or the scan has no channels";
      if (!scans && sizes.half % sizes.model != 0) return "the channels do not divide into groups";
      if (op == BlockOperator::kScanFeatures || op == BlockOperator::kScanFeaturesInt8) return nullptr;
      if (scans || op == BlockOperator::kScanInputs || op == BlockOperator::kScanInputsInt8) {
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

const char* unfit_map(BlockOperator op, const BlockSizes& sizes, const MapShape& map) {
  if (map.height < 1 || map.width < 1) return "the map is empty";
  const bool many = map.height > kMostPositions / map.width || map.batch > kMostPositions / map.positions();
  if (many) return "the maps have more than 268,435,456 positions";
  switch (op) {
    case BlockOperator::kScanFeatures:
    case BlockOperator::kScanFeaturesInt8:
      return map.channels >= sizes.half ? nullptr : "the map has fewer channels than the norm";
    case BlockOperator::kScanOutputs:
    case BlockOperator::kScanOutputsInt8:
      return map.height == map.width ? nullptr : "the map is not square, and its height and width are swapped";
    case BlockOperator::kPatchMerging:
    case BlockOperator::kPatchMergingInt8:
      return map.height % 2 == 0 && map.width % 2 == 0 ? nullptr : "the map's height or width is odd";
    default:
      return nullptr;
  }
}

PackedOperator::PackedOperator(BlockOperator op, const OperatorKernels& kernels, const BlockSizes& sizes, void* packed)
    : op_(op), kernels_(kernels), sizes_(sizes), packed_(packed) {}

PackedOperator::~PackedOperator() { free_aligned(packed_); }

std::unique_ptr<PackedOperator> PackedOperator::create(BlockOperator op, ElementType element, const BlockSizes& sizes,
                                                       const float* const* weights) {
  const OperatorKernels& kernels = kernels_of(op, element);
  void* const packed = allocate_aligned(kernels.packed_bytes(sizes));
  if (packed == nullptr) return nullptr;
  kernels.pack(sizes, weights, packed);
  std::unique_ptr<PackedOperator> made(new (std::nothrow) PackedOperator(op, kernels, sizes, packed));
  if (made == nullptr) free_aligned(packed);
  return made;
}

const char* PackedOperator::run(const MapShape& map, const void* const* inputs, void* const* outputs,
                                const Parallel& parallel) const {
  if (const char* reason = unfit_map(op_, sizes_, map)) return reason;
  if (map.batch < 1) return nullptr;
  static const bool own_adders = has_own_adders();
  const size_t shared_bytes = kernels_.shared_bytes(sizes_, map);
  void* const shared = shared_memory.at_least(shared_bytes);
  if (shared == nullptr && shared_bytes > 0) return kOutOfMemory;
  BlockCall call = {sizes_, map, packed_, inputs, outputs, shared, own_adders, 0};
  if (kernels_.together == nullptr) {
    return Job(kernels_, kernels_.phase, kernels_.phases, call, parallel.width).run(parallel);
  }
  const int64_t together = divided_up(map.batch, kernels_.together(sizes_));
  call.image_tiles = together;
  if (suffice(together, parallel.width)) return Job(kernels_, kernels_.phase, 2, call, parallel.width).run(parallel);
  if (kDirections * together < parallel.width) call.image_tiles = map.batch;
  const Phase by_direction[] = {kernels_.phase[0], kernels_.phase[2], kernels_.phase[3]};
  return Job(kernels_, by_direction, 3, call, parallel.width).run(parallel);
}

}  // namespace msmamba
