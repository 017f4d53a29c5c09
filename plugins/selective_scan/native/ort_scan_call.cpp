#include "ort_scan_call.h"

namespace msmamba::ort {
namespace {

constexpr size_t kInputs = 7;
constexpr int64_t kMostStates = int64_t{1} << 16;  // no network comes near; the kernels count them as int
constexpr const char* kOpType = "SelectiveScan2D";

bool has_element_type(size_t input) { return input == 0 || input == 1 || input == 3 || input == 4; }

}  // namespace

ScanOp scan_op(const Api& api, ElementType element) {
  ScanOp op = {};
  op.element = element;
  op.api = &api;
  set_what_all_share(&op);
  op.get_name = [](const CustomOp*) { return kOpType; };
  op.get_input_count = [](const CustomOp*) { return kInputs; };
  op.get_input_type = [](const CustomOp* self, size_t index) {
    return has_element_type(index) ? static_cast<const ScanOp*>(self)->element : kFloat;
  };
  op.get_output_count = [](const CustomOp*) { return size_t{1}; };
  op.get_output_type = [](const CustomOp* self, size_t) { return static_cast<const ScanOp*>(self)->element; };
  op.infer_output_shape = [](const CustomOp* self, ShapeInferContext* context) {
    return infer_like_first_input(*static_cast<const ScanOp*>(self)->api, context);
  };
  return op;
}

Status* ScanCall::read(const Api& api, KernelContext* context, msmamba::ElementType element) {
  Input found[kInputs];
  for (size_t i = 0; i < kInputs; ++i) {
    if (Status* failed = found[i].read(api, context, i)) return failed;
  }
  const auto& [x, delta, A, B, C, D, delta_bias] = found;
  if (x.rank != 4) return api.create_status(kInvalidArgument, "SelectiveScan2D: x must be (batch, H, W, D)");
  if (A.rank != 3) return api.create_status(kInvalidArgument, "SelectiveScan2D: A must be (4, D, N)");

  shape = {x.dimensions[0], x.dimensions[1], x.dimensions[2], x.dimensions[3], A.dimensions[2]};
  const int64_t per_channel[] = {shape.batch, shape.height, shape.width, kDirections, shape.channels};
  const int64_t per_state[] = {shape.batch, shape.height, shape.width, kDirections, shape.states};
  const int64_t weights[] = {kDirections, shape.channels, shape.states};
  const Expected expected[kInputs] = {
      {"x", x.dimensions, 4}, {"delta", per_channel, 5}, {"A", weights, 3},         {"B", per_state, 5},
      {"C", per_state, 5},    {"D", weights, 2},         {"delta_bias", weights, 2}};
  for (size_t i = 0; i < kInputs; ++i) {
    if (Status* failed = check_dimensions(api, kOpType, found[i], expected[i])) return failed;
  }
  if (shape.states > kMostStates) {
    return api.create_status(kInvalidArgument, "SelectiveScan2D: there are more than 65,536 states");
  }

  Value* output = nullptr;
  if (Status* failed = api.get_output(context, 0, x.dimensions, 4, &output)) return failed;
  if (is_empty()) return nullptr;
  if (shape.height == 0 || shape.width == 0 || shape.channels == 0 || shape.states == 0) {
    return api.create_status(kInvalidArgument, "SelectiveScan2D: a dimension other than the batch is empty");
  }
  inputs = {element, x.data, delta.data, A.floats(), B.data, C.data, D.floats(), delta_bias.floats()};
  return api.get_tensor_data(output, &y);
}

}  // namespace msmamba::ort
