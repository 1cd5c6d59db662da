# SPDX-License-Identifier: Apache-2.0
"""The server's Prometheus metrics: the gateway's own, and those of the workers' engines with them.

Every `model` label is an expert of the configuration, never a name that a client made up: a series
lives as long as the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

logger = logging.getLogger(__name__)

CancelPhase = Literal["queued", "waiting", "streaming"]
LoadOutcome = Literal["loaded", "failed", "cancelled"]

_LOAD_BUCKETS = (0.25, 0.5, 1, 1.5, 2, 2.5, 3.5, 5, 10, 20, 40, 80, 160, 320, 640)
_SHORT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2)


class Metrics:
    """What the gateway counts and measures. Recording is cheap and may be done in any thread.

    Args:
        states: all that a model can be in.
    """

    def __init__(self, states: Iterable[str]) -> None:
        self._states = tuple(states)
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"capibara:{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"capibara:{name}", text, ("model", *labels), registry=registry)

        def histogram(
            name: str, text: str, buckets: Iterable[float], labels: Iterable[str] = ()
        ) -> Histogram:
            return Histogram(
                f"capibara:{name}", text, labels, buckets=tuple(buckets), registry=registry
            )

        self._state = gauge("model_state", "1 for the state that the model is in", "state")
        self._queue_age = gauge("queue_age_seconds", "Age of the oldest request that waits")
        self._pss = gauge("model_rss_bytes", "Memory of the processes, shared pages by share (PSS)")
        self._predicted = gauge("model_predicted_bytes", "Memory predicted for the model")
        self._cores = gauge("leased_cores", "Cores that the model's engine computes on")
        self._loads = counter("loads", "Loads that ended", "model", "outcome")
        self._evictions = counter("evictions", "Unloads", "model", "cause")
        self._restarts = counter("engine_restarts", "Engines that had to end", "model", "cause")
        self._requests = counter("requests", "Requests that ended", "model", "outcome")
        self._replays = counter("replayed_requests", "Requests sent to a second engine", "model")
        self._cancels = counter("client_cancels", "Clients that left", "model", "phase")
        self._routed = counter("routed", "Requests for model 'auto'", "model")
        self._unreadable = counter("unreadable_worker_metrics", "Texts left out", "model")
        self._load_s = histogram(
            "model_load_seconds", "Duration of successful loads", _LOAD_BUCKETS, ("model",)
        )
        self._overhead_s = histogram(
            "gateway_overhead_seconds", "Time in the gateway before the worker's", _SHORT_BUCKETS
        )
        self._lag_s = histogram(
            "event_loop_lag_seconds", "How late the gateway's event loop was", _SHORT_BUCKETS
        )

    def set_state(self, model: str, state: str) -> None:
        """The model is in `state`, and in no other."""
        for known in self._states:
            self._state.labels(model, known).set(known == state)

    def set_queue_age(self, model: str, seconds: float) -> None:
        """Age of the oldest waiting request; 0 when none waits."""
        self._queue_age.labels(model).set(seconds)

    def set_memory(self, model: str, *, pss: int, predicted: int) -> None:
        """Bytes that the model's processes have, and that were predicted."""
        self._pss.labels(model).set(pss)
        self._predicted.labels(model).set(predicted)

    def set_leased_cores(self, model: str, cores: int) -> None:
        """Cores that the model's engine has; 0 while there is none."""
        self._cores.labels(model).set(cores)

    def load_ended(self, model: str, outcome: LoadOutcome, seconds: float) -> None:
        """A load has ended after `seconds`."""
        self._loads.labels(model, outcome).inc()
        if outcome == "loaded":
            self._load_s.labels(model).observe(seconds)

    def evicted(self, model: str, cause: str) -> None:
        """A loaded model is unloaded."""
        self._evictions.labels(model, cause).inc()

    def engine_restarted(self, model: str, cause: str) -> None:
        """An engine ended by itself, or was ended because it hung."""
        self._restarts.labels(model, cause).inc()

    def request_ended(self, model: str, outcome: str) -> None:
        """A request has been answered, refused or given up."""
        self._requests.labels(model, outcome).inc()

    def replayed(self, model: str) -> None:
        """A request goes to a second engine, for the first ended before it sent anything."""
        self._replays.labels(model).inc()

    def client_cancelled(self, model: str, phase: CancelPhase) -> None:
        """A client left: while its request was queued, waiting for a first byte, or streaming."""
        self._cancels.labels(model, phase).inc()

    def routed(self, model: str) -> None:
        """A request for `auto` goes to this model."""
        self._routed.labels(model).inc()

    def gateway_overhead(self, seconds: float) -> None:
        """What the gateway itself added to a request's latency."""
        self._overhead_s.observe(seconds)

    def event_loop_lag(self, seconds: float) -> None:
        """How late a timer of the event loop came; see `watch_loop_lag`."""
        self._lag_s.observe(seconds)

    def render(self, worker_texts: Mapping[str, str]) -> bytes:
        """All metrics in Prometheus' text format, of type `CONTENT_TYPE_PLAIN_0_0_4`.

        Takes some 20 us for a line of the workers', in pure Python: call it in a thread.

        Args:
            worker_texts: what the workers' `/metrics` gave, by model. A sample that does not say
                its `model_name` is given this one. A text that cannot be used is left out, and
                counted from the next call on.
        """
        families = {family.name: family for family in self._registry.collect()}
        for model, text in worker_texts.items():
            self._add(families, model, text)
        return generate_latest(_Families(families.values()))

    def _add(self, families: dict[str, Metric], model: str, text: str) -> None:
        try:
            _merge(families, _parse(text, model))
        except Exception as error:  # a malformed text makes the parser raise almost anything
            logger.warning("left out the metrics of %s: %s", model, error)
            self._unreadable.labels(model).inc()


def _parse(text: str, model: str) -> list[Metric]:
    families = list(text_string_to_metric_families(text))
    for family in families:
        family.samples = [
            Sample(sample.name, {"model_name": model, **sample.labels}, float(sample.value))
            for sample in family.samples
        ]
    return families


def _merge(families: dict[str, Metric], more: list[Metric]) -> None:
    """Adds `more` to the families of the same name; all of it or nothing."""
    for family in more:
        known = families.get(family.name, family)
        if known.type != family.type:
            raise ValueError(f"{family.name} is a {known.type} already, and no {family.type}")
    for family in more:
        known = families.setdefault(family.name, family)
        if known is not family:
            known.samples.extend(family.samples)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def watch_loop_lag(record: Callable[[float], None], interval_s: float = 0.5) -> None:
    """Measure, until cancelled, how late this event loop runs a timer.

    Args:
        record: gets each measurement, in seconds.
        interval_s: time between two; a stall that is shorter may fall between them.
    """
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        record(max(0.0, loop.time() - due))
