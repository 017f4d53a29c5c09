// The few declarations of ONNX Runtime's C interface that the door for it needs.
//
// The interface is a table of function pointers that only ever grows at its end ("OrtApi ... Rules on how to add a
// new Ort API version", onnxruntime/core/session/onnxruntime_c_api.cc), so a slot's number never changes; the numbers
// here were counted in include/onnxruntime/core/session/onnxruntime_c_api.h of microsoft/onnxruntime. Its own
// assertions on the table's length per version agree with the count: 101 ReleaseCustomOpDomain (version 1),
// 169 CreateSessionFromArrayWithPrepackedWeightsContainer (8), 265 KernelContext_GetResource (16), 275 SessionOptionsAppendExecutionProvider_OpenVINO_V2 (17).
//
// Its calling convention on Windows (ORT_API_CALL, __stdcall) is the only one that 64-bit Windows has; none of the slots
// takes a path, which is of wide characters there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msmamba::ort {

// The oldest interface that has every slot below: ONNX Runtime 1.17.
constexpr uint32_t kApiVersion = 17;

struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct TensorInfo;  // OrtTensorTypeAndShapeInfo
struct SessionOptions;
struct CustomOpDomain;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kInt8 = 3, kFloat16 = 10 };  // as in onnx.TensorProto
enum Characteristic : int { kRequired = 0 };           // OrtCustomOpInputOutputCharacteristic
enum MemoryType : int { kMemoryDefault = 0 };          // OrtMemType

struct CustomOp;

// Slots that are not called are skipped by their number.
struct Api {
  Status* (*create_status)(ErrorCode, const char* message);  // 0, CreateStatus
  const void* slots_1_to_25[25];
  Status* (*create_custom_op_domain)(const char* name, CustomOpDomain**);    // 26, CreateCustomOpDomain
  Status* (*custom_op_domain_add)(CustomOpDomain*, const CustomOp*);         // 27, CustomOpDomain_Add
  Status* (*add_custom_op_domain)(SessionOptions*, CustomOpDomain*);         // 28, AddCustomOpDomain
  const void* slots_29_to_50[22];
  Status* (*get_tensor_data)(const Value*, void**);  // 51, GetTensorMutableData
  const void* slots_52_to_60[9];
  Status* (*get_rank)(const TensorInfo*, size_t*);                     // 61, GetDimensionsCount
  Status* (*get_dimensions)(const TensorInfo*, int64_t*, size_t rank);  // 62, GetDimensions
  Status* (*get_symbolic_dimensions)(const TensorInfo*, const char** names, size_t rank);  // 63, GetSymbolicDimensions
  const void* slot_64;
  Status* (*get_tensor_info)(const Value*, TensorInfo**);  // 65, GetTensorTypeAndShape
  const void* slots_66_to_85[20];
  Status* (*get_int_attribute)(const KernelInfo*, const char* name, int64_t*);  // 86, KernelInfoGetAttribute_int64
  const void* slots_87_to_89[3];
  Status* (*get_input)(const KernelContext*, size_t index, const Value**);  // 90, KernelContext_GetInput
  Status* (*get_output)(KernelContext*, size_t index, const int64_t* dimensions, size_t rank,
                        Value**);  // 91, KernelContext_GetOutput
  const void* slots_92_to_98[7];
  void (*release_tensor_info)(TensorInfo*);  // 99, ReleaseTensorTypeAndShapeInfo
  const void* slots_100_to_192[93];
  Status* (*get_gpu_stream)(const KernelContext*, void** stream);  // 193, KernelContext_GetGPUComputeStream
  const void* slots_194_to_248[55];
  Status* (*get_constant_input)(const KernelInfo*, size_t index, int* is_constant,
                                const Value**);  // 249, KernelInfoGetConstantInput_tensor
  const void* slots_250_to_267[18];
  Status* (*infer_input)(const ShapeInferContext*, size_t index,
                         TensorInfo**);  // 268, ShapeInferContext_GetInputTypeShape
  const void* slot_269;
  Status* (*infer_output)(const ShapeInferContext*, size_t index,
                          const TensorInfo*);  // 270, ShapeInferContext_SetOutputTypeShape
  const void* slots_271_to_273[3];
  Status* (*parallel_for)(const KernelContext*, void (*body)(void* data, size_t index), size_t total,
                          size_t batches, void* data);  // 274, KernelContext_ParallelFor
};

constexpr size_t slot(size_t offset) { return offset / sizeof(void*); }
static_assert(slot(offsetof(Api, create_custom_op_domain)) == 26, "CreateCustomOpDomain");
static_assert(slot(offsetof(Api, get_tensor_data)) == 51, "GetTensorMutableData");
static_assert(slot(offsetof(Api, get_rank)) == 61, "GetDimensionsCount");
static_assert(slot(offsetof(Api, get_tensor_info)) == 65, "GetTensorTypeAndShape");
static_assert(slot(offsetof(Api, get_int_attribute)) == 86, "KernelInfoGetAttribute_int64");
static_assert(slot(offsetof(Api, get_input)) == 90, "KernelContext_GetInput");
static_assert(slot(offsetof(Api, release_tensor_info)) == 99, "ReleaseTensorTypeAndShapeInfo");
static_assert(slot(offsetof(Api, get_gpu_stream)) == 193, "KernelContext_GetGPUComputeStream");
static_assert(slot(offsetof(Api, get_constant_input)) == 249, "KernelInfoGetConstantInput_tensor");
static_assert(slot(offsetof(Api, infer_input)) == 268, "ShapeInferContext_GetInputTypeShape");
static_assert(slot(offsetof(Api, infer_output)) == 270, "ShapeInferContext_SetOutputTypeShape");
static_assert(slot(offsetof(Api, parallel_for)) == 274, "KernelContext_ParallelFor");

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

// OrtCustomOp of version 17, in its order; members of later versions follow as null. ONNX Runtime looks at no
// more members than `version` grants.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);  // superseded by create_kernel_v2
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);
  ElementType (*get_input_type)(const CustomOp*, size_t index);
  size_t (*get_input_count)(const CustomOp*);
  ElementType (*get_output_type)(const CustomOp*, size_t index);
  size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void* kernel, KernelContext*);  // superseded by compute_v2
  void (*destroy_kernel)(void* kernel);
  Characteristic (*get_input_characteristic)(const CustomOp*, size_t index);
  Characteristic (*get_output_characteristic)(const CustomOp*, size_t index);
  MemoryType (*get_input_memory_type)(const CustomOp*, size_t index);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_output_shape)(const CustomOp*, ShapeInferContext*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  const void* later_versions[4];
};

}  // namespace msmamba::ort
