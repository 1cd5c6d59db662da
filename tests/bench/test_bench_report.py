# SPDX-License-Identifier: Apache-2.0
"""`bench report`: one page that needs nothing else, from whatever results there are."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from capibara_axion import cli
from capibara_axion.bench import results
from capibara_axion.bench.report import units

KEPT = Path(__file__).parents[2] / "benchmarks/results"
HOSTILE = '<script>alert(1)</script>&"'
VOID = {"meta", "br", "hr", "img", "link", "input"}
HEADER: dict[str, Any] = {
    "machine": {"model": "A Processor", "logical_cpus": 2, "versions": {"numpy": "2.0"}},
    "date": "2026-01-02T03:04:05+00:00",
    "command": "capibara-axion bench ... --url http://127.0.0.1:8083",
}
SERVER = {"server": results.Server(url="http://127.0.0.1:8083", models=["a"]), "work": {}}


class Page(HTMLParser):
    """What a page consists of; elements that are not closed in order are errors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def count(self, tag: str, inside: str | None = None) -> int:
        return sum(t == tag and (not inside or inside in within) for t, _, within in self.elements)


def request(start: str, at: float, ttft: float, model: str = "a") -> results.Request:
    tokens = [at + ttft + 0.02 * index for index in range(4)]
    return results.Request(
        model=model, prompt_kind="simple", language="en", prompt=0, start=start, outcome="ok",
        status=200, scheduled_s=at, sent_s=at, tokens_s=tokens, end_s=tokens[-1],
        completion_tokens=4,
    )  # fmt: skip


def latency() -> results.LatencyResult:
    requests = [request("warm", at, 0.03 + 0.001 * at) for at in range(1, 20)]
    return results.LatencyResult(
        **HEADER, **SERVER, groups=[],
        requests=[request("cold", 0.0, 0.9), *requests, request("warm", 21, 0.04, model=HOSTILE)],
        events=[
            results.ServerEvent(time_s=0.1, kind="loading", model="a"),
            results.ServerEvent(time_s=0.8, kind="ready", model="a"),
            results.ServerEvent(time_s=19.5, kind="unloading", model="a", cause="evicted"),
        ],
        memory=[results.MemorySample(time_s=at, bytes=100 << 20) for at in (0.5, 1.0)],
    )  # fmt: skip


def load() -> results.LoadResult:
    def stage(concurrency: int) -> results.Stage:
        ttft = results.Summary(
            n=9, mean=0.1, stdev=0.01, median=0.1 * concurrency, p95=0.2, p99=0.3, low=0.1, high=0.2
        )
        group = results.Group(
            name={"model": "a"}, requests=9, failed={}, fewer_tokens=0, measures={"ttft": ttft}
        )
        return results.Stage(
            rate=None, concurrency=concurrency, duration_s=5, group=group, requests_per_s=3,
            tokens_per_s=40.0 * concurrency, good_share=None, goodput=None, late_s=0.0,
        )  # fmt: skip

    stages = [stage(1), stage(2)]
    requests = [request("warm", 1, 0.1)]
    return results.LoadResult(**HEADER, **SERVER, stages=stages, requests=requests)


def kernels() -> results.KernelResult:
    case = {"op": "rms_norm", "shape": "128", "dtype": "bf16", "threads": 1}
    work = {"bytes": 2_000_000, "operations": 4_000_000}
    contenders = {"ours out": [1e-4, 1.1e-4], "torch F.rms_norm": [2e-4, 2.2e-4]}
    roof = results.Roof(
        threads=1, read_bytes_per_s=1e10, copy_bytes_per_s=2e10, buffer_bytes=64 << 20,
        operations_per_s={"f32": 1e11, "bf16": 4e11},
    )  # fmt: skip
    return results.KernelResult(
        **HEADER,
        roofs=[roof],
        rows=[
            results.KernelRow(contender=name, samples_s=samples, **case, **work)
            for name, samples in contenders.items()
        ],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One result of each kind, of files with names that need care."""
    results.write(latency(), tmp_path / "latency.json")
    results.write(load(), tmp_path / "load.json")
    results.write(kernels(), tmp_path / "a b.json")
    results.write(kernels(), tmp_path / "a_b.json")
    return tmp_path


def report(directory: Path, *options: str) -> Page:
    assert cli.main(["bench", "report", str(directory), *options]) == 0
    return Page((directory / "report.html").read_text(encoding="utf-8"))


def check(page: Page, directory: Path) -> None:
    """What holds for every report."""
    figures = page.count("figure")
    assert page.count("table", inside="details") == figures == page.count("figcaption")
    classes = Counter(
        attributes.get("class") for tag, attributes, _ in page.elements if tag == "svg"
    )
    wide, narrow = classes["wide"], classes["narrow"]
    pictures = sorted(directory.glob("report-*.png"))
    assert wide == narrow == len(pictures) > 0
    for picture in pictures:
        height, width = matplotlib.image.imread(picture).shape[:2]
        assert width > 900
        assert height > 100
    ids = Counter(attributes["id"] for _, attributes, _ in page.elements if "id" in attributes)
    assert not [name for name, times in ids.items() if times > 1]
    for tag, attributes, _ in page.elements:
        assert tag not in ("script", "link", "iframe", "img", "object")
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"] in ids
        for name, value in attributes.items():
            assert not name.startswith(("on", "src", "xmlns"))
            if name in ("href", "xlink:href"):
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids
            for found in re.findall(r"url\((.*?)\)", value or ""):
                assert found.startswith("#")
                assert found[1:] in ids


def test_small_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(folder)
    check(page, folder)
    for title in ("Latency", "Over time", "Throughput", "Kernels", "Roofline"):
        assert title in page.text
    assert HOSTILE in page.text  # as text: `check` found no script
    assert "unloading: evicted" in page.text
    assert "A Processor, 2 cores" in page.text
    assert "capibara-axion bench ... --url http://127.0.0.1:8083" in page.text
    names = {picture.name for picture in folder.glob("*.png")}
    assert {"report-latency-ttft.png", "report-load-concurrency-tokens.png"} <= names
    assert {"report-a-b-ratios.png", "report-a-b-ratios-2.png"} <= names
    assert f"{folder / 'report.html'}: " in capsys.readouterr().out


def test_colours_follow_the_theme(folder: Path) -> None:
    report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "@media(prefers-color-scheme:dark)" in text
    drawn = text[text.index("<svg") :]
    assert "var(--ink)" in drawn
    assert "var(--series-0)" in drawn
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn))
    assert fixed <= {"#ffffff"}


def test_figures_are_right(folder: Path) -> None:
    page = report(folder)
    assert "2.00" in page.text  # peer / ours, round by round
    assert "38.1 Gop/s" in page.text  # 4e6 operations in 105 us, the median
    assert "95.2 %" in page.text  # of what 2 operations a byte allow at 20 GB/s
    assert "900 ms" in page.text  # the cold request's first token


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write(kernels(), tmp_path / "kernels.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps({"rows": [], "unit": "apples"}))
    (tmp_path / "load.json").write_text(json.dumps({"kind": "load", "schema": 1}))
    (tmp_path / "server_odd.json").write_text(json.dumps({"a": {"n": 3, "median": "soon"}}))
    page = report(tmp_path)
    check(page, tmp_path)
    told = capsys.readouterr().err
    for text in (page.text, told):
        assert "capibara-axion bench latency --output DIR/latency.json" in text
        for name in ("list.json", "broken.json", "other.json", "load.json", "server_odd.json"):
            assert f"{name}: " in text
    assert "Latency" not in [attributes.get("id") for _, attributes, _ in page.elements]


def test_the_repository_s_results(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    pictures = tmp_path / "pictures"
    options = ["--output", str(page), "--png-dir", str(pictures)]
    assert cli.main(["bench", "report", str(KEPT), *options]) == 0
    read = Page(page.read_text(encoding="utf-8"))
    check(read, pictures)
    for title in ("Kernels", "Memory of attention", "Instructions on aarch64", "Server and models"):
        assert title in read.text
    shown = set(re.findall(r"File([a-z0-9_]+\.json)", read.text))
    assert {path.name for path in KEPT.glob("server_*.json")} <= shown
    expected = {"ops.json", "aarch64.json", "int4_quality.json", "kv_quality.json"}
    assert expected | {"attention_memory.json", "end_to_end.json"} <= shown
    assert "not as expected" not in read.text


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["bench", "report", *arguments]) == 2
    return capsys.readouterr().err


def test_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "DIR: expected a folder" in refused(capsys, str(folder / "nowhere"))
    (folder / "empty").mkdir()
    assert "found none in" in refused(capsys, str(folder / "empty"))
    beneath_a_file = folder / "latency.json" / "report.html"
    assert "cannot write" in refused(capsys, str(folder), "--output", str(beneath_a_file))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    assert "needs matplotlib" in refused(capsys, str(folder))
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(0.0123), "12.3 ms"),
        (units.seconds(2.5e-6), "2.5 µs"),
        (units.seconds(90), "90 s"),
        (units.seconds(0), "0"),
        (units.seconds(None), ""),
        (units.amount(1.01e12, "op/s"), "1.01 Top/s"),
        (units.amount(1234), "1.23 k"),
        (units.mebibytes(3 << 30), "3 GiB"),
        (units.percent(0.5), "50 %"),
        (units.digits(1e-7), "0.0000"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_ticks() -> None:
    assert units.log_ticks(0.9, 6) == [1, 2, 5]
    assert units.log_ticks(0.09, 40, most=6) == pytest.approx([0.1, 0.3, 1, 3, 10, 30])
    assert len(units.log_ticks(1e-9, 1e9, most=5)) <= 5
