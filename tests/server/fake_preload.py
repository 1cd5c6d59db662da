# SPDX-License-Identifier: Apache-2.0
"""Imported by the forkserver of fake workers: as the real one's preload, but for vLLM."""

import fake_worker  # noqa: F401

from capibara_axion.server import processes

processes.die_with_parent()
