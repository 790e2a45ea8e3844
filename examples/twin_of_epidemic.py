# SPDX-License-Identifier: Apache-2.0
"""A stochastic epidemic fitted to reported cases, without a likelihood.

A disease starts with 50 cases in each of 2000 towns. Reports in four weeks count some
of the new infections: which share is unknown, and it varies by 10 %. Infections and
recoveries differ by chance between towns and are not recorded. The twin finds the
reproduction number, the weeks of illness and the reported share, with standard errors.

NumPy simulates towns of whole people, whose infections and recoveries are binomial.
Binomial draws have no derivative. In their place the twin has smooth shares of people
with almost the same mean and variance.
"""

import numpy as np

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

TOWNS, PEOPLE, SEEDS, WEEKS = 2000, 50_000, 50, 9
RECORDED = np.array([2, 4, 6, 8])  # the third week, the fifth, and so on
NOISE = 0.1  # standard deviation of the logarithm of the reported share
TRUTH = {"r0": 2.0, "weeks_ill": 1.5, "reported": 0.4}


def simulate(rng, r0, weeks_ill, reported):
    """Logarithms of reported cases of all towns, from whole people."""
    well, ill = np.full(TOWNS, PEOPLE - SEEDS), np.full(TOWNS, SEEDS)
    cases = []
    for _ in range(WEEKS):
        new = rng.binomial(well, -np.expm1(-r0 / weeks_ill * ill / PEOPLE))
        gone = rng.binomial(ill, -np.expm1(-1 / weeks_ill))
        well, ill = well - new, ill + new - gone
        cases.append(np.log(reported * new) + NOISE * rng.normal(size=TOWNS))
    return np.stack(cases, axis=1)[:, RECORDED]


def share(luck, number, p):
    """A smooth share in (0, 1), almost with the moments of a binomial share."""
    variance = 1 / (number * p * (1 - p))  # of the logit
    logit = jnp.log(p) - jnp.log1p(-p)
    return jax.nn.sigmoid(logit - (0.5 - p) * variance + jnp.sqrt(variance) * luck)


def infections(luck, r0, weeks_ill):
    """New infections in each week, from two standard normal numbers a week."""

    def week(state, luck):
        well, ill = state
        new = well * share(luck[0], well, -jnp.expm1(-r0 / weeks_ill * ill / PEOPLE))
        gone = ill * share(luck[1], ill, -jnp.expm1(-1 / weeks_ill))
        return (well - new, ill + new - gone), new

    start = (PEOPLE - float(SEEDS), float(SEEDS))
    return jax.lax.scan(week, start, luck)[1]


def epidemic():
    positive, unit = dist.constraints.positive, dist.constraints.unit_interval
    r0 = numpyro.param("r0", 1.7, constraint=positive)
    weeks_ill = numpyro.param("weeks_ill", 1.3, constraint=positive)
    reported = numpyro.param("reported", 0.5, constraint=unit)
    luck = numpyro.sample("luck", dist.Normal(0, 1).expand([WEEKS, 2]).to_event(2))
    mean = jnp.log(reported * infections(luck, r0, weeks_ill)[RECORDED])
    numpyro.sample("log_cases", dist.Normal(mean, NOISE).to_event(1))


def fit(seed):
    """A twin of towns that NumPy simulates with this seed."""
    recorded = {"log_cases": simulate(np.random.default_rng(seed), **TRUTH)}
    key = jax.random.key(seed)
    return ig.calibrate(
        epidemic, recorded, divergence="kl", progress_bar=False, rng_key=key
    )


def main():
    twin = fit(seed=0)
    print(twin)
    for name, value in TRUTH.items():
        off = (float(twin.params[name]) - value) / float(twin.standard_error[name])
        print(f"{name}: true {value}, off by {off:+.1f} standard errors")


if __name__ == "__main__":
    main()
