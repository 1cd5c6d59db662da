# SPDX-License-Identifier: Apache-2.0
# Debian's GCC 12.2 gives a bf16 vector of ones the f16 bits of one: 0x3c00, not 0x3f80, by an FMOV of
# which the assembler complains only where f16 instructions are off.

# Sets `result` to whether the compiler, with these flags, gets bf16 constants right.
function(capibara_check_bf16_constants result)
  if(NOT DEFINED CAPIBARA_BF16_CONSTANTS_ARE_RIGHT)
    set(source ${PROJECT_BINARY_DIR}/bf16_constants.cc)
    file(WRITE ${source} "#include <arm_neon.h>
bfloat16x8_t one() { return vreinterpretq_bf16_u16(vdupq_n_u16(0x3f80)); }
")
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    try_compile(compiled ${PROJECT_BINARY_DIR}/bf16_constants ${source}
                COMPILE_DEFINITIONS -O2 ${ARGN} COPY_FILE ${source}.a)
    set(right FALSE)
    if(compiled)
      file(READ ${source}.a bytes HEX)
      string(FIND "${bytes}" 00fe034f wrong) # fmov v0.8h, #1.0
      if(wrong EQUAL -1)
        set(right TRUE)
      endif()
    endif()
    set(CAPIBARA_BF16_CONSTANTS_ARE_RIGHT ${right}
        CACHE INTERNAL "The compiler gives bf16 constants their own bits")
  endif()
  set(${result} ${CAPIBARA_BF16_CONSTANTS_ARE_RIGHT} PARENT_SCOPE)
endfunction()
