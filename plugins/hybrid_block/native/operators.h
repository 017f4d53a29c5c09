// What the operators of the hybrid block are to a caller: plain data, and the table of their kernels.
//
// Dims as in the package: batch; H, W the map, L = H * W positions; C channels, h = C / 2 of a branch; G
// groups of d = h / G channels; D inner channels; K = 4 directions, K*R step features, K*N states; q convolved
// channels. Each operator uses the sizes that it has. PatchMerging's h is C: it takes no branch, but the block's map.
#pragma once

#include "../../selective_scan/native/problem.h"

namespace msmamba {

enum class BlockOperator : int32_t {
  kLocalBranch = 0,
  kScanInputs = 1,
  kScanOutputs = 2,
  kMIFA = 3,
  kPatchMerging = 4,
  kScanFeatures = 5,
  kProjectedScan2D = 6,
  // With int8 products, over float32 maps.
  kLocalBranchInt8 = 7,
  kScanInputsInt8 = 8,
  kScanOutputsInt8 = 9,
  kScanFeaturesInt8 = 10,
  kProjectedScan2DInt8 = 11,
  kPatchMergingInt8 = 12
};
constexpr int kBlockOperators = 13;
constexpr int kFloatOperators = 7;
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
  int64_t channels;  // of an operator's first map

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
  void* shared;     // what the first phase leaves for the second
  bool own_adders;      // the processor's additions have units of their own beside its multiply-adds'
  int64_t image_tiles;  // tiles of the call's images, in phases that go by those
};

// Part of one image, or of one tile of images: positions [first, last) in raster order, or rows. Or images [first, last),
// in direction `image` or in all.
struct Tile {
  int64_t image;
  int64_t first;
  int64_t last;
};

// A step of an operator whose tiles are independent of one another.
struct Phase {
  enum Unit { kPositions, kRows, kImages, kImagesByDirection, kPositionsByImages };

  Unit unit;
  // Positions of a tile, at most; a tile of rows has at least one.
  int64_t tile_positions;
  void (*run)(const BlockCall& call, const Tile& tile, void* scratch);
};

constexpr int kMostPhases = 4;

// One operator on one instruction set. Memory is aligned to 64 bytes, sizes are in bytes.
struct OperatorKernels {
  size_t (*packed_bytes)(const BlockSizes&);
  // Lays the weights, in the contract's order, out as the kernels read them; int8 ones come as floats.
  void (*pack)(const BlockSizes&, const float* const* weights, void* packed);
  size_t (*shared_bytes)(const BlockSizes&, const MapShape&);
  size_t (*scratch_bytes)(const BlockSizes&, const MapShape&);
  int phases;
  Phase phase[kMostPhases];
  // Of ProjectedScan2D, else null: images that a tile of them should have. Behind the first phase stands the second alone or,
  // where there are fewer tiles than threads, the third and the fourth.
  int64_t (*together)(const BlockSizes&);
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
