// SPDX-License-Identifier: Apache-2.0
// A QEMU TCG plugin that counts the instructions that an aarch64 program executes.
//
//   qemu-aarch64 -plugin libcount_plugin.so,out=FILE,zva=512 ...
//
// The program marks a moment with syscall(MARK, id): no such system call exists, so it does nothing
// else than to append a line "id all simd loads stores bytes_loaded bytes_stored" to FILE. Counting
// is for one thread: additions of several would be lost.
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "a64_decode.h"

// The part of QEMU's plugin interface, version 1, that is used here; Debian ships no header of it.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };
typedef void (*tb_trans_cb)(qemu_plugin_id_t, struct qemu_plugin_tb*);
typedef void (*syscall_cb)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t a1,
                           uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                           uint64_t a7, uint64_t a8);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_cb);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, int op, void* target,
                                                     uint64_t value);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
extern struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
extern const void* qemu_plugin_insn_data(const struct qemu_plugin_insn*);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { MARK = 0x6361 };
enum { ALL, SIMD, LOADS, STORES, BYTES_LOADED, BYTES_STORED, COUNTERS };

static uint64_t g_counters[COUNTERS];
static unsigned g_zva_bytes = 64;
static FILE* g_out;

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  uint64_t sums[COUNTERS] = {0};
  sums[ALL] = qemu_plugin_tb_n_insns(tb);
  for (size_t i = 0; i < sums[ALL]; ++i) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
    const A64Counts counts = a64_decode(word, g_zva_bytes);
    sums[SIMD] += counts.simd;
    sums[LOADS] += counts.loads;
    sums[STORES] += counts.stores;
    sums[BYTES_LOADED] += counts.bytes_loaded;
    sums[BYTES_STORED] += counts.bytes_stored;
  }
  for (int k = 0; k < COUNTERS; ++k) {
    if (sums[k] == 0) continue;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &g_counters[k],
                                             sums[k]);
  }
}

static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t mark,
                       uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                       uint64_t a8) {
  (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != MARK) return;
  fprintf(g_out, "%" PRIu64, mark);
  for (int k = 0; k < COUNTERS; ++k) fprintf(g_out, " %" PRIu64, g_counters[k]);
  fputc('\n', g_out);
  fflush(g_out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int argc, char** argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (strncmp(argv[i], "out=", 4) == 0) {
      g_out = fopen(argv[i] + 4, "a");
    } else if (strncmp(argv[i], "zva=", 4) == 0) {
      g_zva_bytes = (unsigned)strtoul(argv[i] + 4, NULL, 10);
    } else {
      fprintf(stderr, "count_plugin: unknown option %s\n", argv[i]);
      return 1;
    }
  }
  if (!g_out) {
    fprintf(stderr, "count_plugin: out=FILE is missing, or cannot be written\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  return 0;
}
