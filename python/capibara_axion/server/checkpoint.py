# SPDX-License-Identifier: Apache-2.0
"""What the files of a checkpoint say about sizes, without reading its weights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

_SIZES = {"F32": 4, "F16": 2, "BF16": 2}

_PART = re.compile(r"-of-(\d+)\.safetensors$")

# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000

# Names of tables that tokens are looked up in; nothing is multiplied by them.
_LOOKUPS = ("embed", "wte.", "wpe.")

# What transformers assumes where Gemma 3's published config.json says nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    }
}


# Of `capibara_int4` as the server asks for it, the first that divides a row.
_INT4_GROUPS = (128, 64, 32)


class Tensor(BaseModel):
    """One entry of a safetensors header, and the name it has there."""

    name: str = ""
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]

    @property
    def is_linear(self) -> bool:
        """Whether it is the matrix of a linear layer, so that a quantisation takes it."""
        return (
            len(self.shape) == 2
            and self.dtype in _SIZES
            and self.name.endswith(".weight")
            and not any(text in self.name for text in _LOOKUPS)
        )

    def bytes_with(self, element_bytes: int) -> int:
        """Its size when floating-point elements have this size; others stay as they are."""
        if self.dtype in _SIZES:
            return math.prod(self.shape) * element_bytes
        begin, end = self.data_offsets
        return end - begin

    @property
    def int8_bytes(self) -> int:
        """Its size as `capibara_int8`: a byte an element, and for each row a scale and a sum."""
        rows, columns = self.shape
        return rows * (columns + 8)

    @property
    def int4_bytes(self) -> int:
        """Its size as `capibara_int4`: half a byte an element, 6 bytes a group of 128, 64 or 32.

        In 8 bits where no group divides its columns.
        """
        rows, columns = self.shape
        group = next((size for size in _INT4_GROUPS if columns % size == 0), None)
        return self.int8_bytes if group is None else rows * (columns // group) * (group // 2 + 6)


@dataclass(frozen=True)
class AttentionShape:
    """What the size of a KV cache depends on."""

    layers: int
    kv_heads: int
    head_size: int


class _TextConfig(BaseModel):
    num_hidden_layers: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    head_dim: NonNegativeInt | None = None
    max_position_embeddings: PositiveInt | None = None
    model_max_length: PositiveInt | None = None
    original_max_position_embeddings: PositiveInt | None = None
    tie_word_embeddings: bool | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


_Header = TypeAdapter(dict[str, Tensor])


class Checkpoint:
    """The sizes of one checkpoint.

    Args:
        folder: with config.json and *.safetensors, either of which may be missing.

    Attributes:
        tensors: by name, those that the engine loads.
        is_tied: whether the embedding's table is the output layer's weight as well.

    Raises:
        ValueError: a file is malformed.
    """

    def __init__(self, folder: Path) -> None:
        self._config = _read_config(folder / "config.json")
        self.tensors: dict[str, Tensor] = {}
        for file in _weight_files(folder):
            self.tensors |= _read_header(file)
        heads = [name for name in self.tensors if name.endswith("lm_head.weight")]
        self.is_tied = not heads or self._config.tie_word_embeddings is True
        if self.is_tied:
            for name in heads:
                del self.tensors[name]

    @property
    def head(self) -> Tensor | None:
        """The weight of the output layer, or of the embedding that serves as one."""
        end = "embed_tokens.weight" if self.is_tied else "lm_head.weight"
        matrices = (t for t in self.tensors.values() if t.name.endswith(end) and len(t.shape) == 2)
        return next(matrices, None)

    @property
    def attention(self) -> AttentionShape | None:
        """None if config.json does not have it, as of models without attention."""
        config = self._config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        size = config.head_dim
        if not size and heads and config.hidden_size:
            size = config.hidden_size // heads
        kv_heads = config.num_key_value_heads or heads
        if not (layers and kv_heads and size):
            return None
        return AttentionShape(layers, kv_heads, size)

    @property
    def max_model_len(self) -> int | None:
        """The longest sequence in tokens that vLLM allows if it is not told; None: unknown."""
        config = self._config
        rope = config.rope_scaling or config.rope_parameters or {}
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
            # Left alone, vLLM stays where short sequences lose nothing.
            return config.original_max_position_embeddings or config.max_position_embeddings
        return config.model_max_length or config.max_position_embeddings


def find_checkpoint(model_path: str) -> Checkpoint | None:
    """The checkpoint of a directory or of a Hugging Face name; None if it is not on this machine.

    Raises:
        ValueError: a file of the checkpoint is malformed.
    """
    folder = Path(model_path)
    if not folder.is_absolute():
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        found = try_to_load_from_cache(model_path, "config.json")
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return Checkpoint(folder) if folder.is_dir() else None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    # Mistral's releases have all weights twice: in parts, and once more in one file.
    parts = [file for file in files if not file.name.startswith("consolidated")]
    counts = [int(match[1]) for file in parts if (match := _PART.search(file.name))]
    if len(parts) < max(counts, default=0):
        return []  # not all of them are downloaded yet
    return parts or files


def _read_header(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            rest = file.stat().st_size - 8
            if not 2 <= length <= min(_MAX_HEADER_BYTES, rest):
                raise ValueError(f"its header would have {length} bytes")
            entries = json.loads(stream.read(length))
        if not isinstance(entries, dict):
            raise ValueError("its header is no object")
        entries.pop("__metadata__", None)
        tensors = _Header.validate_python(entries)
        expected = length + max((t.data_offsets[1] for t in tensors.values()), default=0)
        if rest < expected:
            raise ValueError(f"it ends after {rest + 8} of {expected + 8} bytes")
    except ValidationError as error:
        raise ValueError(f"{file}: not a safetensors file: {_first_fault(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a safetensors file: {error}") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    return {name: tensor.model_copy(update={"name": name}) for name, tensor in tensors.items()}


def _read_config(file: Path) -> _TextConfig:
    """The part of config.json about text, from wherever in the file it is."""
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        text = config.get("text_config") or {}
        if not isinstance(text, dict):
            raise ValueError("text_config is no object")
        defaults = _DEFAULTS.get(str(text.get("model_type", config.get("model_type"))), {})
        return _TextConfig.model_validate({**defaults, **config, **text})
    except FileNotFoundError:
        return _TextConfig()
    except ValidationError as error:
        raise ValueError(f"{file}: not a model's configuration: {_first_fault(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a model's configuration: {error}") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}"
