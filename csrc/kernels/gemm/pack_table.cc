// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/pack.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(pack_lines_kernels, pack_lines)
CAPIBARA_DEFINE_TABLE(pack_columns_kernels, pack_columns)
CAPIBARA_DEFINE_TABLE(line_scales_kernels, line_scales)
CAPIBARA_DEFINE_TABLE(gemm_epilogue_kernels, gemm_epilogue)

}  // namespace capibara
