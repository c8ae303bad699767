"""Examples over copies of the process: the same results, whatever becomes of a copy, and none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from local_eval.metric import chunks

FORKED = multiprocessing.get_context("fork") if sys.platform == "linux" else None
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(chunks, "_WORTH_FORKING_S", 0)


def places(job):
    """The process of each chunk, and the chunks' results."""
    found = chunks.map_chunks(lambda some: (os.getpid(), job(some)), 10, 3, 3)
    return [pid for pid, _ in found], [value for _, value in found]


def test_results_are_in_order_from_several_processes():
    all_at_one = FORKED.Barrier(3)

    def job(some):
        if some.start:  # before the first is done there are no copies
            all_at_one.wait(60)
        return list(range(10))[some]

    pids, found = places(job)
    assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(set(pids)) == 3 and pids[0] == os.getpid()


def test_a_process_that_is_slow_takes_less():
    """The copy is at its first chunk until all others are done."""
    here, begun, others_done, done = os.getpid(), FORKED.Event(), FORKED.Event(), []

    def job(some):
        if os.getpid() != here:
            begun.set()
            others_done.wait(60)
        else:
            assert not some.start or begun.wait(60)
            done.append(some)
        if len(done) == 11:
            others_done.set()
        return os.getpid()

    pids = chunks.map_chunks(job, 12, 1, 2)
    assert pids.count(here) == 11
    assert others_done.is_set()


def test_more_slices_than_a_queue_holds_numbers():
    assert chunks.map_chunks(lambda some: some.start, 1000, 1, 2) == list(range(1000))


def test_what_a_dead_copy_leaves_is_done_here():
    here = os.getpid()
    pids, found = places(lambda some: time.sleep(0.1) or some.start if os.getpid() == here else os._exit(1))
    assert found == [0, 3, 6, 9] and set(pids) == {here}


def test_an_error_of_the_job_is_raised_and_no_process_is_left(monkeypatch):
    pids, fork = [], os.fork

    def noted():
        pids.append(fork())
        return pids[-1]

    def job(some):
        if some.start == 3:
            raise ValueError("at 3")
        time.sleep(0.01)

    monkeypatch.setattr(os, "fork", noted)
    with pytest.raises(ValueError, match="at 3"):
        chunks.map_chunks(job, 6, 3, 2)
    assert len(pids) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_parts_of_a_part_are_done_where_it_is():
    pids, found = places(lambda some: chunks.map_chunks(lambda _: os.getpid(), 4, 1, 2))
    assert [[pid] * 4 for pid in pids] == found


PARENT = """
import os, time
from local_eval.metric import chunks

here = os.getpid()

def job(some):
    if os.getpid() == here:
        time.sleep(0.1 if some.start == 0 else 60)
    else:
        print(os.getpid(), flush=True)
    return bytes(10**6)

chunks.map_chunks(job, 3, 1, 2)
"""


def test_a_copy_ends_with_a_parent_that_is_killed():
    """Its results, of more bytes than a pipe holds, are read by nobody any more."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        copy = int(parent.stdout.readline())
        time.sleep(0.5)  # it has begun to write
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(copy, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(copy, signal.SIGKILL)
    pytest.fail("the copy waits for ever")
