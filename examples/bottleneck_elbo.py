# SPDX-License-Identifier: Apache-2.0
"""NumPyro's SVI with an information as one term of its loss.

A latent code t of x should predict y. The ELBO of such a model charges for all of
I(x;t), so the code collapses: at its optimum t says nothing. Here the loss of SVI is

    -ELBO - weight * I(x;t),

where I is the information and not a bound of it. Then the optimum is that of the
information bottleneck, max beta I(t;y) - I(x;t), with beta = 1 / (1 - weight). For a
Gaussian pair of correlation rho it is known: if beta rho^2 > 1, then I(x;t) is
1/2 log((beta - 1) rho^2 / (1 - rho^2)), and else zero.
"""

import math

import jax
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO

import numpyro_infograd as ig

RHO, PAIRS, STEPS = 0.8, 1024, 1500
INFORMATION = ig.MI("x", "t")


def code(x):
    """The encoder: the guide of SVI, and a part of the system below."""
    e = numpyro.param("e", 0.7)
    return numpyro.sample("t", dist.Normal(e * x, 1.0))


def guide(x, y):
    with numpyro.plate("pairs", PAIRS):
        code(x)


def model(x, y):
    prior = numpyro.param("prior", 1.0, constraint=constraints.positive)
    slope = numpyro.param("slope", 0.5)
    error = numpyro.param("error", 1.0, constraint=constraints.positive)
    with numpyro.plate("pairs", PAIRS):
        t = numpyro.sample("t", dist.Normal(0.0, prior))
        numpyro.sample("y", dist.Normal(slope * t, error), obs=y)


def system():
    """The inputs of the code and the code: what carries the information."""
    code(numpyro.sample("x", dist.Normal(0.0, 1.0)))


class InformedELBO(Trace_ELBO):
    """The negative of ELBO / PAIRS + weight * I(x;t), up to a constant."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.ascent = ig.InfoMax(system, INFORMATION)
        self.state = self.ascent.init(jax.random.key(1))

    def loss(self, rng_key, params, *args):
        elbo = -super().loss(rng_key, params, *args) / PAIRS
        # The names that both have. `update` gives the gradient at these values; a
        # product with it, held constant, is a term with this gradient.
        shared = {name: params[name] for name in self.state.unconstrained_params}
        here = jax.lax.stop_gradient(shared)
        state = self.state._replace(unconstrained_params=here, rng_key=rng_key)
        _, info = self.ascent.update(state)
        information = optax.tree.vdot(info.gradient, shared)
        return -elbo - self.weight * information


def fit(weight):
    """The parameters after SVI on fresh pairs (x, y) in every step."""
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(0.03, STEPS)),
              InformedELBO(weight))  # fmt: skip

    def pairs(key):
        x, noise = jax.random.normal(key, (2, PAIRS))
        return x, RHO * x + math.sqrt(1 - RHO**2) * noise

    def step(state, key):
        return svi.update(state, *pairs(key))[0], None

    key = jax.random.key(0)
    state = svi.init(key, *pairs(key))
    state, _ = jax.lax.scan(step, state, jax.random.split(key, STEPS))
    return svi.get_params(state)


print(f"{'weight':>7}{'beta':>6}{'I(x;t)':>9}{'truth':>8}{'prior':>8}{'truth':>8}")
for weight in (0.0, 0.5, 0.75, 0.9):
    params = fit(weight)
    beta = 1 / (1 - weight)
    kept = beta * RHO**2 > 1
    true = 0.5 * math.log((beta - 1) * RHO**2 / (1 - RHO**2)) if kept else 0.0
    found = ig.estimate(system, INFORMATION, params={"e": params["e"]}).value
    print(
        f"{weight:7.2f}{beta:6.1f}{found:9.4f}{true:8.4f}"
        f"{params['prior']:8.4f}{math.exp(true):8.4f}"
    )
    assert abs(found - true) < 0.01, "SVI is not at the optimum of the bottleneck"
print("all within 0.01 nats of the closed form")
