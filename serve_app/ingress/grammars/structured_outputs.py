"""Refuses a grammar that cannot work before an engine gets it, and names its field.

vLLM checks a request's grammar at the front end with the library that compiles it (xgrammar), and tries another library
(guidance) for a grammar that this one refuses. Here that is completed:

* Errors name the field as the client wrote it.
* A regular expression that no common dialect knows (`foo**`) is refused, also within a JSON schema.
* A grammar that explodes is refused: each is first tried in a process with limited time and memory (`checker.py`), and
  one that fails there reaches neither the event loop nor an engine.
* `include_reasoning: false` hides the reasoning; vLLM applies the grammar to it as well, and the answer is then taken
  for reasoning and hidden.
* Tools and a format for the answer: the grammar allows either (`tools_or_answer.py`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from serve_app.ingress.grammars import tools_or_answer
from serve_app.ingress.grammars.checker import GrammarChecker
from serve_app.ingress.grammars.fields import field_of, source_of
from serve_app.ingress.grammars.jobs import GrammarVerdict, WorkerSettings
from serve_app.ingress.grammars.syntax import KINDS, check_size
from serve_app.router.request_context import CURRENT
from serve_app.vllm_patches import vllm_api
from serve_app.vllm_patches.patching import Function, replace

CHECKED: Final = "_checked_by_step_serve"
"""Set on parameters that a worker has tried and found good."""


def use() -> None:
    """Apply the changes in this process. Calling it again changes nothing."""
    replace(vllm_api.CHAT_PARAMS, remember_source)
    replace(vllm_api.COMPLETION_PARAMS, remember_source)
    replace(vllm_api.REASONING_ENDED, reason_before_the_answer)
    replace(vllm_api.VALIDATE_GRAMMAR, skip_what_is_checked)
    tools_or_answer.use()


def remember_source(original: Function, _: ModuleType) -> Function:
    """Remember the source field of a grammar: sampling parameters do not have it."""

    def to_sampling_params(self: Any, *args: Any, **named: Any) -> Any:
        note_source(self)
        return original(self, *args, **named)

    return to_sampling_params


def note_source(request: Any) -> None:
    """Note the source field with the running request. (Its stream may run in another task: a variable would not do.)"""
    context = CURRENT.get()
    if context is not None:
        context.grammar_source = source_of(request)


def reason_before_the_answer(original: Function, _: ModuleType) -> Function:
    """Apply the grammar after the reasoning, also where that is hidden."""

    def resolve_reasoning_ended(self: Any, parser: Any, prompt_token_ids: list[int]) -> bool | None:
        if self.include_reasoning or self._grammar_from_parser or parser is None or parser.reasoning_parser is None:
            ended: bool | None = original(self, parser, prompt_token_ids)
            return ended
        return bool(parser.is_reasoning_end(prompt_token_ids))

    return resolve_reasoning_ended


def skip_what_is_checked(original: Function, _: ModuleType) -> Function:
    """vLLM's check, skipped for what a worker has tried already."""

    def _validate_structured_outputs(self: Any, *args: Any, **named: Any) -> None:
        if self.structured_outputs is None or not hasattr(self.structured_outputs, CHECKED):
            original(self, *args, **named)

    return _validate_structured_outputs


async def check(params: Any, checker: GrammarChecker) -> None:
    """Try the grammar of sampling parameters, and change it as vLLM's validation would. Raises `VLLMValidationError`,
    naming the field, for one that cannot be enforced, and the checker's errors."""
    asked: StructuredOutputsParams | None = params.structured_outputs
    if asked is None or hasattr(asked, CHECKED):
        return
    answer, context = tools_or_answer.format_in(asked), CURRENT.get()
    if answer is not None:
        verdict = await _try(answer.grammar, answer.source, checker)
        if verdict.fields["_backend"] != tools_or_answer.LIBRARY:
            params.structured_outputs = None
            if context is not None:
                context.ignored.append(f"{field_of(answer.grammar, answer.source)} (cannot be enforced beside tools)")
            return
    verdict = await _try(asked, context.grammar_source if context is not None else "structured_outputs", checker)
    for name, value in verdict.fields.items():
        setattr(asked, name, value)
    setattr(asked, CHECKED, True)


async def _try(asked: StructuredOutputsParams, source: str, checker: GrammarChecker) -> GrammarVerdict:
    field = field_of(asked, source)
    given = {name: value for name, value in vars(asked).items() if value is not None and not name.startswith("_")}
    try:
        for kind in KINDS:
            if kind in given:
                check_size(given[kind])
        client = context.key_name if (context := CURRENT.get()) is not None else None
        verdict = await checker.check(given, client)
        problem = verdict.problem
    except (ValueError, RecursionError) as error:  # nested too deeply to be written down
        problem = str(error.args[0])
    if problem:
        raise VLLMValidationError(f"{field} cannot be enforced: {problem}", parameter=field)
    return verdict


def worker_settings(config: VllmConfig) -> WorkerSettings:
    """What a worker needs to compile grammars as an engine of this configuration does."""
    model, outputs, speculative = config.model_config, config.structured_outputs_config, config.speculative_config
    return WorkerSettings(
        tokenizer=str(model.tokenizer),
        tokenizer_mode=model.tokenizer_mode,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
        vocab_size=model.get_vocab_size(),
        model_type=model.hf_config.model_type,
        backend=outputs.backend,
        disable_any_whitespace=outputs.disable_any_whitespace,
        disable_additional_properties=outputs.disable_additional_properties,
        speculative_tokens=speculative.num_speculative_tokens if speculative is not None else 0,
    )
