// SPDX-License-Identifier: Apache-2.0
// What an A64 instruction counts as, from its encoding ("Arm Architecture Reference Manual for
// A-profile architecture", C4.1 "A64 instruction set encoding"). Bytes are those of an execution
// that takes effect; a compare and swap counts as load and store whether it swaps or not.
#pragma once

#include <stdint.h>

typedef struct {
  unsigned simd;  // 1: floating-point or vector arithmetic, moves included; no memory access
  unsigned loads, stores;  // 1: reads memory, writes memory
  unsigned bytes_loaded, bytes_stored;
} A64Counts;

static inline unsigned a64_bits(uint32_t word, int high, int low) {
  return word >> low & ((1u << (high - low + 1)) - 1);
}

static inline A64Counts a64_load(unsigned bytes) { return (A64Counts){0, 1, 0, bytes, 0}; }
static inline A64Counts a64_store(unsigned bytes) { return (A64Counts){0, 0, 1, 0, bytes}; }
static inline A64Counts a64_either(int load, unsigned bytes) {
  return load ? a64_load(bytes) : a64_store(bytes);
}

// LD1 to LD4, ST1 to ST4 of whole registers.
static inline A64Counts a64_structures(uint32_t w) {
  static const unsigned registers[16] = {4, 0, 4, 0, 3, 0, 3, 1, 2, 0, 2, 0, 0, 0, 0, 0};
  const unsigned bytes = registers[a64_bits(w, 15, 12)] * (a64_bits(w, 30, 30) ? 16 : 8);
  return a64_either(a64_bits(w, 22, 22), bytes);
}

// The same of one lane, and LD1R to LD4R.
static inline A64Counts a64_structure_lane(uint32_t w) {
  const unsigned opcode = a64_bits(w, 15, 13), size = a64_bits(w, 11, 10);
  const unsigned elements = ((opcode & 1) << 1 | a64_bits(w, 21, 21)) + 1;
  static const unsigned by_scale[3] = {1, 2, 4};
  unsigned bytes = 1u << size;  // replicating
  if (opcode >> 1 < 3) bytes = opcode >> 1 == 2 && (size & 1) ? 8 : by_scale[opcode >> 1];
  return a64_either(a64_bits(w, 22, 22), elements * bytes);
}

// Exclusive, ordered, compare and swap.
static inline A64Counts a64_exclusive(uint32_t w) {
  const unsigned o2 = a64_bits(w, 23, 23), load = a64_bits(w, 22, 22), o1 = a64_bits(w, 21, 21);
  unsigned bytes = 1u << a64_bits(w, 31, 30);
  if (o1 && (o2 || !a64_bits(w, 31, 31))) {  // CAS, CASP
    if (!o2) bytes = a64_bits(w, 30, 30) ? 16 : 8;
    return (A64Counts){0, 1, 1, bytes, bytes};
  }
  return a64_either((int)load, o1 ? 2 * bytes : bytes);
}

static inline A64Counts a64_pair(uint32_t w) {
  const unsigned opc = a64_bits(w, 31, 30), load = a64_bits(w, 22, 22);
  if (a64_bits(w, 26, 26)) return a64_either((int)load, 2 * (4u << opc));
  return a64_either((int)load, opc == 2 ? 16 : 8);
}

// LDR, STR and kin with one register; atomics.
static inline A64Counts a64_register(uint32_t w) {
  const unsigned size = a64_bits(w, 31, 30), opc = a64_bits(w, 23, 22);
  const int scaled_offset = (int)a64_bits(w, 24, 24);
  if (a64_bits(w, 26, 26)) return a64_either(opc & 1, opc & 2 ? 16 : 1u << size);
  if (!scaled_offset && a64_bits(w, 21, 21) && a64_bits(w, 11, 10) != 2) {
    if (a64_bits(w, 10, 10)) return a64_load(8);                 // LDRAA, LDRAB
    if (a64_bits(w, 15, 12) == 12) return a64_load(1u << size);  // LDAPR
    return (A64Counts){0, 1, 1, 1u << size, 1u << size};
  }
  if (size == 3 && opc == 2) return (A64Counts){0};  // PRFM
  return a64_either(opc != 0, 1u << size);
}

static inline A64Counts a64_literal(uint32_t w) {
  const unsigned opc = a64_bits(w, 31, 30);
  if (a64_bits(w, 26, 26)) return a64_load(4u << opc);
  return opc == 3 ? (A64Counts){0} : a64_load(opc == 1 ? 8 : 4);
}

// zva_bytes: what DC ZVA clears, by DCZID_EL0.
static inline A64Counts a64_decode(uint32_t w, unsigned zva_bytes) {
  const unsigned op0 = a64_bits(w, 28, 25);
  if ((w & 0xffffffe0u) == 0xd50b7420u) return a64_store(zva_bytes);
  if ((op0 & 7) == 7 || op0 == 2) return (A64Counts){.simd = 1};  // SIMD and floating point; SVE
  if ((op0 & 5) != 4) return (A64Counts){0};
  switch (a64_bits(w, 29, 28)) {
    case 0:
      if (!a64_bits(w, 26, 26)) return a64_exclusive(w);
      return a64_bits(w, 24, 24) ? a64_structure_lane(w) : a64_structures(w);
    case 1:
      if (!a64_bits(w, 24, 24)) return a64_literal(w);
      return a64_either(a64_bits(w, 23, 22) != 0, 1u << a64_bits(w, 31, 30));  // LDAPUR, STLUR
    case 2:
      return a64_pair(w);
    default:
      return a64_register(w);
  }
}
