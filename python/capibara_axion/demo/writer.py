# SPDX-License-Identifier: Apache-2.0
"""Writes the demo checkpoints and the configuration that serves them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capibara_axion.demo.decoder import decoder_tensors
from capibara_axion.demo.experts import (
    AWQ_EXPERTS,
    EXPERTS,
    Expert,
    awq_config,
    awq_folder,
    server_config,
)
from capibara_axion.demo.huggingface import huggingface_config
from capibara_axion.demo.memory import successors
from capibara_axion.demo.tensors import Draws, save_safetensors
from capibara_axion.demo.tokenizer import build_tokenizer, tokenizer_config
from capibara_axion.demo.vision import processor_files, vision_tensors

_PACKAGE = Path(__file__).parent
_MANIFEST = "manifest.json"
_CONFIG = "config.json"
_AWQ = "awq.json"
_HUGGINGFACE = "huggingface.json"
_SEED = 20240


def write_demo_models(directory: Path, *, progress: Callable[[str], None] | None = None) -> Path:
    """Writes five checkpoints, one folder each, and the server's config.json.

    Beside it stand awq.json, which serves three of them from 4-bit checkpoints, and
    huggingface.json, which serves the real checkpoints that these stand for. The
    files are the same from run to run. When `directory` already holds complete files of this
    version, nothing is written; configurations that the user edited are kept as long as the
    checkpoints are.

    Args:
        directory: created if it does not exist.
        progress: called with one line of text for each checkpoint written.

    Returns:
        The path of config.json.

    Raises:
        OSError: `directory` cannot be written to.
    """
    directory = Path(directory)
    config_path = directory / _CONFIG
    version = _package_fingerprint()
    if config_path.is_file() and _is_complete(directory, version):
        return config_path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MANIFEST).unlink(missing_ok=True)
    corpus = _corpus()
    for index, expert in enumerate(EXPERTS):
        _write_checkpoint(directory / expert.expert_id, expert, corpus, Draws(_SEED + index))
        if progress is not None:
            progress(f"wrote {expert.expert_id} ({index + 1} of {len(EXPERTS)})")
    for name in AWQ_EXPERTS:
        _write_awq(directory / name, directory / awq_folder(name))
        if progress is not None:
            progress(f"wrote {awq_folder(name)}")
    _write_json(config_path, server_config())
    _write_json(directory / _AWQ, awq_config())
    _write_json(directory / _HUGGINGFACE, huggingface_config())
    # Last, so that an interrupted run is never taken for a complete one.
    _write_json(directory / _MANIFEST, {"version": version, "bytes": _sizes(directory)})
    return config_path


def _corpus() -> list[str]:
    text = (_PACKAGE / "corpus.txt").read_text(encoding="utf-8")
    # Often enough that the words of the replies become tokens of their own.
    return [text, *(expert.reply for expert in EXPERTS for _ in range(8))]


def _write_checkpoint(folder: Path, expert: Expert, corpus: list[str], draws: Draws) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    family, decoder, special = expert.family, expert.family.decoder, expert.family.special
    config = family.config_json()
    tokenizer = build_tokenizer(
        corpus, special, vocab_size=decoder.vocab_size, newline_tokens=family.vision
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    context = config.get("text_config", config)["max_position_embeddings"]
    tokenizer_json = tokenizer_config(special, model_max_length=context)
    template = (_PACKAGE / "templates" / f"{expert.expert_id}.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    reply = tokenizer.encode(expert.reply, add_special_tokens=False).ids
    following = successors(
        reply,
        start=tokenizer.get_vocab()[family.prompt_end],
        stop=special.id_of(special.stops[0]),
        vocab_size=decoder.vocab_size,
    )
    if family.vision:
        tokenizer_json["processor_class"] = "Gemma3Processor"
        for name, content in processor_files().items():
            _write_json(folder / name, content)
        tensors = decoder_tensors(decoder, following, draws, model="language_model.model.")
        tensors |= vision_tensors(
            draws, text_hidden_size=decoder.hidden_size, text_std=decoder.stream_std
        )
    else:
        tensors = decoder_tensors(decoder, following, draws)
    save_safetensors(folder / "model.safetensors", tensors)
    _write_json(folder / "tokenizer_config.json", tokenizer_json)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.95,
            "eos_token_id": [special.id_of(token) for token in special.stops],
            "pad_token_id": special.id_of(special.pad),
        },
    )


def _write_awq(source: Path, target: Path) -> None:
    # It needs torch, which the rest does without.
    from capibara_axion.int4.quantizer import Settings, quantize_checkpoint

    shutil.rmtree(target, ignore_errors=True)
    quantize_checkpoint(source, target, Settings(group_size=32))


def _package_fingerprint() -> str:
    """Changes whenever anything that the checkpoints are made of changes."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in {".py", ".jinja", ".txt"}:
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sizes(directory: Path) -> dict[str, int]:
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for folder in (*(expert.expert_id for expert in EXPERTS), *map(awq_folder, AWQ_EXPERTS))
        for path in sorted((directory / folder).iterdir())
        if path.is_file()
    }


def _is_complete(directory: Path, version: str) -> bool:
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in manifest["bytes"]}
        return bool(manifest == {"version": version, "bytes": sizes})
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
