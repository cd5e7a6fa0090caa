"""llama.cpp through ``xllamacpp``, whose wheel holds llama-server's engine; it listens on the loopback only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.export.verification import NotComparableError, Said

EXTRA = "llamacpp"


@dataclass(frozen=True, slots=True)
class Completion:
    """A greedy answer of ``num_tokens``.

    ``tokens``: those that make whole characters, the only ones that llama.cpp names. ``logprobs``: of each, by its own
    softmax; without a draft only. ``drafted`` and ``accepted`` are its own counts. ``seconds``: of decoding, without
    the prompt.
    """

    text: str
    num_tokens: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    drafted: int
    accepted: int
    seconds: float
    prompt_seconds: float


class LlamaCpp:
    """A model in llama.cpp, alone or with a draft; one sequence at a time.

    ``is_exact``: keys and values in float32 and no fused attention, for comparisons. Raises `UsageError` where
    ``xllamacpp`` is not installed, `SelfSpecError` where the model does not load.
    """

    def __init__(
        self,
        model: Path,
        draft: Path | None = None,
        *,
        draft_tokens: int = 4,
        context: int = 2048,
        threads: int = 2,
        is_exact: bool = False,
    ) -> None:
        xlc = _library()
        params = xlc.CommonParams()
        params.model.path = str(model)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False
        params.cache_ram_mib = 0
        params.port = 0
        params.verbosity = 0
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = threads
        if is_exact:
            params.flash_attn_type = xlc.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = xlc.ggml_type.GGML_TYPE_F32
        if draft is not None:
            params.speculative.types = [xlc.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            chosen = params.speculative.draft
            chosen.mparams.path = str(draft)
            chosen.n_max, chosen.n_min, chosen.p_min = draft_tokens, 0, 0.0
        self._has_draft = draft is not None
        try:
            self._server: Any = xlc.Server(params)
        except RuntimeError as error:
            raise SelfSpecError(f"llama.cpp cannot load {model}{f' with {draft}' if draft else ''}: {error}") from error

    def complete(self, prompt: Sequence[int], num_tokens: int) -> Completion:
        """Continue ``prompt`` greedily by up to ``num_tokens``. Raises `SelfSpecError` where llama.cpp refuses."""
        asked: dict[str, Any] = {"prompt": list(prompt), "max_tokens": num_tokens, "temperature": 0.0}
        asked |= {"cache_prompt": False, "logprobs": 1, "return_tokens": True}
        answer = self._server.handle_completions(asked)
        if "choices" not in answer:
            raise SelfSpecError(f"llama.cpp refused a completion: {answer}")
        content = answer["choices"][0]["logprobs"]["content"]
        timings = answer["timings"]
        return Completion(
            answer["choices"][0]["text"],
            int(answer["usage"]["completion_tokens"]),
            tuple(entry["id"] for entry in content),
            () if self._has_draft else tuple(entry["logprob"] for entry in content),
            int(timings.get("draft_n", 0)),
            int(timings.get("draft_n_accepted", 0)),
            timings["predicted_ms"] / 1000,
            timings["prompt_ms"] / 1000,
        )


class LlamaCppPair:
    """A target and its exported draft, for `verify`: exact where both are in float32."""

    def __init__(self, target: Path, draft: Path, draft_tokens: int) -> None:
        self.name = f"llama.cpp (xllamacpp {llamacpp_version()})"
        self._draft = LlamaCpp(draft, is_exact=True)
        self._target = LlamaCpp(target, is_exact=True)
        self._both = LlamaCpp(target, draft, draft_tokens=draft_tokens, is_exact=True)

    def draft_alone(self, prompt: Sequence[int], num_tokens: int) -> Said:
        return _said(self._draft.complete(prompt, num_tokens))

    def plain(self, prompt: Sequence[int], num_tokens: int) -> Said:
        return _said(self._target.complete(prompt, num_tokens))

    def speculative(self, prompt: Sequence[int], num_tokens: int) -> Said:
        return _said(self._both.complete(prompt, num_tokens))


def _said(completion: Completion) -> Said:
    if len(completion.tokens) < completion.num_tokens:
        raise NotComparableError("llama.cpp names no tokens that are parts of a character, as in this answer.")
    return Said(completion.tokens, completion.logprobs, completion.drafted, completion.accepted)


def llamacpp_version() -> str | None:
    """The version of ``xllamacpp``; None where it is not installed."""
    try:
        _library()
    except UsageError:
        return None
    return version("xllamacpp")


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise UsageError(
            f"llama.cpp is run through xllamacpp, which is not installed: pip install 'selfspec-tune[{EXTRA}]'."
        ) from error
    return xllamacpp
