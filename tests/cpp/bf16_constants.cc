// SPDX-License-Identifier: Apache-2.0
// Compiled with the flags of an ISA that has bf16 instructions: see cmake/bf16_constants.cmake.
#include <arm_neon.h>

namespace {

template <uint16_t bits>
void put(uint16_t* to) {
  vst1q_bf16(reinterpret_cast<bfloat16_t*>(to), vreinterpretq_bf16_u16(vdupq_n_u16(bits)));
}

}  // namespace

// Eight of each, from constants that the compiler knows.
void put_bf16_constants(uint16_t (&to)[6][8]) {
  put<0x3f80>(to[0]);  // 1
  put<0xbf80>(to[1]);  // -1
  put<0x4000>(to[2]);  // 2
  put<0x3f00>(to[3]);  // 0.5
  put<0x4040>(to[4]);  // 3
  put<0x4150>(to[5]);  // 13
}
