# SPDX-License-Identifier: Apache-2.0
"""The sampler's settings against vLLM's own functions, which take whole vocabularies: no engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

from capibara_axion.vllm_plugin import sampling

sampler = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")

VOCABULARY = 32000
LOWEST = -float("inf")


def _stock(logits: torch.Tensor, k: Any, p: Any) -> torch.Tensor:
    limited: torch.Tensor = sampler.apply_top_k_top_p_pytorch(logits.clone(), k, p, True)
    return limited


def _not_to_be_called(*_: Any) -> Any:
    raise AssertionError("the vocabulary was sorted")


def _tensors(
    ks: list[int] | None, ps: list[float] | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (
        None if ks is None else torch.tensor(ks, dtype=torch.int32),
        None if ps is None else torch.tensor(ps),
    )


def _peaked(rows: int, seed: int = 1) -> torch.Tensor:
    """Logits of which some dozens of tokens have nearly all of the probability."""
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(rows, VOCABULARY, generator=generator)


@pytest.mark.parametrize("ks", [None, [20], [1], [64], [VOCABULARY]])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.8, 0.9])
def test_keeps_what_vllm_keeps(ks: list[int] | None, p: float) -> None:
    logits = _peaked(3)
    k, of_p = _tensors(ks and ks * 3, [p] * 3)
    expected = _stock(logits, k, of_p)
    limited = sampling.top_k_top_p_or(_not_to_be_called)(logits, k, of_p)
    assert limited is logits
    assert torch.equal(limited, expected)
    assert (limited > LOWEST).sum(-1).min() >= 1


def test_rows_of_which_some_are_even() -> None:
    """Each row takes as many candidates as it needs, in one batch."""
    logits = _peaked(6)
    logits[1] /= 2  # some thousand tokens
    logits[4] /= 1000
    for ks in (None, [50, VOCABULARY, 3000, VOCABULARY, VOCABULARY, 30000]):
        k, p = _tensors(ks, [0.9, 0.9, 0.99, 0.5, 0.9, 0.9])
        calls = []

        def stock(rows: torch.Tensor, *settings: Any, calls: list[int] = calls) -> torch.Tensor:
            calls.append(len(rows))
            return _stock(rows, *settings)

        limited = sampling.top_k_top_p_or(stock)(logits.clone(), k, p)
        assert torch.equal(limited, _stock(logits, k, p))
        assert len(calls) == 1
        assert calls[0] < 6


@pytest.mark.parametrize("ks", [None, [20, VOCABULARY, VOCABULARY, 5, 1000]])
def test_rows_with_settings_of_their_own(ks: list[int] | None) -> None:
    logits = _peaked(5)
    k, p = _tensors(ks, [0.9, 1.0, 0.3, 1.0, 0.7])
    assert torch.equal(
        sampling.top_k_top_p_or(_not_to_be_called if ks else _stock)(logits.clone(), k, p),
        _stock(logits, k, p),
    )


def test_nothing_is_limited_where_both_are_off() -> None:
    logits = _peaked(2)
    for ks in (None, [VOCABULARY] * 2):
        k, p = _tensors(ks, [1.0] * 2)
        assert torch.equal(sampling.top_k_top_p_or(_not_to_be_called)(logits.clone(), k, p), logits)


@pytest.mark.parametrize(
    ("logits", "k", "p"),
    [
        (torch.randn(2, VOCABULARY) / 100, None, torch.full((2,), 0.9)),
        (_peaked(2), torch.full((2,), 20), None),
        (_peaked(2).double(), None, torch.full((2,), 0.5)),
        (_peaked(2)[:, :256].contiguous(), None, torch.full((2,), 0.5)),
    ],
    ids=["even probabilities", "top-k alone", "other dtype", "a small vocabulary"],
)
def test_left_to_vllm(logits: torch.Tensor, k: Any, p: Any) -> None:
    calls = []

    def stock(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return _stock(*arguments)

    limited = sampling.top_k_top_p_or(stock)(logits.clone(), k, p)
    assert torch.equal(limited, _stock(logits, k, p))
    assert calls


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 70),
    p=st.floats(0.01, 0.99),
    width=st.sampled_from([1.0, 4.0, 30.0]),
)
def test_equal_logits(seed: int, k: int, p: float, width: float) -> None:
    """Which of several equal ones stay at the end of the nucleus is open; how many is not.

    Sums of probabilities are rounded in another order: where one is p up to rounding, a token more
    or less stays.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = (width * torch.randn(2, 2048, generator=generator)).bfloat16().float()
    of_k, of_p = _tensors([k, 2048], [p, p])
    expected = _stock(logits, of_k, of_p)
    limited = sampling.top_k_top_p_or(_stock)(logits.clone(), of_k, of_p)
    for ours, stock, whole in zip(limited, expected, logits, strict=True):
        kept, wanted = (row[row > LOWEST].sort(descending=True).values for row in (ours, stock))
        assert abs(len(kept) - len(wanted)) <= 1
        shorter = min(len(kept), len(wanted))
        assert torch.equal(kept[:shorter], wanted[:shorter])
        assert torch.equal(ours[ours > LOWEST], whole[ours > LOWEST])


def test_top_k_of_a_row_without_top_p_keeps_the_least_likely() -> None:
    logits = _peaked(2)
    logits[0, :50] = torch.arange(50.0) / 2 + 30  # the least has 1e-11 of the probability
    k, p = _tensors([50, 5], [1.0, 0.9])
    limited = sampling.top_k_top_p_or(_not_to_be_called)(logits.clone(), k, p)
    assert (limited[0] > LOWEST).sum() == 50
    assert torch.equal(limited, _stock(logits, k, p))


def test_what_is_forbidden_stays_forbidden() -> None:
    logits = torch.full((1, VOCABULARY), LOWEST)
    logits[0, [5, 7, 11]] = torch.tensor([1.0, 3.0, 2.0])
    k, p = _tensors([50], [0.95])
    limited = sampling.top_k_top_p_or(_not_to_be_called)(logits.clone(), k, p)
    assert torch.equal(limited, _stock(logits, k, p))


def test_the_sampler_draws_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = pytest.importorskip("vllm.platforms")
    platforms.current_platform.import_kernels()
    monkeypatch.setattr(sampler, "apply_top_k_top_p", sampler.apply_top_k_top_p)
    k, p = _tensors([40] * 4, [0.9] * 4)

    def drawn() -> list[int]:
        layer = sampler.TopKTopPSampler("raw_logprobs")
        generators = {row: torch.Generator().manual_seed(row) for row in range(4)}
        return [
            token
            for seed in range(8)
            for token in layer.forward_cpu(_peaked(4, seed), generators, k, p)[0].tolist()
        ]

    stock = drawn()
    sampling.hook_top_k_top_p()
    assert sampler.apply_top_k_top_p.__module__ == sampling.__name__
    assert drawn() == stock
    assert len(set(stock)) > 8


# ---------------------------------------------------------------- penalties

_ANSWERS = ([5, 5, 7], [], [9, 1, 9, 9, 0], [VOCABULARY - 1])
_PROMPTS = ([1, 2, 3], [0], [7, 7], [4, VOCABULARY - 1, 8, 8])


def _padded(rows: tuple[list[int], ...]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [VOCABULARY] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("presence", [0.0, 0.7])
@pytest.mark.parametrize("frequency", [0.0, 0.3])
@pytest.mark.parametrize("repetition", [1.0, 1.05, 0.8])
def test_penalties(presence: float, frequency: float, repetition: float) -> None:
    stock = pytest.importorskip("vllm.model_executor.layers.utils").apply_penalties
    logits = _peaked(4)
    logits[2, 9] = LOWEST
    # A row with none of them beside others, as in a batch of several requests.
    values = [
        torch.tensor([x, x, x, off])
        for x, off in zip((presence, frequency, repetition), (0.0, 0.0, 1.0), strict=True)
    ]
    for answers in (_ANSWERS, ([], [], [], [])):
        tokens = _padded(_PROMPTS), _padded(answers).long()
        expected = stock(logits.clone(), *tokens, *values)
        penalised = logits.clone()
        assert sampling.apply_penalties(penalised, *tokens, *values) is penalised
        if frequency == 0:
            assert torch.equal(penalised, expected)
        else:  # the same token's are added one by one
            torch.testing.assert_close(penalised, expected, rtol=4e-7, atol=4e-7)


def test_a_row_without_tokens_is_not_penalised() -> None:
    logits = _peaked(2)
    none = torch.full((2, 3), VOCABULARY)
    values = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]), torch.tensor([1.5, 1.5])
    assert torch.equal(sampling.apply_penalties(logits.clone(), none, none, *values), logits)


def test_penalties_are_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("vllm.v1.sample.ops.penalties")
    monkeypatch.setattr(module, "apply_penalties", module.apply_penalties)
    sampling.hook_penalties()
    assert module.apply_penalties is sampling.apply_penalties
