# SPDX-License-Identifier: Apache-2.0
"""What quantisations have in common that take an unquantised checkpoint when it is loaded.

Each of them is a name for vLLM's `quantization=`, a configuration, and a way to pack a weight.
"""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from typing import Any, ClassVar

import torch

from capibara_axion.vllm_plugin import compat_linear
from capibara_axion.vllm_plugin.linear import CpuLinear, Later, free_weight

_vllm: Any = compat_linear.quantization_classes()


class LoadTimeConfig(_vllm.Config):
    """What such a `quantization=` stands for.

    Args:
        ignore: parts of the names of layers that are left alone.

    Attributes:
        NAME: by which users ask for it.
        CHOICES: its settings, each with its possible values, the default first. They are the
            constructor's arguments, beside `ignore`.
        LinearMethod: a class of its own for linear layers, a subclass of `LoadTimeLinearMethod`.
    """

    NAME: str
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]]
    LinearMethod: type[LoadTimeLinearMethod]

    def __init__(self, ignore: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.ignore = ignore

    def __repr__(self) -> str:
        settings = [f"{name}={getattr(self, name)!r}" for name in (*self.CHOICES, "ignore")]
        return f"{type(self).__name__}({', '.join(settings)})"

    @abstractmethod
    def pack(self, weight: torch.Tensor) -> CpuLinear:
        """A linear layer's product with this weight [N, K], which may be freed then.

        Raises:
            ValueError: it cannot be quantised.
        """

    @abstractmethod
    def pack_head(self, weight: torch.Tensor) -> CpuLinear:
        """The same for an output layer that `quantizes_heads`."""

    @abstractmethod
    def quantizes_heads(self) -> bool:
        """Whether output layers are quantised."""

    def get_name(self) -> str:
        """The name by which users ask for it."""
        return self.NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """The dtypes that the operator takes."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of GPUs; does not apply."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: checkpoints are unquantised."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """From `quantization_config` of a checkpoint's config.json.

        Raises:
            ValueError: a setting is unknown or has another value than expected.
        """
        settings = {name: value for name, value in config.items() if name != "quant_method"}
        ignore = settings.pop("ignore", [])
        if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
            raise ValueError(f"{cls.NAME}: ignore: expected a list of texts, got {ignore!r}")
        if unknown := sorted(settings.keys() - cls.CHOICES.keys()):
            raise ValueError(f"{cls.NAME}: unknown settings: {', '.join(unknown)}")
        for name, value in settings.items():
            choices = cls.CHOICES[name]
            # 1 equals true, which is not meant.
            if not any(type(value) is type(choice) and value == choice for choice in choices):
                expected = " or ".join(map(json.dumps, choices))
                raise ValueError(f"{cls.NAME}: {name}: expected {expected}, got {value!r}")
        return cls(**settings, ignore=tuple(ignore))

    @classmethod
    def from_config_dict_json(cls, config: str) -> Any:
        """From `quantization_config_dict_json` of `hf_overrides`."""
        return cls.from_config(json.loads(config))

    def takes_head(self, prefix: str) -> bool:
        """Whether an output layer of this name is quantised."""
        ignored = any(part in prefix for part in self.ignore)
        return (
            self.quantizes_heads() and not ignored and not compat_linear.has_head_of_other_dtype()
        )

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """How this layer computes; None: as it would anyhow.

        Raises:
            ValueError: a mixture of experts.
        """
        ignored = any(part in prefix for part in self.ignore)
        if isinstance(layer, _vllm.Linear):
            return _vllm.UnquantizedLinearMethod() if ignored else self.LinearMethod(self)
        if isinstance(layer, _vllm.Embedding):
            return LoadTimeHeadMethod(self) if self.takes_head(prefix) else None
        if compat_linear.is_experts(layer) and not ignored:
            raise ValueError(
                f"{self.NAME} does not quantise mixtures of experts ({prefix}). Leave them out "
                'with the setting "ignore", or choose another quantization.'
            )
        return None

    def quantize(self, layer: Any, *, is_head: bool, free: bool) -> None:
        """Has `layer.cpu_linear` multiply by the quantised weight.

        Args:
            free: the weight is not needed any more.

        Raises:
            ValueError: the weight cannot be quantised.
        """
        pack = self.pack_head if is_head else self.pack
        try:
            layer.cpu_linear = pack(layer.weight)
        except ValueError as error:
            name = getattr(layer, "prefix", "") or "a layer"
            raise ValueError(
                f"{self.NAME} cannot quantise {name} {tuple(layer.weight.shape)}: {error}. "
                'Leave it out with the setting "ignore".'
            ) from error
        if free:
            free_weight(layer)


class LoadTimeLinearMethod(_vllm.LinearMethod):
    """Linear layers, merged and sharded ones included: a scale belongs to one row of the weight.

    It is no subclass of UnquantizedLinearMethod, by which vLLM would know that it may read
    `layer.weight`.
    """

    create_weights = _vllm.UnquantizedLinearMethod.create_weights

    def __init__(self, config: LoadTimeConfig) -> None:
        self._config = config

    def process_weights_after_loading(self, layer: Any) -> None:
        """Quantises and frees the weight."""
        if compat_linear.is_left_unpacked(layer):
            layer.cpu_linear = torch.nn.functional.linear
        else:
            self._config.quantize(layer, is_head=False, free=True)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x @ weight.T + bias."""
        output: torch.Tensor = layer.cpu_linear(x, layer.weight, bias)
        return output


class LoadTimeHeadMethod(_vllm.UnquantizedEmbeddingMethod):
    """Output layers, and embeddings in case that the model uses one as such.

    A tied output layer has a reference to the embedding's weight, and only gives that up.
    """

    def __init__(self, config: LoadTimeConfig) -> None:
        self._config = config

    def process_weights_after_loading(self, layer: Any) -> None:
        """Quantises the weight, and frees it if it is not for looking up."""
        if compat_linear.is_lookup(layer):
            quantize = self._config.quantize
            layer.cpu_linear = Later(layer, lambda: quantize(layer, is_head=True, free=False))
        else:
            self._config.quantize(layer, is_head=True, free=True)


def hook(config_class: type[LoadTimeConfig], logger: logging.Logger) -> None:
    """Makes a quantisation known to vLLM.

    Raises:
        HookNotFound
    """
    name = config_class.NAME

    def end_load(loaded: compat_linear.Loaded) -> None:
        config = loaded.quantization
        if not isinstance(config, config_class):
            return
        for layer in loaded.embeddings_that_are_heads():
            # Cohere's model does not ask how to quantise its embedding.
            if config.takes_head(layer.prefix):
                layer.quant_method = LoadTimeHeadMethod(config)
                config.quantize(layer, is_head=True, free=False)
        names = [
            name
            for name, layer in loaded.model.named_modules()
            if isinstance(getattr(layer, "quant_method", None), LoadTimeLinearMethod)
        ]
        loaded.add_to_compile_key(" ".join(names))
        compat_linear.log_info(logger, f"{config.NAME}: {len(names)} linear layers quantised")

    compat_linear.register_quantization(name, config_class, config_class.LinearMethod)
    compat_linear.around_load_model(name, lambda: None, end_load)
