#include "gpu_block.h"

#include <algorithm>

namespace msmamba::gpu {
namespace {

// As in plugins/hybrid_block/gpu_kernels.py.
constexpr int64_t kElements = 128;
constexpr int64_t kRows = 4;
constexpr int64_t kLanes = 64;
constexpr int64_t kPositions = 64;
constexpr int64_t kFloatBytes = 4;

std::string plan_step(BlockStep step, const StepSizes& sizes, const void* const* in, void* const* out, Plan* plan) {
  const auto& [batch, height, width, channels, stride, groups, convolved] = sizes;
  const int64_t widest = std::max(2 * channels, stride);
  // One by one, since a product of what a file says may overflow.
  if (height >= kMostElements || width >= kMostElements || widest >= kMostElements ||
      height * width >= kMostElements || height * width * widest >= kMostElements) {
    return "a map of " + std::to_string(height) + "x" + std::to_string(width) + " with " + std::to_string(widest) +
           " channels has too many elements for the kernel: at most " + std::to_string(kMostElements) +
           " in an image";
  }
  const int64_t length = height * width;
  const int64_t of_elements = ceil_div(length * channels, kElements), of_rows = ceil_div(length, kRows);
  const int64_t of_lanes = ceil_div(2 * channels, kLanes);
  if (batch > kMostGridYZ || of_lanes > kMostGridYZ) {
    return "a batch of " + std::to_string(batch) + " with " + std::to_string(channels) +
           " channels exceeds the launch grid: at most batch " + std::to_string(kMostGridYZ) + " and " +
           std::to_string(kMostGridYZ * kLanes / 2) + " channels";
  }
  const Pointer sums = Pointer::workspace(0);
  auto& launches = plan->launches;
  switch (step) {
    case BlockStep::kLocalDepthwise:
      launches.push_back({kLocalDepthwise, {of_elements, batch, 1}, {in[0], in[1], in[2], in[3], in[4], out[0]},
                          {height, width, channels, stride}});
      break;
    case BlockStep::kLocalExpansion:
      launches.push_back({kLocalExpansion, {of_elements, batch, 1}, {in[0], in[1], in[2], out[0]},
                          {height, width, channels, channels / stride}});
      break;
    case BlockStep::kGroupedNorm:
      launches.push_back({kGroupedNorm, {of_rows, batch, 1}, {in[0], in[1], in[2], out[0]},
                          {length, channels, stride, groups}});
      break;
    case BlockStep::kGatedConvolution:
      launches.push_back({kGatedConvolution, {of_elements, batch, 1}, {in[0], in[1], in[2], out[0], out[1]},
                          {height, width, channels}});
      break;
    case BlockStep::kGatedNorm:
      launches.push_back({kGatedNorm, {of_rows, batch, 1}, {in[0], in[1], in[2], in[3], out[0]}, {length, channels}});
      break;
    case BlockStep::kMergedGroups:
      launches.push_back({kMergedGroups, {of_elements, batch, 1},
                          {in[0], in[1], in[2], in[3], in[4], in[5], out[0]},
                          {height, width, channels, groups, convolved}});
      break;
    case BlockStep::kShuffledNorm:
      launches.push_back({kShuffledNorm, {of_rows, batch, 1}, {in[0], in[1], in[2], out[0]}, {length, channels}});
      break;
    case BlockStep::kMIFA:
      plan->workspace_bytes = aligned(batch * height * 2 * channels * kFloatBytes);
      launches.push_back({kWeightedBranches, {of_elements, batch, 1}, {in[0], in[1], in[2], in[3], out[0]},
                          {height, width, channels}});
      launches.push_back({kRowSums, {height, of_lanes, batch}, {out[0], sums}, {height, width, 2 * channels}});
      launches.push_back({kChannelAttention, {ceil_div(length, kPositions), of_lanes, batch}, {sums, in[4], out[0]},
                          {height, width, 2 * channels}});
      break;
  }
  return "";
}

}  // namespace

bool has_step(const Package& package, BlockStep step, ElementType element) {
  if (step == BlockStep::kMIFA) {
    return package.has(element, kWeightedBranches) && package.has(element, kRowSums) &&
           package.has(element, kChannelAttention);
  }
  // The others have one kernel each, in the same order.
  return package.has(element, static_cast<KernelName>(kLocalDepthwise + static_cast<int>(step)));
}

std::string run_step(Package* package, BlockStep step, ElementType element, const StepSizes& sizes,
                     const void* const* inputs, void* const* outputs, Stream stream) {
  return package->run(stream, element, 0, [&](int, Plan* plan) { return plan_step(step, sizes, inputs, outputs, plan); });
}

}  // namespace msmamba::gpu
