// Runs every operator of the hybrid block over maps and weights that stand alone in memory, for the sanitizers to
// watch: a read or write outside them stops the program. Arguments: the instruction sets to run.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "block.h"

namespace {

msmamba::Kernels chosen = {};

// Each buffer is an allocation of its own, exactly as long as the array.
std::vector<float> filled(int64_t count, float) {
  std::vector<float> array(static_cast<size_t>(count));
  for (size_t i = 0; i < array.size(); ++i) array[i] = std::sin(static_cast<float>(i + 1));
  return array;
}

// Float16 bits of values from 1/8 to 1/4, of both signs.
std::vector<uint16_t> filled(int64_t count, uint16_t) {
  std::vector<uint16_t> array(static_cast<size_t>(count));
  for (size_t i = 0; i < array.size(); ++i) array[i] = static_cast<uint16_t>(0x3000 + i * 37 % 1024 + i % 2 * 0x8000);
  return array;
}

template <typename Element, typename Pointer>
struct Pointers {
  std::vector<std::vector<Element>> arrays;
  std::vector<Pointer> pointers;

  explicit Pointers(const std::vector<int64_t>& counts) {
    for (int64_t count : counts) arrays.push_back(filled(count, Element{}));
    for (std::vector<Element>& array : arrays) pointers.push_back(array.data());
  }
};

void run_on_threads(void*, int width, void (*body)(void*), void* data) {
  std::vector<std::thread> threads;
  for (int i = 1; i < width; ++i) threads.emplace_back(body, data);
  body(data);
  for (std::thread& thread : threads) thread.join();
}

// The map's channels are those of ScanFeatures'.
template <typename Element>
void run_over(msmamba::ElementType element, int64_t half, int64_t groups, int64_t rank, int64_t states, const msmamba::MapShape& map) {
  using msmamba::BlockOperator;
  const int64_t h = half, d = half / groups, D = 2 * d, S = 4 * rank, N = 4 * states, q = d / 4, L = map.positions();
  const int64_t images = map.batch * L, grouped = images * groups;
  const msmamba::BlockSizes sizes = {h, groups, d, D, S, N, q};
  const struct {
    BlockOperator op;
    std::vector<int64_t> maps, weights, outputs;
  } cases[] = {
      {BlockOperator::kLocalBranch, {images * 2 * h}, {h, h, 9 * h, h, 18 * h, 2 * h, 2 * h * h, h}, {images * h}},
      {BlockOperator::kScanInputs,
       {images * 2 * h},
       {h, h, d * 2 * D, 9 * D, D, D * S, S * 4 * D, D * N, D * N},
       {grouped * d, grouped * D, grouped * D, grouped * 4 * D, grouped * N, grouped * N}},
      {BlockOperator::kScanOutputs,
       {grouped * D, grouped * D, grouped * d},
       {D, D, D * d, d, 9 * q, q, 1, h, h},
       {images * h}},
      {BlockOperator::kMIFA, {images * h, images * h}, {9 * h, h, 2 * h}, {images * 2 * h}},
      {BlockOperator::kPatchMerging,
       {images * h},
       {4 * h, 4 * h, 8 * h * h},
       {map.batch * (map.height / 2) * (map.width / 2) * 2 * h}},
      {BlockOperator::kScanFeatures,
       {images * map.channels},
       {h, h, d * 2 * D, 9 * D, D},
       {grouped * d, grouped * D, grouped * D}},
      {BlockOperator::kProjectedScan2D,
       {images * D},
       {D * S, S * 4 * D, D * N, D * N, D * N, 4 * D, 4 * D},
       {images * D}},
      {BlockOperator::kLocalBranchInt8,
       {images * 2 * h},
       {h, h, 9 * h, h, 18 * h, 2 * h, 2 * h * h, h, h, 1, 1},
       {images * h}},
      {BlockOperator::kScanInputsInt8,
       {images * 2 * h},
       {h, h, d * 2 * D, 9 * D, D, D * (S + 2 * N), S * 4 * D, 2 * D, S + 2 * N, 4 * D, 1, 1, 1},
       {grouped * d, grouped * D, grouped * D, grouped * 4 * D, grouped * N, grouped * N}},
      {BlockOperator::kScanOutputsInt8,
       {grouped * D, grouped * D, grouped * d},
       {D, D, D * d, d, 9 * q, q, 1, h, h, d, 1},
       {images * h}},
      {BlockOperator::kPatchMergingInt8,
       {images * h},
       {4 * h, 4 * h, 8 * h * h, 2 * h, 1},
       {map.batch * (map.height / 2) * (map.width / 2) * 2 * h}},
      {BlockOperator::kScanFeaturesInt8,
       {images * map.channels},
       {h, h, d * 2 * D, 9 * D, D, 2 * D, 1},
       {grouped * d, grouped * D, grouped * D}},
      {BlockOperator::kProjectedScan2DInt8,
       {images * D},
       {D * (S + 2 * N), S * 4 * D, D * N, 4 * D, 4 * D, S + 2 * N, 4 * D, 1, 1},
       {images * D}},
  };
  for (const auto& c : cases) {
    const bool swaps = c.op == BlockOperator::kScanOutputs || c.op == BlockOperator::kScanOutputsInt8;
    if (swaps && map.height != map.width) continue;
    const bool merges = c.op == BlockOperator::kPatchMerging || c.op == BlockOperator::kPatchMergingInt8;
    if (merges && (map.height % 2 != 0 || map.width % 2 != 0)) continue;
    if (static_cast<int>(c.op) >= msmamba::kFloatOperators && element != msmamba::ElementType::kFloat32) continue;
    Pointers<float, const float*> weights(c.weights);
    if (c.op == BlockOperator::kProjectedScan2D || c.op == BlockOperator::kProjectedScan2DInt8) {
      // Step sizes of each direction's own step features; where there are three maps, of all directions'.
      for (int64_t i = 0; i < S * 4 * D; ++i) {
        if (map.batch != 3 && i / (4 * D) / rank != i % (4 * D) / D) weights.arrays[1][static_cast<size_t>(i)] = 0;
      }
    }
    const auto packed = msmamba::PackedOperator::create(c.op, element, sizes, weights.pointers.data());
    Pointers<Element, const void*> maps(c.maps);
    Pointers<Element, void*> outputs(c.outputs);
    msmamba::MapShape shape = map;
    if (c.op != BlockOperator::kScanFeatures && c.op != BlockOperator::kScanFeaturesInt8) shape.channels = 2 * h;
    // On one thread the scan of features takes all directions of two maps at a time, on three it may take one of them.
    for (int threads : {1, 3, 16}) {
      const char* failure =
          packed->run(shape, maps.pointers.data(), outputs.pointers.data(), {nullptr, threads, run_on_threads});
      if (failure != nullptr) std::printf("%s\n", failure);
    }
  }
}

void run_all(int64_t half, int64_t groups, int64_t rank, int64_t states, const msmamba::MapShape& map) {
  run_over<float>(msmamba::ElementType::kFloat32, half, groups, rank, states, map);
  run_over<uint16_t>(msmamba::ElementType::kFloat16, half, groups, rank, states, map);
}

}  // namespace

const msmamba::Kernels& msmamba::active_kernels() { return chosen; }

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    chosen.name = names[i];
    run_all(8, 2, 1, 1, {1, 1, 1, 8});
    run_all(16, 4, 1, 16, {2, 3, 3, 32});
    run_all(24, 2, 2, 3, {3, 1, 7, 48});
    run_all(24, 2, 1, 16, {5, 3, 3, 29});
    run_all(40, 1, 3, 5, {1, 9, 9, 40});
    run_all(96, 2, 3, 16, {1, 12, 12, 192});
  }
  std::printf("done\n");
}
