# SPDX-License-Identifier: Apache-2.0
"""A decorated model is still a model, and knows its ends; what notebooks show."""

import links
import numpy as np
import pytest

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import numpyro_infograd as ig
from numpyro_infograd.errors import ArgumentError


@ig.channel(inputs="x", outputs="y")
def line(power=1.0, y=None):
    """A gain."""
    x = numpyro.sample("x", dist.Normal(0, power**0.5))
    gain = numpyro.param("gain", 1.0)
    numpyro.sample("y", dist.Normal(gain * x, 1), obs=y)


@pytest.mark.slow
def test_the_model_still_does_what_models_do() -> None:
    assert line.__name__ == "line" and line.__doc__ == "A gain."
    drawn = Predictive(line, num_samples=5, params={"gain": 2.0})(jax.random.key(0))
    assert drawn["y"].shape == (5,)
    svi = SVI(line, AutoNormal(line), optax.adam(0.1), Trace_ELBO())
    found = svi.run(jax.random.key(0), 5, y=1.0, progress_bar=False)
    assert set(found.params) >= {"gain", "x_auto_loc"}


def test_its_methods_are_the_functions() -> None:
    args = {"model_kwargs": {"power": 3.0}}
    assert line.mutual_information(**args).value == pytest.approx(np.log(4) / 2)
    gradient = line.gradient(**args)
    assert float(gradient.value["gain"]) == pytest.approx(3 / 4)

    def clip(params):
        return {"gain": jnp.clip(params["gain"], 0, 2)}

    best = line.maximize_mi(projection=clip, num_steps=60, progress_bar=False)
    assert float(best.params["gain"]) == 2.0
    assert line.structural_model(2.0).sites == ("x", "y")
    with pytest.raises(ArgumentError, match="constant"):
        line.calibrate({"y": np.ones(1000)})
    assert repr(line) == "<channel line: I(x; y)>"


def test_tables_in_notebooks() -> None:
    """Every row is there, and markup in names is text."""
    found = ig.gradient(links.link, ig.MI("x", "y"))
    table = found._repr_html_()
    assert "<td>b</td><td>0.333333 +- 0</td>" in table

    def odd() -> None:
        x = numpyro.sample("<x>", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(numpyro.param("a&b", 1.0) * x, 1))

    assert "<td>&lt;x&gt;</td>" in ig.structural_model(odd)._repr_html_()
    ascent = ig.maximize_mi(odd, "<x>", "y", num_steps=5, progress_bar=False)
    assert "<td>a&amp;b</td>" in ascent._repr_html_()
    assert "took all of num_steps=5" in ascent._repr_html_()
