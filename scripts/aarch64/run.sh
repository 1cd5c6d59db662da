#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs an aarch64 program under QEMU's user mode. AARCH64_CPU: another core, such as neoverse-n1.
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/lib.sh"
exec qemu-aarch64 ${QEMU_PLUGIN:+-plugin "$QEMU_PLUGIN"} -cpu "$AARCH64_CPU" -L "$SYSROOT" "$@"
