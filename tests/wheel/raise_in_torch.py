# SPDX-License-Identifier: Apache-2.0
"""Sees that a mistaken call of a torch operator becomes a Python error.

The wheel's native module has a C++ runtime of its own inside. An exception of that one would end
the process when it reached torch's frames, which are made for libstdc++ (csrc/bindings/torch.cc).
"""

from __future__ import annotations

import torch

import capibara_axion.torch_ops  # noqa: F401  registers the operators


def main() -> None:
    """Raises AssertionError if the call does not raise what it should."""
    x = torch.ones(2, 4)
    for wrong in (torch.ones(3), torch.ones(4, dtype=torch.int64)):
        try:
            torch.ops.capibara_axion.rms_norm(x, wrong, 1e-6)
        except ValueError as error:
            assert "weight" in str(error), error
        else:
            raise AssertionError("no error")
    result = torch.ops.capibara_axion.rms_norm(x, torch.ones(4), 0.0)
    assert torch.equal(result, x), result
    print(f"torch {torch.__version__}: errors arrive as ValueError")


if __name__ == "__main__":
    main()
