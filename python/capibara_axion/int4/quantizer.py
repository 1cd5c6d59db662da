# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion quantize`: an unquantised Hugging Face checkpoint to one in AWQ's format.

Two passes. The first, for `method="awq"`, runs the calibration text through the model layer by
layer and finds the scales of each layer's channels; all it keeps of a layer is these vectors. The
second reads the tensors file by file, applies the scales, rounds the matrices, and writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from capibara_axion.int4 import awq
from capibara_axion.int4.architectures import (
    Architecture,
    Fold,
    UnsupportedModel,
    architecture_of,
    decoder_prefix,
    is_quantized,
)
from capibara_axion.int4.awq_checkpoint import awq_config, awq_tensors
from capibara_axion.int4.checkpoint import Checkpoint, Writer
from capibara_axion.int4.layer_by_layer import LayerByLayer, token_windows
from capibara_axion.int4.weight import GROUP_SIZES, check_group_size

_WINDOW_TOKENS = 512
_WINDOWS = 16
# Tokens whose outputs decide on a fold's scales.
_SEARCH_ROWS = 512

# progress(what, of how many steps), called as each step of the present stage ends.
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        group_size: input features that share a scale: 32, 64 or 128.
        method: "rtn", round to nearest, or "awq", activation-aware scaling first.
        symmetric: zero points of 8.
        text: for calibration, and for perplexity; its last fifth for that alone. "awq" needs it.
    """

    group_size: int = 128
    method: str = "rtn"
    symmetric: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        matrices: how many were quantised.
        bytes_before, bytes_after: of the files with tensors.
        perplexity_before, perplexity_after: on the text's last fifth, in float32; None without.
    """

    matrices: int
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None


def quantize_checkpoint(
    source: Path, target: Path, settings: Settings, progress: Progress = lambda what, of: None
) -> Report:
    """Writes `target`, which vLLM loads with `quantization="awq"`, its own or with our kernels.

    Args:
        source: a folder with config.json and safetensors files in float32, bfloat16 or float16.
        target: a folder that does not exist.

    Raises:
        UnsupportedModel: the checkpoint cannot be quantised like this; the message says why.
        OSError: `target` cannot be written.
    """
    if settings.method not in ("rtn", "awq"):
        raise UnsupportedModel(f"method: expected 'rtn' or 'awq', got {settings.method!r}")
    if settings.method == "awq" and settings.text is None:
        raise UnsupportedModel("method 'awq' needs a calibration text")
    if target.exists():
        raise UnsupportedModel(f"{target}: exists already")
    checkpoint = Checkpoint(source)
    if "quantization_config" in checkpoint.config:
        raise UnsupportedModel(f"{source}: is quantised already")
    _check_shapes(checkpoint, settings.group_size)
    _check_space(checkpoint, target)

    before = after = None
    plan = Plan()
    if settings.text is not None:
        text_config = _text_config(source)
        calibration, held_out = token_windows(
            source, settings.text, length=_WINDOW_TOKENS, most=_WINDOWS
        )
        layers = text_config.num_hidden_layers
        if settings.method == "awq":
            architecture = architecture_of(text_config)
            model = LayerByLayer(checkpoint, text_config, lambda: progress("calibrating", layers))
            search = _Search(checkpoint, architecture, settings, plan)
            model.run(calibration, search)
        before = _perplexity(checkpoint, text_config, held_out, "perplexity before", progress)
    matrices = _write(checkpoint, target, settings, plan, progress)
    written = Checkpoint(target)
    if settings.text is not None:
        after = _perplexity(written, text_config, held_out, "perplexity after", progress)
    return Report(matrices, checkpoint.nbytes(), written.nbytes(), before, after)


class Plan:
    """How tensors change before they are rounded.

    Attributes:
        columns: factors of a matrix's columns, by its name.
        rows: divisors of a matrix's last rows, and of its bias, by the matrix's name.
        norms: new weights, by name.
    """

    def __init__(self) -> None:
        self.columns: dict[str, np.ndarray] = {}
        self.rows: dict[str, np.ndarray] = {}
        self.norms: dict[str, torch.Tensor] = {}

    def apply(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The tensor `name`, changed."""
        if name in self.norms:
            return self.norms[name]
        matrix = name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
        rows, columns = self.rows.get(matrix), self.columns.get(name)
        if rows is None and columns is None:
            return value
        changed = value.float().clone()
        if columns is not None:
            changed *= torch.from_numpy(columns)
        if rows is not None:
            divisors = torch.from_numpy(rows)
            changed[-len(rows) :] /= divisors if changed.dim() == 1 else divisors[:, None]
        return changed if is_quantized(name) else changed.to(value.dtype)


class _Search:
    """Watches the layers run and adds their folds' scales to a plan."""

    def __init__(
        self, checkpoint: Checkpoint, architecture: Architecture, settings: Settings, plan: Plan
    ) -> None:
        self._checkpoint = checkpoint
        self._architecture = architecture
        self._settings = settings
        self._plan = plan
        self._prefix = decoder_prefix(checkpoint.names())
        self._inputs: dict[Fold, awq.Inputs] = {}
        self._hooks: list[Any] = []

    def before(self, layer: nn.Module) -> None:
        for fold in self._architecture.folds:
            reader = layer.get_submodule(fold.readers[0])
            self._hooks.append(reader.register_forward_pre_hook(self._keep_inputs_of(fold)))

    def after(self, index: int, layer: nn.Module) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        prefix = f"{self._prefix}layers.{index}."
        for fold in self._architecture.folds:
            weights = [layer.get_parameter(f"{name}.weight").data for name in fold.readers]
            scales = awq.find_scales(
                fold,
                weights,
                self._inputs.pop(fold),
                self._settings.group_size,
                self._settings.symmetric,
            )
            name = f"{prefix}{fold.writer}.weight"
            if fold.is_norm:
                scales = self._fold_into_norm(name, scales)
            else:
                self._plan.rows[name] = scales
            for reader in fold.readers:
                self._plan.columns[f"{prefix}{reader}.weight"] = awq.read(fold, scales)

    def _keep_inputs_of(self, fold: Fold) -> Callable[[nn.Module, Any], None]:
        def keep(_: nn.Module, arguments: tuple[torch.Tensor]) -> None:
            x = arguments[0].flatten(0, -2)
            picked = torch.linspace(0, len(x) - 1, min(len(x), _SEARCH_ROWS)).long()
            self._inputs[fold] = awq.Inputs(x[picked], x.abs().mean(0).numpy())

        return keep

    def _fold_into_norm(self, name: str, scales: np.ndarray) -> np.ndarray:
        """Divides a norm's weight by `scales`, and gives what it was divided by after rounding.

        The file keeps the norm's dtype: in bfloat16 a quotient is off by up to 0.4 %, which the
        columns make up for.
        """
        stored = self._checkpoint.tensor(name)
        offset = self._architecture.norm_offset
        exact = stored.float() + offset
        self._plan.norms[name] = (exact / torch.from_numpy(scales) - offset).to(stored.dtype)
        rounded = self._plan.norms[name].float() + offset
        divided = torch.where(rounded == 0, torch.ones_like(exact), exact / rounded)
        return divided.numpy()


def _text_config(source: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source).get_text_config()


def _perplexity(
    checkpoint: Checkpoint, text_config: Any, ids: torch.Tensor, what: str, progress: Progress
) -> float:
    layers = text_config.num_hidden_layers
    return LayerByLayer(checkpoint, text_config, lambda: progress(what, layers)).perplexity(ids)


def _check_shapes(checkpoint: Checkpoint, group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        known = ", ".join(map(str, GROUP_SIZES))
        raise UnsupportedModel(f"group: expected {known}, got {group_size}")
    decoder_prefix(checkpoint.names())
    for name, (n, k) in _matrix_shapes(checkpoint):
        try:
            check_group_size(group_size, k)
        except ValueError as error:
            smaller = [str(size) for size in GROUP_SIZES if k % size == 0]
            hint = f"; {' or '.join(smaller)} would do" if smaller else ""
            raise UnsupportedModel(f"{name}: {error}{hint}") from None
        if n % 8:
            raise UnsupportedModel(f"{name}: AWQ expects a multiple of 8 rows, got {n}")


def _matrix_shapes(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, int]]]:
    for name in filter(is_quantized, checkpoint.names()):
        shape = checkpoint.shape(name)
        if len(shape) != 2:
            raise UnsupportedModel(f"{name}: expected a matrix, got shape {list(shape)}")
        yield name, (shape[0], shape[1])


def _check_space(checkpoint: Checkpoint, target: Path) -> None:
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    # Of two bytes at least a weight there remain half a byte, scales and zeros.
    quantized = sum(n * k for _, (n, k) in _matrix_shapes(checkpoint))
    needed = checkpoint.nbytes() - int(1.4 * quantized)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UnsupportedModel(
            f"{parent}: needs up to {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def _write(
    checkpoint: Checkpoint, target: Path, settings: Settings, plan: Plan, progress: Progress
) -> int:
    total = sum(map(is_quantized, checkpoint.names()))
    with Writer(target) as writer:
        for file, names in checkpoint.files.items():
            tensors: dict[str, torch.Tensor] = {}
            for name in names:
                value = plan.apply(name, checkpoint.tensor(name))
                if not is_quantized(name):
                    tensors[name] = value
                    continue
                packed = _packed(name, value, settings)
                tensors |= {part: torch.from_numpy(array) for part, array in packed.items()}
                progress("quantising", total)
            writer.add_file(file, tensors)
        quantization = awq_config(checkpoint.names(), settings.group_size)
        config = checkpoint.config | {"quantization_config": quantization}
        writer.finish(checkpoint, config)
    return total


def _packed(name: str, value: torch.Tensor, settings: Settings) -> dict[str, np.ndarray]:
    matrix = value.float().numpy()
    try:
        return awq_tensors(name, matrix, settings.group_size, symmetric=settings.symmetric)
    except ValueError as error:
        raise UnsupportedModel(str(error)) from None
