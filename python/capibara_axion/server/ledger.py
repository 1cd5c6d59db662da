# SPDX-License-Identifier: Apache-2.0
"""The account of memory: what each model is expected to take, what it took, and what there is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import psutil

from capibara_axion.server.config import ExpertConfig, ServerConfig
from capibara_axion.server.memory import (
    Overhead,
    Prediction,
    available_bytes,
    budget_bytes,
    predict,
    pss,
)

logger = logging.getLogger(__name__)

# Of what the machine has free, a little is left for the page cache and for others.
_SHARE_OF_AVAILABLE = 0.95


class MemoryLedger:
    """Predictions corrected by measurements. All sizes in bytes.

    Args:
        config: the experts, and how much memory there is for them.

    Attributes:
        interval_s: how often to `measure`.
    """

    interval_s = 15.0

    def __init__(self, config: ServerConfig) -> None:
        self._overhead = Overhead()
        self._measured: dict[str, int] = {}  # while loaded
        self._last: dict[str, int] = {}  # the last measurement, loaded or not
        self._predictions: dict[str, Prediction] = {}
        self._experts: dict[str, ExpertConfig] = {}
        self._budget = 0
        self.reconfigure(config)

    def reconfigure(self, config: ServerConfig) -> None:
        """Take over another configuration. Reads the headers of the experts' checkpoints."""
        lazy = config.lazy_loading
        self._limit = budget_bytes(lazy.memory_threshold, lazy.memory_budget_gib)
        self._budget = min(self._limit, int(available_bytes() * _SHARE_OF_AVAILABLE))
        experts = {expert.expert_id: expert for expert in config.experts}
        for name, expert in experts.items():
            if self._experts.get(name) != expert:
                self._last.pop(name, None)
                self._predictions[name] = _predict(expert)
        self._experts = experts

    def size(self, model: str) -> int:
        """What a model takes, or would take: measured if it ever was, else predicted."""
        if model in self._last:
            return self._last[model]
        return self.predicted(model)

    def predicted(self, model: str) -> int:
        """What was or would have been expected before any measurement of this model."""
        prediction = self._predictions[model]
        return prediction.weights + prediction.kv_cache + self._overhead.expected(model)

    def budget(self) -> int:
        """What all models together may take now: others on the machine may leave less."""
        return self._budget

    def measure(self, pids: Mapping[str, int]) -> None:
        """Measure the processes of the loaded models, by model. Takes milliseconds each.

        May run in a thread, one call at a time.
        """
        measured = {model: size for model, pid in pids.items() if (size := pss(pid))}
        for model, size in measured.items():
            if model not in self._measured and model in self._predictions:
                self._overhead.learn(model, self._predictions[model], size)
        self._measured = measured
        self._last.update(measured)
        free = int(available_bytes() * _SHARE_OF_AVAILABLE)
        self._budget = min(self._limit, sum(measured.values()) + free)

    @staticmethod
    def present(pid: int) -> int:
        """What a worker that is loading has so far; quick, shared pages counted in full."""
        try:
            family = psutil.Process(pid).children(recursive=True)
            return max((process.memory_info().rss for process in family), default=0)
        except psutil.NoSuchProcess:
            return 0

    def account(self, model: str) -> dict[str, Any]:
        """For the statistics: the parts of the prediction, and the measurement."""
        prediction = self._predictions[model]
        return {
            "weights_bytes": prediction.weights,
            "kv_cache_bytes": prediction.kv_cache,
            "predicted_bytes": self.predicted(model),
            "prediction_known": prediction.known,
            "measured_bytes": self._measured.get(model),
        }

    def totals(self) -> dict[str, int]:
        """For the statistics: the budget, the limit that it comes from, what was measured."""
        return {
            "budget_bytes": self._budget,
            "limit_bytes": self._limit,
            "measured_bytes": sum(self._measured.values()),
        }


def _predict(expert: ExpertConfig) -> Prediction:
    try:
        return predict(expert)
    except ValueError as error:
        # The load will fail and say so to whoever asked for the model; others are served.
        logger.warning("the memory of %s cannot be predicted: %s", expert.expert_id, error)
        return Prediction(0, 0, 0, known=False)
