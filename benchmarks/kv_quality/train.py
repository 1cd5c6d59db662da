# SPDX-License-Identifier: Apache-2.0
"""Trains a small language model, to measure on it what number formats cost in quality.

    python benchmarks/kv_quality/train.py [--steps 900] [--long-steps 200] [--threads 1]

Random weights say nothing about the quality of a quantised cache or weight: their attention looks
everywhere alike, and their perplexity is that of guessing. So this makes a Llama of 3 million
weights (4 layers, 8 query heads over 4 KV heads of 32, RoPE) that has learnt something, in some
minutes on one core: bytes of Python's standard library (corpus.py), first in contexts of 512, then
of 2048. The checkpoint is in Hugging Face's layout with a tokenizer (a token is a byte), f32, for
transformers and vLLM alike: .cache/kv_quality/model. The same seed, threads, library and machine
give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import corpus

import machine

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / ".cache" / "kv_quality" / "model"
CONTEXT = 2048


@dataclass(frozen=True)
class Recipe:
    """How it is trained: `steps` of `tokens` tokens in contexts of `context`, then `long_steps` in
    contexts of CONTEXT, one at least in each.
    """

    steps: int = 900
    long_steps: int = 200
    context: int = 512
    tokens: int = 1024
    learning_rate: float = 3e-3  # rises over `warmup` steps, then falls linearly to a 50th
    warmup: int = 60
    weight_decay: float = 0.1  # of matrices; norms have none
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 1

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of the highest."""
        total = self.steps + self.long_steps
        falling = 1 - 0.98 * (step - self.warmup) / max(1, total - self.warmup)
        return min((step + 1) / self.warmup, falling)

    def shape(self, step: int) -> tuple[int, int]:
        """Sequences, and tokens of each, in a step."""
        if step < self.steps:
            return max(1, self.tokens // self.context), self.context
        return max(1, self.tokens // CONTEXT), CONTEXT


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=corpus.VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=corpus.END_OF_TEXT,
        eos_token_id=corpus.END_OF_TEXT,
        pad_token_id=corpus.PAD,
        use_cache=False,
    )


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps, long_steps=arguments.long_steps, seed=arguments.seed)
    texts = corpus.load()
    began, cpu_began = time.perf_counter(), time.process_time()
    model, curve = train(recipe, texts)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    record = {
        "recipe": asdict(recipe),
        "corpus": texts.fingerprint,
        "python": ".".join(map(str, sys.version_info[:3])),
        "train_bytes": sum(len(document.content) for document in texts.train),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "threads": arguments.threads,
        "loss": curve,
    }
    save(model, arguments.output, record)
    print(f"written to {arguments.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="in short contexts")
    parser.add_argument("--long-steps", type=int, default=Recipe.long_steps, help="in long ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="the checkpoint's folder")
    return parser


def train(recipe: Recipe, texts: corpus.Corpus) -> tuple[LlamaForCausalLM, list[dict[str, Any]]]:
    """Trains a model.

    Returns:
        The model in f32, and the losses along the way in nats a byte: a mean over the steps since
        the last entry, and that of held-out text, both in contexts of the step's length.
    """
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config()).train()
    optimizer = _optimizer(model, recipe)
    ids = corpus.stream(texts.train)
    draw = torch.Generator().manual_seed(recipe.seed)
    held_out = torch.cat(list(corpus.windows(texts.held_out, CONTEXT + 1).values()))[:8]
    total = recipe.steps + recipe.long_steps
    curve: list[dict[str, Any]] = []
    recent: list[float] = []
    with Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=machine.console(),
    ) as progress:
        task = progress.add_task("", total=total)
        for step in range(total):
            recent.append(_step(model, optimizer, recipe, step, ids, draw))
            context = recipe.shape(step)[1]
            shown = sum(recent[-20:]) / len(recent[-20:])
            described = f"context {context}, loss {shown:.3f} nats a byte"
            progress.update(task, advance=1, description=described)
            if (step + 1) % 100 == 0 or step + 1 == total:
                entry = {
                    "step": step + 1,
                    "train": round(sum(recent) / len(recent), 4),
                    "held_out": round(_held_out_loss(model, held_out[:, -context - 1 :]), 4),
                }
                progress.console.print(str(entry), markup=False, highlight=False)
                curve.append(entry)
                recent = []
    return model.eval(), curve


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    recipe: Recipe,
    step: int,
    ids: torch.Tensor,
    draw: torch.Generator,
) -> float:
    sequences, context = recipe.shape(step)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * recipe.rate(step)
    firsts = torch.randint(len(ids) - context - 1, (sequences,), generator=draw)
    rows = torch.stack([ids[first : first + context + 1] for first in firsts.tolist()]).long()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    if not math.isfinite(value):
        raise SystemExit(f"step {step}: the loss is {value}")
    return value


def _held_out_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Over the second halves, which have half of the window before them at least."""
    total = 0.0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for row in rows:
            logits = model(input_ids=row[None, :-1]).logits[0].float()
            half = len(row) // 2
            total += float(torch.nn.functional.cross_entropy(logits[half:], row[half + 1 :]))
    return total / len(rows)


def tokenizer() -> Tokenizer:
    """A byte-level BPE without merges: a byte's token id is its value."""
    # Byte-level BPE writes a byte as a printable character: itself, or one from 256 on.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    character = {byte: chr(byte) for byte in shown}
    character |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    found = Tokenizer(models.BPE({character[byte]: byte for byte in range(256)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved_{number}|>" for number in range(corpus.PAD + 1, corpus.VOCAB_SIZE)]
    specials = ["<|endoftext|>", "<|pad|>", *reserved]
    found.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    return found


def save(model: LlamaForCausalLM, folder: Path, record: dict[str, Any]) -> None:
    """Writes the checkpoint, its tokenizer, and how it was made (training.json)."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
    }
    for name, content in (("tokenizer_config", tokenizer_config), ("training", record)):
        text = json.dumps(content, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
