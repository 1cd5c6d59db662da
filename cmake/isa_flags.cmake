# SPDX-License-Identifier: Apache-2.0
# The only place where instruction sets become compiler flags. Names and order are those of
# csrc/cpu/isa.h, which says what a CPU needs to run each; nothing else is compiled beyond the
# architecture's baseline.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(CAPIBARA_ISAS sse4 avx2 avx512)
  set(CAPIBARA_FLAGS_sse4 -msse4.2 -maes -mpclmul)
  set(CAPIBARA_FLAGS_avx2 ${CAPIBARA_FLAGS_sse4} -mavx2 -mfma -mf16c -mbmi -mbmi2)
  set(CAPIBARA_FLAGS_avx512 ${CAPIBARA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq
      -mavx512vl)
  set(CAPIBARA_TILE_ISAS avx2 avx512_vnni avx512_bf16)
  set(CAPIBARA_TILE_FLAGS_avx2 ${CAPIBARA_FLAGS_avx2})
  set(CAPIBARA_TILE_FLAGS_avx512_vnni ${CAPIBARA_FLAGS_avx512} -mavx512vnni)
  # All but one old core that have bf16 instructions have VBMI too.
  set(CAPIBARA_TILE_FLAGS_avx512_bf16 ${CAPIBARA_TILE_FLAGS_avx512_vnni} -mavx512vbmi -mavx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(CAPIBARA_ISAS neon neon_bf16)
  set(CAPIBARA_FLAGS_neon -mcpu=generic+crypto)
  set(CAPIBARA_TILE_ISAS neon neon_dotprod neon_bf16)
  set(CAPIBARA_TILE_FLAGS_neon ${CAPIBARA_FLAGS_neon})
  # GCC up to 13 inlines the intrinsics of bf16 only from Armv8.2 on; zig's clang knows nothing but
  # -mcpu, to which any clang gives the same code.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(CAPIBARA_FLAGS_neon_bf16 -march=armv8.2-a+crypto+bf16)
    set(CAPIBARA_TILE_FLAGS_neon_dotprod -march=armv8.2-a+crypto+dotprod)
  else()
    set(CAPIBARA_FLAGS_neon_bf16 -mcpu=generic+crypto+bf16)
    set(CAPIBARA_TILE_FLAGS_neon_dotprod -mcpu=generic+crypto+dotprod)
  endif()
  set(CAPIBARA_TILE_FLAGS_neon_bf16 ${CAPIBARA_FLAGS_neon_bf16}+dotprod+i8mm+fp16fml)
  include(${CMAKE_CURRENT_LIST_DIR}/bf16_constants.cmake)
  capibara_check_bf16_constants(bf16_is_right ${CAPIBARA_FLAGS_neon_bf16})
  if(NOT bf16_is_right)
    message(WARNING "${CMAKE_CXX_COMPILER} (${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}) "
                    "cannot compile bf16 constants, or not rightly: the kernels for cores with bf16 "
                    "instructions are left out, and slower ones take their place. clang compiles "
                    "them, and so should GCC 13 and later.")
    list(REMOVE_ITEM CAPIBARA_ISAS neon_bf16)
    list(REMOVE_ITEM CAPIBARA_TILE_ISAS neon_bf16)
    add_compile_definitions(CAPIBARA_WITHOUT_BF16)
  endif()
else()
  set(CAPIBARA_ISAS)
  set(CAPIBARA_TILE_ISAS)
endif()

# Adds the *_hwy.cc sources to `target` once for each ISA, in that ISA's namespace. Kernels neither
# throw nor allocate; without exceptions no shared personality symbol leaves their objects.
function(capibara_add_isa_sources target)
  foreach(isa IN LISTS CAPIBARA_ISAS)
    add_library(isa_${isa} OBJECT ${ARGN})
    target_compile_options(isa_${isa} PRIVATE ${CAPIBARA_FLAGS_${isa}} -fno-exceptions)
    target_compile_definitions(isa_${isa} PRIVATE CAPIBARA_ISA=${isa})
    target_link_libraries(isa_${isa} PRIVATE capibara_flags)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:isa_${isa}>)
  endforeach()
endfunction()

# Adds the matrix tiles, which are in files of their own: tile_<type>_<isa>.cc.
function(capibara_add_tile_sources target)
  foreach(isa IN LISTS CAPIBARA_TILE_ISAS)
    set(sources ${ARGN})
    list(FILTER sources INCLUDE REGEX "/tile_[a-z0-9]+_${isa}\\.cc$")
    add_library(tiles_${isa} OBJECT ${sources})
    target_compile_options(tiles_${isa} PRIVATE ${CAPIBARA_TILE_FLAGS_${isa}} -fno-exceptions)
    target_link_libraries(tiles_${isa} PRIVATE capibara_flags)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:tiles_${isa}>)
  endforeach()
endfunction()
