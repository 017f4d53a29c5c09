// The custom operators of the hybrid block for ONNX Runtime: inputs and outputs of the contract
// (plugins/hybrid_block/__init__.py), all float32 or all float16, but for the weights of int8 products.
//
// Weights that the graph holds as constants, as exported models do, are packed once, when the session is
// made; others on every call. Shapes are checked on every call, since a model file may say anything. The sizes
// come from the weights' shapes; attributes, which the function of standard operators needs, must say the same.
#include <cstdio>
#include <cstring>
#include <new>

#include "../../selective_scan/native/element.h"
#include "../../selective_scan/native/ort_support.h"
#include "block.h"

namespace msmamba::ort {
namespace {

// A tensor and its dimensions, one letter each: `b` batch, `g` batch * G, `H` and `W`, `K` = 4 directions and
//   h  channels of a branch, a `C` of two branches     d  channels of a group
//   c  channels of the first map, whatever they are
//   D  inner channels, `E` twice, `X` four times them  S  step features of all directions
//   N  states of all directions, `n` of one            q  convolved channels
//   M  step features and twice the states
// and of PatchMerging, whose `h` are all of the map's channels: `Q` four times them, `I` and `J` half of `H` and `W`.
struct TensorSpec {
  const char* name;
  const char* letters;
  enum Held { kAsMaps, kAsInt8, kAsFloat } held = kAsMaps;
};

constexpr TensorSpec::Held kAsInt8 = TensorSpec::kAsInt8;
constexpr TensorSpec::Held kAsFloat = TensorSpec::kAsFloat;

// An integer attribute, and the letter of the size that it states; `G` is the number of groups.
struct AttributeSpec {
  const char* name;
  char letter;
};

constexpr int kMostAttributes = 2;
constexpr int kMostMaps = 3;
constexpr int kMostWeights = 13;
constexpr int kMostOutputs = 6;

// Attributes and tensors end with a null name.
struct OperatorSpec {
  const char* op_type;
  AttributeSpec attributes[kMostAttributes + 1];
  TensorSpec maps[kMostMaps + 1];
  TensorSpec weights[kMostWeights + 1];
  TensorSpec outputs[kMostOutputs + 1];
};

// By BlockOperator.
constexpr OperatorSpec kSpecs[kBlockOperators] = {
    {"LocalBranch",
     {{"channels", 'h'}},
     {{"x", "bHWC"}},
     {{"scale", "h"},
      {"shift", "h"},
      {"depthwise_weight", "h133"},
      {"depthwise_bias", "h"},
      {"expand_weight", "C133"},
      {"expand_bias", "C"},
      {"project_weight", "hC11"},
      {"project_bias", "h"}},
     {{"local", "bHWh"}}},
    {"ScanInputs",
     {{"groups", 'G'}, {"channels", 'D'}},
     {{"x", "bHWC"}},
     {{"norm_weight", "h"},
      {"norm_bias", "h"},
      {"in_weight", "dE"},
      {"conv_weight", "D133"},
      {"conv_bias", "D"},
      {"step_weight", "DS"},
      {"step_expand", "SX"},
      {"input_weight", "DN"},
      {"output_weight", "DN"}},
     {{"tokens", "gHWd"}, {"gate", "gHWD"}, {"features", "gHWD"}, {"delta", "gHWKD"}, {"B", "gHWKn"}, {"C", "gHWKn"}}},
    {"ScanOutputs",
     {{"groups", 'G'}, {"channels", 'q'}},
     {{"y", "gHWD"}, {"gate", "gHWD"}, {"tokens", "gHWd"}},
     {{"out_norm_weight", "D"},
      {"out_norm_bias", "D"},
      {"project_weight", "Dd"},
      {"project_bias", "d"},
      {"conv_weight", "q133"},
      {"conv_bias", "q"},
      {"residual_scale", "1"},
      {"norm_weight", "h"},
      {"norm_bias", "h"}},
     {{"scanned", "bHWh"}}},
    {"MIFA",
     {{"channels", 'h'}},
     {{"local", "bHWh"}, {"scanned", "bHWh"}},
     {{"conv_weight", "h133"}, {"conv_bias", "h"}, {"attention_weight", "C"}},
     {{"y", "bHWC"}}},
    {"PatchMerging",
     {},
     {{"x", "bHWh"}},
     {{"norm_weight", "Q"}, {"norm_bias", "Q"}, {"reduction_weight", "QC"}},
     {{"y", "bIJC"}}},
    {"ScanFeatures",
     {{"groups", 'G'}, {"channels", 'D'}},
     {{"x", "bHWc"}},
     {{"norm_weight", "h"}, {"norm_bias", "h"}, {"in_weight", "dE"}, {"conv_weight", "D133"}, {"conv_bias", "D"}},
     {{"tokens", "gHWd"}, {"gate", "gHWD"}, {"features", "gHWD"}}},
    {"ProjectedScan2D",
     {},
     {{"features", "gHWD"}},
     {{"step_weight", "DS"},
      {"step_expand", "SX"},
      {"input_weight", "DN"},
      {"output_weight", "DN"},
      {"A", "KDn", kAsFloat},
      {"D", "KD", kAsFloat},
      {"delta_bias", "KD", kAsFloat}},
     {{"y", "gHWD"}}},
    {"LocalBranchInt8",
     {{"channels", 'h'}},
     {{"x", "bHWC"}},
     {{"scale", "h"},
      {"shift", "h"},
      {"depthwise_weight", "h133"},
      {"depthwise_bias", "h"},
      {"expand_weight", "C133"},
      {"expand_bias", "C"},
      {"project_weight", "hC11", kAsInt8},
      {"project_bias", "h"},
      {"project_weight_scale", "h"},
      {"expanded_kept_scale", ""},
      {"projected_scale", ""}},
     {{"local", "bHWh"}}},
    {"ScanInputsInt8",
     {{"groups", 'G'}, {"channels", 'D'}},
     {{"x", "bHWC"}},
     {{"norm_weight", "h"},
      {"norm_bias", "h"},
      {"in_weight", "dE", kAsInt8},
      {"conv_weight", "D133"},
      {"conv_bias", "D"},
      {"features_weight", "DM", kAsInt8},
      {"step_expand", "SX", kAsInt8},
      {"in_weight_scale", "E"},
      {"features_weight_scale", "M"},
      {"step_expand_scale", "X"},
      {"tokens_scale", ""},
      {"features_scale", ""},
      {"step_features_scale", ""}},
     {{"tokens", "gHWd"}, {"gate", "gHWD"}, {"features", "gHWD"}, {"delta", "gHWKD"}, {"B", "gHWKn"}, {"C", "gHWKn"}}},
    {"ScanOutputsInt8",
     {{"groups", 'G'}, {"channels", 'q'}},
     {{"y", "gHWD"}, {"gate", "gHWD"}, {"tokens", "gHWd"}},
     {{"out_norm_weight", "D"},
      {"out_norm_bias", "D"},
      {"project_weight", "Dd", kAsInt8},
      {"project_bias", "d"},
      {"conv_weight", "q133"},
      {"conv_bias", "q"},
      {"residual_scale", "1"},
      {"norm_weight", "h"},
      {"norm_bias", "h"},
      {"project_weight_scale", "d"},
      {"gated_scale", ""}},
     {{"scanned", "bHWh"}}},
    {"ScanFeaturesInt8",
     {{"groups", 'G'}, {"channels", 'D'}},
     {{"x", "bHWc"}},
     {{"norm_weight", "h"},
      {"norm_bias", "h"},
      {"in_weight", "dE", kAsInt8},
      {"conv_weight", "D133"},
      {"conv_bias", "D"},
      {"in_weight_scale", "E"},
      {"tokens_scale", ""}},
     {{"tokens", "gHWd"}, {"gate", "gHWD"}, {"features", "gHWD"}}},
    {"ProjectedScan2DInt8",
     {},
     {{"features", "gHWD"}},
     {{"features_weight", "DM", kAsInt8},
      {"step_expand", "SX", kAsInt8},
      {"A", "KDn"},
      {"D", "KD"},
      {"delta_bias", "KD"},
      {"features_weight_scale", "M"},
      {"step_expand_scale", "X"},
      {"features_scale", ""},
      {"step_features_scale", ""}},
     {{"y", "gHWD"}}},
    {"PatchMergingInt8",
     {},
     {{"x", "bHWh"}},
     {{"norm_weight", "Q"},
      {"norm_bias", "Q"},
      {"reduction_weight", "QC", kAsInt8},
      {"reduction_weight_scale", "C"},
      {"normed_scale", ""}},
     {{"y", "bIJC"}}},
};

// What the letters stand for.
struct Sizes {
  BlockSizes block{};
  MapShape map{};
  int64_t merged = 0;  // what was found for `M`

  int64_t operator[](char letter) const {
    switch (letter) {
      case 'b': return map.batch;
      case 'g': return map.batch * block.groups;
      case 'G': return block.groups;
      case 'H': return map.height;
      case 'W': return map.width;
      case 'c': return map.channels;
      case 'K': return kDirections;
      case 'h': return block.half;
      case 'C': return 2 * block.half;
      case 'Q': return 4 * block.half;
      case 'I': return map.height / 2;
      case 'J': return map.width / 2;
      case 'd': return block.model;
      case 'D': return block.inner;
      case 'E': return 2 * block.inner;
      case 'X': return kDirections * block.inner;
      case 'M': return block.steps + 2 * block.states;
      case 'S': return block.steps;
      case 'N': return block.states;
      case 'n': return block.states / kDirections;
      case 'q': return block.convolved;
      default: return letter - '0';
    }
  }

  // Takes what the dimensions of a weight say directly.
  void learn_weight(const TensorSpec& spec, const Input& weight) {
    for (size_t i = 0; spec.letters[i] != '\0' && i < weight.rank; ++i) {
      switch (spec.letters[i]) {
        case 'h': block.half = weight.dimensions[i]; break;
        case 'Q': block.half = weight.dimensions[i] / 4; break;
        case 'd': block.model = weight.dimensions[i]; break;
        case 'D': block.inner = weight.dimensions[i]; break;
        case 'S': block.steps = weight.dimensions[i]; break;
        case 'N': block.states = weight.dimensions[i]; break;
        case 'M': merged = weight.dimensions[i]; break;
        case 'q': block.convolved = weight.dimensions[i]; break;
        default: break;
      }
    }
    block.groups = block.model > 0 ? block.half / block.model : 1;
    if (merged > 0) block.states = (merged - block.steps) / 2;
  }

  // `spec` is of the first map.
  void learn_map(const TensorSpec& spec, const Input& first) {
    const int64_t images = first.dimensions[0];
    map = {spec.letters[0] == 'g' && block.groups > 0 ? images / block.groups : images, first.dimensions[1],
           first.dimensions[2], first.dimensions[3]};
  }
};

Status* check_tensor(const Api& api, const char* op_type, const TensorSpec& spec, const Input& found,
                     const Sizes& sizes) {
  int64_t dimensions[Input::kMostDimensions];
  size_t rank = 0;
  for (; spec.letters[rank] != '\0'; ++rank) dimensions[rank] = sizes[spec.letters[rank]];
  return check_dimensions(api, op_type, found, {spec.name, dimensions, rank});
}

struct BlockOp : CustomOp {
  BlockOperator op;
  msmamba::ElementType element;

  const OperatorSpec& spec() const { return kSpecs[static_cast<int>(op)]; }
};

// What one node holds between calls.
struct Kernel {
  const Api& api;
  const BlockOp& op;
  int64_t attributes[kMostAttributes];     // in the order of the specification
  std::unique_ptr<PackedOperator> packed;  // null where weights are not constant
};

Status* refusal(const Api& api, ErrorCode code, const char* op_type, const char* reason) {
  char message[256];
  std::snprintf(message, sizeof message, "%s: %s", op_type, reason);
  return api.create_status(code, message);
}

// Refuses weights for a reason that lies in the sizes learnt from them, and names those.
Status* refuse_sizes(const Api& api, const OperatorSpec& spec, const Sizes& sizes, const char* reason) {
  constexpr struct {
    char letter;
    const char* name;
  } kNamed[] = {{'h', "h"}, {'d', "d"}, {'D', "D"}, {'S', "K*R"}, {'N', "K*N"}, {'q', "q"}};
  char message[256];
  int used = std::snprintf(message, sizeof message, "%s", reason);
  const char* separator = ": ";
  for (const auto& size : kNamed) {
    bool has_it = false;
    for (size_t i = 0; i < count(spec.weights); ++i) {
      has_it |= std::strchr(spec.weights[i].letters, size.letter) != nullptr;
    }
    if (!has_it) continue;
    used += std::snprintf(message + used, sizeof message - static_cast<size_t>(used), "%s%s = %lld", separator,
                          size.name, static_cast<long long>(sizes[size.letter]));
    separator = ", ";
  }
  return refusal(api, kInvalidArgument, spec.op_type, message);
}

// Null if the attributes say what the weights' shapes do, otherwise a failure that names both.
Status* check_attributes(const Kernel& kernel, const Sizes& sizes) {
  const OperatorSpec& spec = kernel.op.spec();
  for (size_t i = 0; i < count(spec.attributes); ++i) {
    const AttributeSpec& attribute = spec.attributes[i];
    if (kernel.attributes[i] == sizes[attribute.letter]) continue;
    char reason[128];
    std::snprintf(reason, sizeof reason, "attribute %s is %lld, expected %lld by the weights' shapes", attribute.name,
                  static_cast<long long>(kernel.attributes[i]), static_cast<long long>(sizes[attribute.letter]));
    return refusal(kernel.api, kInvalidArgument, spec.op_type, reason);
  }
  return nullptr;
}

// Weights as float32: those of float16 models, and integers, are widened.
class WideWeights {
 public:
  // The floats of a weight, which lives as long as this and the tensor; null when out of memory.
  const float* floats(const Input& weight, TensorSpec::Held held, msmamba::ElementType element) {
    const bool int8 = held == kAsInt8;
    if (held == kAsFloat || (!int8 && element == msmamba::ElementType::kFloat32)) return weight.floats();
    int64_t count = 1;
    for (size_t i = 0; i < weight.rank; ++i) count *= weight.dimensions[i];
    std::unique_ptr<float[]>& wide = held_[used_++];
    wide.reset(new (std::nothrow) float[static_cast<size_t>(count + kLanes)]);
    if (wide == nullptr) return nullptr;
    if (int8) {
      for (int64_t i = 0; i < count; ++i) wide[static_cast<size_t>(i)] = static_cast<const int8_t*>(weight.data)[i];
      return wide.get();
    }
    const Half* const narrow = static_cast<const Half*>(weight.data);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int used = static_cast<int>(count - i < kLanes ? count - i : kLanes);
      store<kLanes>(wide.get() + i, load_lanes<kLanes>(narrow + i, used));
    }
    return wide.get();
  }

 private:
  static constexpr int kLanes = 4;
  std::unique_ptr<float[]> held_[kMostWeights];
  size_t used_ = 0;
};

// Packs weights of any shape that the contract allows.
Status* pack(const Kernel& kernel, const Input* weights, std::unique_ptr<PackedOperator>* packed) {
  const Api& api = kernel.api;
  const OperatorSpec& spec = kernel.op.spec();
  const size_t weight_count = count(spec.weights);
  Sizes sizes;
  for (size_t i = 0; i < weight_count; ++i) sizes.learn_weight(spec.weights[i], weights[i]);
  if (too_wide(sizes.block)) return refuse_sizes(api, spec, sizes, kTooWide);
  for (size_t i = 0; i < weight_count; ++i) {
    if (Status* failed = check_tensor(api, spec.op_type, spec.weights[i], weights[i], sizes)) return failed;
  }
  if (const char* reason = unfit_sizes(kernel.op.op, sizes.block)) return refuse_sizes(api, spec, sizes, reason);
  if (Status* failed = check_attributes(kernel, sizes)) return failed;
  WideWeights wide;
  const float* pointers[kMostWeights];
  for (size_t i = 0; i < weight_count; ++i) {
    pointers[i] = wide.floats(weights[i], spec.weights[i].held, kernel.op.element);
    if (pointers[i] == nullptr) return refusal(api, kFail, spec.op_type, "out of memory");
  }
  *packed = PackedOperator::create(kernel.op.op, kernel.op.element, sizes.block, pointers);
  return *packed == nullptr ? refusal(api, kFail, spec.op_type, "out of memory") : nullptr;
}

Status* create_kernel(const CustomOp* self, const Api* api, const KernelInfo* info, void** kernel) {
  const BlockOp& op = *static_cast<const BlockOp*>(self);
  const size_t map_count = count(op.spec().maps), weight_count = count(op.spec().weights);
  std::unique_ptr<Kernel> made(new (std::nothrow) Kernel{*api, op, {}, nullptr});
  if (made == nullptr) return refusal(*api, kFail, op.spec().op_type, "out of memory");
  for (size_t i = 0; i < count(op.spec().attributes); ++i) {
    if (Status* failed = api->get_int_attribute(info, op.spec().attributes[i].name, &made->attributes[i])) return failed;
  }

  Input weights[kMostWeights];
  bool all_constant = true;
  for (size_t i = 0; all_constant && i < weight_count; ++i) {
    int constant = 0;
    const Value* value = nullptr;
    if (Status* failed = api->get_constant_input(info, map_count + i, &constant, &value)) return failed;
    all_constant = constant != 0;
    if (!all_constant) break;
    if (Status* failed = weights[i].read(*api, value)) return failed;
  }
  if (all_constant) {
    if (Status* failed = pack(*made, weights, &made->packed)) return failed;
  }
  *kernel = made.release();
  return nullptr;
}

Status* compute(void* kernel_, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(kernel_);
  const Api& api = kernel.api;
  const OperatorSpec& spec = kernel.op.spec();
  const size_t map_count = count(spec.maps), weight_count = count(spec.weights), output_count = count(spec.outputs);

  std::unique_ptr<PackedOperator> packed_now;
  if (kernel.packed == nullptr) {
    Input weights[kMostWeights];
    for (size_t i = 0; i < weight_count; ++i) {
      if (Status* failed = weights[i].read(api, context, map_count + i)) return failed;
    }
    if (Status* failed = pack(kernel, weights, &packed_now)) return failed;
  }
  const PackedOperator& packed = kernel.packed != nullptr ? *kernel.packed : *packed_now;

  Input maps[kMostMaps];
  for (size_t i = 0; i < map_count; ++i) {
    if (Status* failed = maps[i].read(api, context, i)) return failed;
  }
  Sizes sizes;
  sizes.block = packed.sizes();
  sizes.learn_map(spec.maps[0], maps[0]);
  // Before sizes are computed from it; a map of another rank is named below.
  const char* unfit = maps[0].rank == 4 ? unfit_map(kernel.op.op, sizes.block, sizes.map) : nullptr;
  if (unfit != nullptr) return refusal(api, kInvalidArgument, spec.op_type, unfit);
  const void* inputs[kMostMaps];
  for (size_t i = 0; i < map_count; ++i) {
    if (Status* failed = check_tensor(api, spec.op_type, spec.maps[i], maps[i], sizes)) return failed;
    inputs[i] = maps[i].data;
  }
  void* outputs[kMostOutputs];
  for (size_t i = 0; i < output_count; ++i) {
    int64_t dimensions[Input::kMostDimensions];
    size_t rank = 0;
    for (; spec.outputs[i].letters[rank] != '\0'; ++rank) dimensions[rank] = sizes[spec.outputs[i].letters[rank]];
    Value* value = nullptr;
    if (Status* failed = api.get_output(context, i, dimensions, rank, &value)) return failed;
    if (Status* failed = api.get_tensor_data(value, &outputs[i])) return failed;
  }

  SessionThreads threads(api, context);
  const char* failure = packed.run(sizes.map, inputs, outputs, threads.parallel());
  if (threads.failure() != nullptr) return threads.failure();
  return failure == nullptr ? nullptr : refusal(api, kFail, spec.op_type, failure);
}

// What ONNX Runtime calls the operator's element type.
ElementType element_of(const CustomOp* self) {
  return static_cast<const BlockOp*>(self)->element == msmamba::ElementType::kFloat16 ? kFloat16 : kFloat;
}

BlockOp block_op(BlockOperator kind, msmamba::ElementType element) {
  BlockOp op = {};
  op.op = kind;
  op.element = element;
  set_what_all_share(&op);
  op.get_name = [](const CustomOp* self) { return static_cast<const BlockOp*>(self)->spec().op_type; };
  op.get_execution_provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.get_input_count = [](const CustomOp* self) {
    const OperatorSpec& spec = static_cast<const BlockOp*>(self)->spec();
    return count(spec.maps) + count(spec.weights);
  };
  op.get_input_type = [](const CustomOp* self, size_t index) {
    const OperatorSpec& spec = static_cast<const BlockOp*>(self)->spec();
    const size_t map_count = count(spec.maps);
    switch (index < map_count ? TensorSpec::kAsMaps : spec.weights[index - map_count].held) {
      case kAsInt8: return kInt8;
      case kAsFloat: return kFloat;
      default: return element_of(self);
    }
  };
  op.get_output_count = [](const CustomOp* self) { return count(static_cast<const BlockOp*>(self)->spec().outputs); };
  op.get_output_type = [](const CustomOp* self, size_t) { return element_of(self); };
  op.create_kernel_v2 = create_kernel;
  op.compute_v2 = compute;
  op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

Operators block_operators(const Api&) {
  static const auto made = [] {
    struct Made {
      BlockOp singles[kBlockOperators];
      BlockOp halves[kFloatOperators];
    } ops;
    for (int i = 0; i < kBlockOperators; ++i) {
      ops.singles[i] = block_op(static_cast<BlockOperator>(i), msmamba::ElementType::kFloat32);
      if (i < kFloatOperators) ops.halves[i] = block_op(static_cast<BlockOperator>(i), msmamba::ElementType::kFloat16);
    }
    return ops;
  }();
  static const auto ops = [] {
    struct Pointers {
      const CustomOp* each[kBlockOperators + kFloatOperators];
    } pointers;
    for (int i = 0; i < kBlockOperators; ++i) pointers.each[i] = &made.singles[i];
    for (int i = 0; i < kFloatOperators; ++i) pointers.each[kBlockOperators + i] = &made.halves[i];
    return pointers;
  }();
  return {ops.each, kBlockOperators + kFloatOperators};
}

}  // namespace msmamba::ort
