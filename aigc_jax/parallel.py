"""The only home of devices: pmap, jit over a mesh, placement, collectives, per-example keys.

A step knows one thing of all this: `axis_name`, the name of the mapped batch axis, or None. With
None every function below that takes it is the identity of one device, and the same step runs under
`jax.jit`, on one device or on a sharded global batch, where XLA adds the collectives.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aigc_jax.errors import UserError

AXIS = "data"
# Since jax 0.8 pmap is jit(shard_map), which takes arrays placed ahead of the call as they are.
_PMAP_TAKES_PLACED = jax.__version_info__ >= (0, 8)


# ---- inside a step ----


def pmean(tree: Any, axis_name: str | None) -> Any:
    """The mean over devices. Apply it to gradients and metrics, never to a loss under `grad`."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def psum(tree: Any, axis_name: str | None) -> Any:
    """The sum over devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def axis_size(axis_name: str | None) -> int:
    """How many devices share the batch: a Python int."""
    return 1 if axis_name is None else jax.lax.psum(1, axis_name)


def all_examples(x: jax.Array, axis_name: str | None) -> jax.Array:
    """(n, ...) of this device -> (devices * n, ...) of all, in global order."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def own_examples(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The inverse of `all_examples`: this device's part of the global batch."""
    if axis_name is None:
        return x
    n = len(x) // axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * n, n)


def interleave(*batches: jax.Array) -> jax.Array:
    """Batches (B, ...) as one (n * B, ...), example by example: the first of each, the second, ...

    So every layout of devices sees the same groups, and nothing moves between devices.
    """
    n, *shape = batches[0].shape
    return jnp.stack(batches, 1).reshape(len(batches) * n, *shape)


def separate(x: jax.Array, n: int) -> list[jax.Array]:
    """The inverse of `interleave`: (n * B, ...) -> n batches (B, ...)."""
    x = x.reshape(-1, n, *x.shape[1:])
    return [x[:, k] for k in range(n)]


def in_parts(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, batch: Any, n: int
) -> tuple[Any, Any]:
    """`function(carry, part) -> (carry, found)` for n strided parts of a batch, one after another.

    Returns:
      the last carry, and the mean of what was found; with n = 1 those of the whole batch.

    Raises:
      UserError: n does not divide the batch.
    """
    if n == 1:
        return function(carry, batch)
    size = len(jax.tree.leaves(batch)[0])
    if size % n:
        raise UserError(
            f"A device's {size} images can't be taken in {n} parts: take a config.batch_size that "
            "config.accumulate divides on each device."
        )
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, n, *x.shape[1:]), 0, 1), batch)
    shapes = jax.eval_shape(function, carry, jax.tree.map(lambda x: x[0], parts))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(so_far: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        carry, found = function(so_far[0], part)
        return (carry, jax.tree.map(jnp.add, so_far[1], found)), None

    (carry, total), _ = jax.lax.scan(add, (carry, zeros), parts)
    return carry, jax.tree.map(lambda x: x / n, total)


def example_keys(rng: jax.Array, n: int, axis_name: str | None) -> jax.Array:
    """One key per example of this device's batch, by the example's global position: (n,) keys.

    What is drawn from them doesn't depend on how the batch is laid out over devices.
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(first + jnp.arange(n))


def index_keys(rng: jax.Array, index: jax.Array) -> jax.Array:
    """One key per example, by its `index` (B,) int32, whatever the batch around it: (B,) keys."""
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(index)


def split_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two independent keys from each: (B,) keys -> (B,) and (B,)."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


# ---- around a step ----


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step is spread over devices. See `layout`."""

    mode: str
    devices: tuple

    @property
    def axis_name(self) -> str | None:
        """What the step is to be told: the mapped axis under pmap, else None."""
        return AXIS if self.mode == "pmap" else None

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices in a row."""
        return Mesh(np.array(self.devices), (AXIS,))

    def sharding(self, *spec: str | None) -> NamedSharding:
        """The sharding over this layout's mesh with a PartitionSpec of `spec`."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def state_sharding(self, state: Any) -> Any:
        """The sharding of each leaf of a state (arrays or ShapeDtypeStructs)."""
        return jax.tree.map(self._leaf_sharding, state)

    def _leaf_sharding(self, x: Any) -> NamedSharding:
        # Channels are split, never a kernel's spatial axes: those XLA can't partition rightly.
        axes = [x.ndim - 1, x.ndim - 2] if x.ndim > 1 else range(x.ndim)
        for axis in axes if self.mode == "fsdp" else ():
            if x.shape[axis] and x.shape[axis] % len(self.devices) == 0:
                return self.sharding(*[None] * axis, AXIS)
        return self.sharding()

    def place_state(self, state: Any) -> Any:
        """Puts a state where the compiled step wants it, so that it compiles once."""
        if self._is_host_local:
            return jax.device_put(state, _replicated(jax.local_devices()))
        return jax.device_put(state, self.state_sharding(state))

    def place_batch(self, batch: Any, stacked: bool = False) -> Any:
        """This process's slice of a batch, numpy, onto its devices.

        Args:
          batch: dict of (b, ...) arrays, or (k, b, ...) for k steps in one call.
          stacked: whether the arrays have that leading axis of steps.
        """
        if self.mode == "pmap":
            batch = jax.tree.map(functools.partial(self._split, stacked=stacked), batch)
            if self._is_host_local or not _PMAP_TAKES_PLACED:
                return batch
            return jax.device_put(batch, self.sharding(AXIS))
        sharding = self.sharding(*([None] if stacked else []), AXIS)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )

    def place_whole(self, batch: Any) -> Any:
        """A batch that every process has whole, spread over the devices of a `jit` layout."""
        sharding = self.sharding(AXIS)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, lambda rows: x[rows]), batch
        )

    def without_axis(self) -> "Layout":
        """The layout of the same state for functions that know no axis, such as sampling."""
        return Layout("jit", tuple(jax.local_devices()) if self._is_host_local else self.devices)

    def _split(self, x: np.ndarray, stacked: bool) -> np.ndarray:
        n = len(self.devices) // jax.process_count()
        if not stacked:
            return x.reshape(n, -1, *x.shape[1:])
        x = np.asarray(x)
        return np.swapaxes(x.reshape(x.shape[0], n, -1, *x.shape[2:]), 0, 1)

    def compile(self, step: Callable, state: Any = None, stacked: bool = False) -> Callable:
        """`step(state, batch, rng) -> (state, metrics)`, compiled; the state is donated.

        Args:
          step: a method's train_step with its static half bound.
          state: the state or its shapes; needed by fsdp alone.
          stacked: the batch holds k steps on a leading axis, which one call scans over.
        """
        step = scan_steps(step) if stacked else step
        if self.mode == "pmap":
            return jax.pmap(
                step,
                axis_name=AXIS,
                in_axes=(None, 0, None),
                out_axes=None,
                donate_argnums=0,
                devices=None if self._is_host_local else list(self.devices),
            )
        shardings = self.state_sharding(state) if self.mode == "fsdp" else self.sharding()
        return jax.jit(step, out_shardings=(shardings, self.sharding()), donate_argnums=0)

    def replicated(self, function: Callable) -> Callable:
        """`jit` of a function whose result every process and device gets whole."""
        if self._is_host_local:
            return jax.jit(function)
        return jax.jit(function, out_shardings=self.sharding())

    def to_global(self, tree: Any) -> Any:
        """The state as arrays that span all processes, as Orbax wants them."""
        if not self._is_host_local:
            return tree
        return multihost_utils.host_local_array_to_global_array(tree, self.mesh, PartitionSpec())

    def from_global(self, tree: Any) -> Any:
        """The inverse of `to_global`."""
        if not self._is_host_local:
            return tree
        return self.place_state(jax.tree.map(np.asarray, tree))

    @property
    def _is_host_local(self) -> bool:
        return self.mode == "pmap" and jax.process_count() > 1


def layout(mode: str = "pmap", devices: list | None = None) -> Layout:
    """How to run a step: on `devices` (default: all), by one of three launchers.

    Args:
      mode: "pmap"; "jit", a sharded batch with a replicated state; or "fsdp", "jit" with
        parameters and optimizer state sharded along channels as well.
    """
    return Layout(mode, tuple(jax.devices() if devices is None else devices))


def scan_steps(step: Callable) -> Callable:
    """`step` over batches stacked on a leading axis, in one call; metrics come back stacked."""

    def steps(state: Any, batches: Any, rng: jax.Array) -> tuple[Any, Any]:
        return jax.lax.scan(lambda state, batch: step(state, batch, rng), state, batches)

    return steps


def check_batch_size(batch_size: int, layout: Layout, parts: int = 1) -> None:
    """Raises UserError unless every device gets the same number of examples, in so many parts."""
    n = len(layout.devices)
    if batch_size % n == 0 and batch_size % (n * parts):
        raise UserError(
            f"batch_size = {batch_size} can't be taken in config.accumulate = {parts} parts on "
            f"each of {n} devices: take a multiple of {n * parts}."
        )
    if batch_size % n:
        raise UserError(
            f"batch_size = {batch_size} can't be divided over {n} devices: "
            f"take a multiple of {n}, such as {max(n, batch_size // n * n)}."
        )


def any_process(flag: bool) -> jax.Array:
    """() bool: whether `flag` is true in any process. All call it alike; it doesn't wait."""
    devices = jax.devices()
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    flags = jax.make_array_from_process_local_data(
        sharding, np.full(jax.local_device_count(), flag), (len(devices),)
    )
    return _any(_replicated(devices))(flags)


@functools.cache
def _any(sharding: NamedSharding) -> Callable:
    return jax.jit(jnp.any, out_shardings=sharding)


def padded(batch: Any, multiple: int) -> Any:
    """Numpy arrays filled up to a multiple by repeating the last example, not `valid` there."""
    n = len(next(iter(batch.values())))
    rows = np.minimum(np.arange(-(-n // multiple) * multiple), n - 1)
    batch = {name: np.asarray(x)[rows] for name, x in batch.items()}
    if "valid" in batch:
        batch["valid"] = batch["valid"] * (np.arange(len(rows)) < n)
    return batch


def first_examples(batch: Any, n: int) -> Any:
    """The first n examples of the global batch of which this process has the slice `batch`."""
    if jax.process_count() > 1:
        batch = multihost_utils.process_allgather(batch, tiled=True)
    return jax.tree.map(lambda x: x[:n], batch)


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of one job. All None: as Slurm, Cloud TPU or Open MPI tell."""
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"The processes can't be joined: {line}") from error


def from_lead(values: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers as the process has them that writes logs. All call it alike."""
    if jax.process_count() == 1:
        return values
    return tuple(map(float, multihost_utils.broadcast_one_to_all(np.asarray(values))))


def is_lead() -> bool:
    """Whether this is the process that prints and writes logs."""
    return jax.process_index() == 0


def _replicated(devices: list) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
