# SPDX-License-Identifier: Apache-2.0
"""Five small checkpoints, one of each supported architecture, to try and to test the server with.

They are real checkpoints in Hugging Face layout (a few megabytes each) but know nothing: their
weights are random, apart from a memory that lets each of them say what it is.
"""

from __future__ import annotations

from capibara_axion.demo.writer import write_demo_models

__all__ = ["write_demo_models"]
