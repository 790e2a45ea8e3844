# SPDX-License-Identifier: Apache-2.0
"""What figures show: data, error bars, units; and what is refused."""

from collections.abc import Callable, Iterator
import dataclasses
import re
import subprocess
import sys
from typing import Any

import matplotlib
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
import numpy as np
import pytest

import jax.numpy as jnp

import numpyro_infograd as ig
from numpyro_infograd import plots
from numpyro_infograd._calibrate.result import TwoSample
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.plots import style
from numpyro_infograd.values.base import report

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    """No figure changes matplotlib's settings, or is left open."""
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def bars(container: Any) -> np.ndarray:
    """Half the length of each error bar of an `errorbar`."""
    segments = np.array(container.lines[2][0].get_segments())
    return np.ptp(segments, axis=1).max(axis=1) / 2


def labels(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def draw(ax: Any) -> None:
    """All of it, as a file would have it."""
    np.ravel(ax)[0].figure.canvas.draw()


def test_looks_differ_in_more_than_colour() -> None:
    looks = [style.look(i) for i in range(6)]
    for part in zip(*looks, strict=True):
        assert len(set(map(str, part))) == 6
    assert len({(str(x.color), x.marker) for x in map(style.look, range(42))}) == 42


# -- ascents -------------------------------------------------------------------------
def history(gain: Any, **more: Any) -> dict[str, Any]:
    gain = np.asarray(gain)
    norm = 1.0 + np.arange(len(gain))
    return {"gain": gain, "gradient_norm": norm, "finite": gain > -9} | more


def ascent(*histories: Any, estimate: Any = None, **more: Any) -> ig.Result:
    return ig.Result({}, estimate, histories[-1], "", histories=histories, **more)


def test_ascent_without_the_objective_is_drawn_back_from_its_end() -> None:
    restarts = map(history, ([0.5, 0.25], [0.1, 0.1], [1.0, 0.5]))
    ends = {"estimate": report(3.0, 0.1, "nested")}
    result = ascent(*restarts, diagnostics={"restarts": [2.0, None, 3.0]}, **ends)
    left, right = result.plot()
    draw(left)
    low, unknown, _, best, dot = left.lines[:5]  # restarts, then the best again
    np.testing.assert_allclose(low.get_ydata(), [1.25, 1.75, 2.0])
    assert np.isnan(unknown.get_ydata()).all()
    np.testing.assert_allclose(best.get_ydata(), [1.5, 2.5, 3.0])
    assert best.get_linewidth() > low.get_linewidth()
    assert best.get_linestyle() != low.get_linestyle()
    assert (dot.get_xdata(), dot.get_ydata()) == ([2], [3.0])
    np.testing.assert_allclose(bars(left.containers[0]), [0.2])
    assert labels(left) == ["restarts", "best restart", "estimate, 2 s.e."]
    assert left.get_ylabel() == "objective, to first order (nats)"
    assert len(right.lines) == 4
    np.testing.assert_allclose(right.lines[3].get_ydata(), [1.0, 2.0])
    assert right.get_yscale() == "log"
    assert right.get_ylabel() == "gradient norm (nats per unit)"


def test_ascent_shows_the_objective_where_it_is_known() -> None:
    known = history([0.5, 0.5], objective=np.array([0.0, 0.4]))
    _, ax = plt.subplots()
    (found,) = plots.plot_ascent(ascent(known, estimate=report(0.7, 0.0, "exact")), ax)
    assert found is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.0, 0.4])
    assert ax.get_ylabel() == "objective (nats)"


def test_ascent_without_an_estimate_shows_the_gain() -> None:
    """Steps that are taken back gain nothing."""
    left, _ = ascent(history([0.5, 7.0, -np.inf, 0.25])).plot()
    (line,) = left.lines
    np.testing.assert_allclose(line.get_ydata(), [0.0, 0.5, 0.5, 0.5, 0.75])
    assert left.get_ylabel() == "gain, to first order (nats)"


def test_ascent_at_rest_can_be_drawn() -> None:
    still = history([0.0]) | {"gradient_norm": np.zeros(1)}
    draw(ascent(still).plot())


def test_ascent_of_a_calibration_is_its_divergence() -> None:
    steps = {"divergence": np.array([2.0, 1.0]), "gradient_norm": np.ones(2)}
    after = report(0.1, 0.1, "features")
    left, _ = plots.plot_ascent(ig.Calibration({}, after, steps, ""))
    (line,) = left.lines
    np.testing.assert_allclose(line.get_ydata(), [2.0, 1.0])
    assert left.get_ylabel() == "Fisher divergence of the levels in use"


# -- sweeps --------------------------------------------------------------------------
LINE = np.array([0.0, 1.0, 2.0])
NAMES = ("a", "w[0]", "w[1]")


def gradients(shift: float) -> list[ig.Gradient]:
    error = {"a": jnp.asarray(0.1), "w": jnp.array([0.2, 0.3])}
    values = ({"a": jnp.asarray(v + shift), "w": jnp.array([v, -v])} for v in LINE)
    return [ig.Gradient(value, error) for value in values]


def test_sweep_of_gradients_against_a_truth() -> None:
    truth = [{"a": v} for v in LINE]
    ax = plots.plot_gradient_sweep(
        LINE, {"one": gradients(0.1), "two": gradients(0.2)}, truth
    )
    draw(ax)
    assert labels(ax) == [
        "a, truth",
        *(f"{name}, {sweep}" for sweep in ("one", "two") for name in NAMES),
    ]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), LINE)
    values = [c.lines[0].get_ydata() for c in ax.containers]
    np.testing.assert_allclose(values[0], LINE + 0.1)
    np.testing.assert_allclose(values[2], -LINE)
    np.testing.assert_allclose(values[3], LINE + 0.2)
    for container, error in zip(ax.containers, [0.1, 0.2, 0.3] * 2, strict=True):
        np.testing.assert_allclose(bars(container), 2 * error, rtol=1e-6)
    drawn = [c.lines[0] for c in ax.containers]
    assert len({line.get_marker() for line in drawn}) == 6
    colours = [line.get_color() for line in drawn]
    assert colours[:3] == colours[3:]
    assert ax.get_ylabel() == "gradient (nats per unit)"


def test_sweep_of_arrays() -> None:
    sweeps = {"one": LINE, "two": -LINE}
    _, mine = plt.subplots()
    ax = plots.plot_gradient_sweep(
        LINE, sweeps, jnp.asarray(LINE), standard_error={"two": 0.5 + LINE}, ax=mine
    )
    assert ax is mine
    assert labels(ax) == ["truth", "one", "two"]
    assert not ax.containers[0].has_yerr
    np.testing.assert_allclose(bars(ax.containers[1]), 1 + 2 * LINE)
    lines = [ax.lines[0], *(c.lines[0] for c in ax.containers)]
    assert len({str(line.get_color()) for line in lines}) == 3


def test_sweep_without_a_name() -> None:
    ax = plots.plot_gradient_sweep(LINE, LINE, standard_error=LINE)
    assert labels(ax) == ["estimate"]
    np.testing.assert_allclose(bars(ax.containers[0]), 2 * LINE)


# -- points --------------------------------------------------------------------------
def region(size: int) -> ig.RateRegion:
    """Sums of rates up to one, and each rate alone up to 0.8."""
    rates = tuple(f"r{i}" for i in range(size))
    top = 0.8 * np.eye(size) + 0.2 * np.roll(np.eye(size), 1, axis=0)
    corners = np.concatenate([np.zeros((1, size)), 0.8 * np.eye(size), top])
    facets = {(rate,): np.full(size, 0.8) for rate in rates}
    facets[rates] = np.array([0.9, *[1.0] * (size - 1)])
    error = np.full(size, 0.05)
    return ig.RateRegion(rates, np.eye(size), top, error, [], [], facets, corners)


def test_region_of_two_rates_has_its_facets() -> None:
    ax = region(2).plot()
    draw(ax)
    named = {line.get_label(): line for line in ax.lines}
    assert set(named) >= {"time sharing", "r0 <= 0.8", "r1 <= 0.8", "r0 + r1 <= 1"}
    np.testing.assert_allclose(named["r0 <= 0.8"].get_xdata(), 0.8)
    np.testing.assert_allclose(named["r1 <= 0.8"].get_ydata(), 0.8)
    both = named["r0 + r1 <= 1"]
    np.testing.assert_allclose(both.get_xdata() + both.get_ydata(), 1.0)
    assert len({str(named[n].get_linestyle()) for n in named if "<=" in n}) == 3
    np.testing.assert_allclose(bars(ax.containers[0]), 0.1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("r0 (nats)", "r1 (nats)")
    assert ax.get_xlim()[0] == 0.0


def test_a_bound_that_others_keep_away_from_is_no_facet() -> None:
    loose = region(2).facets | {("r0", "r1"): np.array([2.0, 3.0])}
    ax = dataclasses.replace(region(2), facets=loose).plot()
    assert [name for name in labels(ax) if "<=" in name] == ["r0 <= 0.8", "r1 <= 0.8"]


def test_region_of_three_rates_is_solid() -> None:
    ax = region(3).plot()
    draw(ax)
    assert ax.name == "3d"
    assert ax.get_zlabel() == "r2 (nats)"
    assert any(isinstance(each, Poly3DCollection) for each in ax.collections)
    flat = dataclasses.replace(region(3), corners=region(3).corners * [1, 1, 0])
    ax = flat.plot()
    draw(ax)
    assert not any(isinstance(each, Poly3DCollection) for each in ax.collections)


def test_constellation() -> None:
    points = np.exp(0.5j * np.pi * np.arange(4)).reshape(2, 2)
    ax = plots.plot_constellation(points, [[0.4, 0.3], [0.2, 0.1]], label="sent")
    sent = ax.collections[0]
    np.testing.assert_allclose(
        sent.get_offsets(), [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-9
    )
    np.testing.assert_allclose(sent.get_sizes() / sent.get_sizes()[3], [4, 3, 2, 1])
    plots.plot_constellation(jnp.ones((5, 3, 2)), ax=ax, label="received")
    draw(ax)
    received = ax.collections[1]
    assert len(received.get_offsets()) == 15
    assert len(set(received.get_sizes())) == 1
    assert not np.allclose(received.get_facecolor(), sent.get_facecolor())
    assert len(received.get_paths()[0]) != len(sent.get_paths()[0])
    assert labels(ax) == ["sent", "received"]
    assert ax.get_aspect() == 1.0


# -- one against the other -----------------------------------------------------------
def test_score_check_has_a_marker_for_each_site() -> None:
    both = {"y": RNG.normal(size=(2, 50, 2)), "z": RNG.normal(size=(2, 50, 1))}
    ax = ig.diagnostics.ScoreCheck("denoising", (), both).plot()
    draw(ax)
    y, z, _ = ax.lines
    np.testing.assert_allclose(y.get_xdata(), both["y"][0].ravel())
    np.testing.assert_allclose(z.get_ydata(), both["z"][1].ravel())
    assert y.get_marker() != z.get_marker()
    assert labels(ax) == ["y", "z", "equal"]


def twin(simulated: np.ndarray, recorded: np.ndarray, **more: Any) -> ig.Calibration:
    data = {"recorded": {"y": recorded}, "simulated": {"y": simulated}}
    return ig.Calibration({}, None, {}, "", **data, **more)


def test_twin_is_drawn_for_each_output() -> None:
    recorded, simulated = RNG.normal(size=(400, 2)), RNG.normal(size=(5, 400, 2))
    tests = {"test_before": TwoSample(0.1, 0.002), "test_after": TwoSample(0.0, 0.4)}
    found = twin(simulated, recorded, **tests)
    axes = found.plot()
    draw(axes)
    assert [ax.get_xlabel() for ax in axes] == ["y[0]", "y[1]"]
    assert axes[0].get_title() == "two-sample p: 0.002 before, 0.4 after"
    assert labels(axes[0]) == ["twin", "recordings"]
    for i, ax in enumerate(axes):
        band, mean, black = (patch.get_data() for patch in ax.patches)
        count, edges = np.histogram(recorded[:, i], black.edges)
        np.testing.assert_allclose(black.values * np.diff(edges) * 400, count)
        assert 0.97 < np.sum(mean.values * np.diff(edges)) <= 1.0
        assert np.all(band.baseline <= mean.values)
        assert np.all(mean.values <= band.values)
    _, mine = plt.subplots()
    assert len(found.plot(mine)) == 1


def test_draws_that_are_not_finite_have_their_share() -> None:
    simulated = np.where(np.arange(400) % 2, np.nan, RNG.normal(size=(5, 400)))
    (ax,) = twin(simulated, RNG.normal(size=400)).plot()
    mean = ax.patches[1].get_data()
    assert np.sum(mean.values * np.diff(mean.edges)) == pytest.approx(0.5, abs=0.01)


def test_twin_of_many_outputs_shows_the_first() -> None:
    drawn, recorded = RNG.normal(size=(2, 9, 30))
    axes = twin(np.stack([drawn, drawn]), recorded).plot()
    assert len(axes) == len(axes[0].figure.axes) == 12


# -- refusals ------------------------------------------------------------------------
def drawn(axes: Any) -> Any:
    return ascent(history([1.0])).plot(axes)


def sweep(*args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: plots.plot_gradient_sweep(*args, **kwargs)


def constellation(*args: Any) -> Callable[[], Any]:
    return lambda: plots.plot_constellation(*args)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("takes a Result.*got 3", lambda: plots.plot_ascent(3)),
        ("no steps.*status", lambda: ig.Result({}, None, {}, "interrupted").plot()),
        ("axes must be matplotlib axes, got 'left'", lambda: drawn("left")),
        ("axes must be 1 to 2 axes, got 3", lambda: drawn(plt.subplots(1, 3)[1])),
        ("points must be numbers along a line.*1, 3", sweep(LINE[None], LINE)),
        ("points must be an array of real numbers", sweep("line", LINE)),
        ("one row for each of the 3 points.*2,", sweep(LINE, gradients(0.0)[:2])),
        ("one row for each of the 3 points.*0,", sweep(LINE, [])),
        ("gradients must be an array of real numbers", sweep(LINE, 1j * LINE)),
        ("other parameters", sweep(LINE, [*gradients(0.0)[:2], ig.Gradient({}, {})])),
        ("each Gradient has its own", sweep(LINE, gradients(0.0), standard_error=LINE)),
        ("must be a dict with", sweep(LINE, {"a": LINE}, standard_error=LINE)),
        ("has 2 components.*1", sweep(LINE, LINE, standard_error=np.ones((3, 2)))),
        ("truth has 'b'.*'a'", sweep(LINE, gradients(0.0), {"b": LINE})),
        ("13 components.*1 to 12", sweep(LINE, np.ones((3, 13)))),
        ("takes what rate_region returns", lambda: plots.plot_rate_region(None)),
        ("4 rates.*two columns", lambda: region(4).plot()),
        ("in space.*projection", lambda: region(3).plot(plt.subplots()[1])),
        ("real ones in two columns.*3, 3", constellation(np.ones((3, 3)))),
        ("complex numbers or real ones", constellation([[1.0], [1.0, 2.0]])),
        ("3 numbers.*sum to one", constellation(1j * LINE, LINE)),
        ("takes what check_scores returns", lambda: plots.plot_score_check(3)),
        ("with recordings", lambda: ig.Calibration({}, None, {}, "").plot()),
        ("with recordings", lambda: plots.plot_twin(ascent(history([1])))),
    ],
)  # fmt: skip
def test_refusals(words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ArgumentError, match=re.compile(words, re.DOTALL)):
        call()


def test_matplotlib_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_infograd\[plots\]'"):
        ascent(history([1.0])).plot()


def test_the_package_is_imported_without_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import numpyro_infograd as ig"
    code += "; ig.maximize; ig.plots.plot_ascent"
    subprocess.run([sys.executable, "-c", code], check=True)
