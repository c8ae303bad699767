"""What the program does with torch: checkpoints written, data drawn, images seen by a net, modules replaced."""

import builtins
import hashlib
import itertools
import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from types import ModuleType

from _dry_run.events import Recorder
from _dry_run.kept import NAME, product_of
from _dry_run.passes import Passes

_N_PRINTED = 16  # cached images looked at
_N_RANGES = 4  # batches a run whose values are looked at
_DEPTH = 3  # containers within containers that may hold a data set's images


def hooks(recorder: Recorder) -> dict[str, Callable[[ModuleType], object]]:
    watch = _Watch(recorder)
    setattr(builtins, NAME, watch.passes.kept)
    itertools.product = product_of(watch.passes.kept, watch.passes.gives_batches)
    return {
        "torch": watch.on_torch,
        "torch.serialization": watch.on_serialization,
        "torch.optim.optimizer": watch.on_optimizer,
        "torch.utils.data.dataloader": watch.on_dataloader,
        "torch.utils.data.sampler": watch.on_sampler,
        "torchvision.io.image": watch.on_image_reading,
        "cv2": watch.on_image_reading,
    }


@dataclass(eq=False)
class _Draw:
    """A pass of a sampler: examples and batch size of its loader, those of a whole pass, those drawn, and when; beside:
    the examples of the loader whose pass was the last to end within this one."""

    size: int
    batch_size: int
    whole: int
    n: int = 0
    began: float = field(default_factory=time.monotonic)
    last: float = 0.0
    beside: int | None = None


def _drawn(draws: Sequence[_Draw]) -> list[tuple[int, int, int]]:
    """The size of the data that says how many were drawn, the batch size, and how many. A pass that another one cut
    short, as zip does, is as long as that one."""
    drawn: Counter[tuple[int, int]] = Counter()
    for draw in draws:
        short = draw.beside is not None and draw.n < draw.whole
        drawn[draw.beside if short else draw.size, draw.batch_size] += draw.n
    return [(*key, n) for key, n in drawn.items()]


class _Watch:
    """What happened since the last checkpoint was saved; each saving is one line of the record."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self.torch: ModuleType | None = None
        self.datasets: list[weakref.ref] = []  # a data set is known by its place here
        self.loaded: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # net -> [description, times loaded]
        self.stored: weakref.ref | None = None  # the net whose state dict was asked for last
        self.replaced: list[tuple] = []
        self.passes = Passes(recorder)
        self._forget()

    def _forget(self) -> None:
        self.passes.forget()
        self.optimizers: weakref.WeakSet = weakref.WeakSet()
        self.optimized: list[weakref.ref] = []  # parameters that an optimiser changed
        self.n_steps, self.n_in_train_mode = 0, 0
        self.first_nan: dict | None = None
        self.statistics: weakref.WeakSet = weakref.WeakSet()  # layers that recorded some in training mode
        self.draws: list[_Draw] = []
        self.seen: Counter[str] = Counter()
        self.largest = 0.0
        self.n_ranges = 0
        self.recorder.forget_reads()

    # -- saving -------------------------------------------------------------------------------------------------------

    def on_serialization(self, module: ModuleType) -> None:
        plain = module.save

        @wraps(plain)
        def save(obj, f, *args, **kwargs):
            start, self.recorder.in_save = time.monotonic(), True
            try:
                if isinstance(f, str | os.PathLike):  # torch opens files where no audit hook sees it
                    sys.audit("open", os.fspath(f), "wb", os.O_WRONLY | os.O_CREAT)
                result = plain(obj, f, *args, **kwargs)
            finally:
                self.recorder.in_save = False
            self._record_saving(f, time.monotonic() - start)
            return result

        module.save = save

    def _record_saving(self, target, seconds: float) -> None:
        path = os.fspath(target) if isinstance(target, str | os.PathLike) else getattr(target, "name", None)
        facts = {"path": path if isinstance(path, str) else None, "seconds": seconds, "where": self.recorder.where()}
        try:
            facts.update(self._since_last_saving())
        except Exception as error:  # a data set or net that cannot be looked at is no fault of the program
            facts["unseen"] = f"{type(error).__name__}: {error}"
        self.recorder.record("save", **facts)
        self.replaced = []
        self._forget()

    def _since_last_saving(self) -> dict:
        return {
            "reads": self.recorder.reads(),
            "reads_in_all": self.recorder.reads_in_all(),
            "first_read": self.recorder.first_read,
            "drawn": _drawn(self.draws),
            "seen": dict(self.seen),
            "nested": self.passes.nested(),
            "steps": self.n_steps,
            "in_train_mode": self.n_in_train_mode,
            "stored_is_trained": self._stored_is_trained(),
            "first_nan": self.first_nan,
            "largest": self.largest if self.n_ranges else None,
            "datasets": [self._print_of(n, data) for n, ref in enumerate(self.datasets) if (data := ref()) is not None],
            "replaced": self._replaced_in_shared_net(),
            "altered": self._altered(),
        }

    # -- data ---------------------------------------------------------------------------------------------------------

    def on_dataloader(self, module: ModuleType) -> None:
        plain = module.DataLoader.__init__

        @wraps(plain)
        def init(loader, dataset, *args, **kwargs):
            plain(loader, dataset, *args, **kwargs)
            known = {id(ref()) for ref in self.datasets}
            for base in _bases(dataset):
                if id(base) not in known and hasattr(base, "__weakref__"):  # a list as a data set has none
                    self.datasets.append(weakref.ref(base))

        module.DataLoader.__init__ = init
        self.passes.watch(module._BaseDataLoaderIter)

    def on_sampler(self, module: ModuleType) -> None:
        """Every loader that shuffles draws its indices through a BatchSampler."""
        plain = module.BatchSampler.__iter__

        @wraps(plain)
        def iterate(sampler) -> Iterator[list[int]]:
            try:
                size = len(sampler.sampler)
            except TypeError:
                size = 0
            draw = _Draw(size, sampler.batch_size, size - size % sampler.batch_size * sampler.drop_last)
            self.draws.append(draw)
            for batch in plain(sampler):
                if draw not in self.draws:  # begun before the last checkpoint was saved
                    draw = replace(draw, n=0)
                    self.draws.append(draw)
                draw.n, draw.last = draw.n + len(batch), time.monotonic()
                yield batch
            for other in self.draws:
                if other.last > draw.began and other is not draw:
                    other.beside = draw.size

        module.BatchSampler.__iter__ = iterate

    def on_image_reading(self, module: ModuleType) -> None:
        """Compiled readers open files where no audit hook sees them."""
        for name in ("read_file", "imread"):
            if plain := getattr(module, name, None):
                setattr(module, name, self._counted(plain))

    def _counted(self, plain: Callable) -> Callable:
        @wraps(plain)
        def read(path, *args, **kwargs):
            if str(path).endswith(".png"):
                self.recorder.note_read()
            return plain(path, *args, **kwargs)

        return read

    def _print_of(self, serial: int, dataset) -> dict:
        """A fingerprint of the images that a data set keeps, None where it keeps none, and where it is defined."""
        digest, n_found = hashlib.sha256(), 0
        values = list(vars(dataset).values()) if hasattr(dataset, "__dict__") else []
        for image in _images(values, self.torch, _DEPTH):
            digest.update(image.detach().to("cpu", self.torch.float32).contiguous().numpy().tobytes())
            n_found += 1
        code = getattr(type(dataset).__getitem__, "__code__", None)
        where = self.recorder.place(code.co_filename, code.co_firstlineno) if code else None
        name = type(dataset).__name__
        return {
            "name": name,
            "serial": serial,
            "where": where,
            "print": digest.hexdigest() if n_found else None,
        }

    # -- nets ---------------------------------------------------------------------------------------------------------

    def on_torch(self, torch: ModuleType) -> None:
        self.torch = torch
        module = torch.nn.Module
        self._watch_replacing(module)
        self._watch_loading(module)
        conv = torch.nn.Conv2d

        def before_forward(net, inputs) -> None:
            if isinstance(net, conv) and net.in_channels == 3 and inputs:
                self._see(torch, inputs[0], net.training)
            elif net.training and getattr(net, "running_var", None) is not None:
                self.statistics.add(net)

        torch.nn.modules.module.register_module_forward_pre_hook(before_forward)

    def _see(self, torch: ModuleType, images, in_train_mode: bool) -> None:
        """Images on their way into a net's first layer."""
        try:
            kind, n_images = "trained" if torch.is_grad_enabled() else "evaluated", len(images)
            for counter in (self.seen, *(one.seen for one in self.passes.open)):
                counter[kind] += n_images
            self.n_in_train_mode += n_images * in_train_mode
            if self.n_ranges < _N_RANGES:
                self.largest = max(self.largest, float(images.detach().abs().max()))
                self.n_ranges += 1
        except (RuntimeError, TypeError, ValueError):  # inside vmap and the like there are no values to look at
            return

    def on_optimizer(self, module: ModuleType) -> None:
        register = getattr(module, "register_optimizer_step_post_hook", None)
        if register is not None:  # torch 2.0 and later
            register(lambda optimizer, *_: self._note_step(optimizer))

    def _note_step(self, optimizer) -> None:
        """Which parameters are trained, and when the first of them, or of the statistics, stops to be a number."""
        self.n_steps += 1
        parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        if optimizer not in self.optimizers:
            self.optimizers.add(optimizer)
            self.optimized += map(weakref.ref, parameters)
        if self.first_nan is None:
            torch = self.torch
            looked_at = [*parameters, *(layer.running_var for layer in self.statistics)]
            sums = [tensor.detach().sum(dtype=torch.float32) for tensor in looked_at if tensor.is_floating_point()]
            if sums and not torch.isfinite(torch.stack([one.cpu() for one in sums])).all():
                self.first_nan = {"step": self.n_steps, "where": self.recorder.where()}

    def _stored_is_trained(self) -> bool | None:
        """Is a parameter of the net that was stored among those that an optimiser changed? None: neither is known."""
        net, optimized = self._stored_net(), {id(tensor) for ref in self.optimized if (tensor := ref()) is not None}
        if net is None or not self.optimized:
            return None
        return any(id(tensor) in optimized for tensor in net.parameters())

    def _watch_loading(self, module: type) -> None:
        plain = module.load_state_dict

        @wraps(plain)
        def load_state_dict(net, *args, **kwargs):
            result = plain(net, *args, **kwargs)
            self.loaded.setdefault(net, [repr(net), 0])[1] += 1
            return result

        module.load_state_dict = load_state_dict
        plain_state = module.state_dict

        @wraps(plain_state)
        def state_dict(net, *args, **kwargs):
            if not args and not kwargs.get("prefix") and kwargs.get("destination") is None:
                self.stored = weakref.ref(net)
            return plain_state(net, *args, **kwargs)

        module.state_dict = state_dict

    def _stored_net(self):
        """The net whose state dict was asked for last; of one in a wrapper (DataParallel, compiled) the net within."""
        net = self.stored() if self.stored else None
        return next((one for one in net.modules() if one in self.loaded), net) if net is not None else None

    def _altered(self) -> str | None:
        """The first line in which the net that was stored differs from every net that loaded a state dict. A net with
        such a one in it wraps it, and a layer of such a one is no net."""
        net = self._stored_net()
        known = [description for description, _ in self.loaded.values()]
        if net is None or not known or any(repr(one) in known for one in net.modules()):
            return None
        if any(net is part for loaded in list(self.loaded) if loaded is not net for part in loaded.modules()):
            return None
        pairs = zip(repr(net).splitlines(), known[0].splitlines(), strict=False)
        return next((f"{a.strip()} was {b.strip()}" for a, b in pairs if a != b), "layers were added")

    def _replaced_in_shared_net(self) -> list[dict]:
        """Replacements, not taken back, within the net that was stored, if several runs share it."""
        net = self._stored_net()
        if net is None or self.loaded.get(net, ["", 0])[1] < 2:
            return []
        inside = {id(module) for module in net.modules()}
        found = [(one[0](), *one[1:]) for one in self.replaced]
        return [
            {"module": path, "where": where}
            for parent, name, old, path, where in found
            if id(parent) in inside and parent._modules.get(name) is not old()
        ]

    def _watch_replacing(self, module: type) -> None:
        plain = module.__setattr__

        @wraps(plain)
        def setattr_(net, name, value):
            old = net.__dict__.get("_modules", {}).get(name)
            plain(net, name, value)
            if isinstance(old, module) and isinstance(value, module) and old is not value:
                self._note_replacing(net, name, old)

        module.__setattr__ = setattr_

    def _note_replacing(self, parent, name: str, old) -> None:
        where = self.recorder.where()
        for net in list(self.loaded) if where else ():
            inside = next((path for path, child in net.named_modules() if child is parent), None)
            if inside is not None:
                path = f"{inside}.{name}" if inside else name
                self.replaced.append((weakref.ref(parent), name, weakref.ref(old), path, where))


def _bases(dataset, depth: int = _DEPTH) -> Iterator[object]:
    """A data set, and those within subsets, concatenations and a program's own wrappers."""
    yield dataset
    values = vars(dataset).values() if depth and hasattr(dataset, "__dict__") else ()
    parts = [part for value in values for part in (value[:10] if isinstance(value, list | tuple) else [value])]
    for part in parts:
        if all(hasattr(part, name) for name in ("__getitem__", "__len__", "__dict__")) and not hasattr(part, "shape"):
            yield from _bases(part, depth - 1)


def _images(values, torch: ModuleType, depth: int) -> Iterator[object]:
    """The first cached images in a data set's attributes: tensors or arrays of three dimensions or more."""
    for value in values:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and len(shape) >= 3 and hasattr(value, "dtype"):
            if len(shape) > 3:
                value = value[:_N_PRINTED]
            yield value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
        elif depth and isinstance(value, list | tuple):
            yield from _images(value[:_N_PRINTED], torch, depth - 1)
        elif depth and isinstance(value, dict):
            yield from _images(list(value.values())[:_N_PRINTED], torch, depth - 1)
