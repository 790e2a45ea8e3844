# SPDX-License-Identifier: Apache-2.0
"""Programs: exact keys, arrays as leaves, and facts about jaxprs."""

import functools
import gc
import weakref

from methods import rest_slow
import numpy as np
import pytest

import jax
from jax import lax
import jax.numpy as jnp

from numpyro.distributions.util import clamp_probs

from numpyro_infograd._jaxpr_walk import EXOGENOUS
from numpyro_infograd._program import Program
from numpyro_infograd.errors import ModelError

KEY = jax.random.key(0)
VECTOR = jax.ShapeDtypeStruct((3,), jnp.float32)


def code(fn, *args):
    return Program.trace(fn, *args).code


# Keys.
def rich(array):
    """A fresh closure with every kind of inner jaxpr, and custom rules."""

    @jax.jit
    def scaled(x):
        return x * jnp.asarray(array)

    @jax.custom_jvp
    def through(x):
        return jnp.floor(x)

    @through.defjvp
    def _(primals, tangents):
        return through(*primals), tangents[0]

    @jax.custom_vjp
    def vector(x):
        return jnp.sin(x)

    vector.defvjp(lambda x: (jnp.sin(x), (x,)), lambda r, g: (g * r[0],))

    def step(carry, _):
        both = lax.cond(carry > 0, scaled, lambda x: x * array, carry)
        return carry + 1e-3 * both.sum(), jax.nn.relu(carry)

    def fn(x, key):
        carry, ys = lax.scan(step, x, None, length=3)
        noise = jax.random.normal(key) + jax.scipy.special.ndtri(jnp.tanh(x))
        rest = jax.nn.silu(ys).sum() + jax.scipy.special.logsumexp(ys)
        start = lax.stop_gradient(x)
        loop = lax.while_loop(
            lambda c: c < 9, lambda c: c + 1 + 0 * scaled(c)[0], start
        )
        return carry + noise + rest + loop + through(x) + vector(x)

    return fn


@pytest.mark.slow
def test_retrace_of_fresh_closures_is_equal_and_compiles_once():
    run = jax.jit(jax.value_and_grad(lambda program, x, key: program(x, key), 1))
    for array in (np.arange(3.0), np.arange(3.0) + 1, jnp.arange(3.0) + 2):
        fn = rich(array)
        program = Program.trace(fn, 0.5, KEY)
        value, slope = run(program, 0.5, KEY)
        wanted, wanted_slope = jax.value_and_grad(fn)(0.5, KEY)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5)
        assert code(rich(array), 0.5, KEY) is program.code
    assert run._cache_size() == 1


def test_print_alike_is_not_equal():
    a = code(lambda x: x * 1.0, 0.0)
    b = code(lambda x: x * 1.0000001, 0.0)
    assert a != b and hash(a) != hash(b)
    assert code(lambda x: x * 0.0, 0.0) != code(lambda x: x * -0.0, 0.0)
    assert code(lambda x: x * np.nan, 0.0) == code(lambda x: x * np.nan, 0.0)


def defjvp(slope):
    @jax.custom_jvp
    def fn(x):
        return x * 1.0

    fn.defjvps(lambda t, out, x: slope * t)
    return fn


def defvjp(slope):
    @jax.custom_vjp
    def fn(x):
        return x * 1.0

    fn.defvjp(lambda x: (x * 1.0, None), lambda _, g: (slope * g,))
    return fn


def nondiff(kind, slope):
    """Rules of one function that differ by a static argument only."""

    @functools.partial(kind, nondiff_argnums=(0,))
    def fn(slope, x):
        return x * 1.0

    if kind is jax.custom_jvp:
        fn.defjvp(lambda s, p, t: (fn(s, *p), s * t[0]))
    else:
        fn.defvjp(lambda s, x: (x * 1.0, None), lambda s, r, g: (s * g,))
    return functools.partial(fn, slope)


SLOPE = [1.0]


def by_global(_):
    @jax.custom_jvp
    def fn(x):
        return x * 1.0

    fn.defjvp(lambda p, t: (fn(*p), SLOPE[0] * t[0]))
    return fn


MAKERS = [
    defjvp,
    defvjp,
    functools.partial(nondiff, jax.custom_jvp),
    functools.partial(nondiff, jax.custom_vjp),
    by_global,
    lambda slope: jax.jit(defjvp(slope)),
]


@pytest.mark.parametrize("make", MAKERS)
@rest_slow("kind", [np.full, jnp.full, float])
def test_derivative_rules_are_part_of_the_key(make, kind, monkeypatch):
    def build(slope):
        monkeypatch.setitem(globals(), "SLOPE", [slope])
        array = slope if kind is float else kind((3,), slope)
        rule = make(array)
        return Program.trace(lambda x: rule(x).sum(), VECTOR)

    first, again, other = build(2.0), build(2.0), build(3.0)
    assert first.code == again.code
    assert first.code != other.code
    slope = jax.jit(jax.grad(lambda p, x: p(x), 1))
    for program, wanted in ((first, 2.0), (again, 2.0), (other, 3.0)):
        np.testing.assert_allclose(slope(program, np.ones(3)), wanted)
    assert slope._cache_size() == 2


def by_second_derivative(slope):
    @jax.custom_jvp
    def inner(x):
        return jnp.cos(x)

    inner.defjvp(lambda p, t: (inner(*p), slope * t[0]))

    @jax.custom_jvp
    def outer(x):
        return jnp.sin(x)

    outer.defjvp(lambda p, t: (outer(*p), inner(*p) * t[0]))
    return outer


def by_callback(shift):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return lambda x: jax.pure_callback(lambda x: np.float32(x + shift), shape, x)


def by_root(slope):
    return lambda x: lax.custom_root(
        lambda y: slope * y - x,
        x,
        lambda _, y: y,  # the same wrong solver, so only the derivatives differ
        lambda g, y: y / g(jnp.ones_like(y)),
    )


@pytest.mark.parametrize("make", [by_second_derivative, by_callback, by_root])
def test_what_lies_behind_a_computation_is_part_of_the_key(make):
    assert code(make(1.0), 0.0) == code(make(1.0), 0.0)
    assert code(make(1.0), 0.0) != code(make(2.0), 0.0)


LIBRARY = [
    jax.nn.relu,
    jax.nn.silu,
    jax.nn.relu6,
    jax.nn.softplus,
    functools.partial(clamp_probs),
    jax.numpy.linalg.norm,
    jax.scipy.special.ndtri,
    jax.scipy.special.logsumexp,
    jax.scipy.special.gammaln,
    lambda x: jax.random.gamma(KEY, jnp.abs(x)),
    lambda x: jnp.linalg.solve(jnp.eye(3) + x[:, None] * x, x),
    lambda x: jnp.sort(x) + x[jnp.argsort(x)],
    lambda x: x.at[jnp.array([0, 2])].add(1.0),
    jax.checkpoint(lambda x: jnp.sin(x) ** 2),
    lambda x: jax.grad(lambda y: jax.nn.relu(y).sum())(x),
    lambda x: jax.vmap(jax.nn.relu)(x),
    lambda x: lax.map(jax.nn.relu, x),
    lambda x: jnp.linalg.cholesky(jnp.eye(3) + x[:, None] * x),
    lambda x: jnp.interp(x, jnp.arange(3.0), x),
    lambda x: lax.custom_root(
        lambda y: y + jnp.tanh(y) - x,
        x,
        lambda f, y: lax.fori_loop(0, 9, lambda _, z: z - 0.5 * f(z), y),
        lambda g, y: y / g(jnp.ones_like(y)),
    ),
]


@pytest.mark.parametrize("fn", LIBRARY)
def test_library_functions_retrace_to_the_same_code(fn):
    first = Program.trace(lambda x: fn(x) * 1.0, VECTOR)
    assert code(lambda x: fn(x) * 1.0, VECTOR) is first.code
    x = jnp.array([0.1, 0.4, 0.2])
    np.testing.assert_allclose(first(x), fn(x) * 1.0, rtol=1e-6)


def test_scopes_of_trusted_samplers_are_part_of_the_key():
    def fn(x):
        with jax.named_scope(EXOGENOUS):
            return jnp.floor(x)

    assert code(fn, 0.0) != code(jnp.floor, 0.0)


# Arrays and calls.
def test_captured_arrays_are_leaves():
    arrays = [np.arange(3.0), jnp.arange(3.0), jnp.float32(2.0), np.ones((3, 1))]
    program = Program.trace(lambda x: sum([x * a for a in arrays]), VECTOR)
    assert len(program.consts) == len(jax.tree.leaves(program)) == 4
    doubled = jax.tree.map(lambda leaf: 2 * leaf, program)
    x = np.ones(3, np.float32)
    np.testing.assert_allclose(doubled(x), 2 * program(x))


def test_numpy_scalars_are_static_but_right():
    run = jax.jit(lambda program, x: program(x))
    for scale in (np.float32(2.0), np.array(3.0)):
        program = Program.trace(lambda x: x * scale, 0.0)  # noqa: B023
        assert run(program, 1.0) == scale


def test_weak_types_do_not_matter():
    fn = lambda x, n: (x * 2, n + 1)  # noqa: E731
    examples = [(0.0, 1), (np.float32(0), np.int32(1)), (jnp.zeros(()), jnp.int32(1))]
    programs = [Program.trace(fn, *example) for example in examples]
    assert len({program.code for program in programs}) == 1
    for example in examples:
        out = programs[0](*example)
        assert not any(jax.typeof(leaf).weak_type for leaf in out)


def test_arguments_are_checked():
    program = Program.trace(lambda tree: tree["a"] * 2, {"a": VECTOR})
    with pytest.raises(TypeError, match="structure"):
        program(np.ones(3))
    with pytest.raises(TypeError, match="shape"):
        program({"a": np.ones(4, np.float32)})
    with pytest.raises(TypeError, match="dtype"):
        program({"a": np.ones(3, np.int32)})


def test_transformations():
    array = np.arange(3.0, dtype=np.float32)
    program = Program.trace(lambda x, key: x * array + jax.random.normal(key), 0.0, KEY)
    xs, keys = jnp.arange(4.0), jax.random.split(KEY, 4)
    batched = jax.vmap(program)(xs, keys)
    _, scanned = lax.scan(lambda c, xk: (c, program(*xk)), None, (xs, keys))
    np.testing.assert_allclose(batched, scanned, rtol=1e-6)
    slope = jax.jacfwd(lambda p: p(1.0, KEY))(program)
    np.testing.assert_allclose(slope.consts[0], np.eye(3))


def test_traced_inside_a_transformation():
    def outer(scale, x):
        program = Program.trace(lambda y: y * scale, x)
        return program(x)

    assert jax.jit(jax.grad(outer))(2.0, 3.0) == 3.0


def test_indices_by_path():
    program = Program.trace(
        lambda p, x: {"y": p["b"] * x, "z": (x, x)}, {"a": 0.0, "b": 0.0}, 1.0
    )
    assert program.input_indices(0) == [0, 1]
    assert program.input_indices(0, "b") == [1]
    assert program.output_indices("z", 1) == [2]
    assert program.output_indices() == [0, 1, 2]


# Dependencies.
def test_dependencies_see_through_inner_jaxprs():
    def fn(a, b, c):
        swap = jax.jit(lambda x, y: (y, x))
        first, second = swap(a, b)
        (u, v, w), ys = lax.scan(
            lambda s, _: ((s[1], s[1], s[2]), s[0]), (a, b, c), None, 3
        )
        chosen = lax.cond(c > 0, lambda x: (x, 1.0), lambda x: (2.0, x), a)
        count, other = lax.while_loop(
            lambda s: s[0] < c, lambda s: (s[0] + 1, s[1]), (0.0, b)
        )
        fixed = jax.nn.relu(lax.stop_gradient(b))
        return first, second, u, v, w, ys, *chosen, count, other, fixed, 3.0

    a, b, c = (frozenset({i}) for i in range(3))
    found = Program.trace(fn, 0.0, 0.0, 0.0).dependencies()
    wanted = [b, a, a | b, b, c, a | b, a | c, a | c, c, b, b, frozenset()]
    assert found == wanted


# Affinity.
MATRIX = np.arange(9, dtype="f").reshape(3, 3) + 9 * np.eye(3, dtype="f")

AFFINE = [
    lambda x, c: MATRIX @ x + c * x[::-1] - x / c,
    lambda x, c: jnp.where(c > 0, x, 2 * x).sum() + jnp.cumsum(x),
    lambda x, c: jnp.concatenate([x, x[:1]]).reshape(2, 2).T,
    lambda x, c: x.at[0].set(x[1]).at[jnp.array([1, 2])].add(x[:2]),
    lambda x, c: lax.dynamic_slice(x, (jnp.int32(c),), (2,)),
    lambda x, c: jax.scipy.linalg.solve_triangular(MATRIX, x),
    lambda x, c: lax.scan(lambda s, y: (c * s + y, s), x[0], x),
    lambda x, c: lax.fori_loop(0, 3, lambda i, s: s + c, x),
    lambda x, c: lax.cond(c > 0, lambda y: y, lambda y: 2 * y, x),
    lambda x, c: jax.jit(lambda y: y**1)(x),
    lambda x, c: jnp.convolve(x, np.ones(2)),
    lambda x, c: jnp.real(x + 1j * c) + jnp.mean(x),
    lambda x, c: jax.checkpoint(lambda y: 3.0 * y)(x),
    lambda x, c: jnp.exp(c) * jnp.ones(3),
    lambda x, c: jnp.stack([c * each for each in x]),
    lambda x, c: jnp.polyval(x, c),
]

NOT_AFFINE = [
    lambda x, c: x * x,
    lambda x, c: c / x,
    lambda x, c: x @ x,
    lambda x, c: jnp.where(x > 0, x, x + 1),
    lambda x, c: lax.stop_gradient(x),
    lambda x, c: x.astype(jnp.bfloat16),
    lambda x, c: x.astype(jnp.int32).astype(jnp.float32),
    lambda x, c: x[x.argmax()],
    lambda x, c: lax.scan(lambda s, y: (s * y, None), c, x)[0],
    lambda x, c: lax.cond(x[0] > 0, lambda y: y, lambda y: 2 * y, x),
    lambda x, c: lax.while_loop(lambda s: s[0] < 1, lambda s: s + 1, x),
    lambda x, c: defjvp(2.0)(x),
    lambda x, c: jax.nn.relu(x),
    lambda x, c: jnp.sin(x),
    lambda x, c: lax.dynamic_slice(x, (jnp.int32(x[0]),), (2,)),
    lambda x, c: jnp.polyval(MATRIX[0], x),
]


@pytest.mark.parametrize("fn", AFFINE)
def test_affine(fn):
    program = Program.trace(fn, VECTOR, 1.0)
    assert all(program.affine_outputs([0]))


@pytest.mark.parametrize("fn", NOT_AFFINE)
def test_not_affine(fn):
    program = Program.trace(fn, VECTOR, 1.0)
    assert not any(program.affine_outputs([0]))
    assert all(program.affine_outputs([])) and program.affine_outputs([0, 1]) == [False]


def test_affine_jointly():
    program = Program.trace(lambda x, c: (x * c, x + c), VECTOR, 1.0)
    assert program.affine_outputs([0]) == program.affine_outputs([1]) == [True, True]
    assert program.affine_outputs([0, 1]) == [False, True]


# Jumps.
def names(fn, *args, wrt=(0,)):
    found = Program.trace(fn, *(args or (VECTOR,))).jumps(wrt)
    return {jump.primitive for jump in found}


CONTINUOUS = [
    jax.nn.relu,
    jnp.abs,
    lambda x: jnp.clip(x, 0, 1),
    lambda x: jnp.maximum(x, 0.5),
    jnp.sort,
    lambda x: lax.top_k(x, 2)[0],
    jax.scipy.special.logsumexp,
    jax.nn.softmax,
    lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
    lambda x: jnp.where(jnp.isnan(x), 0.0, x),
    lambda x: jnp.linalg.solve(jnp.eye(3) + x[:, None] * x, x),
    lambda x: jnp.floor(lax.stop_gradient(1.5)) * x,
    lambda x: x.at[jnp.array([1, 2])].add(x[:2]),
    lambda x: x > 0,
]

INTEGERS = jax.ShapeDtypeStruct((3,), jnp.int32)

JUMPS = [
    (jnp.floor, {"floor"}),
    (jnp.ceil, {"ceil"}),
    (jnp.round, {"round"}),
    (jnp.sign, {"sign"}),
    (lambda x: x[jnp.argmax(x)] + jnp.argmin(x), {"argmax", "argmin"}),
    (lambda x: x.astype(int), {"convert_element_type"}),
    (lambda x: (x > 0) * 1.0, {"convert_element_type"}),
    (lambda x: jnp.sum(x > 0.5), {"convert_element_type"}),
    (lambda x: jnp.arange(3.0)[(x[0] > 0).astype(int)], {"convert_element_type"}),
    (lambda x: jnp.argsort(x), {"sort"}),
    (lambda x: lax.top_k(x, 2)[1], {"top_k"}),
    (lambda x: lax.rem(x, 2.0), {"rem"}),
    (lambda x: jax.nn.leaky_relu(x), {"select_n"}),
    (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), {"cond"}),
    (lambda x: lax.while_loop(lambda s: s[0] < 1, lambda s: s + 1, x), {"while"}),
    (lambda x: lax.fori_loop(0, 3, lambda i, s: jnp.floor(s), x), {"floor"}),
    (lambda x: lax.scan(lambda s, y: (y, jnp.round(s)), x[0], x)[1], {"round"}),
    (lambda x: rich(np.ones(3))(x[0], KEY), {"floor", "cond", "while"}),
    (lambda x: jnp.arctan2(x[0], x[1]), {"atan2"}),
    (lambda x: jnp.searchsorted(MATRIX[0], x) * 1.0, {"select_n"}),
    (lambda x: jnp.select([x < 0, x < 1], [x, -x], 2.0), {"select_n"}),
    (lambda x: x[jnp.argmax(x > 0.5)], {"argmax"}),
    (lambda x: jnp.frexp(x)[0], {"bitcast_convert_type"}),
    (lambda x: 1.0 * jax.pure_callback(np.int32, INTEGERS, x), {"pure_callback"}),
]


@pytest.mark.parametrize("fn", CONTINUOUS)
def test_continuous(fn):
    assert names(fn) == set()


@pytest.mark.parametrize(("fn", "wanted"), JUMPS)
def test_jumps(fn, wanted):
    assert wanted <= names(fn) <= wanted | {"convert_element_type", "select_n"}
    assert names(lambda c, x: c * jnp.sum(fn(x)), 0.0, VECTOR) == set()


@pytest.mark.parametrize(
    "fn", [jnp.sinc, jax.scipy.special.ndtri, jax.scipy.special.erfcx]
)
def test_steps_of_the_library_that_cancel(fn):
    assert names(fn) <= {"select_n"}
    assert "floor" in names(lambda x: fn(jnp.floor(x)))

    def rounding(x):
        return jnp.round(x)

    rounding.__name__ = rounding.__qualname__ = fn.__name__
    assert names(jax.jit(rounding)) == {"round"}


def test_jumps_inside_arithmetic_of_the_library():
    assert "floor" in names(lambda x: x // 2) or "round" in names(lambda x: x // 2)
    assert "rem" in names(lambda x: jnp.mod(x, 2.0))


def test_jumps_tell_outputs_and_skip_dead_ones():
    def fn(x):
        jnp.ceil(x)
        return x, jnp.floor(x), jnp.floor(2.0) * x

    (jump,) = Program.trace(fn, VECTOR).jumps([0])
    assert (jump.primitive, jump.outputs, jump.switch) == ("floor", {1}, False)


def test_trusted_samplers_are_skipped_but_carry_dependence():
    @jax.jit
    def sampler(x):
        return jnp.where(jnp.floor(x) > 0, x, 0.0)

    def fn(x):
        with jax.named_scope(EXOGENOUS):
            y = sampler(x) + jnp.ceil(x)
        return y, jnp.round(y)

    for traced in (fn, jax.vmap(fn)):
        (jump,) = Program.trace(traced, VECTOR).jumps([0])
        assert (jump.primitive, jump.outputs) == ("round", {1})


def test_scope_survives_the_lifting_of_arrays():
    array = np.arange(3.0)

    def fn(x):
        with jax.named_scope(EXOGENOUS):
            return jax.jit(lambda y: jnp.floor(y) * array)(x)

    program = Program.trace(fn, VECTOR)
    assert len(program.consts) == 1 and program.jumps([0]) == []


def test_mutable_references_are_refused():
    def fn(x):
        ref = jax.new_ref(jnp.zeros(3))
        ref[...] = jnp.floor(x)
        return ref[...], x

    program = Program.trace(fn, VECTOR)
    for facts in (program.dependencies, lambda: program.jumps([0])):
        with pytest.raises(ModelError, match="mutable reference.*Use arrays"):
            facts()


# Predicates.
def test_predicates_of_switches():
    array = np.float32(0.25) * np.ones(3, np.float32)

    @jax.custom_jvp
    def kinked(x):
        return jnp.where(x > array, x, 0.5)

    kinked.defjvp(lambda p, t: (kinked(*p), t[0]))

    def fn(x, key):
        def step(carry, y):
            new = lax.cond(carry > 0.5, jnp.sin, jnp.cos, carry + y)
            return new, jax.nn.leaky_relu(y - 0.3)

        return lax.scan(step, x[0], x), kinked(x), jax.jit(kinked)(-x)

    program = Program.trace(fn, VECTOR, KEY)
    switches = [jump for jump in program.jumps([0]) if jump.switch]
    predicates = program.predicates([0])
    x = jnp.array([0.1, 0.3, 0.6])
    found = jax.jit(lambda p, x: p(x, KEY))(predicates, x)
    assert len(found) == len(switches) == 4
    carries = [x[0]]
    for y in x:
        step = jnp.sin if carries[-1] > 0.5 else jnp.cos
        carries.append(step(carries[-1] + y))
    np.testing.assert_array_equal(found[0], np.array(carries[:3]) > 0.5)
    np.testing.assert_array_equal(np.ravel(found[1]) != 0, x - 0.3 >= 0)
    np.testing.assert_array_equal(found[2], x > array)
    np.testing.assert_array_equal(found[3], -x > array)
    batch = jax.vmap(predicates, (0, None))(jnp.stack([x, 2 * x]), KEY)
    assert batch[2].shape == (2, 3)


def test_hidden_predicates():
    for fn in (
        lambda x: lax.cond(x[0] > 0, lambda y: jnp.where(y > 1, y, 0), jnp.sin, x),
        lambda x: lax.while_loop(lambda s: s[0] < 1, lambda s: s + 1, x),
    ):
        assert Program.trace(fn, VECTOR).predicates([0]) is None
    assert Program.trace(jnp.sin, VECTOR).predicates([0])(np.ones(3)) == []


def test_predicates_follow_the_arrays():
    def make(array):
        return Program.trace(lambda x: jnp.where(x > array, x, 0.0), VECTOR)

    first, second = (make(np.full(3, edge)).predicates([0]) for edge in (1.0, 3.0))
    assert first.code is second.code
    x = 2 * np.ones(3, np.float32)
    assert first(x)[0].all() and not second(x)[0].any()
    with jax.checking_leaks():
        edges = jax.vmap(lambda edge: make(edge).predicates([0])(x)[0][0])
        np.testing.assert_array_equal(edges(jnp.array([1.0, 3.0])), [True, False])
    assert make(np.full(3, 1.0)).predicates([0])(x)[0].all()


def test_sorting_moves_its_payload_only_with_its_keys():
    fn = lambda x, key: lax.sort((key, x), num_keys=1)  # noqa: E731
    program = Program.trace(fn, VECTOR, VECTOR)
    assert program.jumps([0]) == []
    (jump,) = program.jumps([1])
    assert jump.outputs == {1}


def test_codes_do_not_outlive_their_programs():
    program = Program.trace(lambda x: x * 123.0, VECTOR)
    code = weakref.ref(program.code)
    del program
    gc.collect()
    assert code() is None


@pytest.mark.parametrize("symbolic", [False, True])
def test_rules_with_symbolic_zeros(symbolic):
    def make(slope):
        @jax.custom_jvp
        def fn(x, y):
            return x * y

        def rule(primals, tangents):
            zero = jnp.zeros(())
            kinds = jax.custom_derivatives.SymbolicZero
            dx, dy = (zero if isinstance(t, kinds) else t for t in tangents)
            return fn(*primals), slope * dx + dy

        fn.defjvp(rule, symbolic_zeros=symbolic)
        return Program.trace(lambda x: fn(x, 2.0), 0.0)

    assert make(1.0).code == make(1.0).code != make(2.0).code
    assert jax.grad(make(3.0))(1.0) == 3.0


def test_rule_of_integer_output():
    def make(slope):
        @jax.custom_vjp
        def fn(x, n):
            return x * n, n

        fn.defvjp(lambda x, n: ((x * n, n), (x, n)), lambda r, g: (slope * g[0], None))
        return Program.trace(fn, 0.0, 1)

    assert make(1.0).code == make(1.0).code != make(2.0).code
    assert jax.grad(lambda x: make(3.0)(x, 2)[0])(1.0) == 3.0
