#include "resize.h"

#include <atomic>
#include <memory>
#include <new>
#include <vector>

namespace msmamba {

extern const ResizeKernels kBaselineResizeKernels;
#if defined(__x86_64__)
extern const ResizeKernels kAvx2ResizeKernels;
extern const ResizeKernels kAvx512ResizeKernels;
#endif

namespace {

constexpr const char* kOutOfMemory = "out of memory";

// Bytes of a picture for which another thread pays: about a third of a millisecond's work.
constexpr int64_t kBytesOfAThread = 1 << 20;

// The resize's kernels for the instruction set that the scan uses.
const ResizeKernels& resize_kernels() {
#if defined(__x86_64__)
  for (const ResizeKernels* kernels : {&kAvx512ResizeKernels, &kAvx2ResizeKernels}) {
    if (active_kernels_are(kernels->name)) return *kernels;
  }
#endif
  return kBaselineResizeKernels;
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }
int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// How a line of `n` pixels, or its part of `length` from `start` on, becomes `size` values; see resize.py. Its taps
// count from the first pixel that any of them reaches.
class Line {
 public:
  Line(int64_t n, int64_t start, int64_t length, int64_t size) : taps_(static_cast<size_t>(size)) {
    const int64_t reach = 2 * larger(length, size);
    int64_t count = 0;
    for (int64_t i = 0; i < size; ++i) {
      // Distances from the first pixel whose weight is above 0 to the last one's right neighbour, both inside
      // the picture; none of the dividends is negative.
      const int64_t centre = 2 * start * size + (2 * i + 1) * length;
      const int64_t from = larger(0, centre - reach + size) / (2 * size);
      const int64_t to = smaller(n, divided_up(centre + reach - size, 2 * size));
      taps_[static_cast<size_t>(i)] = {from, to - from, nullptr};
      count += to - from;
    }
    factors_.resize(static_cast<size_t>(count));
    uint32_t* factors = factors_.data();
    for (int64_t i = 0; i < size; ++i) {
      Tap& tap = taps_[static_cast<size_t>(i)];
      const int64_t centre = 2 * start * size + (2 * i + 1) * length;
      const auto weight = [&](int64_t pixel) {
        const int64_t distance = (2 * (tap.first + pixel) + 1) * size - centre;
        return reach - (distance < 0 ? -distance : distance);
      };
      int64_t total = 0;
      for (int64_t pixel = 0; pixel < tap.count; ++pixel) total += weight(pixel);
      for (int64_t pixel = 0; pixel < tap.count; ++pixel) {
        factors[pixel] = static_cast<uint32_t>(((weight(pixel) << (kBits + 1)) + total) / (2 * total));
      }
      tap.factors = factors;
      factors += tap.count;
    }
    first_ = taps_.front().first;
    for (Tap& tap : taps_) tap.first -= first_;
  }

  const Tap* taps() const { return taps_.data(); }
  int64_t first() const { return first_; }
  int64_t reached() const { return taps_.back().first + taps_.back().count; }

 private:
  int64_t first_ = 0;
  std::vector<Tap> taps_;
  std::vector<uint32_t> factors_;
};

// Lines of bytes in memory.
struct Lines {
  const uint8_t* bytes;
  int64_t stride;
};

// One of the two passes, to lines of memory or, as the second, to the square.
struct Pass {
  const ResizeKernels& kernels;
  const Line& line;
  const Square& square;
  Lines source;
  uint8_t* target;  // lines without gaps; null: the square
  int64_t tasks;
  std::atomic<int64_t> next{0};

  // Where to put the lines from `first` on that are for the square.
  uint8_t* lines_of_square(int64_t first, uint8_t* held) const {
    return square.pixels == nullptr ? held : square.pixels + first * square.size * kChannels;
  }

  void finish(int64_t first, int64_t count, const uint8_t* held) const {
    if (square.pixels != nullptr) return;
    const int64_t positions = square.size * square.size;
    look_up(held, count * square.size, square.tables, square.tensor + first * square.size, positions);
  }
};

struct RowsPass : Pass {
  int64_t lines;

  void work() {
    const int64_t bytes = square.size * kChannels;
    const size_t needed = kernels.rows_scratch(square.size);
    const std::unique_ptr<uint8_t[]> scratch(new (std::nothrow) uint8_t[needed + kBandLines * bytes]);
    if (scratch == nullptr) return;
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const int64_t first = task * kBandLines, count = smaller(kBandLines, lines - first);
      uint8_t* const held = scratch.get() + needed;
      uint8_t* const to = target == nullptr ? lines_of_square(first, held) : target + first * bytes;
      kernels.along_rows(line.taps(), square.size, source.bytes + first * source.stride, source.stride,
                         static_cast<int>(count), to, bytes, scratch.get());
      if (target == nullptr) finish(first, count, held);
    }
  }
};

struct ColumnsPass : Pass {
  int64_t bytes;  // of a line

  void work() {
    const std::unique_ptr<uint8_t[]> held(new (std::nothrow) uint8_t[bytes]);
    if (held == nullptr) return;
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      uint8_t* const to = target == nullptr ? lines_of_square(task, held.get()) : target + task * bytes;
      kernels.along_columns(line.taps()[task], source.bytes, source.stride, bytes, to);
      if (target == nullptr) finish(task, 1, held.get());
    }
  }
};

// Lets threads work on a pass; false where none of them got memory for some of it.
template <typename Work>
bool share_out(Work& pass, int64_t width, const Parallel& parallel) {
  const int threads = static_cast<int>(smaller(smaller(width, pass.tasks), parallel.width));
  parallel.run(parallel.owner, threads, [](void* shared) { static_cast<Work*>(shared)->work(); }, &pass);
  return pass.next.load(std::memory_order_relaxed) >= pass.tasks;
}

const char* resize_in_passes(const uint8_t* picture, int64_t height, int64_t width, const Part& part,
                             const Square& square, const Parallel& parallel) {
  const ResizeKernels& kernels = resize_kernels();
  const int64_t size = square.size;
  const Line row(width, part.left, part.width, size), column(height, part.top, part.height, size);
  const int64_t threads = 1 + kChannels * larger(part.width * part.height, size * size) / kBytesOfAThread;
  const int64_t stride = width * kChannels;
  std::unique_ptr<uint8_t[]> between;  // the lines of the first pass
  const auto make_room = [&](int64_t lines, int64_t bytes) {
    between.reset(new (std::nothrow) uint8_t[static_cast<size_t>(lines * bytes)]);
    return between != nullptr;
  };

  const uint8_t* const lines = picture + column.first() * stride;
  if (height - size > larger(0, 2 * (width - size))) {  // columns first
    const int64_t bytes = row.reached() * kChannels;
    if (!make_room(size, bytes)) return kOutOfMemory;
    const Lines high = {lines + row.first() * kChannels, stride};
    ColumnsPass columns{{kernels, column, square, high, between.get(), size}, bytes};
    if (!share_out(columns, threads, parallel)) return kOutOfMemory;
    RowsPass rows{{kernels, row, square, {between.get(), bytes}, nullptr, divided_up(size, kBandLines)}, size};
    return share_out(rows, threads, parallel) ? nullptr : kOutOfMemory;
  }

  Lines narrowed = {lines, stride};
  const int64_t bytes = size * kChannels;
  if (width != size || part.left != 0 || part.width != width) {  // otherwise the rows are as they shall be
    const int64_t count = column.reached();
    if (!make_room(count, bytes)) return kOutOfMemory;
    const Lines wide = {lines + row.first() * kChannels, stride};
    RowsPass rows{{kernels, row, square, wide, between.get(), divided_up(count, kBandLines)}, count};
    if (!share_out(rows, threads, parallel)) return kOutOfMemory;
    narrowed = {between.get(), bytes};
  }
  ColumnsPass columns{{kernels, column, square, narrowed, nullptr, size}, bytes};
  return share_out(columns, threads, parallel) ? nullptr : kOutOfMemory;
}

}  // namespace

const char* resize_picture(const uint8_t* picture, int64_t height, int64_t width, const Part& part,
                           const Square& square, const Parallel& parallel) {
  try {
    return resize_in_passes(picture, height, width, part, square, parallel);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

void look_up(const uint8_t* pixels, int64_t count, const float* tables, float* target, int64_t plane) {
  for (int channel = 0; channel < kChannels; ++channel, ++pixels, tables += 256, target += plane) {
    for (int64_t i = 0; i < count; ++i) target[i] = tables[pixels[i * kChannels]];
  }
}

}  // namespace msmamba
