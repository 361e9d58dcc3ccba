"""The one training loop, for every method: data -> step -> logs, pictures, checkpoints, scores."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aigc_jax import augment, evaluate, judge, methods, parallel, runs, runtime, scores
from aigc_jax import config as configs
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.data import configured
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.history import History, NonFiniteError, all_finite, nonfinite, skip_nonfinite
from aigc_jax.metrics import protocols
from aigc_jax.types import Batch, to_uint8
from aigc_jax.watch import TroubleError, Watch
from aigc_jax.writers import Writers, read_metrics

Stream = Callable[[int], Iterator[Batch]]  # the batches from a step on


def run(
    config: ConfigDict, workdir: str | Path, batches: Iterable[Batch] | Stream | None = None
) -> Any:
    """Trains what `config` says in `workdir`, or continues there, to the bit.

    Args:
      config: see `aigc_jax.config.default`.
      workdir: gets config.json, run.json, metrics.jsonl, tensorboard/, samples/, losses.png and
        checkpoints/.
      batches: of `d_steps * batch_size` examples, numpy, this process's slice of them: any
        iterable, or a function from a step to the batches from there on (so that a continued run
        sees the data it would have seen). None: the config's source, by tf.data.

    Returns:
      the final state.

    Raises:
      UserError: a config that can't run; a non-finite loss; a full disk.
    """
    configs.validate(config)
    method, workdir = methods.load(config.method), Path(workdir)
    layout = parallel.layout(config.parallel)
    parallel.check_batch_size(config.batch_size, layout, config.get("accumulate", 1))
    from_source, class_names, reader, can_go_back = batches is None, (), None, True
    if from_source:
        if (workdir / "tokenizer.json").is_file():
            config = config.copy_and_resolve_references()
            config.data.text.tokenizer = str(workdir / "tokenizer.json")
        config, stream = configured.training(config)
        class_names, reader = stream.class_names, stream.reader
    else:
        can_go_back = callable(batches)
        stream = _as_stream(batches)
        if config.get("on_collapse") == "rollback" and not can_go_back:
            raise UserError(
                "config.on_collapse=rollback goes back in the batches: pass a function from a step "
                "to them, or set it to stop."
            )
    # The first batch gives the shapes; a stream that can't go back must not lose it.
    batches = iter(stream(0))
    first = next(batches, None)
    if first is None:
        raise UserError("There is not one batch to train on.")
    config = configs.resolve(config, first)
    for name, path in config.frozen.items():  # so that the run can be used from anywhere
        config.frozen[name] = str(Path(path).absolute()) if path else path
    evaluate.configured_metrics(config)
    protocols.find(config.eval.protocol)
    name, its_config = config.eval.extractor, None
    if from_source:
        config, its_config = judge.find(config, workdir, bool(class_names))
    try:
        spec = method.from_config(config, axis_name=layout.axis_name)
    except AttributeError as error:  # ConfigDict's, with a suggestion
        line = " ".join(str(error).split())
        raise UserError(f"The method {config.method!r} misses a field: {line}") from error
    _check_taken(config, spec)
    chain = _chain(config, method, layout, first, from_source and stream.placed)
    loop = _Loop(config, workdir, method, spec, layout, first, class_names, reader, chain)

    peeked = [itertools.chain([first], batches)]  # whose first gave the shapes

    def rest(step: int) -> Iterator[Batch]:
        begun = peeked.pop() if peeked else None
        if begun is not None and (step == 0 or not can_go_back):
            return begun
        if begun is not None and hasattr(batches, "close"):
            batches.close()
        return iter(stream(step))

    def evaluator() -> evaluate.Evaluator | None:
        if not from_source:
            return None
        if its_config is not None:
            _train_judge(its_config, Path(config.eval.extractor), name)
        return evaluate.Evaluator(config, method, spec, layout, cache=workdir / "reference")

    return loop.run(rest, evaluator)


def _check_taken(config: ConfigDict, spec: Any) -> None:
    """UserError for fields of a GAN's that another method would leave unheeded."""
    if config.get("d_augment") and not hasattr(spec, "augment"):
        raise UserError(
            f"config.d_augment is for the method gan: {config.method} has no discriminator that "
            "sees augmented images. Leave it out, or take config.augment."
        )
    plain, told = configs.default().to_dict(), config.to_dict()
    for name in ("accumulate", "penalty_end", "regularizers", "remat"):
        if told.get(name, plain[name]) != plain[name] and not hasattr(spec, "regularizers"):
            raise UserError(
                f"config.{name} is for the method gan, not {config.method}: leave it out."
            )


def _chain(
    config: ConfigDict, method: ModuleType, layout: parallel.Layout, batch: Batch, placed: bool
) -> augment.Chain | None:
    """What `config.augment` asks, before anything is written; None: nothing."""
    text = config.get("augment", "")  # a config of an older run hasn't the field
    if not text:
        return None
    try:
        chain = augment.parse(text, mixing=getattr(method, "MIXES", False))
    except UserError as error:
        raise UserError(f"config.augment: {error}") from None
    parts = len(layout.devices) if layout.axis_name else 1
    augment.check(chain, batch, placed=placed, size=config.batch_size // parts)
    return chain


def _train_judge(config: ConfigDict, workdir: Path, name: str) -> None:
    """Unless it is there already."""
    if (workdir / "checkpoints" / str(config.num_train_steps)).is_dir():
        return
    tqdm.write(f"First the judge of the samples, {name}, in {workdir}.")
    if int(run(config, workdir).step) < config.num_train_steps:
        raise SystemExit(0)  # it was told to stop, and so are we


def _as_stream(batches: Iterable[Batch] | Stream) -> Stream:
    if callable(batches):
        return batches
    iterator = iter(batches)
    return lambda step: iterator


def farewell(workdir: str | Path) -> str:
    """The last line of a launch: where to look, and what to run next."""
    pictures = sorted(Path(workdir).glob("samples/*.png"))
    look = [str(path) for path in (*pictures[-1:], Path(workdir) / "losses.png")]
    config = configs.of_run(workdir)
    method, following = methods.load(config.method), ""
    if config.task == "inpaint":
        following = f" Next: aigc inpaint --workdir {workdir} --input FILE --mask FILE --out x.png"
    elif does := methods.command(method):
        following = f" Next: aigc {does} --workdir {workdir} --input FOLDER --out {does}d"
    elif hasattr(method, "sample"):
        say = ' --text "..."' if configured.reads_captions(config) else ""
        following = f" Next: aigc sample --workdir {workdir}{say} --out samples.png"
    elif hasattr(method, "encode"):
        following = f" Next: aigc reconstruct --workdir {workdir} --input FOLDER --out pairs"
    return f"Look at {' and '.join(look)}.{following}"


class _Loop:
    """One launch of a run."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        method: ModuleType,
        spec: Any,
        layout: parallel.Layout,
        first: Batch,
        class_names: Sequence[str],
        reader: Any = None,
        chain: augment.Chain | None = None,
    ) -> None:
        self.config, self.workdir = config, workdir
        self.method, self.spec = method, spec
        self.layout, self.first, self.class_names = layout, first, class_names
        self.reader, self.chain = reader, chain
        self.watch = Watch(config, method)
        self.rng = jax.random.key(config.seed)
        self.lead = parallel.is_lead()
        self.notices: collections.deque[jax.Array] = collections.deque()

    def run(self, stream: Stream, evaluator: Callable[[], evaluate.Evaluator | None]) -> Any:
        init, shapes = self._init()  # before anything is written: what can't be built fails here
        runs.claim(self.workdir, self.config, self.first, self.class_names)
        if self.reader is not None and self.lead:
            self.reader.save(self.workdir)
        self.evaluator = evaluator()
        with (
            self._checkpoints() as self.checkpoints,
            self.checkpoints.naming_a_full_disk(),
            runtime.told_to_stop() as self.stopping,
        ):
            state, start = self._restore(shapes) or (self.layout.place_state(init()), 0)
            if start < self.config.num_train_steps:
                self._check_held_out()
            with Writers(self.workdir, start, active=self.lead) as self.writers:
                if start == 0:
                    self.writers.parameters(state)
                self.watch.remember(read_metrics(self.workdir))
                return self._train(state, start, stream, init, shapes)

    def _checkpoints(self) -> Checkpoints:
        config = self.config
        return Checkpoints(
            self.workdir,
            self.layout,
            config.keep_checkpoints,
            config.eval.best,
            config.eval.best_mode,
        )

    def _init(self) -> tuple[Callable[[], Any], Any]:
        """What makes the first state, and its shapes."""
        rng = jax.random.fold_in(self.rng, 2**31 - 1)  # apart from every step's
        batch = jax.tree.map(lambda x: x[:1], self.first)
        init = functools.partial(self.method.init_state, self.spec)
        args = (rng, batch, runs.frozen(self.config))
        return functools.partial(jax.jit(init), *args), jax.eval_shape(init, *args)

    def _restore(self, shapes: Any) -> tuple[Any, int] | None:
        restored = self.checkpoints.restore(shapes)
        if restored is not None:
            step, total = restored[1], self.config.num_train_steps
            self._say(f"Continuing {self.workdir} from step {step} of {total}.")
            if step >= total:
                self._say("That is all of them: for more, raise --config.num_train_steps.")
        return restored

    def _check_held_out(self) -> None:
        """Says now what every evaluation would end in."""
        try:
            if self.evaluator:
                self.evaluator.check()
        except UserError as error:
            self._say(f"Warning: will not be evaluated: {error}")

    def _train(
        self, state: Any, start: int, stream: Stream, init: Callable[[], Any], shapes: Any
    ) -> Any:
        compiled = self._compiled(state)
        while True:
            self.state, trouble = state, None  # the newest, for who looks at it after trouble
            try:
                return self._steps(compiled, state, start, stream(start))
            except (TroubleError, NonFiniteError) as error:
                if not self.watch.rolls_back:
                    raise
                trouble = error.with_traceback(None)
            rate = self.watch.calmer(self.state)
            state = self.state = None  # its memory is needed
            back, line = self.watch.back(trouble, shapes, self.checkpoints)
            self._say(f"Warning: {line}")
            state, start = back or (self.layout.place_state(init()), 0)
            state = self.layout.place_state(self.method.calmed(state, rate))
            self.writers.rewind(start)
            if self.lead:
                scores.rewind(self.workdir, start)
            self.watch.remember(read_metrics(self.workdir))

    def _compiled(self, state: Any) -> dict[int, Callable]:
        """The step, and the step of several batches, by their number."""
        step_fn = functools.partial(self.method.train_step, self.spec)
        if self.chain is not None:
            step_fn = augment.augmented(step_fn, self.chain, self.layout.axis_name)
        if self.config.on_nonfinite == "skip":
            step_fn = skip_nonfinite(step_fn)
        return {
            n: self.layout.compile(step_fn, state, stacked=n > 1)
            for n in {1, self.config.steps_per_dispatch}
        }

    def _steps(
        self, compiled: dict[int, Callable], state: Any, start: int, batches: Iterator[Batch]
    ) -> Any:
        config, total = self.config, self.config.num_train_steps
        history, step = History(config.on_nonfinite), start
        hooks = self.writers.hooks(total)
        images_per_step = config.batch_size * config.d_steps
        progress = tqdm(
            total=total * images_per_step,
            initial=start * images_per_step,
            unit="img",
            unit_scale=True,
            disable=not self.lead,
            smoothing=0.1,
            dynamic_ncols=True,
        )
        with progress:
            self.progress = progress
            for n, batch in self._placed(batches, start):
                state, metrics = compiled[n](state, batch, self.rng)
                self.state = state
                history.append(step, n, metrics)
                step += n
                progress.update(n * images_per_step)
                for hook in hooks:
                    hook(step)
                stop = self._must_stop()
                self._act(state, step, history, last=stop or step == total)
                if stop:
                    self._say(f"Stopped at step {step}, saved; the same command continues.")
                    break
            else:
                if step < total:
                    self._act(state, step, history, last=True)
                    raise UserError(f"The batches ended at step {step} of {total}; it is saved.")
        return state

    def _act(self, state: Any, step: int, history: History, last: bool) -> None:
        """Everything that isn't the step, each at its own cadence."""
        config = self.config
        done = step == config.num_train_steps

        def due(every: int) -> bool:
            return bool(every) and step % every == 0

        means, values = {}, {}
        if due(config.log_every) or last:
            means = self._means(step, history, last)
        if due(config.sample_every) or done:
            self._preview(state, step)
        if due(config.eval.every) or done:
            values = self._evaluate(state, step)
        values |= self.watch.beside_best(values)
        self.writers.scalars(step, means | values)
        if warning := self.watch.look(step, means, values):
            self._say(f"Warning, step {step}: {warning}")
        if due(config.checkpoint_every) or last or (values and config.eval.best):
            self._save(state, step, history, values)
        if last:
            self.checkpoints.wait()
            self.writers.plot()

    def _means(self, step: int, history: History, last: bool) -> dict[str, float]:
        # The step just dispatched may still run: its metrics wait for the next time.
        means = history.means(leave=0 if last else 1, last_good=self.checkpoints.latest_step)
        if not means:
            return {}
        shown = {name: f"{means[name]:.3g}" for name in means if name.endswith("loss")}
        self.progress.set_postfix(shown, refresh=False)
        return means

    @functools.cached_property
    def _previewer(self) -> Callable:
        return self.layout.replicated(functools.partial(self.method.preview, self.spec))

    def _preview(self, state: Any, step: int) -> None:
        if not hasattr(self.method, "preview"):
            return
        rng = jax.random.fold_in(self.rng, 2**31 - 2)  # the same latents each time
        batch = parallel.first_examples(self.first, 64)
        grids = self._previewer(state, rng, batch)
        self.writers.grids(step, {name: np.asarray(to_uint8(x)) for name, x in grids.items()})

    def _evaluate(self, state: Any, step: int) -> dict[str, float]:
        try:
            state = runs.settled(self.method, self.spec, state) if self.evaluator else state
            found = self.evaluator and self.evaluator(state, self.rng)
        except UserError as error:  # such as no held-out images; what was trained is worth keeping
            self._say(f"Not evaluated: {error}")
            return {}
        if not found or not found.scores:
            return {}
        if self.lead:
            evaluate.record(self.workdir, self.config, step, found, self.config.seed)
        values = {f"eval_{name}": value for name, value in scores.flat(found.scores).items()}
        for name, value in values.items():
            self._say(f"  {name} = {value:.4g}")
        best = self.config.eval.best
        if best and best not in values:
            self._say(f"Warning: config.eval.best is {best!r}.{did_you_mean(best, values)}")
        return values

    def _save(self, state: Any, step: int, history: History, values: dict[str, float]) -> None:
        history.check(self.checkpoints.latest_step)
        if not all_finite(state):
            raise nonfinite(step, "the state", "not a number", self.checkpoints.latest_step)
        self.checkpoints.save(step, state, values)

    def _placed(self, batches: Iterator[Batch], start: int) -> Iterator[tuple[int, Any]]:
        """(steps in the call, batch on the devices), two ahead of use."""
        from aigc_jax.data.pipeline import prefetch

        def grouped() -> Iterator[tuple[int, Batch]]:
            step, total, k = start, self.config.num_train_steps, self.config.steps_per_dispatch
            while step < total:
                n = k if step % k == 0 and step + k <= total else 1
                group = list(itertools.islice(batches, n))
                if len(group) < n:
                    return
                batch = jax.tree.map(lambda *x: np.stack(x), *group) if n > 1 else group[0]
                yield n, batch
                step += n

        def put(item: tuple[int, Batch]) -> tuple[int, Any]:
            n, batch = item
            return n, self.layout.place_batch(batch, stacked=n > 1)

        return prefetch(grouped(), put)

    def _must_stop(self) -> bool:
        """Whether any process was told to; all of them learn it at the same step."""
        if jax.process_count() == 1:
            return self.stopping.is_set()
        # Asked for now, read two calls later, when it has long arrived.
        self.notices.append(parallel.any_process(self.stopping.is_set()))
        return len(self.notices) > 2 and bool(self.notices.popleft())

    def _say(self, text: str) -> None:
        if self.lead:
            tqdm.write(text)
