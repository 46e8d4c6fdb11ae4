"""Fits the polynomials of GELU in `src/gelu_impl.h` and prints them as C++. Needs numpy and scipy.

python fit_gelu.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtr

TOP = 14.0  # behind it GELU is zero, or the number itself, in float32


def fit(basis: np.ndarray, target: np.ndarray, rounds: int = 200) -> tuple[np.ndarray, float]:
    """Coefficients of the columns of `basis` with the least largest difference from `target`, and that difference.

    Lawson's algorithm: least squares, again and again, with more weight where the difference was large.
    """
    weights = np.ones(len(target))
    for _ in range(rounds):
        root = np.sqrt(weights)
        coefficients, *_ = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)
        difference = np.abs(basis @ coefficients - target)
        weights *= difference / difference.max() + 1e-3
        weights /= weights.sum()
    return coefficients, float(difference.max())


def power_of_2(degree: int, first: float = -0.5) -> tuple[np.ndarray, float]:
    """2^x on [first, first + 1], in the relative error."""
    x = np.linspace(first, first + 1, 2001)
    return fit(np.vander(x, degree + 1, increasing=True) / 2.0 ** x[:, None], np.ones_like(x))


def tail(degree: int, p: float) -> tuple[np.ndarray, float]:
    """exp(a^2/2) Phi(-a) in t = 1/(1 + p a) up to `TOP`, in the relative error."""
    a = np.linspace(0, TOP, 6001)
    exact = 0.5 * erfcx(a / np.sqrt(2))
    basis = np.vander(1 / (1 + p * a), degree + 1, increasing=True)
    return fit(basis / exact[:, None], np.ones_like(a))


def eighth_root(degree: int) -> tuple[np.ndarray, float]:
    """The eighth root of 1 / Phi(-a) in a up to 6, in the error of a Phi(-a)."""
    a = np.linspace(0, 6, 6001)
    root = ndtr(-a) ** (-1 / 8)
    slope = (8 * a * ndtr(-a) + 1e-9) / root  # of a Phi(-a) by the root
    return fit(np.vander(a, degree + 1, increasing=True) * slope[:, None], root * slope)


def logarithms() -> Iterator[tuple[np.ndarray, float]]:
    """log2 Phi(-a) in a, for a within 0.25 of 0, 0.5, 1 and so on up to 15.5."""
    for middle in np.arange(32) / 2:
        a = np.linspace(max(middle - 0.25, 0.0), middle + 0.25, 201)
        yield fit(np.vander(a, 3, increasing=True), log_ndtr(-a) / np.log(2))


STEP = 5.6  # places in a unit, of which the last is 31 / STEP: behind it, a Phi(-a) is at most 9e-8


def tails() -> Iterator[tuple[np.ndarray, float]]:
    """Phi(-a) in a around each multiple of 1 / STEP, in the error of a Phi(-a)."""
    for middle in np.arange(32) / STEP:
        a = np.linspace(max(middle - 0.5 / STEP, 0.0), middle + 0.5 / STEP, 201)
        weight = np.maximum(a, 0.05)
        yield fit(np.vander(a, 4, increasing=True) * weight[:, None], ndtr(-a) * weight)


def slopes() -> Iterator[tuple[np.ndarray, float]]:
    """Phi(-a) - a phi(a), GELU's slope at -a, in a around each multiple of 1 / STEP."""
    for middle in np.arange(32) / STEP:
        a = np.linspace(max(middle - 0.5 / STEP, 0.0), middle + 0.5 / STEP, 201)
        yield fit(np.vander(a, 4, increasing=True), ndtr(-a) - a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi))


def show(name: str, fitted: tuple[np.ndarray, float]) -> None:
    coefficients, error = fitted
    print(f"// {error:.1e}\nstatic constexpr float {name}[] = {{{', '.join(f'{float(c)!r}f' for c in coefficients)}}};")


def show_places(name: str, fits: list[tuple[np.ndarray, float]]) -> None:
    """The fits' coefficients of each power, one behind the other."""
    print(f"// {max(error for _, error in fits):.1e}")
    for power, values in enumerate(np.stack([coefficients for coefficients, _ in fits], axis=1).astype(np.float32)):
        numbers = ", ".join(f"{value!s}f" for value in values)
        print(f"static constexpr float {name}{power}[{len(values)}] = {{{numbers}}};")


for struct, degree, tail_degree, p in (("Exact", 5, 6, 0.3), ("Rough", 3, 3, 0.36)):
    print(f"\n// {struct}, p = {p}")
    show("power_of_2", power_of_2(degree))
    show("tail", tail(tail_degree, p))

print("\n// float32")
show("eighth_root", eighth_root(8))

print("\n// bfloat16, with look-ups")
show("power_of_2", power_of_2(3, first=0.0))
show_places("logarithm", list(logarithms()))

print("\n// float32, with look-ups")
show_places("tail", list(tails()))

print("\n// slopes, with look-ups")
show_places("slope", list(slopes()))
