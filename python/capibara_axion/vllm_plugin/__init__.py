# SPDX-License-Identifier: Apache-2.0
"""capibara_axion's operators inside vLLM, through the entry point group `vllm.general_plugins`."""
