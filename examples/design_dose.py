# SPDX-License-Identifier: Apache-2.0
"""Which doses to give, round by round: a dose-response curve with nuisance.

The response is e0 + emax * dose / (ed50 + dose) with Gaussian errors. Only ed50, the
dose of half effect, is wanted; e0 and emax are nuisance, and the information from its
logarithm to the responses leaves them out by itself. After each round of three doses
NUTS conditions on what was observed, and its draws make the next prior.
"""

import numpy as np

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_infograd as ig

NUMBER, SIGMA, MOST = 3, 0.3, 10.0
TRUTH = {"log_ed50": np.log(3.0), "e0": 0.2, "emax": 2.4}


def response(dose, theta):
    log_ed50, e0, emax = jnp.moveaxis(theta, -1, 0)
    return e0 + emax * dose / (jnp.exp(log_ed50) + dose)


def patients(mean, scale_tril, dose=None, y=None):
    """A round: the prior by mean and Cholesky factor, one response for each dose."""
    if dose is None:
        dose = numpyro.param("dose", jnp.array([0.5, 2.0, 8.0]))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    theta = numpyro.deterministic("theta", mean + scale_tril @ z)
    numpyro.deterministic("log_ed50", theta[0])
    numpyro.sample("y", dist.Normal(response(dose, theta), SIGMA).to_event(1), obs=y)


mean, scale_tril = jnp.array([0.0, 0.0, 2.0]), jnp.diag(jnp.array([1.0, 0.5, 0.7]))
rng = np.random.default_rng(0)
truth = np.array([TRUTH["log_ed50"], TRUTH["e0"], TRUTH["emax"]])
for number in range(3):
    design = ig.maximize_mi(
        patients,
        "log_ed50",
        "y",
        projection=lambda p: {"dose": jnp.clip(p["dose"], 0.0, MOST)},
        model_args=(mean, scale_tril),
        progress_bar=False,
    )
    dose = design.params["dose"]
    y = np.asarray(response(dose, jnp.asarray(truth))) + SIGMA * rng.normal(size=NUMBER)
    mcmc = MCMC(NUTS(patients), num_warmup=500, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(number), mean, scale_tril, dose=dose, y=jnp.asarray(y))
    draws = np.asarray(mcmc.get_samples()["theta"])
    mean = jnp.asarray(draws.mean(axis=0))
    scale_tril = jnp.asarray(np.linalg.cholesky(np.cov(draws.T)))
    print(
        f"round {number + 1}: doses {np.round(np.sort(dose), 2)}, expected information "
        f"{design.estimate}, log ed50 = {mean[0]:.2f} +- {draws[:, 0].std():.2f}"
    )
print(f"the truth: log ed50 = {truth[0]:.2f}")
