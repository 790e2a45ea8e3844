# SPDX-License-Identifier: Apache-2.0
"""A tuned transmit filter against linear designs, valued by a trellis in NumPy."""

import itertools
from pathlib import Path
import runpy

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

import jax

from helpers import assert_within
import numpyro_infograd as ig

EXAMPLE = Path(__file__).parents[1] / "examples" / "isi_amplifier.py"
LEVELS = np.array([-3.0, -1.0, 1.0, 3.0]) / np.sqrt(5.0)
CABLE, NOISE, USES, TAPS = (0.8, 0.6), 0.3, 32, 3
MEMORY = TAPS + len(CABLE) - 2  # earlier symbols that an output reads


def received(symbols, taps, cable=CABLE):
    """Outputs without noise; symbols (..., uses) are zero before the first use."""
    uses = symbols.shape[-1]
    line = np.pad(symbols, [(0, 0)] * (symbols.ndim - 1) + [(MEMORY, 0)])

    def delayed(signal, by):
        return signal[..., len(taps) - 1 - by : signal.shape[-1] - by]

    sent = np.tanh(sum(tap * delayed(line, i) for i, tap in enumerate(taps)))
    start = sent.shape[-1] - uses
    return sum(
        tap * sent[..., start - i : sent.shape[-1] - i] for i, tap in enumerate(cable)
    )


def log_density(y, taps, cable=CABLE):
    """log p(y) of each row, in nats, by the forward recursion over the trellis.

    A state is the last MEMORY symbols, oldest first. The line is silent before the
    first use, so all states are the same there.
    """
    branches = np.array(list(itertools.product(LEVELS, repeat=MEMORY + 1)))
    alpha = np.full((len(y), len(LEVELS) ** MEMORY), -MEMORY * np.log(len(LEVELS)))
    for t in range(y.shape[1]):
        known = branches.copy()
        known[:, : max(MEMORY - t, 0)] = 0.0  # before the first use
        mean = received(known, taps, cable)[:, -1]
        step = -0.5 * ((y[:, t, None] - mean) / NOISE) ** 2 - np.log(len(LEVELS))
        joint = np.repeat(alpha, len(LEVELS), axis=1) + step
        alpha = logsumexp(joint.reshape(len(y), len(LEVELS), -1), axis=1)
    constant = 0.5 * np.log(2 * np.pi * NOISE**2)
    return logsumexp(alpha, axis=1) - y.shape[1] * constant


def informations(taps, count, seed, cable=CABLE):
    """log p(y | x) / p(y) of simulated uses, in nats for each use, (count,).

    Equal seeds give equal symbols and noise. `cable` is that of the trellis alone.
    """
    rng = np.random.default_rng(seed)
    symbols = rng.choice(LEVELS, (count, USES))
    noise = NOISE * rng.standard_normal((count, USES))
    y = received(symbols, taps) + noise
    given = -0.5 * np.sum((noise / NOISE) ** 2 + np.log(2 * np.pi * NOISE**2), axis=1)
    return (given - log_density(y, taps, cable)) / USES


def linear_information(taps, power):
    """Of normal symbols through a linear driver of a power, in nats for each use."""
    impulse = np.sqrt(power) * np.convolve(taps, CABLE) / np.linalg.norm(taps)
    h = sum(v * np.eye(USES, k=-k) for k, v in enumerate(impulse))
    return 0.5 * np.linalg.slogdet(np.eye(USES) + h @ h.T / NOISE**2)[1] / USES


def mean_and_error(each):
    return each.mean(), each.std() / np.sqrt(len(each))


@pytest.mark.slow
def test_a_tuned_filter_beats_all_linear_designs():
    made = runpy.run_path(str(EXAMPLE))
    for power, taps in zip(made["POWERS"], made["textbook"], strict=True):
        ends = (
            minimize(lambda h, p=power: -linear_information(h, p), start).fun
            for start in np.eye(TAPS)
        )
        assert linear_information(taps, power) == pytest.approx(-min(ends), rel=1e-4)

    # The density is that of the trellis, sample by sample.
    filters, compared = np.asarray(made["both"]["taps"], float), made["compared"]
    sm = ig.structural_model(made["link"])
    at = {"taps": made["both"]["taps"][1]}
    y = sm.sample(jax.random.key(1), 64, at)["y"]
    density = sm.density(("y",), whole=True)
    found = jax.jit(density.log_probs)(at, {"y": y})
    truth = log_density(np.asarray(y, float), filters[1])
    np.testing.assert_allclose(found, truth, atol=1e-3)

    # The package and the trellis value each filter on different draws.
    each = [informations(taps, 8192, seed=0) for taps in filters]
    value, error = compared.value / USES, compared.standard_error / USES
    for i in range(2):
        truth, truth_error = mean_and_error(each[i])
        both = np.hypot(error[i], truth_error)
        assert_within(value[i], both, truth, max_standard_error=0.002)
    gain, gain_error = -compared.difference[0], compared.difference_error[0]
    truth, truth_error = mean_and_error(each[1] - each[0])
    print(f"trellis: gain {truth:.5f} +- {truth_error:.1g}")
    assert gain > 4 * gain_error
    assert truth > 4 * truth_error
    both = np.hypot(gain_error / USES, truth_error)
    assert_within(gain / USES, both, truth, max_standard_error=0.001)

    # The trellis finds no linear design, at any gain, near the tuned filter.
    tuned = informations(filters[1], 512, seed=0)
    for taps in made["textbook"]:
        for factor in made["GAINS"][::4]:
            rival = informations(factor * np.asarray(taps, float), 512, seed=0)
            truth, truth_error = mean_and_error(tuned - rival)
            assert truth > 4 * truth_error

    # Negative control: a trellis without the second tap of the cable.
    wrong, _ = mean_and_error(informations(filters[1], 512, 0, cable=(0.8, 0.0)))
    assert abs(wrong - value[1]) > 0.1
