# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from capibara_axion.server.metrics import Metrics, watch_loop_lag

STATES = ("unloaded", "loading", "ready")

Key = tuple[str, tuple[tuple[str, str], ...]]


def samples_of(text: bytes | str) -> dict[Key, float]:
    """All samples; each may be there once."""
    text = text.decode() if isinstance(text, bytes) else text
    found: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert key(sample) not in found, f"{sample} is there twice"
            found[key(sample)] = sample.value
    return found


def key(sample: Sample) -> Key:
    return sample.name, tuple(sorted(sample.labels.items()))


def own(metrics: Metrics, name: str, **labels: str) -> float:
    return samples_of(metrics.render({}))[f"capibara:{name}", tuple(sorted(labels.items()))]


def engine_text(model: str, running: int = 1) -> str:
    """What vLLM shows, in its shape: counters, a histogram, labels that need escapes."""
    registry = CollectorRegistry()
    labels = {"engine": "0", "model_name": model}
    names = tuple(labels)
    Gauge("vllm:num_requests_running", "Running.", names, registry=registry).labels(**labels).set(
        running
    )
    Gauge("vllm:cache_config_info", "Cache.", (*names, "path"), registry=registry).labels(
        **labels, path='a\\b"c\nd {e="f"}'
    ).set(1)
    Counter("vllm:prompt_tokens", "Back\\slash\nline.", names, registry=registry).labels(
        **labels
    ).inc(41)
    Counter("vllm:request_success", "Done.", (*names, "finished_reason"), registry=registry).labels(
        **labels, finished_reason="stop"
    ).inc()
    histogram = Histogram("vllm:time_to_first_token_seconds", "TTFT.", names, registry=registry)
    histogram.labels(**labels).observe(0.03)
    Histogram("vllm:iteration_tokens_total", "Tokens.", names, registry=registry).labels(**labels)
    return generate_latest(registry).decode()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(STATES)


# The gateway's own


def test_a_model_is_in_exactly_one_state(metrics: Metrics) -> None:
    metrics.set_state("phi", "loading")
    metrics.set_state("phi", "ready")
    states = {state: own(metrics, "model_state", model="phi", state=state) for state in STATES}
    assert states == {"unloaded": 0, "loading": 0, "ready": 1}


def test_what_is_recorded_is_rendered(metrics: Metrics) -> None:
    metrics.set_queue_age("phi", 1.5)
    metrics.set_memory("phi", pss=700, predicted=650)
    metrics.set_leased_cores("phi", 2)
    metrics.evicted("phi", "idle")
    metrics.engine_restarted("phi", "hang")
    metrics.request_ended("phi", "ok")
    metrics.request_ended("phi", "ok")
    metrics.replayed("phi")
    metrics.client_cancelled("phi", "streaming")
    metrics.routed("phi")
    metrics.gateway_overhead(0.0003)
    metrics.event_loop_lag(0.003)
    phi = {"model": "phi"}
    assert own(metrics, "queue_age_seconds", **phi) == 1.5
    assert own(metrics, "model_rss_bytes", **phi) == 700
    assert own(metrics, "model_predicted_bytes", **phi) == 650
    assert own(metrics, "leased_cores", **phi) == 2
    assert own(metrics, "evictions_total", cause="idle", **phi) == 1
    assert own(metrics, "engine_restarts_total", cause="hang", **phi) == 1
    assert own(metrics, "requests_total", outcome="ok", **phi) == 2
    assert own(metrics, "replayed_requests_total", **phi) == 1
    assert own(metrics, "client_cancels_total", phase="streaming", **phi) == 1
    assert own(metrics, "routed_total", **phi) == 1
    assert own(metrics, "gateway_overhead_seconds_bucket", le="0.00025") == 0
    assert own(metrics, "gateway_overhead_seconds_bucket", le="0.0005") == 1
    assert own(metrics, "event_loop_lag_seconds_sum") == 0.003


def test_only_successful_loads_have_a_duration(metrics: Metrics) -> None:
    metrics.load_ended("phi", "loaded", 2.2)
    metrics.load_ended("phi", "failed", 100)
    metrics.load_ended("phi", "cancelled", 100)
    assert own(metrics, "model_load_seconds_sum", model="phi") == 2.2
    assert own(metrics, "model_load_seconds_count", model="phi") == 1
    for outcome in ("loaded", "failed", "cancelled"):
        assert own(metrics, "loads_total", model="phi", outcome=outcome) == 1


def test_each_server_counts_for_itself(metrics: Metrics) -> None:
    metrics.routed("phi")
    assert ("capibara:routed_total", (("model", "phi"),)) not in samples_of(
        Metrics(STATES).render({})
    )


# Together with those of the engines


def test_the_engines_samples_come_through_unchanged(metrics: Metrics) -> None:
    texts = {"phi": engine_text("phi", 3), "qwen/coder": engine_text("qwen/coder", 4)}
    together = samples_of(metrics.render(texts))
    for text in texts.values():
        expected = samples_of(text)
        assert len(expected) > 40
        assert {name: together[name] for name in expected} == expected
    rest = {name for name in together if name[0].startswith("vllm:")}
    assert rest == {name for text in texts.values() for name in samples_of(text)}


def test_each_family_has_one_heading_and_is_in_one_piece(metrics: Metrics) -> None:
    lines = metrics.render({m: engine_text(m) for m in ("phi", "qwen")}).decode().splitlines()
    for kind in ("HELP", "TYPE"):
        headings = [line.split()[2] for line in lines if line.startswith(f"# {kind} ")]
        assert len(headings) == len(set(headings))
    assert "# TYPE vllm:prompt_tokens_total counter" in lines
    assert "# TYPE vllm:iteration_tokens_total histogram" in lines
    running = [index for index, line in enumerate(lines) if "requests_running{" in line]
    assert running[1] == running[0] + 1


def test_a_sample_without_model_name_is_told_apart_by_its_worker(metrics: Metrics) -> None:
    text = "# TYPE process_open_fds gauge\nprocess_open_fds 7\n"
    together = samples_of(metrics.render({"phi": text, "qwen": text}))
    of_processes = {
        dict(labels).get("model_name"): value
        for (name, labels), value in together.items()
        if name == "process_open_fds"
    }
    assert of_processes.pop(None) > 0  # the gateway's own
    assert of_processes == {"phi": 7, "qwen": 7}


@pytest.mark.parametrize(
    "text",
    [
        "<html>502 Bad Gateway</html>",
        'vllm:a{b="c" 1',
        "vllm:a one",
        "vllm:a 1" + 400 * "0",
        "# TYPE vllm:a nonsense\nvllm:a 1",
        "# TYPE vllm:num_requests_running counter\nvllm:num_requests_running_total 1",
    ],
)
def test_an_unreadable_text_is_left_out_and_counted(metrics: Metrics, text: str) -> None:
    good = engine_text("phi")
    before = samples_of(metrics.render({"phi": good}))
    together = samples_of(metrics.render({"phi": good, "qwen": "vllm:fine 1\n" + text}))
    assert {k for k in together if k[0].startswith("vllm:")} == {
        k for k in before if k[0].startswith("vllm:")
    }
    assert own(metrics, "unreadable_worker_metrics_total", model="qwen") == 1


@given(st.text(st.sampled_from('ab:_{}=",\\# \t\n01eTYPHELU'), max_size=60))
def test_no_text_stops_the_rendering(text: str) -> None:
    rendered = Metrics(STATES).render({"phi": engine_text("phi"), "qwen": text})
    assert b'vllm:prompt_tokens_total{engine="0",model_name="phi"} 41.0\n' in rendered


# The event loop


async def lags_of_a_loop_that_is_blocked_once(seconds: float) -> list[float]:
    recorded: list[float] = []
    enough = asyncio.Event()

    def record(lag: float) -> None:
        recorded.append(lag)
        if len(recorded) == 5:
            enough.set()

    watching = asyncio.create_task(watch_loop_lag(record, interval_s=0.01))
    await asyncio.sleep(0)
    block(seconds)
    await enough.wait()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    return recorded


def block(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_blocked_loop_is_late_and_then_on_time_again() -> None:
    first, *later = await lags_of_a_loop_that_is_blocked_once(0.08)
    assert 0.06 < first < 1
    assert 0 <= min(later) < 0.01


async def test_a_free_loop_is_on_time() -> None:
    lags = await lags_of_a_loop_that_is_blocked_once(0)
    assert 0 <= min(lags) < 0.01
