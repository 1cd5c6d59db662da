// SPDX-License-Identifier: Apache-2.0
// Loops of one instruction each, for benchmarks: what the multipliers can do if nothing else is in
// their way, and what memory can. Of numbers that stay normal if `p` points to 512 bytes of 0x3c.
#pragma once

#include <cstdint>
#include <string_view>

#include "cpu/isa.h"

namespace capibara::test {

// name(n, p): n times `body`, for each of the registers \r, which start as `start` says; p is what
// %1 stands for.
#define CAPIBARA_ASM_LOOP(name, registers, start, body, advance, end)                          \
  inline void name(int64_t n, const void* p) {                                                 \
    __asm__ volatile(".irp r," registers "\n" start "\n.endr\n1:\n.irp r," registers "\n" body \
                     "\n.endr\n" advance "\n" end                                              \
                     : "+r"(n), "+r"(p)::CAPIBARA_CLOBBERED, "cc", "memory");                  \
  }
#define CAPIBARA_8 "0,1,2,3,4,5,6,7"
#define CAPIBARA_12 CAPIBARA_8 ",8,9,10,11"
#define CAPIBARA_24 CAPIBARA_12 ",12,13,14,15,16,17,18,19,20,21,22,23"

using Loop = void(int64_t n, const void* p);
struct Peak {
  std::string_view type, isa;
  Loop* loop;
  int64_t products;  // of one n
};

#if defined(__x86_64__)
// Not xmm16 and up: code without AVX-512 does not use them.
#define CAPIBARA_CLOBBERED                                                                 \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define CAPIBARA_NEXT "dec %0\n jnz 1b"
#define CAPIBARA_SSE(name, move, multiply, add)                                             \
  CAPIBARA_ASM_LOOP(                                                                        \
      name, CAPIBARA_8, "movups (%1),%%xmm12\n movups (%1),%%xmm13\n movups (%1),%%xmm\\r", \
      move " %%xmm12,%%xmm14\n" multiply " %%xmm13,%%xmm14\n" add " %%xmm14,%%xmm\\r",      \
      CAPIBARA_NEXT, "")
#define CAPIBARA_AVX(name, registers, v, start, body)                                          \
  CAPIBARA_ASM_LOOP(name, registers, "vmovups (%1),%%" v "mm\\r\n" start, body, CAPIBARA_NEXT, \
                    "vzeroupper")
#define CAPIBARA_YMM(name, body) \
  CAPIBARA_AVX(name, CAPIBARA_12, "y", "vmovaps %%ymm0,%%ymm12\n vmovaps %%ymm0,%%ymm13", body)
#define CAPIBARA_ZMM(name, body) \
  CAPIBARA_AVX(name, CAPIBARA_24, "z", "vmovaps %%zmm0,%%zmm24\n vmovaps %%zmm0,%%zmm25", body)

CAPIBARA_SSE(sse_f32, "movaps", "mulps", "addps")
CAPIBARA_SSE(sse_int8, "movdqa", "pmaddwd", "paddd")
CAPIBARA_YMM(avx2_f32, "vfmadd231ps %%ymm12,%%ymm13,%%ymm\\r")
CAPIBARA_AVX(avx2_int8, "0,1,2,3,4,5", "y", "vmovups (%1),%%ymm1\\r",
             "vpmaddwd %%ymm6,%%ymm7,%%ymm8\n vpmaddwd %%ymm6,%%ymm7,%%ymm9\n vpaddd "
             "%%ymm8,%%ymm\\r,%%ymm\\r\n vpaddd %%ymm9,%%ymm1\\r,%%ymm1\\r")
CAPIBARA_ZMM(avx512_f32, "vfmadd231ps %%zmm24,%%zmm25,%%zmm\\r")
CAPIBARA_AVX(avx512_int8, CAPIBARA_8, "z", "vmovups (%1),%%zmm1\\r",
             "vpmaddwd %%zmm24,%%zmm25,%%zmm26\n vpmaddwd %%zmm24,%%zmm25,%%zmm27\n vpaddd "
             "%%zmm26,%%zmm\\r,%%zmm\\r\n vpaddd %%zmm27,%%zmm1\\r,%%zmm1\\r")
CAPIBARA_ZMM(avx512_bf16, "vdpbf16ps %%zmm24,%%zmm25,%%zmm\\r")
CAPIBARA_ZMM(avx512_vnni, "vpdpbusd %%zmm24,%%zmm25,%%zmm\\r")

constexpr Peak kPeaks[] = {
    {"f32", "sse4", sse_f32, 8 * 4},
    {"f32", "avx2", avx2_f32, 12 * 8},
    {"f32", "avx512", avx512_f32, 24 * 16},
    {"int8", "sse4", sse_int8, 8 * 8},
    {"int8", "avx2", avx2_int8, 12 * 16},
    {"int8", "avx512", avx512_int8, 16 * 32},
    {"bf16", "avx512_bf16", avx512_bf16, 24 * 32},
    {"int8", "avx512_vnni", avx512_vnni, 24 * 64},
};

// Loads of 512 bytes.
CAPIBARA_ASM_LOOP(read_zmm, CAPIBARA_8, "", "vmovups 64*\\r(%1),%%zmm\\r",
                  "add $512,%1\n" CAPIBARA_NEXT, "vzeroupper")
CAPIBARA_ASM_LOOP(read_xmm, CAPIBARA_8, "",
                  "movups 64*\\r(%1),%%xmm0\n movups 64*\\r+16(%1),%%xmm1\n"
                  "movups 64*\\r+32(%1),%%xmm2\n movups 64*\\r+48(%1),%%xmm3",
                  "add $512,%1\n" CAPIBARA_NEXT, "")
inline Loop* read_loop() { return runs_here(Isa::avx512) ? read_zmm : read_xmm; }
#else
#define CAPIBARA_CLOBBERED                                                                       \
  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", \
      "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25"
#define CAPIBARA_NEXT "subs %0,%0,#1\n b.ne 1b"
#define CAPIBARA_NEON(name, body)                                                                  \
  CAPIBARA_ASM_LOOP(name, CAPIBARA_24,                                                             \
                    ".arch armv8.6-a+fp16fml\n ldr q24,[%1]\n ldr q25,[%1]\n ldr q\\r,[%1]", body, \
                    CAPIBARA_NEXT, "")

CAPIBARA_NEON(neon_fmla, "fmla v\\r\\().4s,v24.4s,v25.4s")
CAPIBARA_NEON(neon_fmlal, "fmlal v\\r\\().4s,v24.4h,v25.4h")
CAPIBARA_NEON(neon_bfmmla, "bfmmla v\\r\\().4s,v24.8h,v25.8h")
CAPIBARA_NEON(neon_sdot, "sdot v\\r\\().4s,v24.16b,v25.16b")
CAPIBARA_NEON(neon_smmla, "smmla v\\r\\().4s,v24.16b,v25.16b")

constexpr Peak kPeaks[] = {
    {"f32", "neon", neon_fmla, 24 * 4},         {"bf16", "neon_bf16", neon_bfmmla, 24 * 16},
    {"f16", "neon_bf16", neon_fmlal, 24 * 4},   {"int8", "neon_dotprod", neon_sdot, 24 * 16},
    {"int8", "neon_bf16", neon_smmla, 24 * 32},
};

CAPIBARA_ASM_LOOP(read_q, CAPIBARA_8, "", "ldp q0,q1,[%1,64*\\r]\n ldp q2,q3,[%1,64*\\r+32]",
                  "add %1,%1,#512\n" CAPIBARA_NEXT, "")
inline Loop* read_loop() { return read_q; }
#endif

}  // namespace capibara::test
