# SPDX-License-Identifier: Apache-2.0
"""How much memory attention takes beside its inputs and its output, and how much a KV cache takes.

    python benchmarks/attention_memory.py [--tokens 1024 ... 32768] [--threads 1 2]
    python benchmarks/attention_memory.py --show benchmarks/results/attention_memory.json

Causal attention over 8 heads of 128 in bf16. Every measurement has a process of its own: inputs and
output are written to, freed memory is given back, the kernel's record of the peak is reset
(/proc/self/clear_refs), and then comes the process's first call of the function. The figure is the
peak of the resident size (VmHWM) minus the size before, so it holds everything: scratch wherever it
was allocated, the stacks of threads, code that is read for the first time. "again" is the same for
a second call in that process, where what a library keeps for itself is already there. Functions
that return a new tensor have its bytes taken off.

    ours    flash_attention, into a given output
    torch   scaled_dot_product_attention
    naive   the scores in one f32 matrix, softmax in place: the least that a matrix can do with

What the naive way would take is computed (4 bytes x heads x tokens^2) where it is over --limit.
Needs Linux. The plot needs matplotlib, and is left out without.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import machine

HEADS, HEAD_DIM = 8, 128
_MIB = 1 << 20
_MOST_MIB = 16.0  # of ours, at 32K tokens
_TIMEOUT_S = 600
_AGAIN_UP_TO = 8192  # tokens; a second call takes as long as the first
_NAMES = {"ours": "capibara_axion", "torch": "torch SDPA", "naive": "score matrix"}


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.child:
        print(json.dumps(_in_child(*json.loads(arguments.child))))
        return 0
    if arguments.show:
        result = json.loads(arguments.show.read_text(encoding="utf-8"))
        _show(result)
        _plot(result, arguments.plot)
        return 0
    command = f"python benchmarks/attention_memory.py --threads {_joined(arguments.threads)}"
    result = machine.describe({}) | {
        "command": command,
        "unit": "bytes beside inputs and output",
        "shape": {"heads": HEADS, "head_dim": HEAD_DIM, "dtype": "bfloat16", "causal": True},
        "rows": _rows(arguments),
        "kv_cache": _cache_rows(),
    }
    result["bar"] = _bar(result["rows"])
    _show(result)
    machine.write(result, arguments.output)
    _plot(result, arguments.plot)
    return 0 if result["bar"].get("met", True) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024 << i for i in range(6)])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contenders", nargs="+", choices=list(_CALLS), default=list(_CALLS))
    parser.add_argument("--limit", type=float, default=6.0, help="GiB that the naive way may take")
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "attention_memory.json")
    parser.add_argument("--plot", type=Path, default=machine.RESULTS / "attention_memory.svg")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _joined(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> int:
    from capibara_axion import flash_attention

    flash_attention(q, k, v, causal=True, out=out)
    return 0


def _torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: torch.Tensor) -> int:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return result.numel() * result.element_size()


def _naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> int:
    q, k, v = (x[0].transpose(0, 1).float() for x in (q, k, v))
    scores = q.mul_(HEAD_DIM**-0.5) @ k.transpose(1, 2)
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu_(1)
    scores.masked_fill_(hidden, -torch.inf)
    scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    scores.div_(scores.sum(dim=-1, keepdim=True))
    out.copy_((scores @ v).transpose(0, 1)[None])
    return 0


# Each gives the bytes of a result that it had to allocate.
_CALLS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], int]] = {
    "ours": _ours,
    "torch": _torch,
    "naive": _naive,
}


def _in_child(contender: str, threads: int, tokens: int) -> dict[str, Any]:
    """Measures one call, and one more."""
    import capibara_axion.torch_ops  # noqa: F401  its libraries, before anything is measured

    torch.set_num_threads(threads)
    shape = 1, tokens, HEADS, HEAD_DIM
    with torch.inference_mode():
        q, k, v = (torch.empty(shape, dtype=torch.bfloat16).normal_() for _ in range(3))
        out = torch.zeros(shape, dtype=torch.bfloat16).add_(1)  # also starts the threads
        found = {"bytes": _extra(_CALLS[contender], q, k, v, out)}
        if tokens <= _AGAIN_UP_TO:
            found["again_bytes"] = _extra(_CALLS[contender], q, k, v, out)
    return found


def _extra(call: Callable[..., int], *tensors: torch.Tensor) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # or the call might live on what was freed before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    result = call(*tensors)
    return max(0, _status("VmHWM") - before - result)


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"/proc/self/status: no {key}")
    return int(found[1]) * 1024


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    every = list(itertools.product(arguments.contenders, arguments.threads, arguments.tokens))
    rows = []
    with Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=machine.console(),
    ) as progress:
        task = progress.add_task("", total=len(every))
        for name, threads, tokens in every:
            description = f"{name}, {tokens} tokens, {threads} threads"
            progress.update(task, description=description)
            row: dict[str, Any] = {"contender": name, "threads": threads, "tokens": tokens}
            matrix = 4 * HEADS * tokens**2
            if name == "naive" and matrix * 1.2 > arguments.limit * 1024 * _MIB:
                row |= {"bytes": matrix, "computed": True}
            else:
                row |= _child(name, threads, tokens)
            rows.append(row)
            progress.advance(task)
    return rows


def _child(*what: Any) -> dict[str, Any]:
    done = subprocess.run(
        (sys.executable, os.fspath(Path(__file__).resolve()), "--child", json.dumps(what)),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise SystemExit(f"{what}: ended with code {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _bar(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether ours grows no faster than the tokens, and stays below the bar at 32K."""
    ours = [row for row in rows if row["contender"] == "ours"]
    longest = max((row["tokens"] for row in ours), default=0)
    if longest < 32768:
        return {}
    most = max(row["bytes"] for row in ours if row["tokens"] == longest)
    growth = []
    for threads in {row["threads"] for row in ours}:
        found = sorted((row["tokens"], row["bytes"]) for row in ours if row["threads"] == threads)
        (first_tokens, first), (last_tokens, last) = found[0], found[-1]
        growth.append(last / max(first, 1) / (last_tokens / first_tokens))
    return {
        "most_mib_at_32k": round(most / _MIB, 2),
        "allowed_mib_at_32k": _MOST_MIB,
        "growth_over_linear": round(max(growth), 3),
        "met": most <= _MOST_MIB * _MIB and max(growth) <= 1.0,
    }


def _cache_rows() -> list[dict[str, Any]]:
    from capibara_axion import PagedKVCache

    blocks, block_size = 64, 16
    rows = []
    for dtype, scales in (
        ("bfloat16", "tensor"),
        ("fp8_e4m3", "tensor"),
        ("fp8_e4m3", "head"),
        ("fp8_e4m3", "token"),
    ):
        cache = PagedKVCache(blocks, block_size, HEADS, HEAD_DIM, dtype, scales=scales)
        # Scales that do not grow with the blocks are not a token's.
        shared = 0 if scales == "token" or cache.key_scales is None else 8 * cache.key_scales.size
        a_token = (cache.nbytes - shared) / (blocks * block_size)
        rows.append({"dtype": dtype, "scales": scales, "bytes": a_token, "shared_bytes": shared})
    return rows


def _show(result: dict[str, Any]) -> None:
    heading = f"MiB beside inputs and output, first call; causal, {HEADS} x {HEAD_DIM}, bf16"
    table = Table(title=machine.title(heading, result), title_justify="left")
    table.add_column("tokens", justify="right")
    columns = list(dict.fromkeys((row["contender"], row["threads"]) for row in result["rows"]))
    for name, threads in columns:
        table.add_column(f"{_NAMES[name]}, {threads} thr.", justify="right")
        table.add_column("again", justify="right")
    by_place = {(row["contender"], row["threads"], row["tokens"]): row for row in result["rows"]}
    for tokens in dict.fromkeys(row["tokens"] for row in result["rows"]):
        cells = [str(tokens)]
        for name, threads in columns:
            row = by_place[name, threads, tokens]
            mark = " (computed)" if row.get("computed") else ""
            cells.append(f"{row['bytes'] / _MIB:.1f}{mark}")
            cells.append(f"{row['again_bytes'] / _MIB:.1f}" if "again_bytes" in row else "")
        table.add_row(*cells)
    console = machine.console()
    console.print(table)
    cache = Table(title=f"bytes of a KV cache a token and layer, {HEADS} KV heads x {HEAD_DIM}")
    for column in ("dtype", "scales", "bytes a token", "of bf16", "and once"):
        cache.add_column(column, justify="left" if column in ("dtype", "scales") else "right")
    largest = result["kv_cache"][0]["bytes"]
    for row in result["kv_cache"]:
        figures = f"{row['bytes']:g}", f"{row['bytes'] / largest:.1%}", str(row["shared_bytes"])
        cache.add_row(row["dtype"], row["scales"], *figures)
    console.print(cache)
    if result["bar"]:
        console.print(f"bar: {json.dumps(result['bar'])}", markup=False, highlight=False)


def _plot(result: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib: no plot", file=sys.stderr)
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    # Text as text, and no dates or random names: the same figures give the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "attention_memory"}
    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    looks = {"ours": ("#0b7a4b", "o"), "torch": ("#c77700", "s"), "naive": ("#8a8f98", "^")}
    threads = min(row["threads"] for row in result["rows"])
    for name, (colour, marker) in looks.items():
        rows = [r for r in result["rows"] if r["contender"] == name and r["threads"] == threads]
        if not rows:
            continue
        points = [(row["tokens"], row["bytes"] / _MIB) for row in rows]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, label=_NAMES[name])
        for row, (x, y) in zip(rows, points, strict=True):
            face = "white" if row.get("computed") else colour
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6)
        last = points[-1]
        text = f"{last[1] / 1024:.0f} GiB" if last[1] >= 1024 else f"{last[1]:.1f} MiB"
        axes.annotate(text, last, xytext=(8, -3), textcoords="offset points", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({row["tokens"] for row in result["rows"]})
    axes.set_xticks(ticks, [f"{tick // 1024}K" for tick in ticks])
    axes.set_xlim(ticks[0] * 0.85, ticks[-1] * 1.7)
    axes.set_xlabel("tokens")
    axes.set_ylabel("MiB beside inputs and output")
    shape = f"{HEADS} heads x {HEAD_DIM}, bf16, causal, {threads} thread; hollow: computed"
    axes.set_title(f"Memory that attention takes ({shape})", fontsize=10, loc="left")
    axes.grid(True, which="major", color="#e3e5e8", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    print(f"written to {os.path.relpath(path)}")


if __name__ == "__main__":
    sys.exit(main())
