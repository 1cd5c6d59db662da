# SPDX-License-Identifier: Apache-2.0
"""The torch operators: right, known to torch's compiler, honest about what they cannot do."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest
import torch
from cases import CASES, DTYPES, OPS, Case, clone, run

import capibara_axion as ax

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_out_case = pytest.mark.parametrize("case", [case for case in CASES if case.out], ids=str)


@each_case
@each_dtype
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    torch.library.opcheck(case.op, case.make(dtype))


@each_out_case
def test_opcheck_of_out(case: Case) -> None:
    arguments = case.make(torch.bfloat16)
    torch.library.opcheck(case.out_op, (torch.empty_like(case.op(*arguments)), *arguments))


@each_out_case
@each_dtype
def test_out(case: Case, dtype: torch.dtype) -> None:
    arguments = case.make(dtype)
    wanted = case.op(*arguments)
    out = torch.full((*wanted.shape[:-1], wanted.shape[-1] + 3), 7.0, dtype=dtype)
    assert case.out_op(out[..., :-3], *arguments) is None
    assert torch.equal(out[..., :-3], wanted)
    assert (out[..., -3:] == 7).all()


@each_case
def test_compiled_without_a_graph_break(case: Case) -> None:
    torch.compiler.reset()  # or the cases would count as recompilations of one function
    arguments = case.make(torch.bfloat16)
    wanted = run(case, clone(arguments))

    # TEST_TORCH_BACKEND=aot_eager: where there is no compiler for inductor.
    @torch.compile(fullgraph=True, backend=os.environ.get("TEST_TORCH_BACKEND", "inductor"))
    def function(*inputs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(result + 1 for result in run(case, inputs))

    for given, eager in zip(function(*clone(arguments)), wanted, strict=True):
        assert torch.equal(given, eager + 1)


@each_case
def test_fakes(case: Case) -> None:
    arguments = case.make(torch.float16)
    meta = tuple(x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments)
    for fake, real in zip(run(case, meta), run(case, clone(arguments)), strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_functions_take_torch_tensors() -> None:
    x, weight = torch.randn(3, 40), torch.randn(40)
    assert torch.equal(ax.rms_norm(x, weight), OPS.rms_norm(x, weight, 1e-6))
    assert torch.equal(ax.layer_norm(x, weight), OPS.layer_norm(x, weight, 1e-5))
    for lengths in (2, [1, 2, 3], torch.tensor([1, 2, 3]), torch.tensor(2)):
        assert (ax.softmax(x, lengths=lengths)[:, 3:] == 0).all()
    with pytest.raises(TypeError, match="lengths"):
        ax.softmax(x, lengths=torch.tensor([1.0, 2.0, 3.0]))
    out = torch.empty(3, 20)
    assert ax.silu_and_mul(x, out=out) is out
    assert torch.equal(out, OPS.silu_and_mul(x, None))
    residual = torch.randn(3, 40)
    same = ax.fused_add_rms_norm(x, residual, weight)
    assert same[0] is x
    assert same[1] is residual


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("weight", lambda: OPS.rms_norm(torch.ones(2, 4), torch.ones(3), 1e-6)),
        ("weight", lambda: OPS.rms_norm(torch.ones(2, 4), torch.ones(4).half(), 1e-6)),
        ("x", lambda: OPS.softmax(torch.ones(2, 4).double(), 1.0, None)),
        ("x", lambda: OPS.softmax(torch.ones(2, 4).long(), 1.0, None)),
        ("lengths", lambda: OPS.softmax(torch.ones(2, 4), 1.0, torch.tensor([1, 9]).int())),
        ("gate_up", lambda: OPS.silu_and_mul(torch.ones(2, 5), None)),
        ("up", lambda: OPS.silu_and_mul(torch.ones(2, 5), torch.ones(2, 4))),
        ("out", lambda: OPS.softmax_out(torch.ones(2, 5), torch.ones(2, 4), 1.0, None)),
        (
            "out",
            lambda: OPS.softmax_out(torch.ones(1, 4).expand(2, 4), torch.ones(2, 4), 1.0, None),
        ),
        ("eps", lambda: OPS.layer_norm(torch.ones(2, 4), torch.ones(4), -1.0)),
        (
            "positions",
            lambda: OPS.rope(
                torch.tensor([7]), torch.ones(1, 2, 4), None, torch.ones(3, 4), 0, True
            ),
        ),
    ],
)
def test_errors_name_the_argument(name: str, call: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        call()


def test_devices_must_agree() -> None:
    with pytest.raises(ValueError, match="one device"):
        OPS.rms_norm(torch.ones(2, 4), torch.ones(4, device="meta"), 1e-6)


def test_more_than_two_strides_are_copied() -> None:
    x = torch.randn(3, 4, 5, 16).permute(1, 0, 2, 3)[:, :, ::2]
    assert torch.equal(OPS.softmax(x, 1.0, None), OPS.softmax(x.contiguous(), 1.0, None))
    transposed = torch.randn(16, 3).t()
    given = OPS.rms_norm(transposed, torch.ones(16), 1e-6)
    assert torch.equal(given, OPS.rms_norm(transposed.contiguous(), torch.ones(16), 1e-6))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gradients_stop() -> None:
    x = torch.randn(2, 8, requires_grad=True)
    y = OPS.rms_norm(x, torch.ones(8), 1e-6)
    y.sum().backward()
    assert x.grad is None


def test_no_leak() -> None:
    """Calls of every form, refused ones included, leave nothing behind."""
    arguments = [(case, case.make(torch.bfloat16)) for case in CASES]
    bad = torch.ones(3)
    lengths = torch.tensor([1, 2], dtype=torch.int32)

    def round_of_calls() -> None:
        for case, values in arguments:
            run(case, values)
        with pytest.raises(ValueError, match="weight"):
            OPS.rms_norm(torch.ones(2, 4), bad, 1e-6)
        with pytest.raises(ValueError, match="lengths"):
            OPS.softmax(torch.ones(3, 4), 1.0, lengths)

    process = psutil.Process()
    for _ in range(300):
        round_of_calls()
    before = process.memory_info().rss
    for _ in range(1500):
        round_of_calls()
    # A tensor object alone is 200 bytes: one leaked a round would be 300 KB, with data far more.
    assert process.memory_info().rss - before < 256 * 1024
