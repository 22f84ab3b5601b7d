"""Our general plugin of vLLM (entry point `vllm.general_plugins`), run early in each of vLLM's processes.

`VLLM_PLUGINS`, if set, must contain `step_serve`; otherwise the engine runs without these changes.
"""

from __future__ import annotations

from serve_app.engine import child, gang
from serve_app.vllm_patches import cpu, grammars, resume, shared_prefixes


def register() -> None:
    """vLLM calls this in each of its processes, at times more than once."""
    child.find_own_programs()  # again, for workers on other nodes, which are Ray's processes and not the engine's
    cpu.close_gaps()
    resume.continue_requests()
    grammars.keep_to_their_requests()
    shared_prefixes.keep_junctions_findable()
    if child.is_engine_process():
        child.die_with_parent()
        child.report_to_owner()
    else:
        gang.serve_owner()  # workers on several nodes are Ray's actors
