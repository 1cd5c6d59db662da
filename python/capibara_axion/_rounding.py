# SPDX-License-Identifier: Apache-2.0
"""What the references have in common: float64 within, one rounding at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _wide(x: Array) -> NDArray[np.float64]:
    return x.astype(np.float64)


def _rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """values in dtype, rounded to nearest even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name != "bfloat16":
            return values.astype(dtype)
        # ml_dtypes goes by way of float32, which would round twice. Rounded to odd instead, the
        # float32 remembers on which side of a tie the value lies (S. Boldo and G. Melquiond, "When
        # double rounding is odd", 2005).
        single = values.astype(np.float32)
        beyond = np.abs(single) > np.abs(values)
        towards_zero = np.where(beyond, np.nextafter(single, np.float32(0.0)), single)
        odd = towards_zero.view(np.uint32) | (single != values)
        return odd.view(np.float32).astype(dtype)
