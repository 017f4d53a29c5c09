// What the operators of the hybrid block are to a caller: plain data, and the table of their kernels.
//
// Dims as in the package: batch; H, W the map, L = H * W positions; C channels, h = C / 2 of a branch; G
// groups of d = h / G channels; D inner channels; K = 4 directions, K*R step features, K*N states; q convolved
// channels. Each operator uses the sizes that it has. PatchMerging's h is C: it takes no branch, but the block's map.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msmamba {

enum class BlockOperator : int32_t {
  kLocalBranch = 0,
  kScanInputs = 1,
  kScanOutputs = 2,
  kMIFA = 3,
  kPatchMerging = 4,
  // With int8 products, over float32 maps.
  kLocalBranchInt8 = 5,
  kScanInputsInt8 = 6,
  kScanOutputsInt8 = 7
};
constexpr int kBlockOperators = 8;
constexpr int kFloatOperators = 5;
constexpr int kInt8Operators = kBlockOperators - kFloatOperators;

// Sizes that the weights fix.
struct BlockSizes {
  int64_t half;       // h
  int64_t groups;     // G
  int64_t model;      // d
  int64_t inner;      // D
  int64_t steps;      // K*R
  int64_t states;     // K*N
  int64_t convolved;  // q
};

struct MapShape {
  int64_t batch;
  int64_t height;
  int64_t width;

  int64_t positions() const { return height * width; }
};

// One call: maps in and out in the contract's order (plugins/hybrid_block/__init__.py), at any address, of the
// kernels' element type.
struct BlockCall {
  const BlockSizes& sizes;
  MapShape map;
  const void* packed;  // written by `pack`
  const void* const* inputs;
  void* const* outputs;
  void* shared;  // what the first phase leaves for the second
};

// Part of one image: positions [first, last) in raster order, or rows.
struct Tile {
  int64_t image;
  int64_t first;
  int64_t last;
};

// A step of an operator whose tiles are independent of one another.
struct Phase {
  enum Unit { kPositions, kRows };

  Unit unit;
  // Positions of a tile, at most; a tile of rows has at least one.
  int64_t tile_positions;
  void (*run)(const BlockCall& call, const Tile& tile, void* scratch);
};

constexpr int kMostPhases = 2;

// One operator on one instruction set. Memory is aligned to 64 bytes, sizes are in bytes.
struct OperatorKernels {
  size_t (*packed_bytes)(const BlockSizes&);
  // Lays the weights, in the contract's order, out as the kernels read them; int8 ones come as floats.
  void (*pack)(const BlockSizes&, const float* const* weights, void* packed);
  size_t (*shared_bytes)(const BlockSizes&, const MapShape&);
  size_t (*scratch_bytes)(const BlockSizes&, const MapShape&);
  int phases;
  Phase phase[kMostPhases];
};

// What maps may hold: float32 and float16, the first two of ElementType. Both are computed in float32.
constexpr int kBlockElements = 2;

// The kernels over maps of one element type, by BlockOperator.
struct ElementKernels {
  OperatorKernels operators[kFloatOperators];
};

// Those with int8 products, by BlockOperator.
struct Int8Kernels {
  OperatorKernels operators[kInt8Operators];
};

// The kernels of one instruction set, by ElementType, and those with int8 products.
struct BlockKernels {
  const char* name;
  ElementKernels elements[kBlockElements];
  Int8Kernels int8;
};

}  // namespace msmamba
