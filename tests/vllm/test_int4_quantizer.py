# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion quantize`: scales that change nothing but rounding, files, refusals."""

from __future__ import annotations

import collections
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import references
import torch
from safetensors.torch import load_file, save_file

from capibara_axion import int4
from capibara_axion.demo import write_demo_models
from capibara_axion.demo.experts import EXPERTS
from capibara_axion.int4 import awq, quantizer
from capibara_axion.int4.architectures import (
    Fold,
    UnsupportedModel,
    architecture_of,
    decoder_prefix,
    is_quantized,
    kept_modules,
)
from capibara_axion.int4.checkpoint import Checkpoint
from capibara_axion.int4.command import summary
from capibara_axion.int4.layer_by_layer import LayerByLayer, token_windows
from capibara_axion.int4.quantizer import Plan, Settings, quantize_checkpoint

EXPERT_IDS = [expert.expert_id for expert in EXPERTS]
QWEN = "qwen_coder"

each_expert = pytest.mark.parametrize("expert", EXPERT_IDS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_models(tmp_path_factory.mktemp("int4")).parent


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "_STEPS", 3)
    monkeypatch.setattr(quantizer, "_WINDOWS", 2)
    monkeypatch.setattr(quantizer, "_WINDOW_TOKENS", 48)
    monkeypatch.setattr(quantizer, "_SEARCH_ROWS", 64)


def _text() -> str:
    import capibara_axion.demo as package

    return Path(package.__file__).with_name("corpus.txt").read_text(encoding="utf-8")


def _search(checkpoint: Checkpoint, ids: torch.Tensor) -> Plan:
    plan = Plan()
    config = quantizer._text_config(checkpoint.folder)
    settings = Settings(group_size=32, method="awq")
    search = quantizer._Search(checkpoint, architecture_of(config), settings, plan)
    LayerByLayer(checkpoint, config, lambda: None).run(ids, search)
    return plan


def _ids(folder: Path, texts: int = 2) -> torch.Tensor:
    return token_windows(folder, _text(), length=48, most=texts)[0]


# ---------------------------------------------------------------- the model, layer by layer


@each_expert
def test_scales_change_nothing_but_rounding(
    demo: Path, expert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)

    def any_scales(fold: Fold, weights: Any, inputs: awq.Inputs, *_: Any) -> np.ndarray:
        channels = awq.written(fold, inputs.means).size
        return np.exp(random.uniform(-1, 1, channels)).astype(np.float32)

    monkeypatch.setattr(awq, "find_scales", any_scales)
    checkpoint = Checkpoint(demo / expert)
    ids = _ids(checkpoint.folder)
    plan = _search(checkpoint, ids)
    quantized = {name for name in checkpoint.names() if is_quantized(name)}
    assert plan.columns.keys() == quantized

    model = references.load(checkpoint.folder)
    inputs: dict[str, Any] = {"input_ids": ids}
    if "vision_config" in checkpoint.config:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    with torch.inference_mode():
        exact = model(**inputs).logits
        original = {name: value.clone() for name, value in model.state_dict().items()}
        _load(model, {n: plan.apply(n, checkpoint.tensor(n)).float() for n in checkpoint.names()})
        scaled = model(**inputs).logits
        changed = [
            name
            for name, value in model.state_dict().items()
            if not torch.equal(value, original[name])
        ]
    assert len(changed) > len(quantized)  # the norms, too
    # Float32 sums of up to 640 products in 9 sublayers, in another order.
    assert float((scaled - exact).abs().max()) <= 9 * 640**0.5 * 2**-23 * float(exact.abs().max())


def _load(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """As `from_pretrained` does, whose names are others for models with images."""
    renamed = {}
    known = model.state_dict()
    for name, value in tensors.items():
        candidates = (name, name.replace("language_model.model.", "model.language_model."))
        found = next((n for n in candidates if n in known), None)
        if found is not None:
            renamed[found] = value
    model.load_state_dict(renamed, strict=False)


@each_expert
def test_perplexity_is_that_of_transformers(demo: Path, expert: str) -> None:
    checkpoint = Checkpoint(demo / expert)
    ids = _ids(checkpoint.folder)
    config = quantizer._text_config(checkpoint.folder)
    found = LayerByLayer(checkpoint, config, lambda: None).perplexity(ids)
    model = references.load(checkpoint.folder)
    request = {"prompt": ids[0].tolist(), "tokens": []}
    losses = []
    for row in ids.tolist():
        request = {"prompt": row, "tokens": []}
        losses += references.log_probabilities(model, request)
    assert np.log(found) == pytest.approx(-np.mean(losses), rel=1e-5)


# ---------------------------------------------------------------- files


def _shard(source: Path, target: Path) -> Path:
    """The same checkpoint in two files, layers torn apart."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in files.items():
        save_file({name: tensors[name] for name in chosen}, target / file)
    weight_map = {name: file for file, chosen in files.items() for name in chosen}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (target / "model.safetensors.index.json").write_text(index)
    return target


@pytest.mark.parametrize(
    ("sharded", "method", "symmetric"),
    [(False, "rtn", False), (False, "rtn", True), (True, "rtn", False), (True, "awq", False)],
)
def test_what_is_written(
    demo: Path, tmp_path: Path, sharded: bool, method: str, symmetric: bool
) -> None:
    source = _shard(demo / QWEN, tmp_path / "sharded") if sharded else demo / QWEN
    steps: list[str] = []
    report = quantize_checkpoint(
        source,
        tmp_path / "out" / "model",
        Settings(32, method, symmetric, _text() if method == "awq" else None),
        lambda what, of: steps.append(f"{what} {of}"),
    )
    before, after = Checkpoint(source), Checkpoint(tmp_path / "out" / "model")
    assert report.matrices == 28 == steps.count("quantising 28")
    assert report.bytes_after < 0.45 * report.bytes_before
    assert (report.perplexity_after is None) is (method == "rtn")
    assert after.config == before.config | {
        "quantization_config": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["embed_tokens", "lm_head"],
        }
    }
    assert set(after.files) == set(before.files)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (after.folder / name).read_bytes() == (source / name).read_bytes()
    unchanged: dict[str, list[bool]] = collections.defaultdict(list)
    for name in before.names():
        if not is_quantized(name):
            same = torch.equal(after.tensor(name), before.tensor(name))
            unchanged[name.rsplit(".", 2)[-2]].append(same)
            continue
        assert name not in after
        module = name.removesuffix("weight")
        packed = [after.tensor(module + part).numpy() for part in ("qweight", "qzeros", "scales")]
        rounded = int4.unpack_awq(*packed)
        if symmetric:
            assert rounded.zeros is not None
            assert (rounded.zeros == 8).all()
        if method == "rtn":
            expected = int4.quantize(before.float32(name).numpy(), 32, symmetric=symmetric)
            np.testing.assert_array_equal(rounded.codes, expected.codes)
            assert torch.equal(after.float32(name), torch.from_numpy(expected.dequantize()))
    # v's bias is scaled with its rows.
    changed = {module for module, same in unchanged.items() if not all(same)}
    norms = {"input_layernorm", "post_attention_layernorm"}
    assert changed == ({*norms, "v_proj"} if method == "awq" else set())
    assert [*(tmp_path / "out").iterdir()] == [after.folder]


def test_summary(tmp_path: Path) -> None:
    report = quantizer.Report(28, 3_000_000, 1_000_000, 10.0, 10.5)
    text = summary(report, tmp_path / "model")
    assert "28 matrices in 4 bits, 1.0 MB (3.0 MB before)" in text
    assert "10.0000 before, 10.5000 after (+5.00%)" in text


def test_which_modules_are_kept() -> None:
    names = [
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.model.layers.0.input_layernorm.weight",
        "language_model.model.layers.0.mlp.gate.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "multi_modal_projector.linear.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    ]
    assert kept_modules(names) == [
        "embed_tokens",
        "language_model.model.layers.0.mlp.gate",
        "lm_head",
        "multi_modal_projector",
        "vision_tower",
    ]
    assert [name for name in names if is_quantized(name)] == names[1:2]
    assert decoder_prefix(names) == "language_model.model."


# ---------------------------------------------------------------- the search


def test_columns_with_large_inputs_are_rounded_more_finely() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(256, 128, generator=generator)
    rows[:, ::16] *= 30
    weight = torch.randn(64, 128, generator=generator)
    fold = Fold("norm", ("proj",), is_norm=True)
    inputs = awq.Inputs(rows, rows.abs().mean(0).numpy())
    scales = awq.find_scales(fold, [weight], inputs, 128, False)
    assert scales[::16].min() > 1.5 * scales[1::16].max()

    def error(columns: np.ndarray) -> float:
        rounded = int4.quantize(weight.numpy() * columns, 128).dequantize() / columns
        return float((rows @ (torch.from_numpy(rounded) - weight).T).square().mean())

    assert error(scales) < 0.5 * error(np.ones(128, np.float32))


def test_query_heads_share_the_scales_of_their_value_head() -> None:
    fold = Fold("v", ("o",), is_norm=False, repeats=2, block=2)
    assert awq.read(fold, np.array([1, 2, 3, 4])).tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert awq.written(fold, np.array([1, 2, 3, 4, 5, 6, 7, 8])).tolist() == [2, 3, 6, 7]


# ---------------------------------------------------------------- refusals


def _damaged(demo: Path, folder: Path, damage: str) -> Path:
    shutil.copytree(demo / QWEN, folder)
    weights, config_file = folder / "model.safetensors", folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    tensors = load_file(weights)
    name = "model.layers.1.mlp.down_proj.weight"
    if damage == "quantised":
        config["quantization_config"] = {"quant_method": "awq"}
    elif damage == "unknown":
        config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    elif damage == "integers":
        tensors[name] = tensors[name].to(torch.int8)
    elif damage == "nan":
        tensors[name][3, 5] = float("nan")
    elif damage == "columns":
        tensors[name] = tensors[name][:, :80].clone()
    elif damage == "rows":
        tensors[name] = tensors[name][:12].clone()
    elif damage == "names":
        tensors = {name.replace("_proj", ""): value for name, value in tensors.items()}
    save_file(tensors, weights)
    config_file.write_text(json.dumps(config), encoding="utf-8")
    if damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config_file.write_text("{", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        ("", Settings(method="gptq"), "method: expected 'rtn' or 'awq', got 'gptq'"),
        ("", Settings(method="awq"), "method 'awq' needs a calibration text"),
        ("", Settings(group_size=16), "group: expected 32, 64, 128, got 16"),
        ("", Settings(text="too short"), "expected a text of 160 tokens at least, got"),
        ("quantised", Settings(), "is quantised already"),
        ("unknown", Settings(method="awq", text="word " * 500), "model_type 'gpt2': .*rtn works"),
        ("integers", Settings(), r"down_proj.weight: expected F32, BF16, F16, got I8"),
        ("nan", Settings(32), "down_proj.weight: weight: expected finite values"),
        ("columns", Settings(32), r"down_proj.weight: group_size: expected a divisor of 80"),
        ("rows", Settings(), "down_proj.weight: AWQ expects a multiple of 8 rows, got 12"),
        ("names", Settings(), "expected the matrices of one decoder, .*, got none"),
        ("no weights", Settings(), "model.safetensors: "),
        ("no config", Settings(), "config.json: Expecting"),
    ],
)
def test_refusals(
    demo: Path, tmp_path: Path, damage: str, settings: Settings, message: str
) -> None:
    source = _damaged(demo, tmp_path / "source", damage)
    with pytest.raises(UnsupportedModel, match=message):
        quantize_checkpoint(source, tmp_path / "out", settings)
    assert [*tmp_path.iterdir()] == [source]


def test_nothing_is_overwritten_and_nothing_started_that_cannot_end(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedModel, match="exists already"):
        quantize_checkpoint(demo / QWEN, tmp_path, Settings())
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(UnsupportedModel, match=r"needs up to 0.0 GB, 0.0 GB are free"):
        quantize_checkpoint(demo / QWEN, tmp_path / "a" / "b", Settings())
    assert [*tmp_path.iterdir()] == []
