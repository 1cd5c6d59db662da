# SPDX-License-Identifier: Apache-2.0
"""The models that the server's benchmarks serve, and prompts of a given length for them.

The demo experts, and the 0.5B shape of `end_to_end/prepare.py` with a tokenizer of Qwen's size: it
takes as long to load as a real one, and its random tokens are plain letters, so that each of them
is a piece of text in a stream.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(2, str(Path(__file__).resolve().parents[1] / "end_to_end"))

import prepare
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from capibara_axion.demo import write_demo_models

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "server"
SHAPE = "qwen2.5-0.5b-shape"
DEMO = "qwen_coder"  # of the same architecture

_TOKENS = 151643  # of Qwen2.5, before its special ones
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LONGEST_TOKEN = 8
_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def expert(name: str, path: Path, **settings: Any) -> dict[str, Any]:
    """An entry of `experts` in a configuration file."""
    found = {"expert_id": name, "model_path": os.fspath(path), "dtype": "bfloat16"}
    return found | {"max_model_len": 1024, "max_num_seqs": 8} | settings


def shape() -> Path:
    """The checkpoint of the 0.5B shape with its tokenizer.

    Raises:
        SystemExit: `prepare.py` has not been run.
    """
    if not prepare.has_checkpoint():
        raise SystemExit("no checkpoint yet: run benchmarks/end_to_end/prepare.py")
    folder = CACHE / SHAPE
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(prepare.CHECKPOINT / name)
        _save_as_qwen_does(_tokenizer(), folder / "tokenizer.json")
        (folder / "chat_template.jinja").write_text(_TEMPLATE)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 32768,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))  # last
    return folder


def demo() -> dict[str, Path]:
    """The demo checkpoints by name."""
    config = write_demo_models(CACHE / "demo")
    names = [item["expert_id"] for item in json.loads(config.read_text())["experts"]]
    return {name: config.parent / name for name in names}


def prompt(model: Path, tokens: int, seed: int) -> list[int]:
    """Random ids of ordinary tokens; no two seeds begin alike, so that no cache can help."""
    draw = random.Random(seed)
    config = json.loads((model / "config.json").read_text())
    size = min(_TOKENS, config.get("text_config", config)["vocab_size"])
    return [draw.randrange(size // 2, size) for _ in range(tokens)]


def chat(model: Path, tokens: int, seed: int) -> list[dict[str, str]]:
    """Messages of about so many tokens without the template's; no two seeds begin alike."""
    draw = random.Random(seed)
    tokenizer, text = _load_tokenizer(model), str(seed)
    while len(tokenizer.encode(text, add_special_tokens=False).ids) < tokens:
        text += " " + "".join(draw.choices(_LETTERS, k=draw.randint(2, 9)))
    return [{"role": "user", "content": text}]


@functools.cache
def _load_tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(os.fspath(model / "tokenizer.json"))


def _save_as_qwen_does(tokenizer: Tokenizer, path: Path) -> None:
    """With each merge as one text, which is read faster than a list of two."""
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _tokenizer() -> Tokenizer:
    """A byte-level BPE whose merges are drawn at random, as many as Qwen's has."""
    draw = random.Random(0)
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    growing, merges = [*_LETTERS, "Ġ"], []
    while len(vocabulary) < _TOKENS:
        left, right = draw.choice(growing), draw.choice(_LETTERS)
        if (both := left + right) not in vocabulary:
            vocabulary[both] = len(vocabulary)
            merges.append((left, right))
            if len(both) < _LONGEST_TOKEN:
                growing.append(both)
    tokenizer = Tokenizer(tokenizer_models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return tokenizer
