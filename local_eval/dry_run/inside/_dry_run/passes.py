"""Which loaders, and lists of their batches, are run through within one batch of another, and how far a run is."""

import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import wraps

from _dry_run.events import Recorder
from _dry_run.kept import Batches, Kept

_TOLD_AFTER_S = 2.0  # how far a run is, where it is not saved for long


class Pass:
    """One iteration over a loader, or a list of its batches. loader: its examples and batch size; parent: the pass in
    whose batch it began; seen: images that nets saw since then; inner: what began and ended within one of its batches.
    """

    def __init__(self, loader: tuple[int, int], parent: "Pass | None"):
        self.loader = loader
        self.parent, self.parents_batch = parent, parent.n_batches if parent else 0
        self.n_batches, self.done = 0, False
        self.seen: Counter[str] = Counter()
        self.inner: list[Pass] = []

    def is_outer(self) -> bool:
        """Does at least every second of its batches hold a whole pass over another loader? Rarer ones evaluate."""
        batches = {one.parents_batch for one in self.inner}
        return (self.done or self.n_batches > 1) and len(batches) >= max(1, self.n_batches / 2)


def _loader_of(iterator) -> tuple[int, int]:
    try:
        return len(iterator._dataset), iterator._index_sampler.batch_size or 1
    except (AttributeError, TypeError):  # a stream has no length, a sampler of one's own no size of batches
        return 0, 1


class Passes:
    """Those since the last checkpoint was saved."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self.open: list[Pass] = []
        self.batches = Batches()
        self.forget()

    def forget(self) -> None:
        self.all: list[Pass] = []
        self.n_batches, self.begun = 0, time.monotonic()
        self.told = self.begun

    def nested(self) -> list[dict]:
        """Each pass within a batch of another: both loaders, the images that nets saw in it."""
        return [
            {"outer": outer.loader, "inner": inner.loader, "seen": dict(inner.seen)}
            for outer in self.all
            if outer.is_outer()
            for inner in outer.inner
        ]

    def watch(self, kind: type) -> None:
        """Which loaders are run through within one batch of another."""
        plain, known = kind.__next__, weakref.WeakKeyDictionary()

        @wraps(plain)
        def advance(iterator):
            one = known.get(iterator)
            if one is None or one.done:  # workers that persist hand out the same iterator again
                one = known[iterator] = self._begin(_loader_of(iterator))
                weakref.finalize(iterator, self._close, one)
            try:
                batch = plain(iterator)
            except StopIteration:
                self._end(one)
                raise
            self.batches.note(batch, one.loader)
            self._count(one)
            return batch

        kind.__next__ = kind.next = advance

    def gives_batches(self, iterable) -> bool:
        """Is it a loader, or a list of a loader's batches?"""
        loader = sys.modules.get("torch.utils.data.dataloader")
        is_loader = loader is not None and isinstance(iterable, loader.DataLoader)
        return is_loader or self.batches.of_list(iterable) is not None

    def kept(self, batches):
        """`batches`, a pass over which is noted where they are a list of a loader's."""
        loader = self.batches.of_list(batches)
        if loader is None or (len(batches) == 1 and any(one.loader == loader for one in self.open)):
            return batches  # one batch alone is the one at hand, as arguments of a function
        return Kept(batches, lambda: self._through(batches, loader))

    def _through(self, batches, loader: tuple[int, int]) -> Iterator[object]:
        one = self._begin(loader)
        try:
            for batch in batches:
                self._count(one)
                yield batch
            self._end(one)
        finally:
            self._close(one)

    def _count(self, one: Pass) -> None:
        """A batch more; now and then how far the run is, should it never be saved."""
        one.n_batches += 1
        self.n_batches += 1
        if (now := time.monotonic()) - self.told > _TOLD_AFTER_S:
            self.told = now
            whole = Counter(one.loader[0] for one in self.all if one.done).most_common(1)
            facts = {"batches": self.n_batches, "seconds": now - self.begun, "passes": whole[0] if whole else None}
            self.recorder.record("progress", **facts)

    def _begin(self, loader: tuple[int, int]) -> Pass:
        one = Pass(loader, self.open[-1] if self.open else None)
        if not self.all:
            self.begun = time.monotonic()
        self.open.append(one)
        self.all.append(one)
        return one

    def _end(self, one: Pass) -> None:
        one.done = True
        self._close(one)
        parent = one.parent  # one that was advanced in the meantime is drawn beside this one, as by zip
        if parent is not None and not parent.done and parent.n_batches == one.parents_batch:
            parent.inner.append(one)

    def _close(self, one: Pass) -> None:
        if one in self.open:
            self.open.remove(one)
