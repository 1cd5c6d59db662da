# SPDX-License-Identifier: Apache-2.0
"""What measurements leave behind: files of JSON, with every single sample.

All times are seconds. Those of a request (`..._s`) count from the run's beginning by a monotonic
clock, so that a plot of them shows drift.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from capibara_axion.bench.errors import UsageError

Positive = Annotated[float, Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class _Result(_Model):
    """What all files have.

    Attributes:
        schema_: of the file's format.
        machine: where the client ran, as `machine.describe` has it.
        date: in ISO 8601, when the run began.
        command: the command line, without keys.
        interrupted: Ctrl-C ended it early; what it had measured by then is in the file.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    machine: dict[str, Any]
    date: str
    command: str
    interrupted: bool = False


class KernelRow(_Model):
    """One contender on one case.

    Attributes:
        op: name of the operator.
        shape: of the case, such as "T=128 H=4096".
        dtype: of its elements.
        threads: that computed it.
        contender: who computed it.
        samples_s: time of a call, one for each round, in the order of time. Within a round all
            contenders of a case take their turn.
        bytes: that the operator must read and write, at least; None: unknown.
        operations: that it computes (a multiplication and an addition are two); None: unknown.
    """

    op: str
    shape: str
    dtype: str
    threads: int = Field(ge=1)
    contender: str
    samples_s: list[Positive]
    bytes: int | None = None
    operations: int | None = None


class Roof(_Model):
    """What this machine can do at most with so many threads, measured before the rows.

    Attributes:
        read_bytes_per_s, copy_bytes_per_s: of a plain read, and of a copy (bytes read and written).
        buffer_bytes: of the memory that both used.
        operations_per_s: by type, of the fastest product of 1024 x 1024 x 1024 by any contender.
    """

    threads: int = Field(ge=1)
    read_bytes_per_s: Positive
    copy_bytes_per_s: Positive
    buffer_bytes: int
    operations_per_s: dict[str, Positive]


class KernelResult(_Result):
    """Written by `bench kernels`.

    Attributes:
        settings: what was asked for.
        roofs: one for each number of threads.
        left_out: contenders that could not take part in a case, and why.
    """

    kind: Literal["kernels"] = "kernels"
    settings: dict[str, Any] = {}
    roofs: list[Roof] = []
    left_out: list[str] = []
    rows: list[KernelRow]


class Request(_Model):
    """One request as its client saw it.

    Attributes:
        model, prompt_kind, language, prompt: what was asked; `prompt` is a number within its kind.
        stage: number of the stage of a load; 0 in other runs, -1 for a warm-up.
        start: "cold": the model had to be loaded for it; "first": the first that this run sent to
            it on a server that does not say whether it is loaded; else "warm".
        outcome: "ok"; "error": the server refused it, broke off or did not answer in time;
            "not_sent": as many as allowed were in flight; "interrupted": the run ended first.
        status: of HTTP; None: there was none.
        error: what was wrong.
        retry_after_s: that the server asked to wait.
        scheduled_s: when it was to be sent.
        sent_s: when it was.
        headers_s: when the answer's headers came.
        first_byte_s: when the first byte of its body came, which may be a ping's.
        tokens_s: when each chunk with a token came.
        end_s: when the answer had come to its end.
        prompt_tokens, completion_tokens: as the server counts them.
        timings: what the server says of the answer, if it is one of ours.
    """

    model: str
    prompt_kind: str
    language: str
    prompt: int
    stage: int = 0
    start: Literal["cold", "first", "warm"] = "warm"
    outcome: Literal["ok", "error", "not_sent", "interrupted"] = "interrupted"
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    scheduled_s: float
    sent_s: float | None = None
    headers_s: float | None = None
    first_byte_s: float | None = None
    tokens_s: list[float] = []
    end_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    timings: dict[str, float | None] | None = None

    @property
    def ttft_s(self) -> float | None:
        """From when it was to be sent to its first token."""
        return self.tokens_s[0] - self.scheduled_s if self.tokens_s else None

    @property
    def total_s(self) -> float | None:
        """From when it was to be sent to the answer's end."""
        return None if self.end_s is None else self.end_s - self.scheduled_s

    @property
    def gap_s(self) -> float | None:
        """Mean time between two tokens; one chunk may have several."""
        tokens = self.completion_tokens or len(self.tokens_s)
        if len(self.tokens_s) < 2 or tokens < 2:
            return None
        return (self.tokens_s[-1] - self.tokens_s[0]) / (tokens - 1)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time that they took."""
        return 1 / gap if (gap := self.gap_s) else None


class Summary(_Model):
    """A measure's distribution: seconds, or tokens per second.

    Attributes:
        low, high: 95 % confidence interval of the median, by order statistics; None: too few.
    """

    n: int
    mean: float
    stdev: float
    median: float
    p95: float
    p99: float
    low: float | None = None
    high: float | None = None


class Group(_Model):
    """Requests of one kind, summarised.

    Attributes:
        name: what they have in common, such as {"model": "a", "start": "warm"}.
        requests: how many there were.
        failed: how many of those have no whole answer, by status or reason.
        fewer_tokens: how many answers were shorter than was asked for.
        measures: "ttft", "gap", "total", "tokens_per_s"; those without a value are missing.
    """

    name: dict[str, str]
    requests: int
    failed: dict[str, int]
    fewer_tokens: int
    measures: dict[str, Summary]


class Server(_Model):
    """Who was measured.

    Attributes:
        url: as given, without what a URL may have of a user's name and key.
        models: that it says it has.
        health: what /health answered; None: it has none.
        version: what /version, /openapi.json or llama.cpp's /props says.
    """

    url: str
    models: list[str]
    health: str | None = None
    version: str | None = None


class ServerEvent(_Model):
    """Something that a server of ours told while it was measured.

    Attributes:
        kind: its own name for it, such as "loading", "ready", "draining".
        model: that it is about; None: all.
        cause: for it, in its words.
    """

    time_s: float
    kind: str
    model: str | None = None
    cause: str | None = None


class MemorySample(_Model):
    """Memory that a server of ours took.

    Attributes:
        model: whose; None: of all together.
    """

    time_s: float
    bytes: int
    model: str | None = None


class _ServerResult(_Result):
    """What the measurements of servers have in common.

    Attributes:
        work: what was asked of the server. Only runs with equal `work` can be compared.
        stopped: why it ended before it was done; None: it did not.
        events, memory: of a server of ours, while it was measured (`watch.Watch`).
    """

    server: Server
    work: dict[str, Any]
    stopped: str | None = None
    requests: list[Request]
    events: list[ServerEvent] = []
    memory: list[MemorySample] = []


class LatencyResult(_ServerResult):
    """Written by `bench latency`."""

    kind: Literal["latency"] = "latency"
    groups: list[Group]


class Stage(_Model):
    """A load that was kept up for a while.

    Attributes:
        rate: arrivals per second; None in a closed loop.
        concurrency: clients in a closed loop; None in an open one.
        duration_s: from its first moment to the last answer.
        group: of its requests.
        requests_per_s, tokens_per_s: that were answered.
        good_share: of all that were to be sent, those that met both objectives; None: there is
            none.
        goodput: requests per second that met both.
        late_s: 99th percentile of how much later than scheduled the client sent.
    """

    rate: float | None = None
    concurrency: int | None = None
    duration_s: float
    group: Group
    requests_per_s: float
    tokens_per_s: float
    good_share: float | None = None
    goodput: float | None = None
    late_s: float | None = None


class LoadResult(_ServerResult):
    """Written by `bench load`."""

    kind: Literal["load"] = "load"
    stages: list[Stage]


class Streaming(_Model):
    """What the arrival times of one model's answers say; each figure is a median over answers.

    Attributes:
        streams: the verdict; None: it cannot be told.
        reasons: for it.
        first_byte_s, ttft_s, total_s: since the request was sent.
        tokens_per_chunk: tokens over chunks that have some.
        chunks_per_arrival: chunks over moments at which some came.
        largest_burst: chunks that came at once.
        held_back: what part of the time of generation had passed when the first token came.
        pings: comments in the answer.
    """

    model: str
    streams: bool | None = None
    reasons: list[str]
    first_byte_s: float | None = None
    ttft_s: float | None = None
    total_s: float | None = None
    tokens_per_chunk: float | None = None
    chunks_per_arrival: float | None = None
    largest_burst: float | None = None
    held_back: float | None = None
    pings: int = 0


class StreamResult(_ServerResult):
    """Written by `bench stream`."""

    kind: Literal["stream"] = "stream"
    verdicts: list[Streaming]


class Change(_Model):
    """One measure before and after.

    Attributes:
        before_s, after_s: medians.
        ratio: of the medians, after over before; None: see `verdict`.
        low, high: its confidence interval; it has a part in that of `Comparison.confidence`.
        samples: how many there are before and after.
        verdict: in words.
    """

    what: str
    measure: str
    before_s: float
    after_s: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    samples: tuple[int, int]
    verdict: str


class Comparison(_Model):
    """What became of one run's times in another.

    Attributes:
        before, after: the files.
        confidence: that all intervals of all comparisons made at once contain what they should.
    """

    before: str
    after: str
    confidence: float
    changes: list[Change]
    remarks: list[str] = []


class CompareResult(_Result):
    """Written by `bench compare`: each further run against the first."""

    kind: Literal["compare"] = "compare"
    comparisons: list[Comparison]


AnyResult = KernelResult | LatencyResult | LoadResult | StreamResult | CompareResult
Result = Annotated[AnyResult, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Result] = TypeAdapter(Result)


def write(result: AnyResult, path: Path) -> None:
    """Write a result as JSON, in one line; what is None is left out.

    Raises:
        UsageError: the file cannot be written.
    """
    text = result.model_dump_json(by_alias=True, exclude_none=True)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output: cannot write {path}: {error.strerror}") from None


def read(path: Path) -> AnyResult:
    """Read a file that `write` wrote.

    Raises:
        UsageError: it cannot be read, or is no such file.
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path}: expected the result of a benchmark: {where or 'file'}: {first['msg']}"
        ) from None


def json_schema_text() -> str:
    """The JSON Schema of these files, as docs/bench.schema.json has it."""
    schema = _ADAPTER.json_schema(mode="serialization")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of capibara-axion bench",
        **schema,
    }
    return json.dumps(schema, indent=2) + "\n"
