// Calls the native library's C interface as a file tells, and writes what comes out to another: a program for machines
// that have no Python to call it, emulated ones above all.
//
//     driver LIBRARY CALLS RESULTS [KERNELS]
//
// CALLS holds 64-bit integers and arrays' bytes, little-endian: the number of calls, then for each of them the kind of
// call, its numbers, its inputs (each with its size in bytes before it), and the sizes of its outputs; numbers, inputs and
// outputs have their count before them. RESULTS gets the outputs' bytes, all 0xFF (NaN) where nothing was written.
// Arrays lie 4 bytes beyond the alignment of `malloc`, as the library promises to take any address.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

enum { kMost = 32, kOffset = 4 };
enum { kForward, kBackward, kBlock, kResize };

typedef struct {
  int64_t kind;
  int64_t count[3];  // of numbers, inputs and outputs
  int64_t numbers[kMost];
  void* inputs[kMost];
  void* outputs[kMost];
  int64_t sizes[kMost];  // of the outputs, in bytes
} Call;

static _Noreturn void fail(const char* what, const char* why) {
  fprintf(stderr, "driver: %s: %s\n", what, why);
  exit(1);
}

static void* open_library(const char* path) {
#if defined(_WIN32)
  void* const library = (void*)LoadLibraryA(path);
  if (library == NULL) fail(path, "does not load");
#else
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fail(path, dlerror());
#endif
  return library;
}

// The address of an exported function, to be copied into a pointer of its type.
static void find(void* library, const char* name, void* function) {
#if defined(_WIN32)
  const FARPROC found = GetProcAddress((HMODULE)library, name);
#else
  void* const found = dlsym(library, name);
#endif
  if (found == NULL) fail(name, "is not in the library");
  memcpy(function, &found, sizeof found);
}

static void* allocate(int64_t bytes) {
  char* const memory = malloc((size_t)bytes + kOffset);
  if (memory == NULL) fail("an array", "out of memory");
  return memory + kOffset;
}

static int64_t read_number(FILE* file) {
  int64_t number;
  if (fread(&number, sizeof number, 1, file) != 1) fail("calls", "the file ends early");
  return number;
}

static int64_t read_count(FILE* file) {
  const int64_t count = read_number(file);
  if (count < 0 || count > kMost) fail("calls", "a count is out of range");
  return count;
}

static void read_call(FILE* file, Call* call) {
  call->kind = read_number(file);
  call->count[0] = read_count(file);
  for (int64_t i = 0; i < call->count[0]; ++i) call->numbers[i] = read_number(file);
  call->count[1] = read_count(file);
  for (int64_t i = 0; i < call->count[1]; ++i) {
    const int64_t bytes = read_number(file);
    call->inputs[i] = allocate(bytes);
    if (fread(call->inputs[i], 1, (size_t)bytes, file) != (size_t)bytes) fail("calls", "the file ends early");
  }
  call->count[2] = read_count(file);
  for (int64_t i = 0; i < call->count[2]; ++i) {
    call->sizes[i] = read_number(file);
    call->outputs[i] = allocate(call->sizes[i]);
    memset(call->outputs[i], 0xFF, (size_t)call->sizes[i]);
  }
}

static const char* run_forward(void* library, const Call* call) {
  const char* (*forward)(int32_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const void*, const void*,
                         const void*, const void*, const void*, const void*, void*);
  find(library, "msmamba_scan_forward", &forward);
  const int64_t* n = call->numbers;
  void* const* in = call->inputs;
  return forward((int32_t)n[0], n[1], n[2], n[3], n[4], n[5], in[0], in[1], in[2], in[3], in[4], in[5], in[6],
                 call->outputs[0]);
}

static const char* run_backward(void* library, const Call* call) {
  const char* (*backward)(int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const void*, const void*,
                          const void*, const void*, const void*, const void*, const void*, void*, void*, void*, void*,
                          void*, void*, void*);
  find(library, "msmamba_scan_backward", &backward);
  const int64_t* n = call->numbers;
  void* const* in = call->inputs;
  void* const* out = call->outputs;
  return backward(n[0], n[1], n[2], n[3], n[4], in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], out[0], out[1],
                  out[2], out[3], out[4], out[5], out[6]);
}

// Numbers: the operator, its maps' element type, its seven sizes, batch, height, width and channels of its first map, and how
// many of the inputs are weights.
static const char* run_block(void* library, const Call* call) {
  const char* (*unfit)(int32_t, const int64_t*);
  void* (*create)(int32_t, int32_t, const int64_t*, void* const*);
  const char* (*run)(const void*, int64_t, int64_t, int64_t, int64_t, void* const*, void* const*);
  void (*destroy)(void*);
  find(library, "msmamba_block_unfit", &unfit);
  find(library, "msmamba_block_create", &create);
  find(library, "msmamba_block_run", &run);
  find(library, "msmamba_block_destroy", &destroy);
  const int64_t* n = call->numbers;
  const char* failure = unfit((int32_t)n[0], n + 2);
  if (failure != NULL) return failure;
  void* const packed = create((int32_t)n[0], (int32_t)n[1], n + 2, call->inputs);
  if (packed == NULL) return "out of memory";
  failure = run(packed, n[9], n[10], n[11], n[12], call->inputs + n[13], call->outputs);
  destroy(packed);
  return failure;
}

static const char* run_resize(void* library, const Call* call) {
  const char* (*resize)(const void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, void*, const void*,
                        void*);
  find(library, "msmamba_resize", &resize);
  const int64_t* n = call->numbers;
  return resize(call->inputs[0], n[0], n[1], n[2], n[3], n[4], n[5], n[6], call->outputs[0], NULL, NULL);
}

int main(int argc, char** argv) {
  if (argc < 4) fail("arguments", "expected LIBRARY CALLS RESULTS [KERNELS]");
  void* const library = open_library(argv[1]);
  int32_t (*select)(const char*);
  const char* (*kernels)(void);
  int32_t (*threads)(void);
  find(library, "msmamba_scan_select_kernels", &select);
  find(library, "msmamba_scan_kernels", &kernels);
  find(library, "msmamba_scan_threads", &threads);
  if (argc > 4 && select(argv[4]) == 0) fail(argv[4], "no such kernels on this machine");
  printf("%s %d\n", kernels(), (int)threads());

  FILE* const calls = fopen(argv[2], "rb");
  if (calls == NULL) fail(argv[2], "cannot be opened");
  FILE* const results = fopen(argv[3], "wb");
  if (results == NULL) fail(argv[3], "cannot be opened");
  const char* (*const run[])(void*, const Call*) = {run_forward, run_backward, run_block, run_resize};
  static Call call;
  for (int64_t left = read_number(calls); left > 0; --left) {
    read_call(calls, &call);
    if (call.kind < kForward || call.kind > kResize) fail("calls", "no such kind of call");
    const char* const failure = run[call.kind](library, &call);
    if (failure != NULL) fail("a call failed", failure);
    for (int64_t i = 0; i < call.count[1]; ++i) free((char*)call.inputs[i] - kOffset);
    for (int64_t i = 0; i < call.count[2]; ++i) {
      if (fwrite(call.outputs[i], 1, (size_t)call.sizes[i], results) != (size_t)call.sizes[i]) {
        fail(argv[3], "cannot be written");
      }
      free((char*)call.outputs[i] - kOffset);
    }
  }
  fclose(calls);
  if (fclose(results) != 0) fail(argv[3], "cannot be written");
  return 0;
}
