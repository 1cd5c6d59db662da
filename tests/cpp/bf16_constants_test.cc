// SPDX-License-Identifier: Apache-2.0
// Constants of type bf16 have the bits that the source gives them. Exit code 77: this CPU has no
// bf16 instructions.
#include <cstdint>
#include <cstdio>

#include "cpu/isa.h"

void put_bf16_constants(uint16_t (&to)[6][8]);

int main() {
  if (!capibara::runs_here(capibara::Isa::neon_bf16)) {
    std::printf("skipped: this CPU does not run neon_bf16\n");
    return 77;
  }
  constexpr uint16_t expected[] = {0x3f80, 0xbf80, 0x4000, 0x3f00, 0x4040, 0x4150};
  uint16_t found[6][8];
  put_bf16_constants(found);
  int wrong = 0;
  for (int i = 0; i < 6; ++i) {
    for (uint16_t bits : found[i]) {
      if (bits == expected[i]) continue;
      std::printf("expected 0x%04x, got 0x%04x: miscompiled\n", expected[i], bits);
      ++wrong;
    }
  }
  return wrong != 0;
}
