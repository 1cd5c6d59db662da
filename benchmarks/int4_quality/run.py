# SPDX-License-Identifier: Apache-2.0
"""What weights in 4 bits cost in quality, on the model that ../kv_quality/train.py trained.

    python benchmarks/kv_quality/train.py
    python benchmarks/int4_quality/run.py [--context 512] [--documents 64] [--threads 1]
    python benchmarks/int4_quality/run.py --show benchmarks/results/int4_quality.json

The model is transformers' Llama in bfloat16 with the matrices of its layers replaced by our packed
ones; output layer, embedding and attention stay. Its text is files of Python's standard library
that training did not see, the second half of each window scored. "awq" checkpoints are written by
`capibara_axion.int4.quantize_checkpoint`, which calibrates on other such files.

The down projections have 704 columns, which groups of 128 do not divide: rows "128" have groups of
64 there, as `quantization="capibara_int4"` does it, and there is no AWQ checkpoint of that size.

What to bear in mind: a model of minutes' training has weights and activations without outliers, the
very thing that rounding large models suffers from and that "awq" is for. The rows compare formats
with each other; how much a model of billions of weights loses has to be measured on it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from transformers import LlamaForCausalLM

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "kv_quality"))

import corpus
import evaluate
import train

import machine
from capibara_axion import PackedLinear, int4
from capibara_axion.int4.checkpoint import Checkpoint
from capibara_axion.int4.quantizer import Settings, quantize_checkpoint

_WINDOWS = 4  # of a document
_METHODS = ("w4a16", "w4a8")
_PARTS = ("qweight", "qzeros", "scales")

# Packs the matrix of this name.
Pack = Callable[[str, torch.Tensor], PackedLinear]


class _Packed(nn.Module):
    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        self._packed = packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._packed(x)


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.show:
        _show(json.loads(arguments.show.read_text(encoding="utf-8")))
        return 0
    if not (arguments.model / "config.json").exists():
        print("no checkpoint yet: run benchmarks/kv_quality/train.py", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    trained = json.loads((arguments.model / "training.json").read_text(encoding="utf-8"))
    texts = corpus.load()
    if texts.fingerprint != trained["corpus"]:
        print("the corpus is not the one that the model was trained on", file=sys.stderr)
        return 2
    length = arguments.context + 1
    held_out = corpus.windows(texts.held_out, length, _WINDOWS)
    held_out = dict([*held_out.items()][: arguments.documents])
    with tempfile.TemporaryDirectory() as directory:
        models = _models(arguments.model, texts, Path(directory))
        rows = _measure(models, held_out, arguments.context // 2 + 1)
    result = machine.describe({}) | {
        "training": trained,
        "context": arguments.context,
        "documents": len(held_out),
        "scored_tokens": len(held_out) * _WINDOWS * (arguments.context // 2),
        "rows": rows,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=train.CHECKPOINT)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--documents", type=int, default=64, help="at most as many files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "int4_quality.json")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    return parser


def _models(folder: Path, texts: corpus.Corpus, scratch: Path) -> dict[str, Callable[[], Any]]:
    """What is compared, by name, made when its turn comes; the baseline first."""

    def plain(dtype: torch.dtype) -> Any:
        return LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def packed(pack: Pack) -> Any:
        return _replace(plain(torch.bfloat16), pack)

    def rounded(group_size: int, method: str, symmetric: bool = False) -> Any:
        def pack(name: str, weight: torch.Tensor) -> PackedLinear:
            fitting = max(g for g in int4.GROUP_SIZES if g <= group_size and len(weight.T) % g == 0)
            found = int4.quantize(weight.float().numpy(), fitting, symmetric=symmetric)
            return _of(found, method)

        return packed(pack)

    def from_checkpoint(written: Path, method: str) -> Any:
        checkpoint = Checkpoint(written)
        model = plain(torch.bfloat16)
        kept = {n: checkpoint.tensor(n) for n in checkpoint.names() if n in model.state_dict()}
        model.load_state_dict(kept, strict=False)

        def pack(name: str, weight: torch.Tensor) -> PackedLinear:
            parts = (checkpoint.tensor(f"{name}.{part}").numpy() for part in _PARTS)
            return _of(int4.unpack_awq(*parts), method)

        return _replace(model, pack)

    models: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: plain(torch.bfloat16),
        "float32": lambda: plain(torch.float32),
        "int8": lambda: packed(lambda name, weight: PackedLinear(weight, dtype="int8")),
    }
    for method in _METHODS:
        for size in (128, 64, 32):
            models[f"rtn {size} {method}"] = lambda s=size, m=method: rounded(s, m)
        models[f"rtn 32 symmetric {method}"] = lambda m=method: rounded(32, m, True)
    for size in (64, 32):
        text = "\n".join(t.content.decode("utf-8", "replace") for t in texts.calibration)
        target = scratch / f"awq{size}"
        quantize_checkpoint(_in_bfloat16(folder, scratch), target, Settings(size, "awq", text=text))
        for method in _METHODS:
            models[f"awq {size} {method}"] = lambda t=target, m=method: from_checkpoint(t, m)
    return models


def _in_bfloat16(folder: Path, scratch: Path) -> Path:
    """The checkpoint as such models are published."""
    target = scratch / "bfloat16"
    if not target.exists():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model.save_pretrained(target)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (target / name).write_bytes((folder / name).read_bytes())
    return target


def _of(weight: int4.Int4Weight, method: str) -> PackedLinear:
    zeros = None if weight.zeros is None else torch.from_numpy(weight.zeros)
    scales = torch.from_numpy(weight.scales)
    return PackedLinear.from_int4(torch.from_numpy(weight.codes), scales, zeros, method=method)


def _replace(model: Any, pack: Pack) -> Any:
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, own = name.rpartition(".")
            packed = _Packed(pack(f"model.layers.{name}", module.weight.detach()))
            setattr(model.model.layers.get_submodule(parent), own, packed)
    return model


def _measure(
    models: dict[str, Callable[[], Any]], held_out: dict[str, torch.Tensor], first: int
) -> list[dict[str, Any]]:
    baseline: evaluate.Score | None = None
    rows = []
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=machine.console()) as progress:
        task = progress.add_task("", total=len(models))
        for name, make in models.items():
            progress.update(task, description=name)
            score = evaluate.score(evaluate.Stock(make()), held_out, first=first)
            baseline = score if baseline is None else baseline
            rows.append({"weights": name} | evaluate.compare(baseline, score))
            progress.advance(task)
    return rows


def _show(result: dict[str, Any]) -> None:
    heading = (
        f"perplexity a byte on held-out text ({result['training']['parameters'] / 1e6:.1f} M "
        f"weights, context {result['context']}, {result['scored_tokens']} tokens), against bfloat16"
    )
    table = Table(title=machine.title(heading, result), title_justify="left")
    table.add_column("weights, group, products")
    for column in ("perplexity", "ratio", "95 %", "same token"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        low, high = row["ratio_95"]
        table.add_row(
            row["weights"],
            f"{row['perplexity']:.4f}",
            f"{row['ratio']:.5f}",
            f"{low:.5f}-{high:.5f}",
            f"{row['agreement']:.2%}",
        )
    machine.console().print(table)


if __name__ == "__main__":
    sys.exit(main())
