// A range of channels cut into vectors: wide ones, and a narrow one for a few that are left over.
#pragma once

#include "element.h"
#include "recurrence.h"

namespace {

template <int Lanes>
struct Width {
  static constexpr int kLanes = Lanes;
};

template <int Wide, int Narrow>
class ChannelVectors {
 public:
  ChannelVectors() = default;
  explicit ChannelVectors(int channels) : channels_(channels), padded_((channels + Narrow - 1) / Narrow * Narrow) {}

  // Channels of buffers that hold whole vectors.
  int padded() const { return padded_; }

  // Calls `body(first, Width<lanes>)` for each vector, `first` being the first of its channels.
  template <typename Body>
  MSMAMBA_INLINE void for_each(Body body) const {
    int first = 0;
    for (; padded_ - first > Narrow; first += Wide) body(first, Width<Wide>{});
    if (first < padded_) body(first, Width<Narrow>{});
  }

  // How many lanes of a vector hold channels.
  MSMAMBA_INLINE int used(int first, int lanes) const { return channels_ - first < lanes ? channels_ - first : lanes; }

 private:
  int channels_ = 0;
  int padded_ = 0;
};

// (N, Lanes) from `A` (channels, N); idle lanes are zero, and every NaN is the plain one.
template <int Lanes>
void pack_A(float* packed, const float* A, int64_t states, int lanes_used) {
  for (int lane = 0; lane < Lanes; ++lane) {
    for (int64_t n = 0; n < states; ++n) {
      packed[n * Lanes + lane] = lane < lanes_used ? element_at(A + lane * states + n) : 0.0f;
    }
  }
  for (int64_t n = 0; n < states; ++n) {
    const Float<Lanes> values = load<Lanes>(packed + n * Lanes);
    const Float<Lanes> held = at_most<Lanes>(at_least<Lanes>(values, -kLargestFactor), kLargestFactor);
    store<Lanes>(packed + n * Lanes, held == held ? held : broadcast<Lanes>(__builtin_nanf("")));
  }
}

// Calls for the cache lines in which a span of a vector's size begins and ends.
template <typename Element>
MSMAMBA_INLINE void prefetch_span(const Element* first, int64_t count) {
  const char* const bytes = reinterpret_cast<const char*>(first);
  __builtin_prefetch(bytes);
  __builtin_prefetch(bytes + count * static_cast<int64_t>(sizeof(Element)) - 1);
}

// Copies `count` elements as float32; writes up to Lanes - 1 floats beyond them.
template <int Lanes, typename Element>
MSMAMBA_INLINE void copy_widened(float* target, const Element* source, int64_t count) {
  int64_t i = 0;
  for (; i + Lanes <= count; i += Lanes) store<Lanes>(target + i, widened<Lanes>(source + i));
  if (i < count) store<Lanes>(target + i, load_lanes<Lanes>(source + i, static_cast<int>(count - i)));
}

}  // namespace
