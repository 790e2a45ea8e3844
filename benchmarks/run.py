# SPDX-License-Identifier: Apache-2.0
"""The package against the published recipe and against the truth; prints Markdown.

    make bench                                          # all, under ten minutes
    python benchmarks/run.py --only fig4 fig6           # some sections
    python benchmarks/run.py --points 5 --recipe-points 1        # a quick look

All methods run in one process, turn by turn at each point of a sweep, so that a busy
machine slows all of them alike. The first call of each, which compiles, is timed
apart. The recipe takes seconds a point and runs on a few points only: the two ratios
in its tables are over those points, everything else over all points that ran.
"""

import argparse
from collections.abc import Callable, Sequence
import itertools
import os
import time
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from recipe import recipe_gradient
import truths

NOISE = 0.5  # variance of the noise on each output of the matrix channels
RADIUS = 5.0  # largest Frobenius norm of their matrices, where they are tuned
MI = ig.MI("x", "y")
_KEYS = itertools.count()  # one key for each call: errors of points are independent


# -- the systems, as a model and as the recipe wants them ------------------------------


def multipath():
    """Two paths from x to y, one of them relayed with gains a and b (eqs. 42-44)."""
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(a * x, 1))
    v2 = numpyro.sample("v2", dist.Normal(x, 1))
    numpyro.sample("y", dist.Normal(b * v1 + v2, 1))


def simulate_multipath(params, x, noise):
    relayed = params["a"] * x + noise[:, :1]
    return params["b"] * relayed + x + noise[:, 1:2] + noise[:, 2:]


def tanh_channel():
    """An amplifier that saturates (eq. 84)."""
    eta = numpyro.param("eta", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.tanh(eta * x), 0.5))


def simulate_tanh(params, x, noise):
    return jnp.tanh(params["eta"] * x) + 0.5 * noise


def amplified(matrix):
    """A known matrix behind one gain to be tuned."""
    alpha = numpyro.param("alpha", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1).expand([len(matrix)]).to_event(1))
    numpyro.sample("y", dist.Normal(alpha * (matrix @ x), NOISE**0.5).to_event(1))


def matrix_channel(nonlinearity, size):
    """A matrix to be tuned, then a nonlinearity on each output."""
    a = numpyro.param("A", jnp.eye(size))
    x = numpyro.sample("x", dist.Normal(0, 1).expand([size]).to_event(1))
    numpyro.sample("y", dist.Normal(nonlinearity(a @ x), NOISE**0.5).to_event(1))


def draw_one(key, num):
    return jax.random.normal(key, (num, 1))


def draw_three(key, num):
    return jax.random.normal(key, (num, 3))


# -- sweeps: a gradient at each point of a line ----------------------------------------


class Sweep(NamedTuple):
    """A line of parameter values, with the true gradient at each."""

    title: str
    points: list[dict[str, float]]
    truth: list[np.ndarray]
    model: Callable[[], Any]
    methods: tuple[str, ...]
    simulate: Callable[..., jax.Array]
    sample_noise: Callable[..., jax.Array]


def fig4(num_points: int) -> list[Sweep]:
    """The two lines of Fig. 4."""
    line = np.linspace(-3, 3, num_points)
    sweeps = []
    for moving, fixed in (("a", "b"), ("b", "a")):
        points = [{moving: float(v), fixed: 1.0} for v in line]
        truth = [np.array(truths.multipath_gradient(p["a"], p["b"])) for p in points]
        sweeps.append(
            Sweep(
                f"Multipath (Fig. 4), {moving} from -3 to 3",
                points,
                truth,
                multipath,
                ("exact", "mixture", "mcmc", "denoising"),
                simulate_multipath,
                draw_three,
            )
        )
    return sweeps


def fig6(num_points: int) -> list[Sweep]:
    """The line of Fig. 6."""
    line = np.linspace(-3, 3, num_points)
    return [
        Sweep(
            "tanh channel (Fig. 6), eta from -3 to 3",
            [{"eta": float(eta)} for eta in line],
            [np.array([truths.tanh_derivative(eta)]) for eta in line],
            tanh_channel,
            ("mixture", "mcmc", "denoising"),
            simulate_tanh,
            draw_one,
        )
    ]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds until its arrays are there."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def flat(tree: Any) -> np.ndarray:
    """The numbers of a dict, by name."""
    return np.array([float(tree[name]) for name in sorted(tree)])


def ours(model: Callable, method: str, params: Any, args: tuple = ()) -> Any:
    """Gradient and standard error by one of the package's methods."""
    found = ig.gradient(
        model,
        MI,
        params=params,
        scores=method,
        model_args=args,
        rng_key=jax.random.key(next(_KEYS)),
    )
    return found.value, found.standard_error


def run_sweep(sweep: Sweep, recipe_points: int) -> None:
    """Every method at every point, the recipe at `recipe_points` in their midst."""
    calls: dict[str, Callable] = {
        name: lambda params, _, name=name: ours(sweep.model, name, params)
        for name in sweep.methods
    }
    count = min(recipe_points, len(sweep.points))
    chosen = {int((i + 0.5) * len(sweep.points) / count) for i in range(count)}
    if chosen:

        def recipe(params, key):
            gradient = recipe_gradient(
                sweep.simulate,
                {name: jnp.asarray(v) for name, v in params.items()},
                draw_one,
                sweep.sample_noise,
                key,
            )
            return gradient, None

        calls["recipe"] = recipe

    key = jax.random.key(0)
    first = {n: timed(lambda c=c: c(sweep.points[0], key))[1] for n, c in calls.items()}
    errors: dict[str, dict[int, float]] = {name: {} for name in calls}
    seconds: dict[str, dict[int, float]] = {name: {} for name in calls}
    misses: dict[str, list[float]] = {name: [] for name in calls}
    for i, (params, truth) in enumerate(zip(sweep.points, sweep.truth, strict=True)):
        for name, call in calls.items():
            if name == "recipe" and i not in chosen:
                continue
            (value, error), spent = timed(
                lambda c=call, p=params, i=i: c(p, jax.random.fold_in(key, i))
            )
            off = np.abs(flat(value) - truth)
            errors[name][i], seconds[name][i] = off.mean(), spent
            if error is not None and flat(error).all():
                misses[name] += list(off / flat(error))

    print(f"\n### {sweep.title}\n")
    row("method", "points", "mean error", "max error", "within 2 s.e.", "s a point",
        "first call, s", "error ratio", "time ratio")  # fmt: skip
    row(*("---",) + ("---:",) * 8)
    for name in calls:
        off, spent = (list(d[name].values()) for d in (errors, seconds))
        row(
            name if name == "recipe" else f"`{name}`",
            len(off),
            f"{np.mean(off):.1e}",
            f"{np.max(off):.1e}",
            f"{np.mean(np.array(misses[name]) < 2):.0%}" if misses[name] else "",
            f"{np.median(spent):.3f}",
            f"{first[name]:.1f}",
            *(ratio(d, name) for d in (errors, seconds)),
        )


def ratio(numbers: dict[str, dict[int, float]], name: str) -> str:
    """The recipe's mean over a method's own, at the points that both ran."""
    theirs = numbers.get("recipe", {})
    if not theirs or name == "recipe":
        return ""
    return f"{sum(theirs.values()) / sum(numbers[name][i] for i in theirs):.3g}"


def row(*cells: Any) -> None:
    """One line of a Markdown table, at once."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# -- many inputs and outputs -----------------------------------------------------------


def run_mimo(num_points: int) -> None:
    """dI/dalpha of y = alpha A x + noise, 8 x 8, with learned scores."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2))
    matrix = left @ np.diag(np.geomspace(3, 0.3, 8)) @ right
    args = (jnp.asarray(matrix, jnp.float32),)
    line = np.linspace(0, 3, num_points)
    _, first = timed(lambda: ours(amplified, "denoising", {"alpha": 1.0}, args))
    worst, total, misses = 0.0, 0.0, []
    for alpha in line:
        params = {"alpha": float(alpha)}
        (value, error), spent = timed(
            lambda p=params: ours(amplified, "denoising", p, args)
        )
        truth = truths.mimo_derivative(alpha, matrix, NOISE)
        off = abs(float(value["alpha"]) - truth)
        total += spent
        if alpha >= 0.1 - 1e-9:
            worst = max(worst, off / truth)
            misses.append(off / float(error["alpha"]))
    print("\n### MIMO, 8 x 8, dI/dalpha, alpha from 0 to 3\n")
    row("method", "points", "worst relative error, alpha >= 0.1", "within 2 s.e.",
        "s for the sweep", "first call, s")  # fmt: skip
    row(*("---",) + ("---:",) * 5)
    covered = f"{np.mean(np.array(misses) < 2):.0%}"
    row("`denoising`", num_points, f"{worst:.2%}", covered, f"{total:.1f}",
        f"{first:.1f}")  # fmt: skip


def run_large(sizes: Sequence[int]) -> None:
    """The gradient in a whole matrix, behind tanh on each output.

    The matrix has orthonormal rows. So the outputs are separate scalar channels, and
    the gradient is the matrix times the derivative of one channel.
    """
    print("\n### y = tanh(A x) + noise, the gradient in A\n")
    row("outputs", "parameters", "scores", "error", "standard error",
        "along the gradient", "its standard error", "s", "first call, s")  # fmt: skip
    row(*("---:",) * 2 + ("---",) + ("---:",) * 6)
    for size in sizes:
        matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
        truth = truths.tanh_derivative(1.0, NOISE) * matrix
        norm = np.linalg.norm(truth)
        for method in ("mcmc", "denoising"):

            def call(method=method, size=size, matrix=matrix):
                params = {"A": jnp.asarray(matrix, jnp.float32)}
                return ours(matrix_channel, method, params, (jnp.tanh, size))

            _, first = timed(call)
            (value, error), spent = timed(call)
            off, error = np.asarray(value["A"]) - truth, np.asarray(error["A"])
            row(
                size,
                size**2,
                f"`{method}`",
                f"{np.linalg.norm(off) / norm:.1%}",
                f"{np.linalg.norm(error) / norm:.1%}",
                f"{np.vdot(off, truth) / norm**2:+.2%}",
                f"{np.linalg.norm(error * truth) / norm**2:.2%}",
                f"{spent:.1f}",
                f"{first:.1f}",
            )


def saturated_information(matrix: np.ndarray) -> tuple[float, float]:
    """I(x;y) of y = tanh(A x) + noise with its standard error, without the package.

    Nested averages for A and for its polar factor share their draws, so that little
    is left of the noise in their difference; the polar factor's own value, whose rows
    are orthogonal and of equal norm, is a sum of scalar channels on a dense grid.
    """
    size = len(matrix)
    left, _, right = np.linalg.svd(matrix)
    best = left @ right * RADIUS / size**0.5
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(2, 2048, size))
    inner = rng.normal(size=(32768, size))

    def log_marginal(a: np.ndarray) -> np.ndarray:
        y = np.tanh(x @ a.T) + NOISE**0.5 * noise
        mean = np.tanh(inner @ a.T)
        # The terms in y alone are kept: they differ between the two matrices.
        log_p = (y @ mean.T - 0.5 * (mean**2).sum(1)) / NOISE
        return logsumexp(log_p, axis=1) - 0.5 * (y**2).sum(1) / NOISE

    gap = log_marginal(best) - log_marginal(matrix)
    known = size * truths.tanh_information(RADIUS / size**0.5, NOISE)
    return known + gap.mean(), gap.std() / len(gap) ** 0.5


def linear_information(matrix: np.ndarray) -> tuple[float, float]:
    """I(x;y) of y = A x + noise."""
    return truths.mimo_information(1.0, matrix, NOISE), 0.0


def run_ascents() -> None:
    """Matrices of norm at most 5, from a random start, to the known maximum."""
    print("\n### Ascent from a random matrix of norm at most 5\n")
    row("channel", "scores", "steps", "reached, nats", "maximum", "share",
        "s after compiling", "first call, s", "how it ended")  # fmt: skip
    row(*("---",) * 2 + ("---:",) * 6 + ("---",))
    for title, nonlinearity, size, information in (
        ("linear, 8 x 8", identity, 8, linear_information),
        ("tanh, 12 x 12", jnp.tanh, 12, saturated_information),
    ):
        best, _ = information(np.eye(size) * RADIUS / size**0.5)
        for scores in ("mcmc", "denoising"):

            def ascend(num_steps, nonlinearity=nonlinearity, size=size, scores=scores):
                start = jax.random.normal(jax.random.key(1), (size, size))
                return ig.maximize_mi(
                    matrix_channel,
                    "x",
                    "y",
                    num_steps=num_steps,
                    projection=inside,
                    scores=scores,
                    init_params={"A": start},
                    progress_bar=False,
                    model_args=(nonlinearity, size),
                )

            _, first = timed(lambda ascend=ascend: ascend(20))
            result, spent = timed(lambda ascend=ascend: ascend(None))
            value, error = information(np.asarray(result.params["A"], float))
            row(
                title,
                f"`{scores}`",
                len(result.history["gain"]),
                f"{value:.4f}" + (f" +- {error:.4f}" if error else ""),
                f"{best:.6f}",
                f"{value / best:.2%}",
                f"{spent:.1f}",
                f"{first:.1f}",
                result.status,
            )


def identity(v):
    return v


def inside(params):
    return optax.projections.projection_l2_ball(params, RADIUS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ("fig4", "fig6", "mimo", "large", "ascents")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--points", type=int, default=21, help="points of a line")
    parser.add_argument("--recipe-points", type=int, default=3, help="0 leaves it out")
    parser.add_argument("--mimo-points", type=int, default=31)
    parser.add_argument("--sizes", type=int, nargs="+", default=(64, 256))
    options = parser.parse_args(arguments)

    begin = time.perf_counter()
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, {device}, "
          f"{os.cpu_count()} cores")  # fmt: skip
    for section, make in (("fig4", fig4), ("fig6", fig6)):
        if section in options.only:
            for sweep in make(options.points):
                run_sweep(sweep, options.recipe_points)
    if "mimo" in options.only:
        run_mimo(options.mimo_points)
    if "large" in options.only:
        run_large(options.sizes)
    if "ascents" in options.only:
        run_ascents()
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
