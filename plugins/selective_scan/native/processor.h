// Which instruction sets this processor and its system offer, asked of the processor itself: the compilers' own
// __builtin_cpu_supports needs a part of their runtime that a library linked elsewhere may lack.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// Whether this build has int8 products by the dot products of ARMv8.2, or of AVX-VNNI, which GNU's assembler knows from
// 2.36 on: GCC 11 stands beside an older one in Red Hat Enterprise Linux 9.
#if defined(__aarch64__)
#define MSMAMBA_HAS_DOT_PRODUCTS
#elif defined(__x86_64__) && defined(__clang__)
#if __clang_major__ >= 13
#define MSMAMBA_HAS_DOT_PRODUCTS
#endif
#elif defined(__x86_64__) && __GNUC__ >= 12
#define MSMAMBA_HAS_DOT_PRODUCTS
#endif

namespace msmamba {

#if defined(__x86_64__)

struct Processor {
  bool avx2;         // with FMA and F16C, which the kernels of that name use
  bool avx_vnni;     // beside the former
  bool avx512;       // F, VL, BW and DQ, beside AVX2
  bool avx512_vnni;  // beside AVX-512
};

inline Processor this_processor() {
  // Intel's Software Developer's Manual, volume 2A, CPUID, and volume 1, 13.3: a register file may be used where
  // the system saves it, which it says in XCR0.
  constexpr unsigned kFma = 1u << 12, kOsXsave = 1u << 27, kF16c = 1u << 29;                  // leaf 1, ECX
  constexpr unsigned kAvx2 = 1u << 5;                                                          // leaf 7, EBX
  constexpr unsigned kAvx512 = 1u << 16 /* F */ | 1u << 17 /* DQ */ | 1u << 30 /* BW */ | 1u << 31 /* VL */;
  constexpr unsigned kAvx512Vnni = 1u << 11;                                                   // leaf 7, ECX
  constexpr unsigned kAvxVnni = 1u << 4;                                                       // leaf 7, 1, EAX
  constexpr unsigned kYmmSaved = 0x06, kZmmSaved = 0xE6;                                       // XCR0

  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kNeeded = kFma | kOsXsave | kF16c;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kNeeded) != kNeeded) return {};
  unsigned saved, upper;
  asm volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  if ((saved & kYmmSaved) != kYmmSaved) return {};
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (ebx & kAvx2) == 0) return {};
  const bool avx512 = (saved & kZmmSaved) == kZmmSaved && (ebx & kAvx512) == kAvx512;
  const bool avx512_vnni = avx512 && (ecx & kAvx512Vnni) != 0;
  const bool has_part_1 = eax >= 1;
  const bool avx_vnni = has_part_1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
  return {true, avx_vnni, avx512, avx512_vnni};
}

// Whether additions of floats have units of their own, beside those of multiply-adds: so on AMD's processors since Zen
// (their Software Optimization Guides, "floating-point unit"). Intel's share theirs; of others nothing is known here.
inline bool has_own_adders() {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return ebx == signature_AMD_ebx && ecx == signature_AMD_ecx && edx == signature_AMD_edx;
}

#else

inline bool has_own_adders() { return false; }

#endif

#if defined(__aarch64__)

// Whether four products of bytes are added up by one instruction, which the system tells (Linux, "ARM64 ELF hwcaps"). All
// of Apple's computers have it.
inline bool has_dot_products() {
#if defined(__APPLE__)
  return true;
#elif defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#else
  return false;
#endif
}

#endif

}  // namespace msmamba
