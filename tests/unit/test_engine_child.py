"""What a process of an engine does for its owner."""

from __future__ import annotations

import inspect
import logging

import pytest

from serve_app.engine.child import ProcessReport, is_engine_process, report_of


def record(message: str, *args: object, level: int = logging.INFO, error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error is not None else None
    return logging.LogRecord("vllm.some.module", level, __file__, 1, message, args, exc_info)


@pytest.mark.parametrize(
    ("message", "args", "words"),
    [
        ("Starting to load model %s...", ("/models/step",), "loading weights"),
        ("Loading weights took %.2f seconds", (3.2,), "weights loaded"),
        ("GPU KV cache size: %s tokens", ("1,024",), "allocating the KV cache"),
    ],
)
def test_milestones_of_vllm_are_told_in_words(message: str, args: tuple[object, ...], words: str) -> None:
    assert report_of(record(message, *args)) == ProcessReport(words, error=False)


def test_a_kernel_that_is_compiled_late_is_told_by_its_name() -> None:
    from vllm.utils import jit_monitor

    for kind, name in (("Triton kernel", "_fwd_kernel"), ("CuTeDSL", "gemm.sm90")):
        late = record(
            "%s JIT compilation during inference: %s%s. "
            "This causes a latency spike; consider extending warmup to cover this shape/config.",
            *(kind, name, ""),
        )
        assert report_of(late) == ProcessReport("", error=False, compiled=f"{kind.split()[0]} {name}")
    words = inspect.getsource(jit_monitor)
    assert "%s %s during inference: %s%s. " in words and '"kernel JIT compilation"' in words


def test_a_download_is_told_with_its_duration() -> None:
    done = record("Time spent downloading weights for %s: %.6f seconds", "stepfun-ai/Step-3.7-Flash", 12.5)
    assert report_of(done) == ProcessReport("weights downloaded in 12.500000 s", error=False)


def test_other_messages_are_not_told() -> None:
    assert report_of(record("Using default backend %s", "X")) is None


def test_an_error_is_told_with_its_cause() -> None:
    report = report_of(record("EngineCore failed to start.", level=logging.ERROR, error=ValueError("no such weights")))
    assert report == ProcessReport("EngineCore failed to start. ValueError: no such weights", error=True)


def test_this_process_belongs_to_no_engine() -> None:
    assert not is_engine_process()
