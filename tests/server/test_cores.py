# SPDX-License-Identifier: Apache-2.0
"""Leases of cores: disjoint, all used, and changed only as far as they must."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from capibara_axion.server.cores import CoreLeases, Holder


def at_work(*names: str) -> list[Holder]:
    return [Holder(name) for name in names]


def test_one_model_has_all_cores_and_two_have_half_each() -> None:
    leases = CoreLeases(8, 1.0)
    leases.divide(at_work("a"), 0)
    assert leases.started("a") == tuple(range(8))
    leases.divide(at_work("a", "b"), 1)
    assert (leases.of("a"), leases.of("b")) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert leases.requests(1) == [("a", (0, 1, 2, 3))]
    leases.divide(at_work("b"), 2)
    assert leases.of("b") == tuple(range(8))


def test_a_load_beside_work_takes_the_least_and_alone_takes_all() -> None:
    leases = CoreLeases(4, 1.0)
    leases.divide([Holder("a"), Holder("b", loading=True)], 0)
    assert (len(leases.of("a")), len(leases.of("b"))) == (3, 1)
    leases.divide([Holder("b", loading=True)], 1)
    assert len(leases.of("b")) == 4


def test_ranks_and_limits_are_kept() -> None:
    leases = CoreLeases(6, 1.0)
    leases.divide([Holder("a", least=3), Holder("b", most=1)], 0)
    assert (len(leases.of("a")), len(leases.of("b"))) == (5, 1)


def test_more_models_than_cores_share() -> None:
    leases = CoreLeases(2, 1.0)
    leases.divide(at_work("a", "b", "c"), 0)
    held = [leases.of(name) for name in "abc"]
    assert all(len(cores) == 1 for cores in held)
    assert {core for cores in held for core in cores} == {0, 1}


names = st.sampled_from("abcde")
holders = st.lists(
    st.builds(
        Holder,
        name=names,
        least=st.integers(1, 3),
        most=st.none() | st.integers(1, 8),
        loading=st.booleans(),
    ),
    unique_by=lambda holder: holder.name,
    max_size=5,
)


# At the end "c" is on the core that is leased to "a", and "a" on that of "c".
_EXCHANGE = [
    ([Holder("b"), Holder("a"), Holder("e", least=3), Holder("d", most=4, loading=True)], False),
    ([Holder("b", most=2), Holder("e", most=2)], True),
    (
        [
            Holder("a", most=2),
            Holder("c", most=1),
            Holder("e", most=2),
            Holder("d", most=1, loading=True),
        ],
        True,
    ),
]


@example(2, _EXCHANGE)
@settings(deadline=None, max_examples=200)
@given(st.integers(1, 9), st.lists(st.tuples(holders, st.booleans()), max_size=8))
def test_whatever_comes_leases_are_disjoint_and_settle(
    cores: int, steps: list[tuple[list[Holder], bool]]
) -> None:
    leases, present, now = CoreLeases(cores, 1.0), set[str](), 0.0
    for wanted, prompt in steps:
        now += 0.1
        leases.divide(wanted, now)
        for holder in wanted:
            if holder.name not in present:
                present.add(holder.name)
                leases.started(holder.name)
        held = [core for holder in wanted for core in leases.of(holder.name)]
        if sum(holder.least for holder in wanted) <= cores:
            assert len(held) == len(set(held))
        assert all(leases.of(holder.name) for holder in wanted)
        assert set(held) <= set(range(cores))
        for _ in range(12 if prompt else 0):
            for name, _ in leases.requests(now):
                leases.confirm(name)
        if prompt:  # whoever answers at once need not wait for the time limit
            assert all(leases.may_compute(holder.name, now) for holder in wanted)
        assert all(leases.may_compute(holder.name, now + 1.0) for holder in wanted)
