"""Numbered jobs that make models: over processes of this machine, or over those of a Ray cluster (`--engine ray`).

On a cluster Ray places the jobs and does those of a lost worker again. Each machine gets a copy of the setting once,
its data and its original model, and sends back the files that a job wrote. The same bits from devices of one kind.
"""

import hashlib
import io
import os
import pickle
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kit.device import reproducible
from kit.errors import InputError, first_line
from kit.jobs import Job, Lost, Setup, Work, run_jobs
from kit.ledger import write_atomically

_TRIES = 3  # of one job by processes that died
_SHIPPED = ("setting.json", "original_model.pth", "data/**/*")
# In a worker of a cluster: its folder, which goes with it, and what does its jobs, by set-up.
_here: dict[bytes, tuple[tempfile.TemporaryDirectory, Work]] = {}


class Cluster(list):
    """Devices as everywhere, those of this machine, and that models of the setting in this folder are made on the Ray
    cluster instead: on its GPUs, `slots` at a time on each, or, without or as device is cpu, one on each core."""

    def __init__(self, devices: Iterable[str], folder: Path, device: str = "auto", slots: int | None = None):
        super().__init__(devices)
        self.folder = folder
        ray = installed_ray()
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init("auto", log_to_driver=False, logging_level="ERROR")
            except ConnectionError as error:
                raise InputError(
                    f"--engine ray: no cluster is found ({first_line(error)}): begin one with ray start --head"
                ) from None
        found = ray.cluster_resources()
        on_gpu = device.startswith("cuda") or (device == "auto" and found.get("GPU", 0) > 0)
        if on_gpu and not found.get("GPU"):
            raise InputError(f"--device {device}: the Ray cluster has no GPU")
        self.shipped: tuple[Any, Any] = None, None  # what files, and Ray's reference to them
        self.needs = {"num_cpus": 0, "num_gpus": 1 / (slots or 1)} if on_gpu else {"num_cpus": 1}
        self.text = f"Ray cluster, {found.get('GPU' if on_gpu else 'CPU', 0):.0f} {'GPU' if on_gpu else 'core'}s"


def installed_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "--engine ray: Ray is not installed: pip install -r requirements-cluster.txt, on every machine"
        ) from None
    return ray


def run_all(
    setup: Setup,
    numbers: Iterable[int],
    devices: Sequence[str],
    *,
    description: str = "",
    progress: bool = True,
    on_result: Callable[[int, Any], None] | None = None,
) -> dict[int, Any]:
    """What `setup(device)(number)` gives for every number, by number.

    Raises InputError where a job goes down with its process three times; what other jobs wrote down is kept. On a
    `Cluster` a job reads the setting and writes files below its folder, and no others; paths in its set-up that lie
    there are those of folders.
    """
    todo, found = deque(numbers), {}
    with tqdm(total=len(todo), desc=description, disable=not progress) as bar, reproducible():
        engine = _on_cluster if isinstance(devices, Cluster) else _in_processes
        for number, result in engine(setup, todo, devices):
            found[number] = result
            bar.update()
            if on_result:
                on_result(number, result)
    return found


def _in_processes(setup: Setup, todo: deque[int], devices: Sequence[str]) -> Iterable[tuple[int, Any]]:
    lost = Counter[int]()
    next_job = lambda: Job(todo.popleft()) if todo else None  # noqa: E731
    for job, result in run_jobs(partial(_numbered, setup), next_job, devices[: max(1, len(todo))]):
        if not isinstance(result, Lost):
            yield job.number, result
            continue
        todo.append(job.number)
        lost[job.number] += not result.n_left
        if lost[job.number] == _TRIES:
            remedy = "the reason is printed above"
            if "memory" in result.reason:
                remedy = "what is finished is kept; run the same command again, with fewer processes"
            elif "start" in result.reason:
                remedy += ', or your script lacks `if __name__ == "__main__":` around what it calls'
            raise InputError(f"job {job.number}: {result.reason}, {_TRIES} times: {remedy}")


def _numbered(setup: Setup, device: str) -> Work:
    work = setup(device)
    return lambda job: work(job.number)


def _on_cluster(setup: Setup, todo: deque[int], cluster: Cluster) -> Iterable[tuple[int, Any]]:
    import ray

    root = cluster.folder.resolve()
    files = sorted(path for pattern in _SHIPPED for path in root.glob(pattern) if path.is_file())
    if (known := [(path, path.stat().st_mtime_ns) for path in files]) != cluster.shipped[0]:
        content = {str(path.relative_to(root.parent)): path.read_bytes() for path in files}
        cluster.shipped = known, ray.put(content)
    do = ray.remote(max_retries=_TRIES - 1, **cluster.needs)(_job)
    packed = _packed(setup, root)
    # the reference within a list is looked up by a worker once, not for each of its jobs
    waiting = {do.remote(packed, [cluster.shipped[1]], root.name, number): number for number in todo}
    try:
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ready)
            try:
                result, written = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"job {number}: lost {_TRIES} times on the Ray cluster ({first_line(error)}): what is finished is "
                    "kept; run the same command again, with fewer --slots where memory ran out"
                ) from None
            for name, content in written.items():
                (root / name).parent.mkdir(exist_ok=True)
                write_atomically(root / name, content)
            yield number, result
    finally:  # after Ctrl-C too
        for task in waiting:
            ray.cancel(task, force=True)


class _Packer(pickle.Pickler):
    """Paths below a root travel without it."""

    def __init__(self, file: io.BytesIO, root: Path):
        super().__init__(file)
        self._root = root

    def persistent_id(self, value: Any) -> str | None:
        inside = isinstance(value, Path) and value.resolve().is_relative_to(self._root)
        return str(value.resolve().relative_to(self._root)) if inside else None


def _packed(setup: Setup, root: Path) -> bytes:
    _Packer(file := io.BytesIO(), root).dump(setup)
    return file.getvalue()


class _Unpacker(pickle.Unpickler):
    """... and are below another one, where they are made."""

    def __init__(self, file: io.BytesIO, root: Path):
        super().__init__(file)
        self._root = root

    def persistent_load(self, name: str) -> Path:
        (folder := self._root / name).mkdir(exist_ok=True)
        return folder


def _job(packed: bytes, shipped: list[Any], name: str, number: int) -> tuple[Any, dict[str, bytes]]:
    """One job in a worker of the cluster, which keeps what its first had to set up: what it gives and what it wrote."""
    import ray

    with reproducible():
        if packed not in _here:
            _here.clear()
            own = _folder_of(ray.get(shipped[0]))
            setup = _Unpacker(io.BytesIO(packed), Path(own.name) / name).load()
            _here[packed] = own, setup("cuda" if ray.get_gpu_ids() else "cpu")
        own, work = _here[packed]
        result = work(number)
    folder = Path(own.name) / name
    written = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in written}
    for path in written:
        if path.suffix != ".txt":  # by which a job says that others are in vain
            path.unlink()
    return result, content


def _folder_of(shipped: dict[str, bytes]) -> tempfile.TemporaryDirectory:
    """A folder of this worker's own with links to what was shipped, which lies once on each machine."""
    digest = hashlib.sha256()
    for name, content in shipped.items():
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    common = Path(tempfile.gettempdir()) / f"local_eval-{os.getuid()}-{digest.hexdigest()[:16]}"
    if not common.exists():
        part = Path(tempfile.mkdtemp(prefix=f"{common.name}-part-"))
        for name, content in shipped.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        try:
            part.rename(common)
        except OSError:  # another worker was first
            shutil.rmtree(part)
    own = tempfile.TemporaryDirectory(prefix="local_eval-worker-")
    for name in shipped:
        (path := Path(own.name) / name).parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(common / name)
    return own
