"""What the processes of an engine do is read off the real process table, and off NVML where there is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import psutil
import pytest

from serve_app.engine import activity


@contextmanager
def process(code: str, *, before: str = "") -> Iterator[psutil.Process]:
    """A Python process that runs `code`, and `before` it what is over when the test goes on."""
    command = [sys.executable, "-c", f"{before}\nprint('on', flush=True)\n{code}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield psutil.Process(started.pid)
        finally:
            started.kill()


def test_a_process_that_works_moves_and_one_that_is_stopped_does_not() -> None:
    with process("while True: pass") as spinning:
        before = activity.read([spinning], lambda: None).cpu_s[spinning.pid]
        while activity.read([spinning], lambda: None).cpu_s[spinning.pid] <= before:
            pass
        os.kill(spinning.pid, signal.SIGSTOP)
        while spinning.status() != psutil.STATUS_STOPPED:
            pass
        stopped = activity.read([spinning], lambda: None).cpu_s
        for _ in range(100):
            assert activity.read([spinning], lambda: None).cpu_s == stopped


def test_children_are_seen_and_ended_children_are_kept() -> None:
    before = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])\n"
        "waits = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin)"
    )
    with process("waits.wait()", before=before) as parent:
        children = parent.children()
        seen = activity.read([parent], lambda: None)
    assert set(seen.cpu_s) == {parent.pid, children[0].pid}
    assert seen.cpu_s[parent.pid] >= 0.05


POLLS = """
import threading

def poll():
    while True:
        threading.Event().wait(0.01)

for _ in range(20):
    threading.Thread(target=poll, daemon=True).start()
"""


@pytest.mark.slow
def test_threads_that_poll_are_told_apart_and_not_summed_up() -> None:
    with process("input()", before=POLLS) as polling:
        polls: list[float] = []
        while sum(polls) < 0.4:
            seen = activity.read([polling], lambda: None).cpu_s
            polls = [cpu_s for thread, cpu_s in seen.items() if thread != polling.pid]
    assert len(polls) == 20
    assert max(polls) < sum(polls) / 2, "on a busy machine one of them may get a few ticks of the kernel's clock"


def test_torch_inductors_compile_workers_count_as_compilers() -> None:
    with process("input() # compile_worker") as worker:
        seen = activity.read([worker], lambda: None)
    assert set(seen.compiler_cpu_s) == {worker.pid}
    assert not seen.cpu_s


def test_compilers_are_found_below_and_nothing_else() -> None:
    compiles = "sys.stdin.read() # compile_worker"
    before = f"import subprocess, sys\nwaits = subprocess.Popen([sys.executable, '-c', 'import sys; {compiles}'])"
    with process("waits.wait()", before=before) as parent:
        (child,) = parent.children()
        while not any(activity.COMPILE_WORKER in part for part in child.cmdline()):
            pass  # it has not become a Python yet
        assert set(activity.compilers([parent])) == {child.pid}
        assert activity.compilers([child]) == {}, "below, and not itself"
        child.kill()


def test_waits_for_a_cpu_are_counted_by_the_kernel_and_only_grow() -> None:
    with process("input()") as gone:
        pass
    gone.wait()
    before = activity.cpu_wait([os.getpid(), gone.pid])
    after = activity.cpu_wait([os.getpid()])
    assert set(before) == {os.getpid()}
    assert 0 <= before[os.getpid()] <= after[os.getpid()]


def test_a_process_that_is_gone_is_left_out() -> None:
    with process("input()") as gone:
        pass
    assert activity.read([gone], lambda: 0.5) == activity.EngineActivity({}, {}, 0.5)


class FakeNvml:
    """NVML with two GPUs at 10 and 60 %."""

    NVMLError = RuntimeError

    def __init__(self, *, has_driver: bool = True) -> None:
        self._has_driver = has_driver

    def nvmlInit(self) -> None:  # noqa: N802  # NVML's name
        if not self._has_driver:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # NVML's name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802  # NVML's name
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802  # NVML's name
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802  # NVML's name
        return SimpleNamespace(gpu=(10, 60)[handle])


@pytest.mark.parametrize(("visible", "ratio"), [(None, 0.6), ("0", 0.1), ("GPU-b", 0.6), ("", None)])
def test_the_busiest_gpu_that_may_be_used_counts(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, ratio: float | None
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert activity.gpu_reader(FakeNvml())() == ratio


def test_without_a_driver_there_is_no_gpu_to_look_at() -> None:
    assert activity.gpu_reader(FakeNvml(has_driver=False))() is None
