#include "ort_support.h"

#include <cstdio>

#include "thread_pool.h"

namespace msmamba::ort {
namespace {

// Writes "(2, 3)", or "of rank 7" where the rank is more than was read.
void print_dimensions(char* text, size_t size, const int64_t* dimensions, size_t rank) {
  if (rank > Input::kMostDimensions) {
    std::snprintf(text, size, "of rank %zu", rank);
    return;
  }
  int used = std::snprintf(text, size, "(");
  for (size_t i = 0; i < rank; ++i) {
    used += std::snprintf(text + used, size - used, i == 0 ? "%lld" : ", %lld", static_cast<long long>(dimensions[i]));
  }
  std::snprintf(text + used, size - used, ")");
}

}  // namespace

Status* Input::read(const Api& api, const KernelContext* context, size_t index) {
  const Value* value = nullptr;
  if (Status* failed = api.get_input(context, index, &value)) return failed;
  return read(api, value);
}

Status* Input::read(const Api& api, const Value* value) {
  if (value == nullptr) return api.create_status(kInvalidArgument, "an input of a native operator is left out");
  if (Status* failed = api.get_tensor_data(value, &data)) return failed;
  TensorInfo* info = nullptr;
  if (Status* failed = api.get_tensor_info(value, &info)) return failed;
  Status* failed = api.get_rank(info, &rank);
  if (failed == nullptr && rank <= kMostDimensions) failed = api.get_dimensions(info, dimensions, rank);
  api.release_tensor_info(info);
  return failed;
}

Status* check_dimensions(const Api& api, const char* op, const Input& found, const Expected& expected) {
  bool same = found.rank == expected.rank;
  for (size_t i = 0; same && i < expected.rank; ++i) same = found.dimensions[i] == expected.dimensions[i];
  if (same) return nullptr;
  char found_text[128], expected_text[128], message[384];
  print_dimensions(found_text, sizeof found_text, found.dimensions, found.rank);
  print_dimensions(expected_text, sizeof expected_text, expected.dimensions, expected.rank);
  std::snprintf(message, sizeof message, "%s: %s is %s, expected %s", op, expected.name, found_text, expected_text);
  return api.create_status(kInvalidArgument, message);
}

void set_what_all_share(CustomOp* op) {
  op->version = kApiVersion;
  op->get_input_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  op->get_output_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  op->get_input_memory_type = [](const CustomOp*, size_t) { return kMemoryDefault; };
  op->get_variadic_input_min_arity = [](const CustomOp*) { return 0; };
  op->get_variadic_input_homogeneity = [](const CustomOp*) { return 0; };
  op->get_variadic_output_min_arity = [](const CustomOp*) { return 0; };
  op->get_variadic_output_homogeneity = [](const CustomOp*) { return 0; };
  op->get_start_version = [](const CustomOp*) { return 1; };
  op->get_end_version = [](const CustomOp*) { return INT32_MAX; };
}

Parallel SessionThreads::parallel() {
  // ONNX Runtime does not tell how many threads its pool has. Asking for as many as there are processors
  // does no harm where it has fewer: who comes too late finds nothing left to do.
  return {this, pool_width(), run};
}

void SessionThreads::run(void* self, int width, void (*body)(void*), void* data) {
  struct Job {
    void (*body)(void*);
    void* data;
  } job = {body, data};
  SessionThreads& threads = *static_cast<SessionThreads*>(self);
  const auto run_job = [](void* shared, size_t) { static_cast<Job*>(shared)->body(static_cast<Job*>(shared)->data); };
  threads.failure_ = threads.api_.parallel_for(threads.context_, run_job, static_cast<size_t>(width), 0, &job);
}

Status* infer_like_first_input(const Api& api, ShapeInferContext* context) {
  TensorInfo* info = nullptr;  // belongs to the context
  if (Status* failed = api.infer_input(context, 0, &info)) return failed;
  size_t rank = 0;
  if (Status* failed = api.get_rank(info, &rank)) return failed;
  if (rank > Input::kMostDimensions) return nullptr;
  int64_t dimensions[Input::kMostDimensions];
  const char* names[Input::kMostDimensions];
  if (Status* failed = api.get_dimensions(info, dimensions, rank)) return failed;
  if (Status* failed = api.get_symbolic_dimensions(info, names, rank)) return failed;
  for (size_t i = 0; i < rank; ++i) {
    // ONNX Runtime would take a dimension without value or name for one of size -1.
    if (dimensions[i] < 0 && names[i][0] == '\0') return nullptr;
  }
  return api.infer_output(context, 0, info);
}

}  // namespace msmamba::ort
