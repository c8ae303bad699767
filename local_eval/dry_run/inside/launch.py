"""Starts one program of a dry run, waits for it, and ends whatever it leaves running.

python launch.py SANDBOX plain|namespaces COMMAND...

With `namespaces` (Linux, no privileges needed) the program gets a file system of its own in which /kaggle is the
sandbox's, everything else can only be read, and there is no network; with `plain` it gets none of that and the hooks
in `_dry_run` do what can be done from within Python. Exit code 97: there are no such namespaces here.
Standard library only; imports nothing of the project.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import time

NO_NAMESPACES = 97
_GRACE_S = 2.0
_NEWNS, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_RDONLY_ATTRIBUTE, _RECURSIVE = 0x1, 0x8000  # mount_setattr: MOUNT_ATTR_RDONLY, AT_RECURSIVE
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 0x40000
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_MOUNT_SETATTR = 442  # the same number on every architecture


def main(sandbox: str, kind: str, command: list[str]) -> int:
    settings = json.loads(open(f"{sandbox}/settings.json").read())  # noqa: SIM115
    if kind == "plain":
        return supervise(lambda: start(command, f"{sandbox}/kaggle/working", settings), sandbox, end_with_parent=False)
    uid, gid = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEWUSER | _NEWNS | _NEWPID | _NEWNET)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        _loopback_up()
        root = build_root(sandbox)
    except OSError:
        return NO_NAMESPACES
    first = os.fork()  # the first process of the new namespace: when it ends, all in it end
    if first == 0:
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        try:
            _call("mount", b"proc", f"{root}/proc".encode(), b"proc", 0, None)
        except OSError:
            os._exit(NO_NAMESPACES)
        os.chroot(root)
        os._exit(supervise(lambda: start(command, "/kaggle/working", settings), sandbox, end_with_parent=True))
    return _wait_for(first)


def build_root(sandbox: str) -> str:
    """A root folder in which all that there is can be read, and the sandbox, /kaggle and /tmp be written."""
    root = f"{sandbox}/root"
    _call("mount", None, b"/", None, _REC | _PRIVATE, None)
    _call("mount", b"tmpfs", root.encode(), b"tmpfs", 0, None)
    for name in sorted(os.listdir("/")):
        if name not in ("kaggle", "tmp"):
            _show(f"/{name}", f"{root}/{name}", readonly=name not in ("dev", "proc", "sys"))
    for name in ("kaggle", "tmp"):  # files of the host's /tmp may be needed: an environment, the data
        os.mkdir(f"{root}/{name}")
        _bind(f"{sandbox}/{name}", f"{root}/{name}")
    for name in sorted(os.listdir("/tmp")):
        try:
            _show(f"/tmp/{name}", f"{root}/tmp/{name}", readonly=True)
        except OSError:  # files of others, or gone in the meantime
            continue
    _call("mount", b"tmpfs", f"{root}/dev/shm".encode(), b"tmpfs", 0, None)
    _bind(sandbox, root + sandbox, below=False)
    _bind(f"{sandbox}/kaggle/input", f"{root}/kaggle/input")
    _read_only(f"{root}/kaggle/input")
    return root


def _show(source: str, target: str, *, readonly: bool) -> None:
    if os.path.islink(source):
        if not os.path.lexists(target):
            os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)  # the sandbox's /tmp has it from an earlier launch
    else:
        os.close(os.open(target, os.O_CREAT))
    _bind(source, target)
    if readonly:
        _read_only(target)


def _bind(source: str, target: str, *, below: bool = True) -> None:
    """Show `source` at `target`, by default with what is mounted below it."""
    _call("mount", source.encode(), target.encode(), None, _BIND | (_REC if below else 0), None)


def _read_only(target: str) -> None:
    attributes = struct.pack("=QQQQ", _RDONLY_ATTRIBUTE, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, -100, target.encode(), _RECURSIVE, attributes, len(attributes))


def _loopback_up() -> None:
    """Processes of one program may talk to each other over 127.0.0.1."""
    with socket.socket() as sock:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, request)  # SIOCSIFFLAGS


def start(command: list[str], folder: str, settings: dict) -> None:
    """Become the program."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (settings["limit_bytes"], settings["limit_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.pop("JPY_PARENT_PID", None)  # the kernel's parent is not the one that asked for it
    os.chdir(folder)
    os.execvp(command[0], command)


def supervise(program, sandbox: str, *, end_with_parent: bool) -> int:
    """Run `program` in a child process; its exit code. What it leaves behind is written down and killed."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        if end_with_parent:
            _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        try:
            program()
        except OSError as error:
            print(error, file=sys.stderr)
        os._exit(99)
    code = _wait_for(child)
    until = time.monotonic() + _GRACE_S
    while descendants() and time.monotonic() < until:
        time.sleep(0.05)
        _reap()
    if left := descendants():
        with open(f"{sandbox}/left.json", "w") as file:
            json.dump(list(left.values()), file)
        _kill_all()
    return code


def _wait_for(child: int) -> int:
    """Exit code of a child, 128 + signal if it was killed. SIGTERM ends it and its like, SIGUSR1 is passed on."""

    def terminate(*_) -> None:
        _kill_all()

    def pass_on(number: int, _) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGUSR1, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the harness decides what Ctrl-C ends
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status) % 256 if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def descendants() -> dict[int, str]:
    """Processes below this one that still run: number -> command line. Empty where there is no /proc."""
    parents, lines = {}, {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                with open(f"/proc/{name}/cmdline") as file:
                    line = file.read().replace("\0", " ").strip()
            except OSError:
                continue
            if state != "Z":
                parents[int(name)], lines[int(name)] = int(parent), line
    found: dict[int, str] = {}
    for pid in parents:
        above = parents.get(pid)
        while above and above != os.getpid():
            above = parents.get(above)
        if above == os.getpid():
            found[pid] = lines[pid]
    return found


def _kill_all() -> None:
    for _ in range(20):  # again: they may be starting others
        found = descendants()
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not found:
            return
        time.sleep(0.02)


def _call(name: str, *arguments) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(option, value, 0, 0, 0)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
