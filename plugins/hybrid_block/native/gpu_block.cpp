#include "gpu_block.h"

#include <algorithm>

namespace msmamba::gpu {
namespace {

// As in plugins/hybrid_block/gpu_kernels.py.
constexpr int64_t kWalkLanes = 128;
constexpr int64_t kNormRows = 8;
constexpr int64_t kSumLanes = 64;
constexpr int64_t kPositions = 64;

constexpr int64_t kMostLines = 32;  // of a walk
constexpr int64_t kBusyPrograms = 8;  // for each multiprocessor, 32 warps: below that walks are shortened
constexpr int64_t kFloatBytes = 4;

// The walks of a map, and their launch.
struct Walks {
  int64_t lines;
  int64_t programs;
  int64_t blocks;  // of what a position has for the lanes
};

// The longest that keep the GPU busy: the shorter a walk, the more lines are read by two. All of about one length.
Walks walks_of(const StepSizes& sizes, int64_t owned, int multiprocessors) {
  const int64_t rows = kWalkLanes / std::min(owned, kWalkLanes), blocks = ceil_div(owned, kWalkLanes);
  for (int64_t lines = kMostLines;; lines /= 2) {
    const int64_t bands = ceil_div(sizes.height, lines), programs = ceil_div(bands * sizes.width, rows);
    if (lines == 1 || programs * sizes.batch * blocks >= kBusyPrograms * multiprocessors) {
      return {ceil_div(sizes.height, bands), programs, blocks};
    }
  }
}

std::string plan_step(BlockStep step, const StepSizes& sizes, const void* const* in, void* const* out,
                      int multiprocessors, Plan* plan) {
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
  const int64_t of_rows = ceil_div(length, kNormRows), of_lanes = ceil_div(2 * channels, kSumLanes);
  if (batch > kMostGridYZ || of_lanes > kMostGridYZ) {
    return "a batch of " + std::to_string(batch) + " with " + std::to_string(channels) +
           " channels exceeds the launch grid: at most batch " + std::to_string(kMostGridYZ) + " and " +
           std::to_string(kMostGridYZ * kSumLanes / 2) + " channels";
  }
  const Pointer sums = Pointer::workspace(0);
  auto& launches = plan->launches;
  // A kernel whose lanes have one of `owned` at a position each; how long they walk is its last argument.
  const auto walk = [&](KernelName kernel, int64_t owned, std::vector<Pointer> pointers, std::vector<int64_t> scalars) {
    const Walks walks = walks_of(sizes, owned, multiprocessors);
    scalars.push_back(walks.lines);
    launches.push_back({kernel, {walks.programs, sizes.batch, walks.blocks}, std::move(pointers), scalars});
  };
  switch (step) {
    case BlockStep::kLocalDepthwise:
      walk(kLocalDepthwise, channels / 2, {in[0], in[1], in[2], in[3], in[4], out[0]}, {height, width, channels, stride});
      break;
    case BlockStep::kLocalExpansion:
      walk(kLocalExpansion, channels / 2, {in[0], in[1], in[2], out[0]}, {height, width, channels});
      break;
    case BlockStep::kGroupedNorm:
      launches.push_back({kGroupedNorm, {of_rows, batch, 1}, {in[0], in[1], in[2], out[0]},
                          {length, channels, stride, groups}});
      break;
    case BlockStep::kGatedConvolution:
      walk(kGatedConvolution, channels / 2, {in[0], in[1], in[2], out[0], out[1]}, {height, width, channels});
      break;
    case BlockStep::kGatedNorm:
      launches.push_back({kGatedNorm, {of_rows, batch, 1}, {in[0], in[1], in[2], in[3], out[0]}, {length, channels}});
      break;
    case BlockStep::kMergedGroups:
      // Of the convolved there are no more.
      walk(kMergedGroups, channels, {in[0], in[1], in[2], in[3], in[4], in[5], out[0]},
           {height, width, channels, groups, convolved});
      break;
    case BlockStep::kShuffledNorm:
      launches.push_back({kShuffledNorm, {of_rows, batch, 1}, {in[0], in[1], in[2], out[0]}, {length, channels}});
      break;
    case BlockStep::kMIFA:
      plan->workspace_bytes = aligned(batch * height * 2 * channels * kFloatBytes);
      walk(kWeightedBranches, channels, {in[0], in[1], in[2], in[3], out[0]}, {height, width, channels});
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
  return package->run(stream, element, 0, [&](int multiprocessors, Plan* plan) {
    return plan_step(step, sizes, inputs, outputs, multiprocessors, plan);
  });
}

}  // namespace msmamba::gpu
