// NVIDIA's driver as a table of functions: whoever hands kernels over has loaded it, so that a machine without it loads
// this library all the same.
//
// The functions and constants are those of cuda.h, CUDA 11 and later. Its calling convention on Windows (CUDAAPI, __stdcall) is the only one that 64-bit Windows has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace msmamba::gpu {

using Result = int;  // CUresult; 0 is success
using Address = uint64_t;
using Device = int;
struct Context_;
struct Module_;
struct Function_;
struct Stream_;
using Context = Context_*;
using Module = Module_*;
using Function = Function_*;
using Stream = Stream_*;

constexpr int kMultiprocessorCount = 16, kCapabilityMajor = 75, kCapabilityMinor = 76;  // CUdevice_attribute

// In the order of DRIVER_FUNCTIONS in plugins/selective_scan/gpu_operator.py.
struct Driver {
  Result (*get_error_name)(Result, const char**);
  Result (*stream_get_context)(Stream, Context*);
  Result (*stream_is_capturing)(Stream, int* status);  // 0 is not
  Result (*push_context)(Context);
  Result (*pop_context)(Context*);
  Result (*get_device)(Device*);
  Result (*get_attribute)(int* value, int attribute, Device);
  Result (*load_module)(Module*, const void* image);
  Result (*get_function)(Function*, Module, const char* name);
  Result (*allocate)(Address*, size_t bytes);
  Result (*release)(Address);
  Result (*launch)(Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, Stream, void** parameters, void** extra);

  // "CUDA driver call cuMemAlloc(…) failed: CUDA_ERROR_…" and what to do about it.
  std::string failed(const std::string& call, Result result) const;
};

constexpr size_t kDriverFunctions = sizeof(Driver) / sizeof(void*);

}  // namespace msmamba::gpu
