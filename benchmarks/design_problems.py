# SPDX-License-Identifier: Apache-2.0
"""Published problems of Bayesian experimental design; prints Markdown.

    python benchmarks/design_problems.py
    python benchmarks/design_problems.py --only death discounting

Each row has a design, its expected information with the standard error, and, where one
exists, an independent value: quadrature, or a classical optimum. The bounds are the
prior contrastive and the nested Monte Carlo bound. Seconds are those of the processor.
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


def row(problem, design, value, error, check=""):
    print(
        f"| {problem} | {design} | {value:.4f} +- {error:.1g} | {check} |", flush=True
    )


def d_optimal(respond, middle, spread, tried, end):
    """Times with the most information if the response were linear at the median."""

    def lost(t):
        noise = respond(middle, t)[1]
        slope = jax.jacobian(lambda theta: respond(theta, t)[0])(middle)
        scaled = spread * slope / noise[:, None]
        return -jnp.linalg.slogdet(jnp.eye(len(middle)) + scaled.T @ scaled)[1]

    both = jax.jit(jax.value_and_grad(lost))
    inside = [(0.01, end)] * tried.shape[1]
    found = [
        optimize.minimize(
            lambda t: tuple(np.asarray(x, float) for x in both(t)),
            start,
            jac=True,
            bounds=inside,
        )
        for start in sorted(tried, key=lambda t: both(t)[0])[:4]
    ]
    return min(found, key=lambda each: each.fun).x.astype(np.float32)


def compare_times(model, target, respond, middle, spread, end, count):
    """Rows of times by chance, at equal intervals, by linearising, and by an ascent."""
    began = time.process_time()
    tried = np.random.default_rng(0).uniform(0, end, (64, count)).astype(np.float32)
    batch = ig.design(
        model, {"t": tried}, target, "y", num_samples=1024, num_components=256
    )
    ascent = ig.maximize_mi(
        model,
        target,
        "y",
        scores="contrastive",
        init_params=batch.best,
        num_steps=200,
        progress_bar=False,
    )
    seconds = time.process_time() - began
    rows = {
        f"median of {len(tried)} random": tried[batch.ranking[len(tried) // 2]],
        "equal intervals": end * np.arange(1, count + 1, dtype=np.float32) / count,
        "D-optimal at the median": d_optimal(respond, middle, spread, tried, end),
        f"best of {len(tried)} random": batch.best["t"],
        "ascent from there": np.asarray(ascent.params["t"]),
    }
    times = np.stack(list(rows.values())).clip(0, 0.999 * end)
    found = ig.design(
        model, {"t": times}, target, "y", num_samples=4096, num_components=2**15
    )
    for i, name in enumerate(rows):
        check = f"bounds {found.lower[i]:.3f} and {found.upper[i]:.3f}"
        if i == len(rows) - 1:
            check += f"; {seconds:.0f} s"
        design = f"{name}: {', '.join(f'{t:.1f}' for t in np.sort(times[i]))}"
        row(model.__name__, design, found.value[i], found.standard_error[i], check)


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


BLOOD = jnp.log(jnp.array([1.0, 0.1, 20.0])), 0.05**0.5


def concentration(theta, t):
    """Concentrations of a drug at hours t, and their noise, of two kinds."""
    taken, lost, volume = jnp.exp(theta)
    fall = jnp.exp(-lost * t) - jnp.exp(-taken * t)
    mean = DOSE / volume * taken / (taken - lost) * fall
    return mean, jnp.sqrt(0.1 + 0.01 * mean**2)


def pharmacokinetics():
    """Five concentrations of a drug after a dose."""
    start = jnp.array([0.5, 2.0, 6.0, 12.0, 20.0])
    between = dist.constraints.interval(0.0, HOURS)
    t = numpyro.param("t", start, constraint=between)
    theta = numpyro.sample("theta", dist.Normal(*BLOOD).to_event(1))
    numpyro.sample("y", dist.Normal(*concentration(theta, t)).to_event(1))


def show_pharmacokinetics():
    compare_times(pharmacokinetics, "theta", concentration, *BLOOD, HOURS, SAMPLES)


# -- an epidemic: on which days to count the sick --------------------------------------
TOWN, DAYS, COUNTS, STEPS = 500.0, 60.0, 3, 60


def sick(infect, recover, t):
    """Sick people at time t of the SIR equations, by Runge-Kutta steps of t / STEPS."""

    def slope(well, ill):
        new = infect * well * ill / TOWN
        return jnp.array([-new, new - recover * ill])

    def step(at, _):
        h = t / STEPS
        a = slope(*at)
        b = slope(*(at + 0.5 * h * a))
        c = slope(*(at + 0.5 * h * b))
        d = slope(*(at + h * c))
        return at + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(step, jnp.array([TOWN - 2, 2.0]), None, length=STEPS)[0][1]


RATES = jnp.log(jnp.array([0.5, 0.1])), 0.5  # a day, of infection and recovery


def counted(rates, t):
    """Counts of the sick on days t, and their noise."""
    mean = jax.vmap(lambda t: sick(*jnp.exp(rates), t))(t)
    return mean, jnp.sqrt(1 + mean + (0.1 * mean) ** 2)


def epidemic():
    """Three noisy counts of the sick in a town of 500; two are sick on day 0."""
    start = jnp.array([10.0, 20.0, 40.0])
    t = numpyro.param("t", start, constraint=dist.constraints.interval(0.0, DAYS))
    rates = numpyro.sample("rates", dist.Normal(*RATES).to_event(1))
    numpyro.sample("y", dist.Normal(*counted(rates, t)).to_event(1))


def show_epidemic():
    compare_times(epidemic, "rates", counted, *RATES, DAYS, COUNTS)


PROBLEMS = {
    "death": show_death,
    "discounting": show_discounting,
    "elasticity": show_elasticity,
    "pharmacokinetics": show_pharmacokinetics,
    "epidemic": show_epidemic,
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
