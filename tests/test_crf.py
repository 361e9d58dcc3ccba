"""CRFs against enumeration of all labellings, plain NumPy in float64, and a dense linear solve."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers import gaussian_crf, mean_field
from aigc_jax.layers.crf import GaussianCRF, MeanFieldCRF

RNG = jax.random.key(0)


def inputs(shape=(2, 3, 4), labels=3, channels=2, seed=0):
    draw = np.random.default_rng(seed).normal
    unary, guide = draw(size=(*shape, labels)), draw(size=(*shape, channels))
    condition = draw(size=(shape[0], 4))
    return tuple(x.astype(np.float32) for x in (unary, guide, condition))


def init(crf, *args):
    return jax.jit(crf.init)(RNG, *args)


def run(crf, *args):
    return jax.jit(crf.apply)(*args)


def randomised(variables, seed=1, scale=0.3):
    """Away from the first values, so that nothing is zero, symmetric or Potts'."""
    rng = np.random.default_rng(seed)
    draw = lambda w: (w + rng.normal(0, scale, w.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, variables)


def numpy_kernel(guide, weights, bandwidths, window):
    """k_ij of one image, (N, N), by its definition."""
    height, width, _ = guide.shape
    places = np.array(list(np.ndindex(height, width)), float)
    steps = places[:, None] - places
    near = np.ones(steps.shape[:2]) if window is None else (abs(steps) <= window // 2).all(-1)
    guide = guide.reshape(len(places), -1).astype(float)
    apart, unlike = (steps**2).sum(-1), ((guide[:, None] - guide) ** 2).sum(-1)
    a, b, s = bandwidths
    total = 0
    for weight, exponent in zip(weights, (apart / a**2 + unlike / b**2, apart / s**2), strict=True):
        kernel = np.exp(-exponent / 2) * near
        sums = kernel.sum(1)
        total += weight * (kernel - np.eye(len(kernel))) / np.sqrt(np.outer(sums, sums))
    return total


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def numpy_mean_field(variables, unary, guide, condition, window, iterations):
    """The layer, an image at a time, from its parameters alone."""
    params = jax.tree.map(lambda x: np.asarray(x, float), variables["params"])
    labels, out = unary.shape[-1], []
    for i in range(len(unary)):
        more = condition[i] @ params["condition"]["kernel"]
        u = unary[i].reshape(-1, labels) + more[:labels]
        weights = np.log1p(np.exp(params["weights"] + more[labels : labels + 2]))
        c = params["compatibility"] + more[labels + 2 :].reshape(labels, labels)
        c = (c + c.T) / 2
        k = numpy_kernel(guide[i], weights, np.exp(params["log_bandwidths"]), window)
        q = softmax(u)
        for _ in range(iterations):
            q = softmax(u - k @ q @ c)
        out.append(q.reshape(unary[i].shape))
    return np.stack(out)


@pytest.mark.parametrize("window", [None, 3, 5])  # 5: beyond the image
def test_mean_field_is_its_definition(window):
    unary, guide, condition = inputs()
    crf = MeanFieldCRF(window, iterations=4, bandwidths=(2.0, 1.0, 1.5))
    variables = randomised(init(crf, unary, guide, condition))
    q = run(crf, variables, unary, guide, condition)
    expected = numpy_mean_field(variables, unary, guide, condition, window, 4)
    np.testing.assert_allclose(q, expected, atol=2e-6)
    assert np.abs(q - jax.nn.softmax(unary)).max() > 0.05


def check_slope(loss, args):
    """The gradients to all arguments against the differences along one direction."""
    grads = jax.jit(jax.grad(loss, argnums=range(len(args))))(*args)
    way = randomised(jax.tree.map(np.zeros_like, args), seed=2, scale=1.0)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.vdot(g, d), grads, way)))

    def at(e):
        return float(loss(*jax.tree.map(lambda x, d: x + np.float32(e) * d, args, way)))

    near, far = ((at(e) - at(-e)) / (2 * e) for e in (5e-3, 1e-2))
    np.testing.assert_allclose((4 * near - far) / 3, slope, rtol=2e-3)  # Richardson's


@functools.cache
def loss_of(window):
    crf = MeanFieldCRF(window, iterations=2, bandwidths=(2.0, 1.0, 1.5))

    @jax.jit
    def loss(variables, unary, guide, condition):
        return jnp.sum(run(crf, variables, unary, guide, condition)[..., 0] ** 2)

    return crf, loss


def test_gradients_of_the_window_are_those_of_the_dense_form():
    args = inputs((2, 2, 2))
    crf, _ = loss_of(None)
    args = randomised(init(crf, *args)), *args
    dense, local = (
        jax.jit(jax.grad(loss_of(window)[1], argnums=(0, 1, 2, 3)))(*args) for window in (None, 3)
    )
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(local), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a).max() > 1e-3


def test_gradients_are_finite_differences():
    args = inputs((1, 3, 4))
    crf, loss = loss_of(3)
    check_slope(loss, (randomised(init(crf, *args)), *args))


def test_second_derivatives_of_the_window_are_those_of_the_dense_form():
    args = inputs((1, 2, 2))
    crf, _ = loss_of(None)
    variables = randomised(init(crf, *args))

    def squared_norm(unary, window):
        return jnp.sum(jax.grad(loss_of(window)[1], 1)(variables, unary, *args[1:]) ** 2)

    dense, local = (
        jax.jit(jax.grad(squared_norm), static_argnums=1)(args[0], window) for window in (None, 3)
    )
    np.testing.assert_allclose(dense, local, atol=1e-5)


class Enumerated:
    """All labellings of one small image: their energies, log Z and marginals."""

    def __init__(self, potentials, guide):
        unary = np.asarray(potentials.unary[0], float)
        n, labels = unary[..., 0].size, unary.shape[-1]
        k = numpy_kernel(guide[0], potentials.weights[0], potentials.bandwidths, None)
        x = np.array(list(itertools.product(range(labels), repeat=n)))
        c = np.asarray(potentials.compatibility[0], float)
        single = unary.reshape(n, labels)[np.arange(n), x].sum(1)
        pairs = sum(k[i, j] * c[x[:, i], x[:, j]] for i, j in itertools.combinations(range(n), 2))
        self.labellings, self.energies = x, pairs - single
        least = self.energies.min()
        weights = np.exp(least - self.energies)
        self.log_z = np.log(weights.sum()) - least
        told = np.eye(labels)[x] * (weights / weights.sum())[:, None, None]
        self.marginals = told.sum(0).reshape(unary.shape)


def small(weights, labels=2, size=(3, 3), seed=0):
    """Potentials of a small image with that much coupling, and its guide."""
    unary, guide, _ = inputs(size if len(size) == 3 else (1, *size), labels, seed=seed)
    crf = MeanFieldCRF(None, weights=weights, bandwidths=(2.0, 2.0, 1.0))
    variables = init(crf, unary, guide)
    return crf.apply(variables, unary, method="potentials"), guide


@functools.partial(jax.jit, static_argnums=2)
def q_after(potentials, guide, iterations):
    return mean_field.infer(potentials, guide, None, iterations)


@jax.jit
def energy_of(q, potentials, guide):
    return mean_field.free_energy(q, potentials, guide, None)[0]


@functools.partial(jax.jit, static_argnums=2)
def energies_after(potentials, guide, iterations):
    """(len(iterations), B) free energies."""
    found = [mean_field.infer(potentials, guide, None, t) for t in iterations]
    return jnp.stack([mean_field.free_energy(q, potentials, guide, None) for q in found])


@pytest.mark.parametrize("size, labels", [((3, 3), 3), ((4, 4), 2)])
def test_free_energy_bounds_the_enumerated_log_partition(size, labels):
    potentials, guide = small((1.5, 0.5), labels, size)
    truth = Enumerated(potentials, guide)
    gaps = energies_after(potentials, guide, (1, 5, 50)) + truth.log_z
    uniform = jnp.full_like(potentials.unary, 1 / labels)
    assert gaps.min() > 0 and gaps[-1, 0] < 0.15 * (
        energy_of(uniform, potentials, guide) + truth.log_z
    )


def test_a_certain_labelling_has_its_own_energy():
    potentials, guide = small((2.0, 1.0), 3)
    truth = Enumerated(potentials, guide)
    for row in (0, 1234, 19682):
        q = jax.nn.one_hot(truth.labellings[row].reshape(1, 3, 3), 3)
        np.testing.assert_allclose(
            energy_of(q, potentials, guide), truth.energies[row], rtol=1e-5, atol=1e-4
        )


def test_marginals_are_the_enumerated_ones_to_second_order_in_the_coupling():
    errors = []
    for weight in (0.4, 0.2, 0.1):
        potentials, guide = small((weight, weight))
        truth = Enumerated(potentials, guide).marginals
        alone = np.abs(jax.nn.softmax(potentials.unary)[0] - truth).max()
        errors.append(np.abs(q_after(potentials, guide, 30)[0] - truth).max())
        assert errors[-1] < alone / 3
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_updates_lower_the_free_energy():
    """As the docstring promises where w_1 / min n_1 + w_2 / min n_2 <= 2: n is at least 1."""
    potentials, guide = small((1.2, 0.8), 3, (32, 4, 4))
    potentials = potentials._replace(unary=0.2 * potentials.unary)
    free = energies_after(potentials, guide, tuple(range(1, 6)))
    falls = free[:-1] - free[1:]
    assert falls.min() > -2e-6 * np.abs(free).max() and falls[0].mean() > 1e-3


def test_strong_couplings_may_go_back_and_forth():
    guide = np.zeros((1, 1, 2, 1), np.float32)
    unary = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
    potentials, _ = small((20.0, 1e-6))
    potentials = potentials._replace(unary=unary)
    first, second, third = (q_after(potentials, guide, t) for t in (6, 7, 8))
    np.testing.assert_allclose(first, third, atol=1e-3)
    assert np.abs(first - second).max() > 0.9


def test_where_updates_stand_still_nearby_beliefs_cost_more():
    potentials, guide = small((1.5, 0.5), 3)
    q = q_after(potentials, guide, 100)
    least = energy_of(q, potentials, guide)
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0, 0.2, q.shape).astype(np.float32)
        assert energy_of(jax.nn.softmax(jnp.log(q) + noise), potentials, guide) > least


def test_an_edge_of_the_guide_stops_messages():
    """A pixel that contradicts its side of the edge is put right, the edge itself stays."""
    unary = np.zeros((1, 8, 8, 2), np.float32)
    unary[:, :, :4, 0], unary[:, :, 4:, 1] = 1, 1
    guide = unary[..., :1].copy()
    unary[0, 4, 1] = 0, 0.5
    crf = MeanFieldCRF(weights=(6.0, 0.01))
    q = run(crf, init(crf, unary, guide), unary, guide)
    assert unary[0, 4, 1].argmax() == 1
    np.testing.assert_array_equal(q[0].argmax(-1), np.repeat([[0] * 4 + [1] * 4], 8, 0))


def test_a_new_condition_changes_nothing_and_a_learned_one_every_part():
    unary, guide, condition = inputs()
    crf = MeanFieldCRF(3)
    variables = init(crf, unary, guide, condition)
    without = {"params": {k: v for k, v in variables["params"].items() if k != "condition"}}
    q = run(crf, variables, unary, guide, condition)
    np.testing.assert_allclose(q, run(crf, without, unary, guide), atol=1e-6)
    learned = randomised(variables)
    parts = [crf.apply(learned, unary, c, method="potentials") for c in (condition, -condition)]
    for a, b in zip(parts[0][:3], parts[1][:3], strict=True):
        assert np.abs(a - b).max() > 0.1
    assert (
        np.abs(
            np.subtract(*(run(crf, learned, unary, guide, s * condition) for s in (1, -1)))
        ).max()
        > 0.1
    )
    np.testing.assert_array_equal(parts[0].compatibility, parts[0].compatibility.swapaxes(1, 2))


@pytest.mark.parametrize("window", [None, 3])
def test_any_transformation_and_low_precision_give_the_same(window):
    unary, guide, condition = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    crf = MeanFieldCRF(window, iterations=3)
    variables = randomised(init(crf, unary, guide, condition))
    q = run(crf, variables, unary, guide, condition)
    full = run(crf, variables, *(x.astype(jnp.float32) for x in (unary, guide, condition)))
    np.testing.assert_array_equal(q, full)
    assert q.dtype == jnp.float32
    np.testing.assert_allclose(q.sum(-1), 1, atol=1e-6)
    if window:
        eager = crf.apply(variables, unary, guide, condition)
        np.testing.assert_allclose(eager, q, atol=1e-6)

    def one(*args):
        return crf.apply(variables, *(x[None] for x in args))[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(one))(unary, guide, condition), q, atol=1e-6)


def test_huge_logits_and_guides_are_safe():
    unary, guide, _ = inputs()
    crf = MeanFieldCRF(3)
    variables = init(crf, unary, guide)

    def loss(unary, guide):
        return jnp.sum(run(crf, variables, unary, guide)[..., 0])

    values = jax.jit(jax.value_and_grad(loss, (0, 1)))(1e4 * unary, 1e4 * guide)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(values))


@pytest.mark.parametrize("crf", [MeanFieldCRF(3), MeanFieldCRF(None), GaussianCRF()])
def test_programs_gather_nothing(crf):
    args = inputs()
    variables = jax.eval_shape(crf.init, RNG, *args)
    grad = jax.grad(lambda *args: crf.apply(*args).sum(), (0, 1, 2, 3))
    program = jax.jit(grad).lower(variables, *args).as_text()
    assert "gather" not in program and "scatter" not in program


@pytest.mark.parametrize("fields, said", [({"window": 4}, "not 4"), ({"iterations": 0}, "of 0")])
def test_wrong_fields(fields, said):
    unary, guide, _ = inputs()
    with pytest.raises(UserError, match=said):
        init(MeanFieldCRF(**fields), unary, guide)


def numpy_precision(guide, strengths, bandwidths, shifts):
    """I + L of one image, (N, N), pair by pair."""
    height, width, _ = guide.shape
    matrix = np.eye(height * width)
    for strength, (down, right) in zip(strengths, shifts, strict=True):
        for y, x in np.ndindex(height, width):
            if y + down < height and 0 <= x + right < width:
                i, j = y * width + x, (y + down) * width + x + right
                step = (guide[y, x] - guide[y + down, x + right]) / bandwidths
                w = strength * np.exp(-(step**2).sum() / 2)
                matrix[[i, j], [i, j]] += w
                matrix[[i, j], [j, i]] -= w
    return matrix


def gaussian(neighbours=8, strength=1.0, shape=(2, 4, 5), condition=True):
    unary, guide, told = inputs(shape)
    crf = GaussianCRF(neighbours, strength, 1.0, tolerance=1e-7)
    args = (unary, guide, told) if condition else (unary, guide)
    return crf, randomised(init(crf, *args)), args


@pytest.mark.parametrize("neighbours, strength", [(4, 0.5), (8, 30.0)])
def test_gaussian_is_the_dense_solve(neighbours, strength):
    crf, variables, (image, guide, condition) = gaussian(neighbours, strength)
    shifts = [(0, 1), (1, 0), (1, 1), (1, -1)][: neighbours // 2]
    params = variables["params"]
    x = run(crf, variables, image, guide, condition)
    for i in range(len(image)):
        logs = np.concatenate([params["log_strength"], params["log_bandwidth"]])
        values = np.exp(logs + condition[i] @ params["condition"]["kernel"]).astype(float)
        strengths, bandwidths = values[: len(shifts)], values[len(shifts) :]
        matrix = numpy_precision(guide[i].astype(float), strengths, bandwidths, shifts)
        assert np.linalg.eigvalsh(matrix).min() > 0.999
        expected = np.linalg.solve(matrix, image[i].reshape(len(matrix), -1).astype(float))
        np.testing.assert_allclose(x[i].reshape(expected.shape), expected, atol=2e-5)


def test_gaussian_gradients_are_those_of_a_dense_solve():
    """Of the image and of the weights of all pairs, by autodiff through the matrix."""
    rng = np.random.default_rng(0)
    shifts = ((0, 1), (1, 0), (1, 1), (1, -1))
    b = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    shapes = [(2, 3 - down, 1, 4 - abs(right)) for down, right in shifts]
    weights = [rng.uniform(0.1, 2, shape).astype(np.float32) for shape in shapes]

    def dense(b, weights):
        matrix = jnp.broadcast_to(jnp.eye(12), (2, 12, 12))
        for w, (down, right) in zip(weights, shifts, strict=True):
            for y, x in np.ndindex(*w.shape[1::2]):
                first = y * 4 + x + max(-right, 0)
                second = first + 4 * down + right
                step = jnp.zeros(12).at[first].set(1).at[second].set(-1)
                matrix += w[:, y, :, x].reshape(2, 1, 1) * jnp.outer(step, step)[None]
        columns = b.swapaxes(2, 3).reshape(2, 12, 2)
        return jnp.linalg.solve(matrix, columns).reshape(2, 3, 4, 2).swapaxes(2, 3)

    def by(solve):
        def loss(b, weights):
            return jnp.sum(solve(b, weights) ** 3)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(b, weights)

    ours = by(lambda b, weights: gaussian_crf.solve(b, weights, shifts, 1e-7))
    for a, truth in zip(jax.tree.leaves(ours), jax.tree.leaves(by(dense)), strict=True):
        np.testing.assert_allclose(a, truth, atol=3e-5, rtol=1e-4)


def test_gaussian_gradients_are_finite_differences():
    crf, variables, args = gaussian()
    loss = jax.jit(lambda variables, *args: jnp.sum(run(crf, variables, *args) ** 2))
    check_slope(loss, (variables, *args))


def test_gaussian_begins_near_the_identity_and_stays_in_range():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    crf = GaussianCRF()
    x = run(crf, init(crf, image, image), image, image)
    assert 0 < np.abs(x - image).mean() < 0.05
    strong = GaussianCRF(strength=50.0, bandwidth=10.0)
    x = run(strong, init(strong, image, image), image, image)
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    assert (x > low).all() and (x < high).all() and x.std() < image.std() / 3
    np.testing.assert_allclose(x.mean((1, 2)), image.mean((1, 2)), atol=1e-3)


def test_gaussian_images_do_not_depend_on_their_neighbours_in_the_batch():
    crf, variables, args = gaussian(strength=20.0)
    args = (args[0] * np.array([1, 1e-3], np.float32).reshape(2, 1, 1, 1), *args[1:])
    both = run(crf, variables, *args)
    alone = [run(crf, variables, *(x[i : i + 1] for x in args))[0] for i in range(2)]
    scale = np.abs(args[0]).max((1, 2, 3)).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(both / scale, np.stack(alone) / scale, atol=1e-6)


def test_gaussian_under_vmap_and_low_precision():
    crf, variables, args = gaussian()
    args = tuple(jnp.asarray(x, jnp.bfloat16) for x in args)
    x = run(crf, variables, *args)
    assert x.dtype == jnp.float32
    full = run(crf, variables, *(x.astype(jnp.float32) for x in args))
    np.testing.assert_array_equal(x, full)
    each = jax.jit(jax.vmap(lambda *args: crf.apply(variables, *(x[None] for x in args))[0]))
    np.testing.assert_allclose(each(*args), x, atol=1e-5)
    blank = run(crf, variables, jnp.zeros_like(args[0]), *args[1:])
    np.testing.assert_array_equal(blank, 0)


def test_gaussian_condition_is_without_effect_at_first_alone():
    crf, learned, (image, guide, condition) = gaussian()
    variables = init(crf, image, guide, condition)
    plain = {"params": {k: v for k, v in variables["params"].items() if k != "condition"}}
    x = run(crf, variables, image, guide, condition)
    np.testing.assert_allclose(x, run(crf, plain, image, guide), atol=1e-6)
    a, b = (run(crf, learned, image, guide, sign * condition) for sign in (1, -1))
    assert np.abs(a - b).max() > 0.05


def test_a_pixel_has_4_or_8_neighbours():
    image, guide, _ = inputs()
    with pytest.raises(ValueError, match="not 6"):
        init(GaussianCRF(6), image, guide)
