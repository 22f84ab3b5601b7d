"""vLLM's own benchmark client under the self-test's load: `python tests/loadtest/vllm_client.py URL STREAMS CHUNKS`.

Prints one JSON line with its TTFT, gaps and the CPU it used between the first send and the finished figures. For the
side-by-side run in docs/load-testing.md; the load test itself never imports vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys

import numpy as np

from loadtest.commands.selftest import selftest_prompts


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main(url: str, streams: int, chunks: int) -> None:
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark
    from vllm.utils.gc_utils import freeze_gc_heap

    prompts = selftest_prompts(streams, chunks)
    requests = [
        SampleRequest(p.text, len(p.text) // 4, p.output_tokens, request_id=str(i)) for i, p in enumerate(prompts)
    ]
    freeze_gc_heap()
    before_s = cpu_s()
    with contextlib.redirect_stdout(sys.stderr):
        result = await benchmark(
            task_type=TaskType.GENERATION, endpoint_type="openai-chat", api_url=f"{url}/v1/chat/completions",
            base_url=url, model_id="mock", model_name="mock", tokenizer=None, input_requests=requests, logprobs=None,
            request_rate=float("inf"), burstiness=1.0, disable_tqdm=True, num_warmups=0, profile=False,
            selected_percentile_metrics=["ttft"], selected_percentiles=[99.0], ignore_eos=True,
            goodput_config_dict={}, max_concurrency=streams, lora_modules=None, extra_headers=None, extra_body={},
            ready_check_timeout_sec=0,
        )  # fmt: skip
    spent_s = cpu_s() - before_s
    ttfts = np.asarray(result["ttfts"]) * 1e3
    gaps = np.concatenate([np.asarray(itl[1:]) for itl in result["itls"]]) * 1e3
    count = sum(len(itl) + 1 for itl in result["itls"])
    print(
        json.dumps(
            {
                "streams": streams,
                "failed": result["failed"],
                "ttft_mean_ms": float(ttfts.mean()),
                "gap_mean_ms": float(gaps.mean()),
                "gap_p99_ms": float(np.percentile(gaps, 99)),
                "cpu_us_per_chunk": spent_s / count * 1e6,
                "chunks": count,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
