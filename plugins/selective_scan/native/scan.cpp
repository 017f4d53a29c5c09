#include "scan.h"

#include <atomic>
#include <cstring>

#include "aligned_memory.h"
#include "processor.h"

namespace msmamba {

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

namespace {

constexpr int kMaxSets = 4;
constexpr const char* kOutOfMemory = "out of memory";

#if defined(MSMAMBA_HAS_DOT_PRODUCTS)
// The scan has no use for dot products: its kernels are the same under another name.
const Kernels& dot_product_kernels() {
  static const Kernels kernels = [] {
#if defined(__x86_64__)
    Kernels named = kAvx2Kernels;
#else
    Kernels named = kBaselineKernels;
#endif
    named.name = kDotProductName;
    return named;
  }();
  return kernels;
}
#endif

// Fills `sets` with the kernels this machine can run, best first, and returns their number.
int runnable_kernels(const Kernels* sets[kMaxSets]) {
  int count = 0;
#if defined(__x86_64__)
  const Processor processor = this_processor();
  if (processor.avx512) sets[count++] = &kAvx512Kernels;
#if defined(MSMAMBA_HAS_DOT_PRODUCTS)
  if (processor.avx_vnni) sets[count++] = &dot_product_kernels();
#endif
  if (processor.avx2) sets[count++] = &kAvx2Kernels;
#elif defined(__aarch64__)
  if (has_dot_products()) sets[count++] = &dot_product_kernels();
#endif
  sets[count++] = &kBaselineKernels;
  return count;
}

std::atomic<const Kernels*>& chosen_kernels() {
  static std::atomic<const Kernels*> chosen{[] {
    const Kernels* sets[kMaxSets];
    runnable_kernels(sets);
    return sets[0];
  }()};
  return chosen;
}

bool additions_have_own_units() {
  static const bool own = has_own_adders();
  return own;
}

int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Aligned memory, freed at the end of its scope.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes) : memory_(allocate_aligned(bytes)) {}
  ~AlignedBuffer() { free_aligned(memory_); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  void* get() const { return memory_; }

 private:
  void* memory_;
};

// The tasks of one forward call: every block of channels times every group of sequences.
struct ForwardJob {
  const Kernels& kernels;
  const ScanShape& shape;
  const ScanInputs& inputs;
  void* y;
  int64_t block;  // channels of a task
  int64_t group;  // sequences of a task
  int64_t groups;
  int64_t tasks;
  bool own_adders = additions_have_own_units();
  std::atomic<int64_t> next{0};

  // Large blocks read B and C, large groups prepare the decay rates, less often; small ones leave something
  // for every thread, twice over, so that what other processes take can be evened out.
  ForwardJob(const ScanShape& shape_, const ScanInputs& inputs_, void* y_, int width)
      : kernels(active_kernels()), shape(shape_), inputs(inputs_), y(y_) {
    const int64_t enough_tasks = int64_t{2} * width;
    int64_t vectors = kMostVectors;
    while (vectors > 1 && divided_up(shape.channels, vectors * kernels.lanes) * shape.batch < enough_tasks) --vectors;
    block = vectors * kernels.lanes;
    const int64_t blocks = divided_up(shape.channels, block);
    group = blocks * shape.batch / (2 * enough_tasks);
    if (group < 1) group = 1;
    groups = divided_up(shape.batch, group);
    tasks = blocks * groups;
  }

  ForwardTask task(int64_t index) const {
    // Neighbours in time work on different sequences; a smaller last block comes last.
    const int64_t first_channel = index / groups * block;
    const int64_t first_sequence = index % groups * group;
    return {first_sequence, smaller(first_sequence + group, shape.batch), first_channel,
            static_cast<int>(smaller(block, shape.channels - first_channel)), own_adders};
  }

  // One thread's share.
  void work() {
    const AlignedBuffer scratch(kernels.forward_scratch(shape));
    if (scratch.get() == nullptr) return;
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      kernels.forward(shape, inputs, y, task(index), scratch.get());
    }
  }
};

// The gradients of every sequence, each by one thread.
struct BackwardJob {
  const Kernels& kernels;
  const ScanShape& shape;
  const ScanInputs& inputs;
  const float* dy;
  const ScanGradients& gradients;  // of A, D and delta_bias: (batch, ...)
  std::atomic<int64_t> next{0};

  void work() {
    const AlignedBuffer scratch(kernels.backward_scratch(shape));
    if (scratch.get() == nullptr) return;
    for (int64_t sequence; (sequence = next.fetch_add(1, std::memory_order_relaxed)) < shape.batch;) {
      kernels.backward(shape, inputs, dy, gradients, sequence, scratch.get());
    }
  }
};

// Sums of `rows` rows, in their order whatever the number of threads.
struct ColumnSums {
  static constexpr int64_t kColumnsAtOnce = 1024;

  const float* source;  // (rows, columns)
  int64_t rows;
  int64_t columns;
  float* target;  // (columns)
  std::atomic<int64_t> next{0};

  void work() {
    double sums[kColumnsAtOnce];
    for (int64_t first; (first = next.fetch_add(kColumnsAtOnce, std::memory_order_relaxed)) < columns;) {
      const int64_t count = smaller(kColumnsAtOnce, columns - first);
      for (int64_t i = 0; i < count; ++i) sums[i] = 0;
      for (int64_t row = 0; row < rows; ++row) {
        const float* const values = source + row * columns + first;
        for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(values[i]);
      }
      for (int64_t i = 0; i < count; ++i) {
        const float sum = static_cast<float>(sums[i]);
        std::memcpy(target + first + i, &sum, sizeof sum);  // the caller's memory, at any address
      }
    }
  }
};

// Lets up to `width` threads work on a job.
template <typename Job>
void share_out(Job& job, int64_t width, const Parallel& parallel) {
  const int threads = static_cast<int>(smaller(width, parallel.width));
  parallel.run(parallel.owner, threads, [](void* shared) { static_cast<Job*>(shared)->work(); }, &job);
}

}  // namespace

const Kernels& active_kernels() { return *chosen_kernels().load(std::memory_order_relaxed); }

bool select_kernels(const char* name) {
  const Kernels* sets[kMaxSets];
  const int count = runnable_kernels(sets);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(sets[i]->name, name) == 0) {
      chosen_kernels().store(sets[i], std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

const char* forward_scan(const ScanShape& shape, const ScanInputs& inputs, void* y, const Parallel& parallel) {
  ForwardJob job(shape, inputs, y, parallel.width);
  share_out(job, job.tasks, parallel);
  // A thread that got no memory left its tasks to the others; what counts is whether all were taken.
  return job.next.load(std::memory_order_relaxed) < job.tasks ? kOutOfMemory : nullptr;
}

const char* backward_scan(const ScanShape& shape, const ScanInputs& inputs, const float* dy,
                          const ScanGradients& gradients, const Parallel& parallel) {
  const int64_t per_channel = kDirections * shape.channels, per_state = per_channel * shape.states;
  const AlignedBuffer partial(static_cast<size_t>(shape.batch * (per_state + 2 * per_channel)) * sizeof(float));
  if (partial.get() == nullptr) return kOutOfMemory;
  ScanGradients by_sequence = gradients;
  by_sequence.A = static_cast<float*>(partial.get());
  by_sequence.D = by_sequence.A + shape.batch * per_state;
  by_sequence.delta_bias = by_sequence.D + shape.batch * per_channel;

  BackwardJob job{active_kernels(), shape, inputs, dy, by_sequence};
  share_out(job, shape.batch, parallel);
  if (job.next.load(std::memory_order_relaxed) < shape.batch) return kOutOfMemory;

  const auto add_up = [&](const float* source, int64_t columns, float* target) {
    ColumnSums sums{source, shape.batch, columns, target};
    share_out(sums, divided_up(columns, ColumnSums::kColumnsAtOnce), parallel);
  };
  add_up(by_sequence.A, per_state, gradients.A);
  add_up(by_sequence.D, per_channel, gradients.D);
  add_up(by_sequence.delta_bias, per_channel, gradients.delta_bias);
  return nullptr;
}

}  // namespace msmamba
