# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion bench`: measurements of servers and kernels."""
