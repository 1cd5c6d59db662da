# SPDX-License-Identifier: Apache-2.0
"""What a person at the terminal got wrong."""

from __future__ import annotations


class UsageError(Exception):
    """Bad input; names the argument, what was expected and what was given. Exit code 2."""
