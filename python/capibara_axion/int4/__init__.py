# SPDX-License-Identifier: Apache-2.0
"""4-bit weights: quantised from floats, and read from and written to checkpoints.

`Int4Weight` is what `capibara_axion.PackedLinear.from_int4` takes apart; `layouts` has the formats
of AWQ, GPTQ and compressed-tensors; `quantizer.quantize_checkpoint` is `capibara-axion quantize`,
and needs torch and transformers.
"""

from __future__ import annotations

from capibara_axion.int4.layouts import (
    pack_awq,
    pack_compressed,
    pack_gptq,
    unpack_awq,
    unpack_compressed,
    unpack_gptq,
)
from capibara_axion.int4.weight import GROUP_SIZES, Int4Weight, quantize

__all__ = [
    "GROUP_SIZES",
    "Int4Weight",
    "pack_awq",
    "pack_compressed",
    "pack_gptq",
    "quantize",
    "unpack_awq",
    "unpack_compressed",
    "unpack_gptq",
]
