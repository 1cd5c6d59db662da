// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(attention_softmax_kernels, attention_softmax)
CAPIBARA_DEFINE_TABLE(attention_rescale_kernels, attention_rescale)
CAPIBARA_DEFINE_TABLE(attention_finish_kernels, attention_finish)

}  // namespace capibara
