# SPDX-License-Identifier: Apache-2.0
"""The demo checkpoints: the same bytes every time, tokenizers without loss, answers that end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from capibara_axion.demo import write_demo_models
from capibara_axion.demo.experts import AWQ_EXPERTS, EXPERTS, Expert

each_expert = pytest.mark.parametrize("expert", EXPERTS, ids=lambda expert: expert.expert_id)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_models(tmp_path_factory.mktemp("demo")).parent


def _digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_bytes_are_the_same_from_run_to_run(demo: Path, tmp_path: Path) -> None:
    write_demo_models(tmp_path)
    assert _digests(tmp_path) == _digests(demo)


def test_complete_files_are_left_alone(tmp_path: Path) -> None:
    lines: list[str] = []
    config = write_demo_models(tmp_path, progress=lines.append)
    assert len(lines) == len(EXPERTS) + len(AWQ_EXPERTS)
    config.write_text("edited by the user")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_demo_models(tmp_path, progress=lines.append) == config
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(lines) == len(EXPERTS) + len(AWQ_EXPERTS)


@pytest.mark.parametrize("damage", ["truncated", "missing", "interrupted"])
def test_incomplete_files_are_written_anew(demo: Path, tmp_path: Path, damage: str) -> None:
    write_demo_models(tmp_path)
    weights = tmp_path / EXPERTS[0].expert_id / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    else:
        (tmp_path / "manifest.json").unlink()
    write_demo_models(tmp_path)
    assert _digests(tmp_path) == _digests(demo)


def test_configuration_names_the_checkpoints(demo: Path) -> None:
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    assert [entry["expert_id"] for entry in config["experts"]] == [e.expert_id for e in EXPERTS]
    for entry in config["experts"]:
        assert (demo / entry["model_path"] / "config.json").is_file()


@each_expert
@given(text=st.text())
def test_tokenizer_loses_nothing(demo: Path, expert: Expert, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(demo / expert.expert_id / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@each_expert
def test_greedy_answer_is_the_reply_and_ends(demo: Path, expert: Expert) -> None:
    folder = demo / expert.expert_id
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = _load(folder, expert)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you? ¿Quién eres?"},
    ]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(
        **prompt, do_sample=False, temperature=None, top_p=None, max_new_tokens=80
    )[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == expert.reply
    assert answer[-1] == expert.family.special.id_of(expert.family.special.stops[0])


def _load(folder: Path, expert: Expert) -> Any:
    auto = AutoModelForImageTextToText if expert.family.vision else AutoModelForCausalLM
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return model.eval()
