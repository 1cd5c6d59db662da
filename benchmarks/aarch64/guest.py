# SPDX-License-Identifier: Apache-2.0
"""Runs under the emulated Python: calls every contender of the cases, and marks where it does.

Prints one JSON object a line. The first says what it runs on; each further one is a contender of
a case: its "mark" m says that between marks m and m + 1 there were some calls, and between m + 2
and m + 3 as many as "more" says in addition. What a mark is: count_plugin.c. The cases come from
run.py, as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from capibara_axion import info
from capibara_axion.bench.kernels.cases import Case
from capibara_axion.bench.kernels.contenders import Prepared, contenders, enter

MARK = 0x6361  # the number of the system call, as in count_plugin.c
# The interpreter specialises a loop's and a lambda's instructions within their first executions.
WARM_UP, FEW, MORE = 20, 2, 3
# Where a call takes seconds under emulation, which computes floating point in software, that is
# nothing, and single calls must do; where it takes half a minute, one way of ours and of torch.
LONG, LONGER = 1 << 24, 1 << 28  # multiplications
LONGER_LEAVES_OUT = (
    *("NumPy packed out", "unpacked", "matmul", "mm", "memmove", "copy_"),
    *("SDPA enable_gqa", "memchr", "sum"),
)

_libc = ctypes.CDLL(None)
_marks = itertools.count()


def mark() -> int:
    """Appends the counters to the plugin's file, under the number that is returned."""
    number = next(_marks)
    _libc.syscall(MARK, number)
    return number


def calls(call: Callable[[], Any], count: int) -> None:
    """The loop that is counted; the same code for every count."""
    for _ in itertools.repeat(None, count):
        call()


def measure(call: Callable[[], Any], warm_up: int, few: int, more: int) -> int:
    """Makes the calls between four marks; the first mark's number."""
    gc.collect()
    calls(call, warm_up)
    first = mark()
    calls(call, few)
    mark()
    mark()
    calls(call, few + more)
    mark()
    return first


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    enter(("numpy", "torch"))
    gc.disable()
    found = info.collect()
    print(json.dumps({"versions": found["versions"], "isa": found["isa"]["chosen"]}), flush=True)
    for index, fields in enumerate(json.loads(sys.argv[1])):
        case = Case(**fields)
        inputs = case.inputs()
        plan = (1, 1, 1) if case.multiplications >= LONG else (WARM_UP, FEW, MORE)
        # Ours first: the others are compared with the same exact results.
        for one in contenders(case, compiled=False):
            if case.multiplications >= LONGER and one.name in LONGER_LEAVES_OUT:
                continue
            prepared = Prepared(one, case, inputs)
            found = {"case": index, "family": one.family, "name": one.name}
            found["error"] = prepared.check()
            prepared.reset()
            found["mark"], found["more"] = measure(prepared.call, *plan), plan[-1]
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
