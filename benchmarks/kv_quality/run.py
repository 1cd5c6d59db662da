# SPDX-License-Identifier: Apache-2.0
"""What a KV cache in 8-bit floats costs in quality, on a model that train.py trained.

    python benchmarks/kv_quality/train.py
    python benchmarks/kv_quality/run.py [--contexts 128 2048] [--documents 64] [--threads 1]
    python benchmarks/kv_quality/run.py --show benchmarks/results/kv_quality.json

The model is transformers' Llama, its attention ours over a paged cache (paged.py). Its text is
files of Python's standard library that training did not see. In every window the second half is
scored: at context 2048, tokens with 1024 to 2047 before them. All is compared with the cache in
bf16; rows without a cache of ours are transformers' own, in f32 (what training left) and bf16, and
say how much rounding of weights and activations does anyway.

What to bear in mind: a model of minutes' training predicts from the last hundred bytes or so. The
long context tests attention over as many rounded keys, not whether one far back is found; and
greedy text soon runs into repetition, so long common prefixes are easy to have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import LlamaForCausalLM

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import corpus
import evaluate
import paged
import train

import machine

_WINDOWS = 8  # of a document in contexts that are short enough for as many
_CALIBRATION_ROWS = 16
_BASELINE = "bfloat16"
_FORMATS = [
    paged.Format(_BASELINE),
    *(
        paged.Format(dtype, scales)
        for dtype in paged.LARGEST
        for scales in ("tensor", "head", "token")
    ),
]


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.show:
        _show(json.loads(arguments.show.read_text(encoding="utf-8")))
        return 0
    if not (arguments.model / "config.json").exists():
        print("no checkpoint yet: run benchmarks/kv_quality/train.py", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    trained = json.loads((arguments.model / "training.json").read_text(encoding="utf-8"))
    texts = corpus.load()
    if texts.fingerprint != trained["corpus"]:
        print("the corpus is not the one that the model was trained on", file=sys.stderr)
        return 2
    ranges, contenders = _contenders(arguments.model, texts)
    held_out = _texts(texts, arguments)
    rows = _measure(contenders, held_out, arguments)
    result = machine.describe({}) | {
        "command": f"python benchmarks/kv_quality/run.py --threads {arguments.threads}",
        "training": trained,
        "documents": {context: len(found) for context, found in held_out.items()},
        "scored_tokens": {
            context: sum(rows.numel() // rows.shape[1] * (context // 2) for rows in found.values())
            for context, found in held_out.items()
        },
        "generation": {
            name: getattr(arguments, name) for name in ("prompts", "prompt_tokens", "tokens")
        },
        "ranges": {"keys": _rounded(ranges.keys), "values": _rounded(ranges.values)},
        "seconds": round(time.perf_counter() - began),
        "rows": rows,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=train.CHECKPOINT)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, train.CONTEXT])
    parser.add_argument("--documents", type=int, default=64, help="at most as many files")
    parser.add_argument("--prompts", type=int, default=32, help="for greedy generation")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256, help="generated for each prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "kv_quality.json")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    return parser


def _contenders(
    folder: Path, texts: corpus.Corpus
) -> tuple[paged.Ranges, dict[str, evaluate.Contender]]:
    """Everything that is compared, by name, the baseline first."""
    loaded = {
        dtype: LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        for dtype in ("float32", "bfloat16")
    }
    windows = corpus.windows(texts.calibration, train.CONTEXT)
    rows = torch.cat(list(windows.values()))[:_CALIBRATION_ROWS]
    ranges = paged.calibrate(loaded["bfloat16"], rows)
    contenders: dict[str, evaluate.Contender] = {
        form.name: paged.Paged(loaded["bfloat16"], form, ranges) for form in _FORMATS
    }
    contenders["model in bfloat16, torch's attention"] = evaluate.Stock(loaded["bfloat16"])
    contenders["model in float32, torch's attention"] = evaluate.Stock(loaded["float32"])
    contenders["model and cache in float32"] = paged.Paged(
        loaded["float32"], paged.Format("float32")
    )
    return ranges, contenders


def _texts(
    texts: corpus.Corpus, arguments: argparse.Namespace
) -> dict[int, dict[str, torch.Tensor]]:
    """Windows by context; the same documents in all."""
    longest = max(arguments.contexts) + 1
    documents = [text for text in texts.held_out if len(text.content) >= longest]
    documents = documents[: arguments.documents]
    found = {}
    for context in arguments.contexts:
        each = max(1, min(_WINDOWS, longest // (context + 1)))
        found[context] = corpus.windows(documents, context + 1, each)
    return found


def _measure(
    contenders: dict[str, evaluate.Contender],
    held_out: dict[int, dict[str, torch.Tensor]],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    prompts = torch.cat([rows[:1] for rows in held_out[max(held_out)].values()])
    prompts = prompts[: arguments.prompts, : arguments.prompt_tokens]
    fed = sum(rows.numel() - len(rows) for found in held_out.values() for rows in found.values())
    work = fed + 16 * len(prompts) * arguments.tokens  # a token alone takes longer than in a row
    baseline: dict[int, evaluate.Score] = {}
    written: torch.Tensor | None = None
    rows = []
    with Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=machine.console(),
    ) as progress:
        task = progress.add_task("", total=work * len(contenders))
        for name, contender in contenders.items():
            progress.update(task, description=name)
            row: dict[str, Any] = {"cache": name}
            for context, found in held_out.items():
                score = evaluate.score(
                    contender, found, first=context // 2 + 1, progress=_advance(progress, task, 1)
                )
                row[f"context_{context}"] = evaluate.compare(
                    baseline.setdefault(context, score), score
                )
            ids = evaluate.generate(
                contender, prompts, arguments.tokens, progress=_advance(progress, task, 16)
            )
            written = ids if written is None else written
            lengths = evaluate.common_prefix(written, ids)
            row["common_prefix"] = {
                "mean": round(statistics.mean(lengths), 1),
                "median": statistics.median(lengths),
                "whole": sum(length == arguments.tokens for length in lengths),
                "all": lengths,
            }
            rows.append(row)
    return rows


def _advance(progress: Progress, task: TaskID, weight: int) -> Callable[[int], None]:
    return lambda tokens: progress.advance(task, weight * tokens)


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.tolist()]


def _show(result: dict[str, Any]) -> None:
    contexts = [int(context) for context in result["documents"]]
    generation = result["generation"]
    losses = result["training"]["loss"][-1]
    heading = (
        f"perplexity a byte on held-out text ({result['training']['parameters'] / 1e6:.1f} M "
        f"weights, held-out loss {losses['held_out']:.3f}), against the cache in bf16; "
        f"greedy: {generation['prompts']} prompts, {generation['tokens']} tokens each"
    )
    table = Table(title=machine.title(heading, result), title_justify="left")
    table.add_column("cache, scales")
    for context in contexts:
        for column in (f"context {context}", "ratio", "95 %", "same token"):
            table.add_column(column, justify="right")
    for column in ("common prefix", "whole"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        cells = [row["cache"]]
        for context in contexts:
            found = row[f"context_{context}"]
            low, high = found["ratio_95"]
            cells += [
                f"{found['perplexity']:.4f}",
                f"{found['ratio']:.5f}",
                f"{low:.5f}-{high:.5f}",
                f"{found['agreement']:.2%}",
            ]
        prefix = row["common_prefix"]
        cells += [f"{prefix['mean']:.0f}", f"{prefix['whole']} of {len(prefix['all'])}"]
        table.add_row(*cells)
    machine.console().print(table)


if __name__ == "__main__":
    sys.exit(main())
