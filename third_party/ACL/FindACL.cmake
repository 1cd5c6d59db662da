# SPDX-License-Identifier: Apache-2.0
# Finds Arm Compute Library: the target ACL::ACL, ACL_FOUND, ACL_INCLUDE_DIR, ACL_LIBRARIES.
# Set ACL_ROOT (a CMake or an environment variable) to where it was built or unpacked.
find_path(ACL_INCLUDE_DIR arm_compute/runtime/NEON/NEFunctions.h PATH_SUFFIXES include)
# The headers of half-precision floats lie in a subfolder of their own in source releases.
find_path(ACL_HALF_INCLUDE_DIR half/half.hpp HINTS ${ACL_INCLUDE_DIR}/include ${ACL_INCLUDE_DIR})
find_library(ACL_LIBRARY arm_compute PATH_SUFFIXES build lib lib/armv8.2-a-neon lib/armv8a-neon)
# A library of its own until 22.11, part of the other one since.
find_library(ACL_CORE_LIBRARY arm_compute_core PATH_SUFFIXES build lib lib/armv8.2-a-neon
                                                             lib/armv8a-neon)
mark_as_advanced(ACL_INCLUDE_DIR ACL_HALF_INCLUDE_DIR ACL_LIBRARY ACL_CORE_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ACL REQUIRED_VARS ACL_LIBRARY ACL_INCLUDE_DIR
                                                    ACL_HALF_INCLUDE_DIR)
if(ACL_FOUND AND NOT TARGET ACL::ACL)
  set(ACL_LIBRARIES ${ACL_LIBRARY})
  if(ACL_CORE_LIBRARY)
    list(APPEND ACL_LIBRARIES ${ACL_CORE_LIBRARY})
  endif()
  add_library(ACL::ACL INTERFACE IMPORTED)
  target_include_directories(ACL::ACL INTERFACE ${ACL_INCLUDE_DIR} ${ACL_HALF_INCLUDE_DIR})
  target_link_libraries(ACL::ACL INTERFACE ${ACL_LIBRARIES})
endif()
