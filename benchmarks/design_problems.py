# SPDX-License-Identifier: Apache-2.0
"""Published problems of Bayesian experimental design; prints Markdown.

    python benchmarks/design_problems.py
    python benchmarks/design_problems.py --only death discounting

Each row has a design, its expected information with the standard error, and, where one
exists, an independent value: quadrature, or a classical optimum. The bounds are the
prior contrastive and the nested Monte Carlo bound.
"""

import argparse
import math
import time

import numpy as np
from scipy import optimize, stats

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, xlogy

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from numpyro_infograd.distributions import Clipped

Z = np.linspace(-6, 6, 1920)  # points of a standard normal variable, without 0
WEIGHT = stats.norm.pdf(Z) / stats.norm.pdf(Z).sum()
BOUNDS = ig.values.Nested(num_components=2**15, max_components=2**15)


def row(problem, design, value, error, check=""):
    print(
        f"| {problem} | {design} | {value:.4f} +- {error:.1g} | {check} |", flush=True
    )


def from_table(weight, p):
    """I(theta; y) of probabilities p (num_thetas, num_outcomes), in nats."""
    joint = weight @ np.asarray(xlogy(p, p)).sum(axis=1)
    free = weight @ p
    return float(joint - np.asarray(xlogy(free, free)).sum())


# -- an epidemic: when to count the infected (Cook, Gibson and Gilligan 2008) ----------
PEOPLE, SPREAD = 50, 0.1


def death(time):
    """Each of 50 people is infected at the rate b; all are counted once."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    b = numpyro.deterministic("b", jnp.exp(-0.005 + SPREAD * z))
    p = jnp.clip(-jnp.expm1(-b * time), 1e-6, 1 - 1e-6)
    numpyro.sample("y", dist.Binomial(PEOPLE, p))


def show_death():
    times = jnp.linspace(0.2, 6.0, 59)
    found = ig.design(death, times, "z", "y")
    i = found.ranking[0]
    best = float(found.best)
    p = -np.expm1(-np.exp(-0.005 + SPREAD * Z) * best)
    truth = from_table(WEIGHT, stats.binom.pmf(np.arange(51), PEOPLE, p[:, None]))
    # The Fisher information at b = 1 is PEOPLE t^2 / (exp(t) - 1).
    classical = optimize.brentq(lambda t: 2 - t / -math.expm1(-t), 0.1, 5)
    row(
        "death process",
        f"t = {best:.2f}",
        found.value[i],
        found.standard_error[i],
        f"{truth:.4f} by quadrature; D-optimal at the median: t = {classical:.2f}",
    )


# -- a choice between money now and later (Vincent and Rainforth 2017) -----------------
def discounting(now, delay):
    """Whether 100 pounds after a delay in days are chosen over an amount now."""
    k = numpyro.sample("k", dist.LogNormal(-4.25, 1.5))
    a = numpyro.sample("a", dist.HalfNormal(2.0))
    gain = 100.0 / (1.0 + k * delay) - now
    numpyro.sample("y", dist.Bernoulli(0.01 + 0.98 * ndtr(gain / a)))


def show_discounting():
    amounts, delays = jnp.arange(5.0, 100.0, 5.0), jnp.array([1.0, 7, 30, 90, 180, 365])
    now, delay = (x.ravel() for x in jnp.meshgrid(amounts, delays))
    found = ig.design(discounting, {"now": now, "delay": delay}, ("k", "a"), "y")
    i, best = found.ranking[0], found.best
    a = 2 * np.abs(Z)[:, None]
    gain = 100 / (1 + np.exp(-4.25 + 1.5 * Z) * float(best["delay"]))
    gain -= float(best["now"])
    p = (0.01 + 0.98 * stats.norm.cdf(gain / a)).ravel()
    truth = from_table(np.outer(WEIGHT, WEIGHT).ravel(), np.stack([p, 1 - p], axis=1))
    design = f"{best['now']:.0f} now or 100 in {best['delay']:.0f} days"
    check = f"{truth:.4f} by quadrature"
    row("discounting", design, found.value[i], found.standard_error[i], check)


# -- preferences between baskets of goods (Foster et al. 2019, 2020) -------------------
EDGE = math.log(2**22 - 1.0)  # the logit at which a slider ends


def elasticity(pair):
    """How much a basket of three goods is preferred to another, on a slider.

    The slider shows the sigmoid of a normal variable, clipped to 2^-22 from its ends.
    The site is the logit, which has the same information.
    """
    rho = numpyro.sample("rho", dist.Beta(1, 1))
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
    u = numpyro.sample("u", dist.LogNormal(1, 3))

    def worth(goods):
        return jnp.sum(share * goods**rho) ** (1 / rho)

    first, second = pair
    gap = jnp.linalg.norm(first - second)
    law = dist.Normal(u * (worth(first) - worth(second)), 0.005 * u * (1 + gap))
    numpyro.sample("y", Clipped(law, -EDGE, EDGE))


def show_elasticity():
    pairs = np.random.default_rng(0).uniform(1, 100, (128, 2, 3)).astype(np.float32)
    near = pairs[:, :1] * np.array([1.0, 1.05])[None, :, None]  # almost the same basket
    tried = np.concatenate([pairs, np.clip(near + 0.3 * (pairs - 50), 1, 100)])
    found = ig.design(elasticity, tried, ("rho", "share", "u"), "y")
    i = found.ranking[0]
    design = " or ".join(str(np.round(goods).astype(int)) for goods in found.best)
    check = f"bounds {found.lower[i]:.3f} and {found.upper[i]:.3f}"
    row("elasticity", design, found.value[i], found.standard_error[i], check)


# -- when to draw blood after a dose (Ryan et al. 2014) --------------------------------
SAMPLES, DOSE, HOURS = 5, 400.0, 24.0


def pharmacokinetics():
    """Five concentrations of a drug after a dose, with two kinds of noise."""
    start = jnp.array([0.5, 2.0, 6.0, 12.0, 20.0])
    between = dist.constraints.interval(0.0, HOURS)
    t = numpyro.param("t", start, constraint=between)
    middle = jnp.log(jnp.array([1.0, 0.1, 20.0]))
    theta = numpyro.sample("theta", dist.Normal(middle, 0.05**0.5).to_event(1))
    taken, lost, volume = jnp.exp(theta)
    fall = jnp.exp(-lost * t) - jnp.exp(-taken * t)
    mean = DOSE / volume * taken / (taken - lost) * fall
    noise = jnp.sqrt(0.1 + 0.01 * mean**2)
    numpyro.sample("y", dist.Normal(mean, noise).to_event(1))


def show_pharmacokinetics():
    even = {"t": jnp.linspace(HOURS / SAMPLES, HOURS - 0.01, SAMPLES)}
    began = time.perf_counter()
    ascent = ig.maximize_mi(
        pharmacokinetics, "theta", "y", num_steps=200, progress_bar=False
    )
    seconds = time.perf_counter() - began
    for name, params in (("even", even), ("ascent", ascent.params)):
        found = ig.mutual_information(
            pharmacokinetics,
            "theta",
            "y",
            params=params,
            method=BOUNDS,
            num_samples=4096,
        )
        low, high = (found.diagnostics[f"{end}_bound"][0] for end in ("lower", "upper"))
        hours = np.round(np.sort(np.asarray(params["t"])), 1).tolist()
        check = f"bounds {low:.3f} and {high:.3f}"
        if name == "ascent":
            check += f"; {seconds:.0f} s"
        design = f"{name}: {hours} h"
        row("pharmacokinetics", design, found.value, found.standard_error, check)


PROBLEMS = {
    "death": show_death,
    "discounting": show_discounting,
    "elasticity": show_elasticity,
    "pharmacokinetics": show_pharmacokinetics,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    args = parser.parse_args()
    print("| problem | design | information, nats | check |")
    print("|---|---|---:|---|")
    for name in args.only:
        PROBLEMS[name]()
        jax.clear_caches()


if __name__ == "__main__":
    main()
