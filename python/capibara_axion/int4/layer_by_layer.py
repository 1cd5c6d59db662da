# SPDX-License-Identifier: Apache-2.0
"""Runs a causal language model in float32 with the weights of one layer at a time in memory.

transformers builds the model without weights; each decoder layer is given its own when its turn
comes and loses them after it. All texts go through a layer together, so each weight is read once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from capibara_axion.int4.architectures import UnsupportedModel, decoder_prefix
from capibara_axion.int4.checkpoint import Checkpoint

_VOCABULARY_AT_ONCE = 16384


class Observer(Protocol):
    """Sees every decoder layer while it has its weights."""

    def before(self, layer: nn.Module) -> None:
        """The layer is about to run."""

    def after(self, index: int, layer: nn.Module) -> None:
        """It has run."""


class LayerByLayer:
    """A model of transformers' that reads its weights from a checkpoint while it runs.

    Args:
        checkpoint: unquantised or AWQ.
        text_config: transformers' configuration of the decoder.
        progress: called after each layer.
    """

    def __init__(
        self, checkpoint: Checkpoint, text_config: Any, progress: Callable[[], None]
    ) -> None:
        from transformers import AutoModelForCausalLM

        self._checkpoint = checkpoint
        self._config = text_config
        self._prefix = decoder_prefix(_matrices(checkpoint))
        with _parameters_without_memory():
            model = AutoModelForCausalLM.from_config(text_config, dtype=torch.float32)
        self._decoder: Any = model.base_model.eval()
        self._progress = progress

    @torch.inference_mode()
    def run(self, ids: torch.Tensor, observer: Observer | None = None) -> torch.Tensor:
        """The last norm's output, f32 [texts, tokens, hidden], for ids [texts, tokens]."""
        decoder = self._decoder
        used, ids = ids.unique(return_inverse=True)
        for name, _ in list(decoder.named_parameters()):
            if name.startswith("embed_tokens."):
                # A large vocabulary's rows that no text has are not read.
                rows = self._checkpoint.tensor(self._prefix + name)[used].float()
                decoder.embed_tokens.padding_idx = None
                _set(decoder.embed_tokens, {"weight": rows})
            elif not name.startswith("layers."):
                module, _, own = name.rpartition(".")
                value = self._checkpoint.float32(self._prefix + name)
                _set(decoder.get_submodule(module), {own: value})
        hooks = [
            hook
            for index, layer in enumerate(decoder.layers)
            for hook in self._hooks(index, layer, observer)
        ]
        try:
            output: torch.Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return output

    def perplexity(self, ids: torch.Tensor) -> float:
        """Of the tokens of ids [texts, tokens] but the first of each text."""
        hidden = self.run(ids)[:, :-1].flatten(0, 1)
        targets = ids[:, 1:].flatten()
        head = self._head()
        total = torch.full(targets.shape, -math.inf)
        chosen = torch.empty(targets.shape)
        for first in range(0, len(head), _VOCABULARY_AT_ONCE):
            part = head[first : first + _VOCABULARY_AT_ONCE].float()
            logits = self._scaled(hidden @ part.T)
            total = torch.logaddexp(total, logits.logsumexp(-1))
            (here,) = torch.nonzero(
                (targets >= first) & (targets < first + len(part)), as_tuple=True
            )
            chosen[here] = logits[here, targets[here] - first]
        return math.exp(float((total - chosen).double().mean()))

    def _head(self) -> torch.Tensor:
        for name in self._checkpoint.names():
            if name.endswith("lm_head.weight"):
                return self._checkpoint.tensor(name)
        return self._checkpoint.tensor(f"{self._prefix}embed_tokens.weight")

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits * (getattr(self._config, "logit_scale", None) or 1.0)
        if cap := getattr(self._config, "final_logit_softcapping", None):
            return torch.tanh(logits / cap) * cap
        return logits

    def _hooks(self, index: int, layer: nn.Module, observer: Observer | None) -> Iterator[Any]:
        def load(*_: Any) -> None:
            prefix = f"{self._prefix}layers.{index}."
            _set(layer, {n: self._checkpoint.float32(prefix + n) for n, _ in _parameters(layer)})
            if observer is not None:
                observer.before(layer)

        def free(*_: Any) -> None:
            if observer is not None:
                observer.after(index, layer)
            _set(layer, {name: value.to("meta") for name, value in _parameters(layer)})
            self._progress()

        yield layer.register_forward_pre_hook(load)
        yield layer.register_forward_hook(free)


def _matrices(checkpoint: Checkpoint) -> Iterator[str]:
    """Names as they are without quantisation."""
    return (name.replace(".qweight", ".weight") for name in checkpoint.names())


def _parameters(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.data) for name, value in module.named_parameters()]


def _set(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        setattr(module.get_submodule(path), own, nn.Parameter(value, requires_grad=False))


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Modules made meanwhile have parameters without data, and buffers with."""
    stock = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        stock(module, name, parameter)

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = stock


def token_windows(
    folder: Any, text: str, *, length: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stretches of a text for calibration, and others, from its last fifth, to judge by.

    Args:
        folder: of the checkpoint with the tokenizer.
        length: tokens of a stretch, fewer if the text is short.
        most: stretches of each kind; spread evenly.

    Returns:
        ids [texts, tokens] of both.

    Raises:
        UnsupportedModel: the text is too short.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    start = [i for i in tokenizer("")["input_ids"] if i != tokenizer.eos_token_id]
    length = min(length, len(ids) // 5)
    if length < 32:
        raise UnsupportedModel(f"expected a text of 160 tokens at least, got {len(ids)}")
    held_out = len(ids) - max(length, len(ids) // 5)
    return (
        _windows(ids[:held_out], length, most, start),
        _windows(ids[held_out:], length, most, start),
    )


def _windows(ids: list[int], length: int, most: int, start: list[int]) -> torch.Tensor:
    count = min(most, len(ids) // length)
    spare = len(ids) - count * length
    firsts = [i * length + spare * i // max(1, count - 1) for i in range(count)]
    return torch.tensor([start + ids[first : first + length] for first in firsts])
