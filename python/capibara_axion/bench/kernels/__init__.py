# SPDX-License-Identifier: Apache-2.0
"""Times of the kernels beside their peers: `capibara-axion bench kernels`.

What is measured (`cases`), who takes part (`contenders`) and how times are taken (`timing`) are
those of the repository's own benchmarks, which import them from here.
"""
