# SPDX-License-Identifier: Apache-2.0
"""Writes the checkpoint as GGUF files, in llama.cpp's own environment.

    python write_gguf.py CHECKPOINT_FOLDER MODEL_bf16.gguf [MODEL_q8_0.gguf MODEL_q4_0.gguf ...]

The bf16 file holds the very bits of model.safetensors. The others are made of it by llama.cpp's
own quantiser, so they are what its users run (in q4_0, for example, the output layer is q6_k). A
tokenizer and a chat template go along if the folder has them; without, a model speaks in token ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Only in the peers' environment, which prepare.py makes: no type checker sees them.
import gguf  # type: ignore[import-not-found,unused-ignore]
import llama_cpp  # type: ignore[import-not-found,unused-ignore]
import numpy as np

_FTYPES = {"q8_0": 7, "q4_0": 2}  # enum llama_ftype
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main() -> int:
    folder, bf16, *quantised = map(Path, sys.argv[1:])
    if not bf16.exists():
        _in_place(bf16, lambda partial: _write_bf16(folder, partial))
    for path in quantised:
        if not path.exists():
            ftype = _FTYPES[path.stem.rpartition("-")[2]]
            _in_place(path, lambda partial, ftype=ftype: _quantise(bf16, partial, ftype))
    return 0


def _in_place(path: Path, write: Any) -> None:
    """Has `write` make a file and moves it to `path`: an interrupted run leaves none there."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.rename(path)


def _write_bf16(folder: Path, path: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if (folder / "tokenizer.json").exists():
        _add_tokenizer(writer, folder, config)
    else:
        writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, bits in _tensors(folder / "model.safetensors").items():
        if bits.ndim == 1:  # biases and norms, which llama.cpp keeps in f32
            values = (bits.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(_gguf_name(name), values)
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(_gguf_name(name), bits.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Byte-level BPE that splits texts as GPT-2 does, which is what the demo experts have."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, split = tokenizer["model"], tokenizer["pre_tokenizer"]
    if model["type"] != "BPE" or split["type"] != "ByteLevel" or not split["use_regex"]:
        raise SystemExit(f"{folder}: expected byte-level BPE with GPT-2's expression for words")
    ids = model["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    kinds = gguf.TokenType
    if sorted(ids.values()) != list(range(config["vocab_size"])):
        raise SystemExit(f"{folder}: expected {config['vocab_size']} tokens, found {len(ids)}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types(
        [kinds.CONTROL if at in special else kinds.NORMAL for at in range(len(ids))]
    )
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)  # of Qwen2, as of every model that this file can write
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _tensors(path: Path) -> dict[str, Any]:
    """The tensors of a bf16 safetensors file as bit patterns, mapped and not read."""
    content = np.memmap(path, mode="r")
    length = int(content[:8].view("<u8")[0])
    header = json.loads(content[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: expected bf16 tensors, {name} is {entry['dtype']}")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = content[begin:end].view("<u2").reshape(entry["shape"])
    return tensors


def _gguf_name(name: str) -> str:
    name, _, suffix = name.rpartition(".")
    if name == "model.embed_tokens":
        return f"token_embd.{suffix}"
    if name == "model.norm":
        return f"output_norm.{suffix}"
    if name == "lm_head":
        return f"output.{suffix}"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{suffix}"


def _quantise(source: Path, path: Path, ftype: int) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), parameters)
    if status:
        raise SystemExit(f"llama_model_quantize returned {status} for {path.name}")


if __name__ == "__main__":
    sys.exit(main())
