// Laying weights and buffers out in one piece of memory: rows padded to whole vectors, zeros beyond.
#pragma once

#include "../../selective_scan/native/scratch.h"
#include "operators.h"
#include "integers.h"

namespace {

// Bytes that a layout, a struct of pointers made from sizes and scratch, takes.
template <typename Layout>
size_t layout_bytes(const msmamba::BlockSizes& sizes) {
  return Scratch::measure([&](Scratch& scratch) { Layout(sizes, scratch); });
}

// The layout in memory of that many bytes.
template <typename Layout>
Layout layout_in(const void* memory, const msmamba::BlockSizes& sizes) {
  Scratch scratch(const_cast<void*>(memory));
  return Layout(sizes, scratch);
}

// The maps of a call.
template <typename Element>
MSMAMBA_INLINE const Element* map_in(const msmamba::BlockCall& call, int index) {
  return static_cast<const Element*>(call.inputs[index]);
}
template <typename Element>
MSMAMBA_INLINE Element* map_out(const msmamba::BlockCall& call, int index) {
  return static_cast<Element*>(call.outputs[index]);
}

// A row of `count` floats, padded.
template <int Lanes>
MSMAMBA_INLINE float* padded_row(Scratch& scratch, int64_t count) {
  return scratch.floats(whole_vectors<Lanes>(count));
}

// `left_side`'s buffer for `count` rows of `depth` values; floats need none.
template <int Lanes, typename Arithmetic>
MSMAMBA_INLINE typename Arithmetic::Word* words_of(Scratch& scratch, int64_t count, int64_t depth) {
  if constexpr (!Arithmetic::kInteger) return nullptr;
  return reinterpret_cast<typename Arithmetic::Word*>(scratch.floats(count * row_words<Lanes, Arithmetic>(depth)));
}

// Writes `value(i)` for i < count and zeros up to whole vectors.
template <int Lanes, typename Value>
void fill_row(float* row, int64_t count, Value value) {
  for (int64_t i = 0; i < whole_vectors<Lanes>(count); ++i) row[i] = i < count ? value(i) : 0.0f;
}

template <int Lanes>
void copy_row(float* row, const float* source, int64_t count) {
  fill_row<Lanes>(row, count, [&](int64_t i) { return source[i]; });
}

// `count` rows of `width` values, the source's `stride` apart, the target's dense.
template <int Lanes, typename Element>
void copy_rows(Element* target, int64_t width, const float* source, int64_t stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    for_each_vector<Lanes>(width, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
      store<Lanes>(target + i * width + c, load<Lanes>(source + i * stride + c, used), used);
    });
  }
}

}  // namespace
