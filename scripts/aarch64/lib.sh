# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Where the aarch64 lane keeps its things. Sourced, never run.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

AARCH64=$ROOT/.cache/aarch64
SYSROOT=$AARCH64/sysroot
SITE_PACKAGES=$AARCH64/python

# QEMU's best core, with bf16 and i8mm. Without SVE: QEMU 7.2 computes wrong results in OpenBLAS
# with it, and no kernel of ours uses it.
: "${AARCH64_CPU:=max,sve=off}"
