# SPDX-License-Identifier: Apache-2.0
"""Two amplify-and-forward relays in a row: three hops of two antennas.

The sender and each relay have a matrix and a power of their own. What a relay sends
depends on all matrices before it, so the powers are expectations, met by `subject_to`.
The reference is SciPy's SLSQP on the closed form, from several starts.
"""

from pathlib import Path

import matplotlib
import numpy as np
from scipy.optimize import minimize

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POWERS = (4.0, 6.0, 3.0)
NOISE = (1.0, 0.5, 1.0)  # variances
HOPS = np.random.default_rng(7).standard_normal((3, 2, 2)).astype(np.float32)


def relays():
    signal = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1).to_event(1))
    for k, (hop, noise) in enumerate(zip(HOPS, NOISE, strict=True)):
        matrix = numpyro.param(f"f{k}", 0.5 * jnp.eye(2))
        sent = numpyro.deterministic(f"sent{k}", matrix @ signal)
        name = "y" if k == 2 else f"heard{k}"
        signal = numpyro.sample(name, dist.Normal(hop @ sent, noise**0.5).to_event(1))


def closed_form(matrices):
    """I(x;y) in nats and the three powers, by covariances."""
    gain, noise, powers = jnp.eye(2), jnp.zeros((2, 2)), []
    for hop, matrix, variance in zip(HOPS, matrices, NOISE, strict=True):
        powers.append(jnp.trace(matrix @ (gain @ gain.T + noise) @ matrix.T))
        through = hop @ matrix
        gain = through @ gain
        noise = through @ noise @ through.T + variance * jnp.eye(2)
    total = jnp.linalg.slogdet(noise + gain @ gain.T)[1]
    return 0.5 * (total - jnp.linalg.slogdet(noise)[1]), jnp.stack(powers)


def reference(starts=6):
    """The best of several ascents of the closed form."""
    f = jax.jit(lambda m: closed_form(m.reshape(3, 2, 2)))
    slope = jax.jit(jax.jacobian(f))
    found = [
        minimize(
            lambda m: -float(f(m)[0]),
            start,
            jac=lambda m: -np.asarray(slope(m)[0], float),
            constraints={
                "type": "ineq",
                "fun": lambda m: np.array(POWERS) - np.asarray(f(m)[1], float),
                "jac": lambda m: -np.asarray(slope(m)[1], float),
            },
            method="SLSQP",
            options={"maxiter": 500},
        )
        for start in 0.5 * np.random.default_rng(1).standard_normal((starts, 12))
    ]
    met = [r for r in found if np.all(f(r.x)[1] <= np.array(POWERS) * (1 + 1e-4))]
    return max(-r.fun for r in met)


powers = [
    ig.Expectation(lambda v, k=k: jnp.sum(v[f"sent{k}"] ** 2)) <= bound
    for k, bound in enumerate(POWERS)
]
result = ig.maximize(
    relays, ig.MI("x", "y"), subject_to=powers, num_restarts=4, progress_bar=False
)
truth = reference()
print(f"I(x;y) {float(result.estimate.value):.5f} nats, SciPy's best {truth:.5f}")
value, used = closed_form([result.params[f"f{k}"] for k in range(3)])
for k, (report, exact) in enumerate(zip(result.constraints, used, strict=True)):
    print(f"hop {k}: power {exact:.4f} of {POWERS[k]:g}, as estimated: {report}")

history = result.history["params"]
path = jax.vmap(lambda p: closed_form([p[f"f{k}"] for k in range(3)]))(history)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(path[0], "C1", label="ascent")
left.axhline(truth, color="k", lw=0.8, label="SciPy")
left.set(xlabel="step", ylabel="I(x;y), nats")
right.plot(path[1], label=[f"hop {k}" for k in range(3)])
for k, bound in enumerate(POWERS):
    right.axhline(bound, color=f"C{k}", lw=0.8, ls="--")
right.set(xlabel="step", ylabel="power, dashed: its bound")
for axes in (left, right):
    axes.legend()
file = Path(__file__).resolve().parent / "output" / "multi_hop_relay.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(result.status)
print(file)
