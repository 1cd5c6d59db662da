#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The sysroot's Python under QEMU. This script is its sys.executable too: an emulated process can
# start it, as it could not start an aarch64 program. Environment:
#   AARCH64_CPU    the emulated core
#   PYTHONPATH     what goes before the aarch64 wheels of NumPy, torch and pytest
#   QEMU_PLUGIN    given to qemu-aarch64 as -plugin
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/lib.sh"
export PYTHONHOME=$SYSROOT/usr PYTHONNOUSERSITE=1
case ":${PYTHONPATH:-}:" in
  *":$SITE_PACKAGES:"*) ;; # started by an emulated Python
  *) export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$SITE_PACKAGES ;;
esac
exec qemu-aarch64 ${QEMU_PLUGIN:+-plugin "$QEMU_PLUGIN"} -cpu "$AARCH64_CPU" -L "$SYSROOT" \
  -0 "$ROOT/scripts/aarch64/python.sh" "$SYSROOT/usr/bin/python3.11" "$@"
