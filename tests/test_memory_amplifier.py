# SPDX-License-Identifier: Apache-2.0
"""A tuned transmit filter against linear designs, valued by a trellis in NumPy."""

import itertools
from pathlib import Path
import runpy

import matplotlib
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

    A state is the last MEMORY symbols, oldest first. Before the first use all states are
    the same, because the line is silent.
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
