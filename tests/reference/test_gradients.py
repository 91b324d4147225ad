"""Gradients through svd: against finite differences, against the frameworks' own SVDs, at ties and at zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

import eckart
from eckart import svd
from eckart._gradients import Differentiable
from eckart.errors import NumericalError, RankError, UsageError

jax.config.update("jax_enable_x64", True)

SHAPES = [(6, 4), (4, 6), (5, 5), (1, 5), (5, 1), (2, 5, 3)]
FRAMEWORKS = ("torch", "jax", "tensorflow")


def matrix(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def with_values(s, m, n, seed=0):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, len(s))))[0] for size in (m, n))
    return (U * s) @ V.T


def weights(shape, seed):
    return np.random.default_rng(seed).standard_normal(tuple(int(size) for size in shape))


# losses of U, s, Vt and the reconstruction that need no framework's own functions
LOSSES = {
    "values": lambda r: (r.s**3, weights(r.s.shape, 1)),
    "reconstruction": lambda r: (r.reconstruct(), weights((*r.U.shape[:-1], r.Vt.shape[-1]), 2)),
    "left": lambda r: ((r.U[..., :1, :] + r.U) ** 3, weights(r.U.shape, 3)),
    "right": lambda r: (r.Vt**3, weights(r.Vt.shape, 4)),
    "product of vectors": lambda r: (r.U @ r.Vt, weights((*r.U.shape[:-1], r.Vt.shape[-1]), 5)),
}
SUMS = {"numpy": np.sum, "torch": torch.sum, "jax": jnp.sum, "tensorflow": tf.reduce_sum}


def loss_of(result, names, framework):
    total = 0.0
    for name in names:
        terms, weight = LOSSES[name](result)
        weight = torch.tensor(weight) if framework == "torch" else weight
        total = total + SUMS[framework](terms * weight)
    return total


def gradient(A, of, framework):
    """Return the gradient of `of`, a function of an array of the framework, in NumPy."""
    if framework == "torch":
        x = torch.tensor(A, requires_grad=True)
        of(x).backward()
        return x.grad.numpy()
    if framework == "jax":
        return np.asarray(jax.grad(of)(jnp.asarray(A)))
    x = tf.constant(A)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = of(x)
    return tape.gradient(loss, x).numpy()


def finite_difference(A, of, step=1e-5):
    found = np.zeros_like(A)
    for index in np.ndindex(A.shape):
        values = []
        for sign in (1, -1):
            moved = A.copy()
            moved[index] += sign * step
            values.append(of(moved))
        found[index] = (values[0] - values[1]) / (2 * step)
    return found


def every(names=tuple(LOSSES), k=None, framework="numpy", **options):
    return lambda A: loss_of(svd(A, k, **options), names, framework)


def assert_same(found, expected):
    assert np.abs(found - expected).max(initial=0) <= 1e-6 * (1 + np.abs(expected).max(initial=0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_torch_against_finite_differences(shape, loss):
    A = matrix(shape)
    for k in {None, 0, 1, 2, min(shape[-2:])}:
        for center in (False, True):
            r = min(shape[-2:])
            if (k or 0) > r or (center and (k in (None, r) or shape[-2] == 1)):
                continue  # a centred matrix of few rows has a value 0
            found = gradient(A, every([loss], k, "torch", center=center), "torch")
            assert_same(found, finite_difference(A, every([loss], k, center=center)))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("shape", "k"), [((6, 4), None), ((4, 6), 2), ((2, 5, 3), 1)])
def test_every_framework_has_the_same_gradient(shape, k, framework):
    A = matrix(shape)
    assert_same(gradient(A, every(k=k, framework=framework), framework), finite_difference(A, every(k=k)))


def test_gradcheck():
    A = torch.tensor(matrix((5, 4)), requires_grad=True)
    for k in (None, 2):
        assert torch.autograd.gradcheck(lambda x, k=k: (*svd(x, k), svd(x, k).reconstruct()), A)


OWN = {
    "torch": lambda A: torch.linalg.svd(A, full_matrices=False),
    "jax": lambda A: jnp.linalg.svd(A, full_matrices=False),
    "tensorflow": lambda A: (lambda s, U, V: (U, s, tf.linalg.matrix_transpose(V)))(*tf.linalg.svd(A)),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 5)])
def test_against_the_svd_of_the_framework(framework, shape):
    A, sum_ = matrix(shape), SUMS[framework]
    r = min(shape[-2:])
    w, W = weights((r,), 0), weights((shape[-2], r), 1)
    if framework == "torch":
        w, W = torch.tensor(w), torch.tensor(W)

    def loss(U, s, Vt):  # no sign is asked for
        return sum_(U**2 * W) + sum_((U * (s * w)[..., None, :]) @ Vt * W[..., :1]) + sum_(Vt**4)

    ours, theirs = (gradient(A, lambda x, of=of: loss(*of(x)), framework) for of in (svd, OWN[framework]))
    assert_same(ours, theirs)


def test_jax_transformations_in_any_order():
    k, A = 2, jnp.asarray(matrix((2, 6, 4)))
    of = every(["left"], k, "jax")
    plain = np.stack([jax.grad(of)(x) for x in A])
    for transformed in (jax.vmap(jax.grad(of)), jax.vmap(jax.jit(jax.grad(of)))):
        assert np.allclose(transformed(A), plain, rtol=0, atol=1e-12)
    inside, outside = jax.jit(certified(k))(A[0]), svd(A[0], k)
    assert np.array_equal(inside[0], outside.U)
    assert np.all(np.asarray(inside[1:]) == [outside.error.spectral, outside.error.frobenius, 1.0])


def certified(k):
    def parts(x):
        result = svd(x, k)
        return result.U, result.error.spectral, result.error.frobenius, result.converged * 1.0

    return parts


def test_bounds_stay_bounds_where_jax_has_no_float64():
    with jax.enable_x64(False):
        A = jnp.asarray(matrix((6, 4)), jnp.float32)
        inside, outside = jax.jit(certified(2))(A), svd(A, 2)
        assert inside[1].dtype == np.float32
        assert float(inside[1]) >= outside.error.spectral
        assert jax.jit(jax.grad(every(k=2, framework="jax")))(A).dtype == np.float32


@pytest.mark.parametrize("k", [None, 2])
def test_tensorflow_functions_and_variables(k):
    A = matrix((5, 4))
    expected = finite_difference(A, every(k=k))
    of, variable = every(k=k, framework="tensorflow"), tf.Variable(A)

    def variable_gradient():
        with tf.GradientTape() as tape:
            loss = of(variable)
        return tape.gradient(loss, variable)

    def tensor_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = of(x)
        return tape.gradient(loss, x)

    assert_same(variable_gradient().numpy(), expected)
    assert_same(tf.function(variable_gradient)().numpy(), expected)
    assert_same(tf.function(tensor_gradient)(tf.constant(A)).numpy(), expected)
    stacks = tf.function(lambda x: svd(x, k).s, input_signature=[tf.TensorSpec((None, 5, 4), tf.float64)])
    assert stacks(tf.constant(np.stack([A, A]))).shape == (2, k or 4)


TIED = {
    "two equal": with_values([3.0, 2.0, 2.0, 1.0], 6, 4),
    "all equal": with_values([1.0] * 4, 6, 4),
    "a zero": with_values([3.0, 2.0, 1.0, 0.0], 6, 4),
    "rank 2": with_values([3.0, 2.0], 6, 4),
    "zero": np.zeros((6, 4)),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", TIED)
def test_at_ties_and_zeros_values_and_reconstruction_are_safe(case, framework):
    A = TIED[case]
    of_norm, values = gradient(A, lambda x: SUMS[framework](svd(x).s), framework), np.linalg.svd(A, compute_uv=False)
    assert (
        np.linalg.norm(of_norm, 2) <= 1 + 1e-12
    )  # with the next line, what makes it a subgradient of the nuclear norm
    assert abs((of_norm * A).sum() - values.sum()) <= 1e-12
    W = weights((6, 4), 0)
    right = gradient(
        A, lambda x: SUMS[framework](svd(x).reconstruct() * (torch.tensor(W) if framework == "torch" else W)), framework
    )
    assert_same(right, W)  # the whole reconstruction is A


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", TIED)
def test_at_ties_and_zeros_vectors_are_an_error_that_names_them(case, framework):
    words = "equal to rounding" if case.endswith("equal") else "is 0 to rounding|equal to rounding"
    for loss in ("left", "product of vectors") if framework == "torch" else ("left",):
        with pytest.raises(NumericalError, match=words):
            gradient(TIED[case], every([loss], framework=framework), framework)


def test_what_ties_do_not_touch_has_its_gradient():
    W = torch.tensor(weights((6,), 0))

    def of(x, columns):
        return ((svd(x).U[:, columns] * W[:, None]) ** 3).sum()

    def in_numpy(A, columns):
        return ((svd(A).U[:, columns] * W.numpy()[:, None]) ** 3).sum()

    for case, columns in (("two equal", [0, 3]), ("a zero", [0, 1, 2]), ("rank 2", [0, 1])):
        A = TIED[case]
        assert_same(
            gradient(A, lambda x, c=columns: of(x, c), "torch"),
            finite_difference(A, lambda x, c=columns: in_numpy(x, c)),
        )


@pytest.mark.parametrize(("s", "k"), [([3.0, 3.0, 2.0, 1.0], 2), ([3.0, 2.0, 0.0, 0.0], 2), ([3.0, 2.0, 1.0, 1.0], 2)])
def test_the_best_approximation_has_a_gradient_at_ties_on_one_side_of_the_cut(s, k):
    A = with_values(s, 6, 4)
    assert_same(
        gradient(A, every(["reconstruction"], k, "torch"), "torch"),
        finite_difference(A, every(["reconstruction"], k)),
    )


@pytest.mark.parametrize("loss", ["left", "reconstruction"])
@pytest.mark.parametrize(("s", "k"), [([3.0, 2.0, 2.0, 1.0], 2), ([1.0] * 4, 2), ([3.0, 0.0, 0.0, 0.0], 2)])
def test_a_tie_at_the_cut_is_an_error(s, k, loss):
    A = with_values(s, 6, 4)
    with pytest.raises(NumericalError, match="rounding"):
        gradient(A, every([loss], k, "torch"), "torch")
    assert np.isfinite(gradient(A, every(["values"], k, "torch"), "torch")).all()


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
def test_a_small_gap_at_the_cut(gap):
    """Conjugate gradients reach the solution that all values give."""
    A = with_values([3.0, 2.0, 2.0 - gap, 1.0, 0.5], 9, 5)
    W = torch.tensor(weights((9,), 0))
    found, reference = (gradient(A, lambda x, k=k: (svd(x, k).U[:, :2] * W[:, None]).sum(), "torch") for k in (2, None))
    assert np.abs(found - reference).max() <= 1e-11 / gap * np.abs(reference).max()


def test_inside_of_compiled_functions_ties_are_said_too():
    A = TIED["two equal"]
    with pytest.raises(Exception, match="equal to rounding"):
        jax.jit(jax.grad(every(["left"], framework="jax")))(A).block_until_ready()

    @tf.function
    def compiled(x):
        return tf.gradients(every(["left"], framework="tensorflow")(x), x)

    with pytest.raises(tf.errors.OpError, match="equal to rounding"):
        compiled(tf.constant(A))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_narrow_types_have_the_gradient_of_their_values(name):
    x = torch.tensor(matrix((6, 4)), dtype=getattr(torch, name), requires_grad=True)
    exact = gradient(x.detach().double().numpy(), every(["left", "reconstruction"], 2, "torch"), "torch")
    result = svd(x, 2)
    assert result.U.dtype == x.dtype
    loss_of(result, ["left", "reconstruction"], "torch").backward()
    assert x.grad.dtype == x.dtype
    eps = torch.finfo(x.dtype).eps
    assert np.abs(x.grad.double().numpy() - exact).max() <= 200 * eps * np.abs(exact).max()  # the gaps are about 1/5


def test_results_with_gradients_are_results():
    x = torch.tensor(matrix((6, 4)), requires_grad=True)
    result = svd(x, error=0.3)
    assert isinstance(result, Differentiable)
    part = result.truncate(1)
    assert part.error.frobenius > result.error.frobenius
    assert_same(
        torch.autograd.grad(loss_of(part, list(LOSSES), "torch"), x)[0].numpy(),
        finite_difference(x.detach().numpy(), every(k=1)),
    )
    assert not svd(x.detach(), 1).U.requires_grad
    with torch.no_grad():
        assert type(svd(x, 1)) is eckart.SVD
    assert not result.residuals.requires_grad
    full = eckart.svd_full(x)
    assert full.U.shape == (6, 6)
    assert torch.allclose(full.reconstruct(), x)
    empty = torch.zeros(0, 4, 3, dtype=torch.float64, requires_grad=True)
    svd(empty).s.sum().backward()
    assert empty.grad.shape == (0, 4, 3)


def test_a_truncated_result_keeps_gradients_in_tensorflow():
    A = matrix((6, 4))
    found = gradient(A, lambda x: loss_of(svd(x).truncate(2), list(LOSSES), "tensorflow"), "tensorflow")
    assert_same(found, finite_difference(A, every(k=2)))


def test_results_with_gradients_can_be_saved(tmp_path):
    result = svd(torch.tensor(matrix((6, 4)), requires_grad=True), 2)
    result.save(tmp_path / "a.npz")
    assert np.array_equal(eckart.SVD.load(tmp_path / "a.npz").s, result.s.detach())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jax.jit(lambda x: svd(x, error=0.1).s)(jnp.eye(3)), "pass k="),
        (lambda: jax.jit(lambda x: svd(x, 9).s)(jnp.eye(3)), "3 x 3 matrix, which has at most 3"),
        (lambda: jax.jit(lambda x: svd(x).s)(jnp.arange(3.0)), r"A\[None, :\]"),
        (lambda: jax.jit(lambda x: svd(x).s)(jnp.arange(9).reshape(3, 3)), "floats"),
        (lambda: jax.grad(lambda x: svd(x).truncate(1).s.sum())(jnp.eye(3)), "inside jax.jit"),
        (lambda: jax.jit(eckart.as_matrix)(jnp.eye(3)), "inside jax.jit"),
        (lambda: in_graph(lambda x: svd(x, error=0.1).s), "pass k="),
        (lambda: in_graph(lambda x: svd(x, 9).s), "3 x 3 matrix, which has at most 3"),
        (lambda: in_graph(lambda x: svd(x).truncate(1).s), "inside tf.function"),
    ],
)
def test_what_cannot_be_compiled_is_said(call, words):
    with pytest.raises((UsageError, RankError), match=words):
        call()


def in_graph(function):
    return tf.function(function, autograph=False)(tf.eye(3))


def test_second_derivatives_are_refused():
    x = torch.tensor(matrix((4, 3)), requires_grad=True)
    (first,) = torch.autograd.grad(svd(x).s.sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="first derivatives only"):
        (first.sum() + x.sum()).backward()
    y = tf.constant(matrix((4, 3)))
    with tf.GradientTape() as outer:
        outer.watch(y)
        with tf.GradientTape() as inner:
            inner.watch(y)
            loss = tf.reduce_sum(svd(y).s ** 3)
        second = inner.gradient(loss, y)
    with pytest.raises(UsageError, match="first derivatives only"):
        outer.gradient(second, y)
    with pytest.raises(ValueError, match="JVP"):
        jax.hessian(lambda z: (svd(z).s ** 3).sum())(jnp.asarray(matrix((4, 3))))
