# SPDX-License-Identifier: Apache-2.0
"""A twin of a measured power amplifier, from its outputs alone; prints Markdown.

    python benchmarks/amplifier.py FOLDER

FOLDER holds `input.csv` and `output.csv`, complex baseband samples in columns I and Q,
as in the OpenDPD data sets (lab-emi/OpenDPD, DPA_200MHz). The twin sees windows of the
output, and windows of the input in random order: never a pair. It is a memory
polynomial, and is held against the same polynomial fitted to the pairs.
"""

import argparse
from pathlib import Path
import time

import numpy as np
from scipy.special import eval_genlaguerre

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

TAPS, ORDERS, WINDOW = 3, 4, 3


def load(path):
    """Complex samples of unit power."""
    columns = np.loadtxt(path, delimiter=",", skiprows=1)
    samples = columns[:, 0] + 1j * columns[:, 1]
    return samples / np.sqrt(np.mean(np.abs(samples) ** 2))


def windows(samples, width):
    """Runs of consecutive samples, real and imaginary parts side by side."""
    view = np.lib.stride_tricks.sliding_window_view(samples, width)
    return np.concatenate([view.real, view.imag], axis=1)


def basis(x, xp=np):
    """Odd orders x L_k(|x|^2), orthonormal for a circular normal x of unit power."""
    power = xp.abs(x) ** 2
    if xp is np:
        laguerre = [eval_genlaguerre(k, 1, power) for k in range(ORDERS)]
    else:  # by the recurrence
        laguerre = [xp.ones_like(power), 2.0 - power]
        for k in range(1, ORDERS - 1):
            last, before = laguerre[-1], laguerre[-2]
            laguerre.append(((2 * k + 2 - power) * last - (k + 1) * before) / (k + 1))
    return xp.stack(
        [x * each / (k + 1) ** 0.5 for k, each in enumerate(laguerre)], axis=-1
    )


def amplify(x, weights, xp=np):
    """A memory polynomial: outputs from TAPS - 1 samples on, weights (TAPS, ORDERS)."""
    terms = basis(x, xp)
    count = x.shape[-1] - TAPS + 1
    return sum(
        terms[..., TAPS - 1 - tap : TAPS - 1 - tap + count, :] @ weights[tap]
        for tap in range(TAPS)
    )


def make_model(inputs):
    """The twin: a window of recorded inputs at random, amplified, and noise."""
    rows = jnp.asarray(windows(inputs, WINDOW + TAPS - 1))
    start = np.zeros((2, TAPS, ORDERS))
    start[0, 0, 0] = 1.0

    def model():
        weights = numpyro.param("weights", jnp.asarray(start, jnp.float32))
        sigma = numpyro.param("sigma", 0.1, constraint=dist.constraints.positive)
        row = numpyro.sample("row", dist.DiscreteUniform(0, len(rows) - 1))
        x = rows[row][: WINDOW + TAPS - 1] + 1j * rows[row][WINDOW + TAPS - 1 :]
        y = amplify(x, weights[0] + 1j * weights[1], jnp)
        mean = jnp.concatenate([y.real, y.imag])
        numpyro.sample("y", dist.Normal(mean, sigma).to_event(1))

    return model


def curve(x, y, edges):
    """AM/AM: mean output magnitude in bins of input magnitude."""
    size = np.abs(x[TAPS - 1 :])
    index = np.digitize(size, edges) - 1
    return np.array([np.mean(np.abs(y)[index == i]) for i in range(len(edges) - 1)])


def error_in_db(y, fitted):
    """Normalised mean-square error after the best phase."""
    phase = np.vdot(fitted, y)
    gap = y - fitted * phase / abs(phase)
    return 10 * np.log10(np.mean(np.abs(gap) ** 2) / np.mean(np.abs(y) ** 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--divergence", default="kl")
    options = parser.parse_args()
    inputs, outputs = (load(options.folder / f"{n}.csv") for n in ("input", "output"))

    terms = np.concatenate(
        [basis(inputs)[TAPS - 1 - t : len(inputs) - t] for t in range(TAPS)], axis=1
    )
    seen = outputs[TAPS - 1 :]
    paired = np.linalg.lstsq(terms, seen, rcond=None)[0].reshape(TAPS, ORDERS)

    began = time.perf_counter()
    twin = ig.calibrate(
        make_model(inputs),
        {"y": windows(outputs, WINDOW)},
        divergence=options.divergence,
        progress_bar=False,
    )
    seconds = time.perf_counter() - began
    weights = np.asarray(twin.params["weights"], float)
    weights = weights[0] + 1j * weights[1]
    start = np.zeros((TAPS, ORDERS))
    start[0, 0] = 1.0

    edges = np.quantile(np.abs(inputs), np.linspace(0.005, 0.995, 41))
    reference = curve(inputs, amplify(inputs, paired), edges)
    print(twin, "\n")
    print("| fit | AM/AM off the paired fit, rms | error on the pairs |")
    print("|---|---|---|")
    for name, each in (("start", start), ("twin", weights), ("paired", paired)):
        made = amplify(inputs, each)
        gap = curve(inputs, made, edges) - reference
        off = np.sqrt(np.mean(gap**2) / np.mean(reference**2))
        print(f"| {name} | {off:.2%} | {error_in_db(seen, made):.1f} dB |")
    print(f"\n{seconds:.0f} s, compiling included.")


if __name__ == "__main__":
    main()
