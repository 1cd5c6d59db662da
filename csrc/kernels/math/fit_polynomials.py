# SPDX-License-Identifier: Apache-2.0
"""Derives the polynomial coefficients of `math-inl.h`: run it to see them again.

Each is a minimax fit in the relative error, found by Remez exchange (E. Remez, 1934; in the form of
N. Brisebarre and S. Chevillard, "Efficient polynomial L-infinity approximations", ARITH 18, 2007)
in 60-digit arithmetic, then rounded to float32. Needs mpmath.
"""

from __future__ import annotations

from collections.abc import Callable

from mpmath import mp, mpf

mp.dps = 60
Function = Callable[[mpf], mpf]


def remez(f: Function, basis: list[Function], low: mpf, high: mpf) -> tuple[list[mpf], mpf]:
    """Coefficients c that minimise max |sum(c_i basis_i) / f - 1| on [low, high], and that max."""
    count = len(basis) + 1
    nodes = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count))
        for i in range(count)
    ]
    error = mpf(0)
    coefficients: list[mpf] = []
    for _ in range(40):
        system = mp.matrix(count, count)
        for row, x in enumerate(nodes):
            for column, function in enumerate(basis):
                system[row, column] = function(x) / f(x)
            system[row, count - 1] = (-1) ** row
        solution = mp.lu_solve(system, mp.matrix([1] * count))
        coefficients, levelled = list(solution[: count - 1]), abs(solution[count - 1])

        def relative(x: mpf, c: list[mpf] = coefficients) -> mpf:
            return sum(a * b(x) for a, b in zip(c, basis, strict=True)) / f(x) - 1

        nodes, error = extrema(relative, low, high, count)
        if error - levelled < error * mpf("1e-4"):
            break
    return coefficients, error


def extrema(error: Function, low: mpf, high: mpf, count: int) -> tuple[list[mpf], mpf]:
    """The `count` alternating extrema of `error` on a fine Chebyshev grid, and the largest."""
    steps = 1500
    grid = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / steps) for i in range(steps + 1)
    ]
    values = [error(x) for x in grid]
    peaks: list[tuple[mpf, mpf]] = []
    for x, value in zip(grid, values, strict=True):
        if peaks and (value > 0) == (peaks[-1][1] > 0):
            if abs(value) > abs(peaks[-1][1]):
                peaks[-1] = (x, value)
        else:
            peaks.append((x, value))
    while len(peaks) > count:
        peaks.pop(0 if abs(peaks[0][1]) < abs(peaks[-1][1]) else -1)
    assert len(peaks) == count, f"{len(peaks)} alternations, {count} needed"
    return [x for x, _ in peaks], max(abs(value) for _, value in peaks)


def powers(degrees: range) -> list[Function]:
    """The monomials of these degrees."""
    return [lambda x, n=n: x**n for n in degrees]


def report(name: str, coefficients: list[mpf], error: mpf) -> None:
    """Prints a fit as math-inl.h has it."""
    print(f"{name}: relative error {mp.nstr(error, 3)}")
    for degree, value in enumerate(coefficients):
        print(f"  c{degree} = {mp.nstr(value, 12)}f")


def main() -> None:
    """Fits everything that math-inl.h uses."""
    # exp(r) = 1 + r + r^2 Q(r) on half a reduction interval; a little wider because the
    # reduction rounds.
    half = mp.log(2) / 2 * mpf("1.0001")

    def exp_tail(r: mpf) -> mpf:
        small = abs(r) < mpf("1e-20")  # where the subtraction would cancel all digits
        return mpf(1) / 2 + r / 6 if small else (mp.exp(r) - 1 - r) / r**2

    q, _ = remez(exp_tail, powers(range(5)), -half, half)
    worst = max(
        abs((1 + r + r**2 * mp.polyval(q[::-1], r)) / mp.exp(r) - 1)
        for r in (half * i / 500 for i in range(-500, 501))
    )
    report("exp, Q", q, worst)

    # 2^f on half a reduction interval, for results that are rounded to 16 bits.
    fraction = mpf("0.5001")
    report("exp2", *remez(lambda f: mpf(2) ** f, powers(range(5)), -fraction, fraction))

    # tanh(x) = x + x^3 P(x^2) on |x| <= 0.625, in y = x^2.
    def tanh_tail(y: mpf) -> mpf:
        if y < mpf("1e-20"):
            return -mpf(1) / 3
        x = mp.sqrt(y)
        return (mp.tanh(x) / x - 1) / y

    report("tanh, P", *remez(tanh_tail, powers(range(5)), mpf(0), mpf("0.625") ** 2))

    # erfc(z) = exp(-z^2) t P(t), t = 1 / (1 + z / 2), on 0 <= z <= 10.06 (erfc(10.06) < 2^-149).
    def scaled_erfc(t: mpf) -> mpf:
        z = 2 * (1 / t - 1)
        return mp.exp(z * z) * mp.erfc(z) / t

    low = 1 / (1 + mpf("10.06") / 2)
    report("erfc, P", *remez(scaled_erfc, powers(range(10)), low, mpf(1)))


if __name__ == "__main__":
    main()
