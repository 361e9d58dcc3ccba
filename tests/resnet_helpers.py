"""What the tests of the residual GANs and of BigGAN share: variables, and passes of both sides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
CLASSES = 3
LABEL = np.array([1, CLASSES, 0, 2], np.int32)  # one of them says nothing


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(module, *args):
    """Of the module's variables, and nothing that it sows."""
    return _shapes(module, *(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)))


@functools.cache
def _shapes(module, *args):
    found = jax.eval_shape(functools.partial(module.init, train=True), KEY, *args)
    return {name: found[name] for name in found if name != "auxiliary"}


def first(module, paths, *args):
    """The leaves of these paths after `init`; what the others need isn't even compiled."""

    @jax.jit
    def some(key):
        found = leaves(module.init(key, *args, train=True))
        return [found[tuple(path.split("/"))] for path in paths]

    return jax.device_get(some(KEY))


def count(module, *args):
    return sum(x.size for x in jax.tree.leaves(shapes(module, *args)["params"]))


def leaves(tree):
    """{path: array}, each path a tuple of names."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(key.key for key in path): x for path, x in pairs}


def _leaf(path, shape, seed):
    if path[-1] == "var":
        return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)
    x = normal(*shape, seed=seed)
    if path[-1] == "u":
        return x / np.linalg.norm(x)
    if path[-1] == "scale":
        return 1 + 0.3 * x
    # Kernels keep the size of a signal; sigma and biases are felt.
    return np.float32(np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.5) * x


def scattered(module, *args):
    """Variables of the module, each away from its first value."""
    tree = shapes(module, *args)
    found = [_leaf(path, x.shape, i) for i, (path, x) in enumerate(leaves(tree).items())]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def parts(variables, *names):
    """The collections of these names."""
    return {name: variables[name] for name in names if name in variables}


@functools.cache
def compiled(module, train, changes, **fields):
    """A jitted pass, which returns the collections that change beside its output."""
    run = functools.partial(module.apply, train=train, mutable=list(changes), **fields)
    return jax.jit(run)


STATE = ("batch_stats", "spectral")


def apply(module, variables, *args, train=True, changes=STATE, **fields):
    """(output, collections that have changed)."""
    return jax.device_get(compiled(module, train, changes, **fields)(variables, *args))


def equal_parts(variables, module, twin):
    """Our statistics and vectors are those of the PyTorch module."""
    ours = twin.named(module, *parts(variables, *STATE).values())
    for name, x in ours.items():
        np.testing.assert_allclose(x, module.state_dict()[name], atol=1e-4, err_msg=name)


def to_torch(x):
    import torch

    return torch.tensor(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)


def one_hot(label):
    """In PyTorch; zeros where it says nothing."""
    return [] if label is None else [to_torch(np.eye(CLASSES + 1, CLASSES, dtype="f")[label])]


def given(label):
    """The label as an argument, if there is one."""
    return [] if label is None else [label]


def equals_the_twin(network, inputs, copied, twin, torch_inputs, classes=False):
    """Outputs in training, what it leaves behind, and outputs with these statistics."""
    variables = scattered(network, *inputs)
    module = copied(variables)
    for train in (True, False) if parts(variables, *STATE) else (True,):
        module.train(train)
        theirs = module(*torch_inputs).detach()
        ours, changed = apply(
            network, variables, *inputs, train=train, changes=(*STATE, "auxiliary")
        )
        theirs = theirs.permute(0, 2, 3, 1) if theirs.ndim == 4 else theirs
        assert 0.01 < theirs.std() < 300
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
        equal_parts(changed, module, twin)
        if classes:
            (logits,) = changed["auxiliary"]["logits"]
            np.testing.assert_allclose(logits, module.classes.detach(), atol=1e-4, rtol=1e-4)
        variables = variables | parts(changed, *STATE)


def converged(module, variables, *args, times=60):
    """The variables after that many passes of training."""

    @jax.jit
    def run(variables):
        def step(_, spectral):
            now = variables | {"spectral": spectral}
            return module.apply(now, *args, train=True, mutable=["spectral", "batch_stats"])[1][
                "spectral"
            ]

        return variables | {"spectral": jax.lax.fori_loop(0, times, step, variables["spectral"])}

    return jax.device_get(run(variables))


def divided(variables):
    """Without `spectral`: kernels beside a vector `u` over their largest singular values."""
    vectors = {path[:-1] for path in leaves(variables["spectral"])}

    def divide(path, x):
        path = tuple(key.key for key in path)
        if path[-1] != "kernel" or path[:-1] not in vectors:
            return x
        return x / np.linalg.svd(np.reshape(x, (-1, x.shape[-1])), compute_uv=False)[0]

    params = jax.tree_util.tree_map_with_path(divide, variables["params"])
    return parts(variables, "batch_stats") | {"params": params}


def kernels(variables):
    """Paths of the layers that have a kernel."""
    return {path[:-1] for path in leaves(variables["params"]) if path[-1] == "kernel"}


def same_with_remat(module, variables, *args):
    """Outputs, gradients and the tree of variables don't change if blocks are made again."""
    again = module.clone(remat=True)
    assert shapes(module, *args) == shapes(again, *args)

    def run(module):
        def value(params, x):
            now = variables | {"params": params}
            y, changed = module.apply(now, x, *args[1:], train=True, mutable=list(STATE))
            return jnp.sum(jnp.sin(y)), (y, changed)

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(
            variables["params"], args[0]
        )

    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, run(module), run(again))
