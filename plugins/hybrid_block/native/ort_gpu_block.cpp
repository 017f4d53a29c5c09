// The steps of the hybrid block for ONNX Runtime's CUDA: inputs and outputs of their functions
// (plugins/hybrid_block/onnx_functions.py), all float32 or all float16. Shapes are checked on every call, since a model
// file may say anything.
#include "ort_gpu_block.h"

#include <cstring>
#include <exception>
#include <new>

#include "gpu_block.h"

namespace msmamba::ort {
namespace {

using gpu::BlockStep;

constexpr size_t kMostInputs = 6;
constexpr size_t kMostOutputs = 2;

// Tensors and their dimensions, one letter each: `b` images, `g` the groups' maps, `H` and `W`, and
//   h  channels, `C` twice them     c  channels of a map of which the first or last are used
//   d  channels of a group          q  of these the convolved
struct TensorSpec {
  const char* name;
  const char* letters;
};

// Tensors end with a null name. `groups` and `channels` are the letters that the attributes state, 0 where there is none.
struct StepSpec {
  const char* op_type;
  TensorSpec inputs[kMostInputs + 1];
  TensorSpec outputs[kMostOutputs + 1];
  char groups, channels;
};

// By BlockStep.
constexpr StepSpec kSpecs[gpu::kBlockSteps] = {
    {"LocalDepthwise",
     {{"x", "bHWc"}, {"scale", "h"}, {"shift", "h"}, {"weight", "h133"}, {"bias", "h"}},
     {{"y", "bHWh"}},
     0,
     'h'},
    {"LocalExpansion", {{"x", "bHWh"}, {"weight", "C133"}, {"bias", "C"}}, {{"y", "bHWC"}}, 0, 'h'},
    {"GroupedNorm", {{"x", "bHWc"}, {"weight", "h"}, {"bias", "h"}}, {{"y", "gHWd"}}, 'G', 0},
    {"GatedConvolution",
     {{"x", "bHWC"}, {"weight", "h133"}, {"bias", "h"}},
     {{"gate", "bHWh"}, {"y", "bHWh"}},
     0,
     'h'},
    {"GatedNorm", {{"x", "bHWh"}, {"gate", "bHWh"}, {"weight", "h"}, {"bias", "h"}}, {{"y", "bHWh"}}, 0, 0},
    {"MergedGroups",
     {{"x", "gHWd"}, {"tokens", "gHWd"}, {"x_bias", "d"}, {"conv_weight", "q133"}, {"conv_bias", "q"}, {"scale", "1"}},
     {{"y", "bHWh"}},
     'G',
     'q'},
    {"ShuffledNorm", {{"x", "bHWh"}, {"weight", "h"}, {"bias", "h"}}, {{"y", "bHWh"}}, 0, 0},
    {"MIFA",
     {{"local", "bHWh"}, {"scanned", "bHWh"}, {"conv_weight", "h133"}, {"conv_bias", "h"}, {"attention_weight", "C"}},
     {{"y", "bHWC"}},
     0,
     'h'},
};

// What the letters stand for, zero where it is not known yet.
struct Letters {
  int64_t of[128] = {};

  int64_t operator[](char letter) const {
    switch (letter) {
      case 'C': return 2 * of['h'];
      case 'g': return of['b'] * of['G'];
      default: return letter >= '0' && letter <= '9' ? letter - '0' : of[static_cast<int>(letter)];
    }
  }

  void learn(const TensorSpec& spec, const Input& found) {
    for (size_t i = 0; spec.letters[i] != '\0' && i < found.rank && i < Input::kMostDimensions; ++i) {
      const int64_t size = found.dimensions[i];
      switch (const char letter = spec.letters[i]) {
        case 'C': of['h'] = size / 2; break;
        case 'g': of['b'] = size / of['G']; break;
        default: of[static_cast<int>(letter)] = size; break;
      }
    }
  }
};

struct StepOp : CustomOp {
  BlockStep step;
  ElementType element;
  gpu::Package* package;

  const StepSpec& spec() const { return kSpecs[static_cast<int>(step)]; }
  msmamba::ElementType type() const {
    return element == kFloat16 ? msmamba::ElementType::kFloat16 : msmamba::ElementType::kFloat32;
  }
};

// What one node holds between calls.
struct Kernel {
  const Api& api;
  const StepOp& op;
  int64_t groups, channels;  // attributes; 1 and 0 where there is none
};

Status* refusal(const Api& api, ErrorCode code, const StepSpec& spec, const std::string& reason) {
  return api.create_status(code, (std::string(spec.op_type) + ": " + reason).c_str());
}

// What cannot be computed although all shapes fit, or nothing.
std::string unfit(const StepSpec& spec, BlockStep step, const Letters& sizes, int64_t channels) {
  const auto is = [&](char letter) { return std::string(1, letter) + " = " + std::to_string(sizes[letter]); };
  if (sizes['H'] == 0 || sizes['W'] == 0 || (sizes['h'] == 0 && sizes['d'] == 0)) {
    return "a dimension other than the batch is empty";
  }
  if (spec.channels != 0 && channels != sizes[spec.channels]) {
    return "attribute channels is " + std::to_string(channels) + ", expected " +
           std::to_string(sizes[spec.channels]) + " by the weights' shapes";
  }
  if (sizes['c'] != 0 && sizes['c'] < sizes['h']) {
    return "x has " + std::to_string(sizes['c']) + " channels, fewer than the weights";
  }
  for (const char letter : {'h', 'c', 'd'}) {  // the kernels take channels in pairs, and some shuffle them
    if (sizes[letter] % 2 != 0) return "channels must be even: " + is(letter);
  }
  if (step == BlockStep::kMergedGroups) {
    if (sizes['H'] != sizes['W']) return "the map is not square: " + is('H') + ", " + is('W');
    if (sizes['q'] == 0 || sizes['q'] > sizes['d']) {
      return "of a group's channels some must be convolved: " + is('d') + ", " + is('q');
    }
  }
  return "";
}

Status* compute(void* kernel_, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(kernel_);
  const Api& api = kernel.api;
  const StepOp& op = kernel.op;
  const StepSpec& spec = op.spec();
  const size_t input_count = count(spec.inputs), output_count = count(spec.outputs);

  Letters sizes;
  sizes.of['G'] = kernel.groups;
  Input found[kMostInputs];
  const void* inputs[kMostInputs];
  for (size_t i = 0; i < input_count; ++i) {
    if (Status* failed = found[i].read(api, context, i)) return failed;
    sizes.learn(spec.inputs[i], found[i]);
    inputs[i] = found[i].data;
  }
  for (size_t i = 0; i < input_count; ++i) {
    int64_t dimensions[Input::kMostDimensions];
    size_t rank = 0;
    for (const char* letter = spec.inputs[i].letters; *letter != '\0'; ++letter) dimensions[rank++] = sizes[*letter];
    if (Status* failed = check_dimensions(api, spec.op_type, found[i], {spec.inputs[i].name, dimensions, rank})) {
      return failed;
    }
  }
  if (op.step == BlockStep::kGroupedNorm) {
    if (sizes['h'] % kernel.groups != 0) {
      return refusal(api, kInvalidArgument, spec,
                     std::to_string(sizes['h']) + " channels are no " + std::to_string(kernel.groups) + " groups");
    }
    sizes.of['d'] = sizes['h'] / kernel.groups;
  } else if (op.step == BlockStep::kMergedGroups) {
    sizes.of['h'] = sizes['d'] * kernel.groups;
  }
  const std::string reason = sizes['b'] == 0 ? "" : unfit(spec, op.step, sizes, kernel.channels);
  if (!reason.empty()) return refusal(api, kInvalidArgument, spec, reason);

  void* outputs[kMostOutputs];
  for (size_t i = 0; i < output_count; ++i) {
    int64_t dimensions[Input::kMostDimensions];
    size_t rank = 0;
    for (const char* letter = spec.outputs[i].letters; *letter != '\0'; ++letter) dimensions[rank++] = sizes[*letter];
    Value* value = nullptr;
    if (Status* failed = api.get_output(context, i, dimensions, rank, &value)) return failed;
    if (Status* failed = api.get_tensor_data(value, &outputs[i])) return failed;
  }
  if (sizes['b'] == 0) return nullptr;

  const bool takes_some = op.step == BlockStep::kLocalDepthwise || op.step == BlockStep::kGroupedNorm;
  const gpu::StepSizes step = {sizes['b'], sizes['H'],     sizes['W'],    sizes['h'],
                               takes_some ? sizes['c'] : sizes['h'], kernel.groups, sizes['q']};
  void* stream = nullptr;
  if (Status* failed = api.get_gpu_stream(context, &stream)) return failed;
  std::string failure;
  try {
    failure = gpu::run_step(op.package, op.step, op.type(), step, inputs, outputs, static_cast<gpu::Stream>(stream));
  } catch (const std::exception& error) {
    failure = error.what();  // out of memory
  }
  return failure.empty() ? nullptr : refusal(api, kFail, spec, failure);
}

Status* create_kernel(const CustomOp* self, const Api* api, const KernelInfo* info, void** kernel) {
  const StepOp& op = *static_cast<const StepOp*>(self);
  const StepSpec& spec = op.spec();
  std::unique_ptr<Kernel> made(new (std::nothrow) Kernel{*api, op, 1, 0});
  if (made == nullptr) return api->create_status(kFail, "out of memory");
  if (spec.groups != 0) {
    if (Status* failed = api->get_int_attribute(info, "groups", &made->groups)) return failed;
    if (made->groups < 1) return refusal(*api, kInvalidArgument, spec, "attribute groups is less than 1");
  }
  if (spec.channels != 0) {
    if (Status* failed = api->get_int_attribute(info, "channels", &made->channels)) return failed;
  }
  op.package->enter();
  *kernel = made.release();
  return nullptr;
}

void destroy_kernel(void* kernel_) {
  Kernel* kernel = static_cast<Kernel*>(kernel_);
  kernel->op.package->leave();
  delete kernel;
}

StepOp step_op(BlockStep step, ElementType element, gpu::Package* package) {
  StepOp op = {};
  op.step = step;
  op.element = element;
  op.package = package;
  set_what_all_share(&op);
  op.get_name = [](const CustomOp* self) { return static_cast<const StepOp*>(self)->spec().op_type; };
  op.get_execution_provider = [](const CustomOp*) { return "CUDAExecutionProvider"; };
  op.get_input_count = [](const CustomOp* self) { return count(static_cast<const StepOp*>(self)->spec().inputs); };
  op.get_output_count = [](const CustomOp* self) { return count(static_cast<const StepOp*>(self)->spec().outputs); };
  op.get_input_type = [](const CustomOp* self, size_t) { return static_cast<const StepOp*>(self)->element; };
  op.get_output_type = [](const CustomOp* self, size_t) { return static_cast<const StepOp*>(self)->element; };
  op.create_kernel_v2 = create_kernel;
  op.compute_v2 = compute;
  op.destroy_kernel = destroy_kernel;
  return op;
}

}  // namespace

std::vector<std::shared_ptr<CustomOp>> block_steps(ElementType element, gpu::Package* package) {
  std::vector<std::shared_ptr<CustomOp>> ops;
  for (int i = 0; i < gpu::kBlockSteps; ++i) {
    const StepOp op = step_op(static_cast<BlockStep>(i), element, package);
    if (gpu::has_step(*package, op.step, op.type())) ops.push_back(std::make_shared<StepOp>(op));
  }
  return ops;
}

}  // namespace msmamba::ort
