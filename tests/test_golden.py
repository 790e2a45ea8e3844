# SPDX-License-Identifier: Apache-2.0
"""Gradients and values that a change of the inside must keep: `golden.json`.

`python tests/test_golden.py` writes the file again. Say in the commit why a number
moved. Other tests compare with truths.
"""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

from methods import slow
from models import affine, multipath, tanh_channel, with_gain
import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from numpyro_infograd import MI, Entropy

FILE = Path(__file__).with_name("golden.json")
XY = MI("x", "y")


one_bit = with_gain(lambda m: dist.Bernoulli(jax.nn.sigmoid(m - 0.3)))


def warped() -> None:
    x = numpyro.sample("x", dist.Normal().expand([2]).to_event(1))
    mixed = jnp.array([[1.0, 0.4], [-0.2, 0.8]]) @ (numpyro.param("a", 0.7) * x)
    noisy = numpyro.sample("noisy", dist.Normal(mixed, 0.6).to_event(1))
    numpyro.deterministic("y", jnp.arcsinh(noisy))


def complex_gain() -> None:
    x = numpyro.sample("x", ig.distributions.ComplexNormal(0.0, 1.0))
    gain = numpyro.param("a", jnp.array(0.6 + 0.3j))
    numpyro.sample("y", ig.distributions.ComplexNormal(gain * x, 0.5))


def rotated() -> None:
    x = numpyro.sample("x", dist.Normal().expand([4]).to_event(1))
    turn = jnp.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    mean = turn @ jnp.tanh(numpyro.param("a", 1.5) * x)
    numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1))


# Model, objective, method.
CASES: dict[str, tuple[Callable[[], None], Any, str]] = {
    "affine, exact": (affine, XY, "exact"),
    "affine, mixture": (affine, XY, "mixture"),
    "entropy of multipath, mixture": (multipath, Entropy("y"), "mixture"),
    "multipath given u, mixture": (multipath, MI("x", "y", given="u"), "mixture"),
    "tanh, mixture": (tanh_channel, XY, "mixture"),
    "one bit, auto": (one_bit, XY, "auto"),
    "warped, auto": (warped, XY, "auto"),
    "complex gain, auto": (complex_gain, XY, "auto"),
    "tanh, mcmc": (tanh_channel, XY, "mcmc"),
    "rotated, mcmc": (rotated, XY, "mcmc"),
    "multipath, denoising": (multipath, XY, "denoising"),
    "tanh, sliced": (tanh_channel, XY, "sliced"),
}
LEARNED = ("mcmc", "denoising", "sliced")
QUICK = ("affine, exact", "tanh, mixture", "one bit, auto", "warped, auto")


def numbers(name: str, key: int) -> dict[str, list[float]]:
    """Real and imaginary parts of the gradient of each parameter, and its error."""
    model, objective, method = CASES[name]
    found = ig.gradient(model, objective, scores=method, rng_key=jax.random.key(key))
    both = {n: (g, found.standard_error[n]) for n, g in found.value.items()}
    parts = (jnp.real, jnp.imag)
    return {n: [float(part(x)) for x in g for part in parts] for n, g in both.items()}


@pytest.mark.parametrize("key", [0, 2])
@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else slow(n) for n in CASES],
)
def test_numbers_stay(name: str, key: int) -> None:
    kept = json.loads(FILE.read_text())[name][str(key)]
    learned = CASES[name][2] in LEARNED
    for param, found in numbers(name, key).items():
        for new, old, error in zip(
            found[:2], kept[param][:2], kept[param][2:], strict=True
        ):
            # Rounding, or another run of a method whose fit or chains move with it.
            share = 3.0 if learned else 0.02
            assert abs(new - old) <= share * error + 3e-6 * abs(old)
        # Errors of a fit or of chains are themselves noisy.
        np.testing.assert_allclose(
            found[2:], kept[param][2:], rtol=0.7 if learned else 0.02, atol=1e-7
        )


if __name__ == "__main__":
    made = {n: {str(k): numbers(n, k) for k in (0, 2)} for n in CASES}
    lines = (f"{json.dumps(n)}: {json.dumps(v)}" for n, v in made.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
