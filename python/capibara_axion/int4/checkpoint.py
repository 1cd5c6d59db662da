# SPDX-License-Identifier: Apache-2.0
"""Hugging Face checkpoints on disk: read tensor by tensor, written file by file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from capibara_axion.int4.architectures import UnsupportedModel
from capibara_axion.int4.layouts import unpack_awq

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FLOATS = ("F32", "BF16", "F16")
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")
_AWQ_PARTS = ("qweight", "qzeros", "scales")


class Checkpoint:
    """A folder with config.json and safetensors files; unquantised, or AWQ of 4 bits.

    Attributes:
        folder: where it is.
        config: the content of config.json.
        files: the tensors' names by file.

    Raises:
        UnsupportedModel: a file is missing or damaged; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = self._json(CONFIG)
        if (folder / _INDEX).is_file():
            weight_map: dict[str, str] = self._json(_INDEX)["weight_map"]
            self.files: dict[str, list[str]] = {}
            for name, file in weight_map.items():
                self.files.setdefault(file, []).append(name)
        else:
            with self._open(_SINGLE) as opened:
                self.files = {_SINGLE: list(opened.keys())}
        self._file_of = {name: file for file, names in self.files.items() for name in names}

    def names(self) -> Iterator[str]:
        """The names of all tensors."""
        return iter(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored.

        Raises:
            UnsupportedModel: there is none of this name, or its file cannot be read.
        """
        if name not in self._file_of:
            raise UnsupportedModel(f"{self.folder}: has no tensor {name}")
        with self._open(self._file_of[name]) as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        return tensor

    def float32(self, name: str) -> torch.Tensor:
        """A tensor in float32; what AWQ stores in its place, dequantised.

        Raises:
            UnsupportedModel: as `tensor`.
        """
        module = name.removesuffix(".weight")
        if name not in self._file_of and f"{module}.qweight" in self._file_of:
            parts = (self.tensor(f"{module}.{part}").numpy() for part in _AWQ_PARTS)
            return torch.from_numpy(unpack_awq(*parts).dequantize())
        return self.tensor(name).float()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it.

        Raises:
            UnsupportedModel: it does not hold floats of 16 or 32 bits.
        """
        with self._open(self._file_of[name]) as opened:
            found = opened.get_slice(name)
            dtype, shape = found.get_dtype(), tuple(found.get_shape())
        if dtype not in _FLOATS:
            raise UnsupportedModel(f"{name}: expected {', '.join(_FLOATS)}, got {dtype}")
        return shape

    def nbytes(self) -> int:
        """Of the files with tensors."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnsupportedModel(f"{self.folder / name}: {error}") from None

    def _open(self, name: str) -> Any:
        path = self.folder / name
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UnsupportedModel(f"{path}: {error}") from None


class Writer:
    """Writes a checkpoint beside its final place, and moves it there when it is complete.

    Args:
        folder: must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part = folder.with_name(f".{folder.name}.part")
        self._weight_map: dict[str, str] = {}
        self._bytes = 0

    def __enter__(self) -> Writer:
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        return self

    def __exit__(self, *error: Any) -> None:
        shutil.rmtree(self._part, ignore_errors=True)

    def add_file(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """One of the files with tensors."""
        save_file(tensors, self._part / name, metadata={"format": "pt"})
        self._weight_map |= dict.fromkeys(tensors, name)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, source: Checkpoint, config: dict[str, Any]) -> None:
        """The other files: `config`, an index if there are several files, and copies of `source`'s
        tokenizer and the like."""
        for path in sorted(source.folder.iterdir()):
            if path.is_file() and path.suffix not in _OTHER_WEIGHTS and path.name != _INDEX:
                shutil.copyfile(path, self._part / path.name)
        self._write_json(CONFIG, config)
        if len(source.files) > 1:
            index = {"metadata": {"total_size": self._bytes}, "weight_map": self._weight_map}
            self._write_json(_INDEX, index)
        self._part.rename(self._folder)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self._part / name).write_text(text, encoding="utf-8")
