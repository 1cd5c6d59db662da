# SPDX-License-Identifier: Apache-2.0
"""What a worker finds done already when it is forked (vLLM 0.32): all that no model changes."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.metadata
import os
import pkgutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import vllm.plugins as vllm_plugins
import vllm.renderers.hf as hf_renderer
import vllm.tokenizers.hf as hf_tokenizers
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from vllm.model_executor.models.registry import ModelRegistry
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP

from capibara_axion import vllm_plugin

# What a worker or its engine would import while it loads; these bring the rest along.
_PRELOADED_MODULES = (
    "PIL.ImageFile",
    "blake3",
    "setproctitle",
    "transformers.tokenization_mistral_common",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.entrypoints.serve.utils.fingerprint",
    "vllm.model_executor.layers.fused_moe.eep_reconfigure",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.pool.flash_maxsim",
    "vllm.v1.worker.cpu_worker",
)

# Architectures whose classes the forkserver imports; any other is imported by its first worker.
_PRELOADED_ARCHITECTURES = (
    "Phi3ForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "CohereForCausalLM",
)

# A checkpoint with a processor has one of them (transformers 5).
_PROCESSOR_FILES = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)

_PLUGIN_GROUPS = (
    vllm_plugins.DEFAULT_PLUGINS_GROUP,
    vllm_plugins.STAT_LOGGER_PLUGINS_GROUP,
    vllm_plugins.IO_PROCESSOR_PLUGINS_GROUP,
    LOGITSPROCS_GROUP,
)

# Of general plugins for vLLM, by name: found by `preload`, called in each worker.
_plugins: dict[str, Callable[[], Any]] = {}


def preload() -> None:
    """Do once, in the forkserver, all of a worker's start that does not depend on its model."""
    for name in _PRELOADED_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for architecture in _PRELOADED_ARCHITECTURES:
        register_in_process(architecture)
    # vLLM looks for plugins of several kinds in every process, reading the metadata of all packages
    # each time.
    importlib.metadata.entry_points = functools.cache(  # type: ignore[assignment]
        importlib.metadata.entry_points
    )
    for group in _PLUGIN_GROUPS:
        importlib.metadata.entry_points(group=group)
    # Which of our operators replace vLLM's is for each expert to say: what the plugin imports is
    # imported here, what it replaces is replaced in the worker.
    _plugins.update(vllm_plugins.load_plugins_by_group(vllm_plugins.DEFAULT_PLUGINS_GROUP))
    for module in pkgutil.iter_modules(vllm_plugin.__path__, f"{vllm_plugin.__name__}."):
        with contextlib.suppress(Exception):  # the plugin itself will say what it misses
            importlib.import_module(module.name)
    torch.manual_seed(0)  # the first call imports much
    # vLLM's own attention may use AMX, and does not ask the kernel for it; without that it would
    # be an illegal instruction. Children inherit the permission.
    torch.cpu._init_amx()
    # It searches all modules for kernels to replace, which takes as long as loading a small model.
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
    _copy_tokenizers_late()
    _look_for_processors_first()


def _copy_tokenizers_late() -> None:
    """Have a tokenizer's copies made when they are first used, and quickly.

    vLLM makes one for each thread that renders before it starts the engine, and copies every entry
    of the vocabulary and of the merges as Python objects, two seconds each for Qwen's. No method
    changes those; what is not thread-safe, the tokenizer of the library `tokenizers`, is copied.
    """
    stock = hf_renderer.maybe_make_thread_pool
    hf_renderer.maybe_make_thread_pool = lambda tokenizer, copies: stock(tokenizer, 0)

    def deepcopy(tokenizer: Any) -> Any:
        shared = (v for v in vars(tokenizer).values() if isinstance(v, dict | list | tuple))
        return copy.deepcopy(tokenizer, {id(value): value for value in shared})

    hf_tokenizers.copy = SimpleNamespace(copy=copy.copy, deepcopy=deepcopy)


def _look_for_processors_first() -> None:
    """Do not load a tokenizer a second time to find that a model has no processor.

    vLLM asks transformers' AutoProcessor for a chat template; for a model of text alone that ends
    with the tokenizer, a second of Python for Qwen's vocabulary while the engine loads.
    """
    stock = hf_renderer._try_get_processor_chat_template

    def chat_template(tokenizer: Any, **options: Any) -> str | None:
        folder = tokenizer.name_or_path
        if os.path.isdir(folder) and not any(
            os.path.exists(os.path.join(folder, name)) for name in _PROCESSOR_FILES
        ):
            return None
        template: str | None = stock(tokenizer, **options)
        return template

    hf_renderer._try_get_processor_chat_template = chat_template


def call_plugins() -> None:
    """Call vLLM's general plugins, ours among them, in this process."""
    if not _plugins:
        vllm_plugins.load_general_plugins()
    vllm_plugins.plugins_loaded = True
    for register in _plugins.values():
        register()


def register_in_process(architecture: str) -> None:
    """Import the class of an architecture, if vLLM knows it, and have vLLM use it."""
    # It inspects a class that it has not imported in a subprocess, which imports everything
    # again. Processes here are meant to have the class in memory anyway.
    entry = ModelRegistry.models.get(architecture)
    if entry is not None:
        with contextlib.suppress(ImportError):
            ModelRegistry.register_model(architecture, entry.load_model_cls())
