// A CUDA whose device is the processor: memory is the process's own, copies copy, and kernels do nothing but are named.
//
// What CUDA's users have beside kernels runs for real on it: which nodes a provider takes, what is captured, what is
// allocated and copied meanwhile. `played_cuda.py` builds it, with a stand-in that succeeds for every function that is
// asked for and not here. One GPU, like an H100; PLAYED_CUDA_LOG names the file of what was called.
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { kOnHost = 1, kOnDevice = 2, kMostBlocks = 1 << 16, kMostKernels = 1 << 18, kObjectBytes = 4096 };
static const size_t kMemory = (size_t)16 << 30;
static const char kName[] = "Played GPU";

static int told(const char* format, const char* name, size_t number) {
  static FILE* file;
  if (file == NULL) {
    const char* path = getenv("PLAYED_CUDA_LOG");
    file = fopen(path != NULL ? path : "/dev/null", "a");
    setvbuf(file, NULL, _IOLBF, 0);
  }
  return fprintf(file, format, name, number) < 0;
}

static void* object(void) { return calloc(1, kObjectBytes); }  // a stream, an event, a graph: never freed

static void* capturing;  // the stream, or null
static size_t launches;

static int launched(const char* name) {
  ++launches;
  told("kernel %.200s\n", name, 0);
  return 0;
}

static void forbidden_in_capture(const char* name) {
  if (capturing != NULL) told("in a capture: %s\n", name, 0);
}

static int begin_capture(void* stream) {
  capturing = stream;
  launches = 0;
  return told("capture begins%s\n", "", 0);
}

static int end_capture(void** graph) {
  capturing = NULL;
  *graph = object();
  return told("capture ends%s: %zu launches\n", "", launches);
}

// Memory

static struct {
  char* at;
  size_t bytes;
  int where;
} blocks[kMostBlocks];
static int block_count;
static size_t used;
static pthread_mutex_t memory = PTHREAD_MUTEX_INITIALIZER;

static void* take(size_t bytes, int where) {
  void* at = NULL;
  if (posix_memalign(&at, 512, bytes != 0 ? bytes : 1) != 0) return NULL;
  if (bytes < (size_t)1 << 28) memset(at, 0, bytes);
  pthread_mutex_lock(&memory);
  int i = 0;
  while (i < block_count && blocks[i].at != NULL) ++i;
  if (i == block_count) ++block_count;
  blocks[i].at = at;
  blocks[i].bytes = bytes != 0 ? bytes : 1;
  blocks[i].where = where;
  if (where == kOnDevice) used += blocks[i].bytes;
  pthread_mutex_unlock(&memory);
  return at;
}

static int give_back(void* at) {
  pthread_mutex_lock(&memory);
  for (int i = 0; at != NULL && i < block_count; ++i) {
    if (blocks[i].at != at) continue;
    if (blocks[i].where == kOnDevice) used -= blocks[i].bytes;
    blocks[i].at = NULL;
    free(at);
    break;
  }
  pthread_mutex_unlock(&memory);
  return 0;
}

static int where(const void* address) {
  int found = 0;
  pthread_mutex_lock(&memory);
  for (int i = 0; found == 0 && i < block_count; ++i) {
    const char* at = blocks[i].at;
    if (at != NULL && (const char*)address >= at && (const char*)address < at + blocks[i].bytes)
      found = blocks[i].where;
  }
  pthread_mutex_unlock(&memory);
  return found;
}

static int copy(const char* name, void* target, const void* source, size_t bytes) {
  memmove(target, source, bytes);
  return told("%s of %zu bytes\n", name, bytes);
}

static char primary[64];
static __thread CUcontext stack[64], current;
static __thread int depth;

#define TAKE(place)                       \
  do {                                    \
    current = (CUcontext)primary;         \
    *p = (void*)take(n, place);           \
    return *p != NULL ? 0 : 2;            \
  } while (0)
cudaError_t cudaMalloc(void** p, size_t n) { forbidden_in_capture("cudaMalloc"); TAKE(kOnDevice); }
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t s) { TAKE(kOnDevice); }
cudaError_t cudaMallocFromPoolAsync(void** p, size_t n, cudaMemPool_t q, cudaStream_t s) { TAKE(kOnDevice); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned f) { TAKE(kOnHost); }
cudaError_t cudaMallocHost(void** p, size_t n) { TAKE(kOnHost); }
CUresult cuMemHostAlloc(void** p, size_t n, unsigned f) { TAKE(kOnHost); }
CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t n) {
  void** p = (void**)address;
  forbidden_in_capture("cuMemAlloc");
  TAKE(kOnDevice);
}
cudaError_t cudaFree(void* p) { forbidden_in_capture("cudaFree"); return give_back(p); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t s) { return give_back(p); }
cudaError_t cudaFreeHost(void* p) { return give_back(p); }
CUresult cuMemFree_v2(CUdeviceptr p) { return give_back((void*)p); }
CUresult cuMemFreeHost(void* p) { return give_back(p); }
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) { *all = kMemory; *left = kMemory - used; return 0; }
CUresult cuMemGetInfo_v2(size_t* left, size_t* all) { return cudaMemGetInfo(left, all); }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, enum cudaMemcpyKind k) {
  forbidden_in_capture("cudaMemcpy");
  return copy("copy", d, s, n);
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
  return copy("copy", d, s, n);
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k,
                              cudaStream_t st) {
  for (size_t i = 0; i < h; ++i) memmove((char*)d + i * dp, (const char*)s + i * sp, w);
  return told("%s of %zu bytes\n", "copy", w * h);
}
cudaError_t cudaMemcpyFromSymbol(void* d, const void* s, size_t n, size_t o, enum cudaMemcpyKind k) {
  memset(d, 0, n);
  return 0;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void* s, size_t n, CUstream st) {
  return copy("copy", (void*)d, s, n);
}
CUresult cuMemcpyDtoHAsync_v2(void* d, CUdeviceptr s, size_t n, CUstream st) { return copy("copy", d, (void*)s, n); }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream st) {
  return copy("copy", (void*)d, (void*)s, n);
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void* s, size_t n) { return copy("copy", (void*)d, s, n); }
CUresult cuMemcpyDtoH_v2(void* d, CUdeviceptr s, size_t n) { return copy("copy", d, (void*)s, n); }
cudaError_t cudaMemset(void* d, int v, size_t n) { memset(d, v, n); return 0; }
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t s) {
  memset(d, v, n);
  return told("%s of %zu bytes\n", "memset", n);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  a->type = where(p);
  a->devicePointer = (void*)p;
  a->hostPointer = a->type == cudaMemoryTypeHost ? (void*)p : NULL;
  return 0;
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute what, CUdeviceptr p) {
  const int found = where((void*)p);
  if (found == 0) return CUDA_ERROR_INVALID_VALUE;
  switch (what) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr*)value = p; break;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext*)value = (CUcontext)primary; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *(int*)value = found == kOnDevice ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      break;
    default: *(int*)value = 0;
  }
  return 0;
}

// The device

static int attribute(int number) {
  switch (number) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 232448;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 233472;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 132;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return 9;
    default: return 0;
  }
}
cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return 0; }
cudaError_t cudaGetDevice(int* n) { *n = 0; return 0; }
cudaError_t cudaSetDevice(int n) { current = (CUcontext)primary; return n != 0 ? cudaErrorInvalidDevice : 0; }
cudaError_t cudaDriverGetVersion(int* v) { *v = 13000; return 0; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = 13000; return 0; }
cudaError_t cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr a, int d) { *v = attribute(a); return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, kName);
  p->totalGlobalMem = kMemory;
  p->major = 9;
  p->warpSize = 32;
  p->multiProcessorCount = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxBlocksPerMultiProcessor = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->l2CacheSize = 50 << 20;
  p->textureAlignment = 512;
  p->unifiedAddressing = p->concurrentKernels = p->cooperativeLaunch = 1;
  return 0;
}
CUresult cuDriverGetVersion(int* v) { *v = 13000; return 0; }
CUresult cuDeviceGetCount(int* n) { *n = 1; return 0; }
CUresult cuDeviceGet(CUdevice* d, int n) { *d = n; return n != 0 ? CUDA_ERROR_INVALID_DEVICE : 0; }
CUresult cuDeviceGetName(char* name, int bytes, CUdevice d) { snprintf(name, bytes, "%s", kName); return 0; }
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice d) { *v = attribute(a); return 0; }
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice d) { *bytes = kMemory; return 0; }
CUresult cuDeviceGetUuid_v2(CUuuid* id, CUdevice d) { memset(id, 1, sizeof *id); return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice d) { *c = (CUcontext)primary; return 0; }
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned* flags, int* active) { *flags = 0; *active = 1; return 0; }
CUresult cuCtxGetCurrent(CUcontext* c) { *c = depth > 0 ? stack[depth - 1] : current; return 0; }
CUresult cuCtxSetCurrent(CUcontext c) { *(depth > 0 ? &stack[depth - 1] : &current) = c; return 0; }
CUresult cuCtxPushCurrent_v2(CUcontext c) { stack[depth++] = c; return 0; }
CUresult cuCtxPopCurrent_v2(CUcontext* c) {
  if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --depth;
  if (c != NULL) *c = stack[depth];
  return 0;
}
CUresult cuCtxGetDevice(CUdevice* d) { *d = 0; return 0; }
CUresult cuCtxGetId(CUcontext c, unsigned long long* id) { *id = 1; return 0; }
CUresult cuStreamGetCtx(CUstream s, CUcontext* c) { *c = (CUcontext)primary; return 0; }

// Streams, events and graphs

#define NEW(result, function, type, ...) result function(type* made, ##__VA_ARGS__) { *made = object(); return 0; }
NEW(cudaError_t, cudaStreamCreate, cudaStream_t)
NEW(cudaError_t, cudaStreamCreateWithFlags, cudaStream_t, unsigned f)
NEW(cudaError_t, cudaStreamCreateWithPriority, cudaStream_t, unsigned f, int p)
NEW(CUresult, cuStreamCreate, CUstream, unsigned f)
NEW(CUresult, cuStreamCreateWithPriority, CUstream, unsigned f, int p)
NEW(cudaError_t, cudaEventCreate, cudaEvent_t)
NEW(cudaError_t, cudaEventCreateWithFlags, cudaEvent_t, unsigned f)
NEW(CUresult, cuEventCreate, CUevent, unsigned f)
NEW(cudaError_t, cudaGraphInstantiate, cudaGraphExec_t, cudaGraph_t g, unsigned long long f)
NEW(CUresult, cuGraphInstantiateWithFlags, CUgraphExec, CUgraph g, unsigned long long f)
NEW(cudaError_t, cudaMemPoolCreate, cudaMemPool_t, const struct cudaMemPoolProps* p)
NEW(cudaError_t, cudaDeviceGetDefaultMemPool, cudaMemPool_t, int d)
NEW(CUresult, cuModuleLoadData, CUmodule, const void* image)
NEW(CUresult, cuModuleLoadDataEx, CUmodule, const void* image, unsigned n, CUjit_option* o, void** v)
NEW(cudaError_t, cudaLibraryGetKernel, cudaKernel_t, cudaLibrary_t l, const char* name)
cudaError_t cudaLibraryLoadData(cudaLibrary_t* l, const void* c, enum cudaJitOption* o, void** v, unsigned n,
                                enum cudaLibraryOption* lo, void** lv, unsigned ln) {
  *l = object();
  return 0;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) { forbidden_in_capture("cudaStreamSynchronize"); return 0; }
CUresult cuStreamSynchronize(CUstream s) { forbidden_in_capture("cuStreamSynchronize"); return 0; }
cudaError_t cudaDeviceSynchronize(void) { forbidden_in_capture("cudaDeviceSynchronize"); return 0; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* low, int* high) { *low = 0; *high = -5; return 0; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return clock_gettime(CLOCK_MONOTONIC, (void*)e); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return cudaEventRecord(e, s); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  const struct timespec *a = (void*)from, *b = (void*)to;
  *ms = (b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6;
  return 0;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) { return begin_capture(s); }
CUresult cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode m) { return begin_capture(s); }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) { return end_capture((void**)g); }
CUresult cuStreamEndCapture(CUstream s, CUgraph* g) { return end_capture((void**)g); }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus* c) {
  *c = capturing != NULL && capturing == s;
  return 0;
}
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus* c) {
  *c = capturing != NULL && capturing == s;
  return 0;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus* c, unsigned long long* id,
                                     cudaGraph_t* g, const cudaGraphNode_t** d, const cudaGraphEdgeData** e,
                                     size_t* n) {
  if (id != NULL) *id = 1;
  if (g != NULL) *g = NULL;
  if (n != NULL) *n = 0;
  return cudaStreamIsCapturing(s, c);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* n) { *n = 1; return 0; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t g, cudaStream_t s) { return told("graph launched%s\n", "", 0); }
CUresult cuGraphLaunch(CUgraphExec g, CUstream s) { return told("graph launched%s\n", "", 0); }

// Kernels

static struct {
  const void* handle;
  const char* name;
} kernels[kMostKernels];
static int kernel_count;

static void remember(const void* handle, const char* name) {
  if (kernel_count < kMostKernels) {
    kernels[kernel_count].handle = handle;
    kernels[kernel_count++].name = name;
  }
}

static int launch(const void* handle) {
  int i = 0;
  while (i < kernel_count && kernels[i].handle != handle) ++i;
  return launched(i < kernel_count ? kernels[i].name : "without a name");
}

// What nvcc makes of `kernel<<<…>>>()`.
static __thread struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} pushed[16];
static __thread int pushed_count;
void** __cudaRegisterFatBinary(void* binary) { return object(); }
void __cudaRegisterFunction(void** h, const char* handle, char* d, const char* name, int n, void* a, void* b, void* c,
                            void* e, int* w) {
  remember(handle, name);
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed[pushed_count].grid = grid;
  pushed[pushed_count].block = block;
  pushed[pushed_count].shared = shared;
  pushed[pushed_count++].stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  --pushed_count;
  *grid = pushed[pushed_count].grid;
  *block = pushed[pushed_count].block;
  *shared = pushed[pushed_count].shared;
  *(void**)stream = pushed[pushed_count].stream;
  return 0;
}
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) { *k = (cudaKernel_t)f; return 0; }
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t st) { return launch(f); }
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t st) {
  return launch(f);
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t st) {
  return launch(f);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) { return launch(f); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void* f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = 90;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int b, size_t s,
                                                                   unsigned fl) {
  *n = 2;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int b, size_t s) { *n = 2; return 0; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
  *f = object();
  remember(*f, strdup(name));
  return 0;
}
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return 0;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned s, CUstream st, void** p, void** e) {
  return launch(f);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** p, void** e) { return launch(f); }

// Names and addresses

CUresult cuGetErrorName(CUresult e, const char** name) { *name = "CUDA_ERROR_PLAYED"; return 0; }
CUresult cuGetErrorString(CUresult e, const char** text) { *text = "a played error"; return 0; }
const char* cudaGetErrorName(cudaError_t e) { return "cudaErrorPlayed"; }
const char* cudaGetErrorString(cudaError_t e) { return "a played error"; }
CUresult cuGetProcAddress_v2(const char* name, void** f, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* found) {
  char versioned[128];
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  *f = dlsym(RTLD_DEFAULT, versioned);
  if (*f == NULL) *f = dlsym(RTLD_DEFAULT, name);
  if (found != NULL) *found = *f != NULL ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *f != NULL ? 0 : CUDA_ERROR_NOT_FOUND;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult* found) {
  *f = dlsym(RTLD_DEFAULT, name);
  if (found != NULL) *found = *f != NULL ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return 0;
}

// cuBLAS and cuDNN, whose headers few machines have. Their kinds of results: enough for one way to compute.

typedef void* Any;
#define LAUNCH(function) int function() { return launched(#function); }
LAUNCH(cublasSgemm_v2) LAUNCH(cublasGemmEx) LAUNCH(cublasSgemmStridedBatched) LAUNCH(cublasGemmStridedBatchedEx)
LAUNCH(cublasSgemmBatched) LAUNCH(cublasGemmBatchedEx) LAUNCH(cublasLtMatmul) LAUNCH(cublasSgeam)
LAUNCH(cudnnConvolutionForward) LAUNCH(cudnnAddTensor) LAUNCH(cudnnReduceTensor) LAUNCH(cudnnActivationForward)
LAUNCH(cudnnSoftmaxForward) LAUNCH(cudnnPoolingForward) LAUNCH(cudnnBackendExecute)
int cublasGetMathMode(Any h, int* mode) { *mode = 0; return 0; }
int cublasLtMatmulAlgoGetHeuristic(Any h, Any d, Any a, Any b, Any c, Any e, Any p, int most, Any found, int* n) {
  memset(found, 0, 96);  // cublasLtMatmulHeuristicResult_t
  *n = 1;
  return 0;
}
size_t cudnnGetVersion(void) { return 91900; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char* cudnnGetErrorString(int status) { return "a played error"; }
int cudnnBackendCreateDescriptor(int type, Any* made) { *made = object(); return 0; }
int cudnnBackendGetAttribute(Any d, int name, int type, int64_t most, int64_t* n, Any out) {
  enum { kHeuristicResults = 202, kEngine = 300 };       // CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_ATTR_ENGINECFG_ENGINE
  enum { kInt64 = 3, kDescriptor = 15, kInt32 = 23 };  // CUDNN_TYPE_…
  const size_t bytes = type == kInt64 ? 8 : type == kInt32 ? 4 : 0;
  if (bytes != 0 && most > 0 && out != NULL) memset(out, 0, most * bytes);
  if (n != NULL) *n = bytes != 0 || (type == kDescriptor && (name == kEngine || name == kHeuristicResults));
  return 0;
}
int cudnnGetReductionWorkspaceSize(Any h, Any d, Any a, Any c, size_t* bytes) { *bytes = 16; return 0; }
int cudnnGetReductionIndicesSize(Any h, Any d, Any a, Any c, size_t* bytes) { *bytes = 16; return 0; }
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(Any h, int m, int o, Any a, Any b, Any c, Any d, Any e,
                                                             size_t* bytes) {
  *bytes = 16;
  return 0;
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(Any h, int m, int o, Any a, Any b, size_t* bytes) {
  *bytes = 16;
  return 0;
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(Any h, int m, int o, Any a, Any b, Any c, Any d, Any e, Any f,
                                                      Any g, size_t* bytes) {
  *bytes = 16;
  return 0;
}
