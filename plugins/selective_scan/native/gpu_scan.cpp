#include "gpu_scan.h"

#include <algorithm>

namespace msmamba::gpu {
namespace {

// As in gpu_launch.py.
constexpr int64_t kSumElements = 1024;
constexpr int64_t kMostChunks = 32;
constexpr int64_t kFloatBytes = 4;

std::string plan_scan(const ScanShape& shape, const ScanInputs& inputs, void* y, Block block, int multiprocessors,
                      Plan* plan) {
  const int64_t elements = shape.height * shape.width * shape.channels, planes = shape.batch * kDirections;
  const int64_t blocks = ceil_div(shape.channels, block.channels);
  const int64_t length = shape.height * shape.width, widest = std::max(shape.channels, shape.states);
  const int64_t most = int64_t{1} << 31;
  // One by one, since a product of what a file says may overflow.
  if (shape.height >= most || shape.width >= most || widest >= most || length >= most ||
      length * widest >= kMostElements) {
    return "a map of " + std::to_string(shape.height) + "x" + std::to_string(shape.width) + " with " +
           std::to_string(shape.channels) + " channels has too many elements for the scan kernel: at most " +
           std::to_string(kMostElements) + " in an image";
  }
  if (shape.batch > kMostGridYZ / kDirections || blocks > kMostGridYZ) {
    return "a scan of batch " + std::to_string(shape.batch) + " and " + std::to_string(shape.channels) +
           " channels exceeds the launch grid: at most batch " + std::to_string(kMostGridYZ / kDirections) + " and " +
           std::to_string(kMostGridYZ * block.channels) + " channels";
  }
  const int64_t lines = std::max(shape.height, shape.width);
  const int64_t tiles_per_line = ceil_div(std::min(shape.height, shape.width), block.steps);
  const int64_t wanted = ceil_div(int64_t{8} * multiprocessors, planes * blocks);
  const int64_t useful = lines * tiles_per_line / 8;
  int64_t chunks = std::min(std::min(wanted, useful), std::min(lines, kMostChunks));
  if (chunks < 4) chunks = 1;
  const int64_t lines_per_chunk = ceil_div(lines, chunks);
  chunks = ceil_div(lines, lines_per_chunk);

  const int64_t kept = chunks > 1 ? planes * chunks * shape.channels : 0;
  const size_t partial_bytes = aligned(planes * elements * kFloatBytes);
  const size_t state_bytes = aligned(kept * shape.states * kFloatBytes);
  const Pointer partial = Pointer::workspace(0), state = Pointer::workspace(partial_bytes);
  const Pointer decay = Pointer::workspace(partial_bytes + state_bytes);
  plan->workspace_bytes = partial_bytes + state_bytes + aligned(kept * kFloatBytes);

  // Pointers as in gpu_launch.KERNEL_POINTERS.
  const auto& [type, x, delta, A, B, C, D, delta_bias] = inputs;
  const auto sizes = {shape.height, shape.width, shape.channels, lines_per_chunk};
  if (chunks > 1) {
    plan->launches.push_back(
        {kChunkState, {chunks - 1, blocks, planes}, {x, delta, A, B, delta_bias, state, decay}, sizes});
  }
  plan->launches.push_back(
      {kScan, {chunks, blocks, planes}, {x, delta, A, B, C, D, delta_bias, state, decay, partial}, sizes});
  plan->launches.push_back(
      {kSumDirections, {ceil_div(elements, kSumElements), shape.batch, 1}, {partial, y}, {elements}});
  return "";
}

}  // namespace

std::string scan(Package* package, const ScanShape& shape, const ScanInputs& inputs, void* y, Stream stream) {
  return package->run(stream, inputs.type, shape.states, [&](int multiprocessors, Plan* plan) {
    return plan_scan(shape, inputs, y, package->block(), multiprocessors, plan);
  });
}

}  // namespace msmamba::gpu
