"""llama.cpp through ``xllamacpp``, whose wheel holds llama-server's engine; it listens on the loopback only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfspec_tune.engine import Limits
from selfspec_tune.errors import FileFormatError, SelfSpecError, UsageError
from selfspec_tune.export.formats.gguf import FILE
from selfspec_tune.export.formats.gguf_file import GgufFile
from selfspec_tune.export.runtimes.completion import Completion, NotComparableError, RuntimeAnswer
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.prompts import Prompt, Template, check_characters, fit_context, render
from selfspec_tune.requests import RuntimeBenchRequest

EXTRA = "llamacpp"


class LlamaCpp:
    """A model in llama.cpp, alone or with a draft; one sequence at a time.

    It names those tokens that make whole characters, and gives log-probabilities without a draft only.

    ``is_exact``: keys and values in float32 and no fused attention, for comparisons. Raises `UsageError` where
    ``xllamacpp`` is not installed, `SelfSpecError` where the model does not load.
    """

    def __init__(
        self,
        model: Path,
        draft: Path | None = None,
        *,
        draft_tokens: int = 4,
        exit_threshold: float = 0.0,
        context: int = 2048,
        threads: int = 2,
        is_exact: bool = False,
    ) -> None:
        xlc = library()
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
            chosen.n_max, chosen.n_min, chosen.p_min = draft_tokens, 0, exit_threshold
        self._has_draft = draft is not None
        try:
            self._server: Any = xlc.Server(params)
        except RuntimeError as error:
            raise SelfSpecError(f"llama.cpp cannot load {model}{f' with {draft}' if draft else ''}: {error}") from error

    def complete(self, prompt: Sequence[int], num_tokens: int) -> Completion:
        """Continue ``prompt`` greedily by up to ``num_tokens``. Raises `SelfSpecError` where llama.cpp refuses."""
        asked: dict[str, Any] = {"prompt": list(prompt), "max_tokens": num_tokens, "temperature": 0.0}
        asked |= {"repeat_penalty": 1.0}  # whatever the file's own defaults are
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


class TimedLlamaCpp:
    """The target of a GGUF export alone, and with the draft; for a bench with ``runtime``.

    Raises `FileFormatError` where the target is gone, and what `LlamaCpp` raises.
    """

    def __init__(self, request: RuntimeBenchRequest, manifest: dict[str, Any]) -> None:
        import torch

        self._file, draft = Path(manifest["gguf"]), request.folder / FILE
        if not self._file.is_file():
            raise FileFormatError(f"The target of {request.folder} is gone: {self._file}. Export again with `gguf`.")
        self._options, self._context = request.prompts, request.context
        tokens, threads = manifest["draft_tokens"], torch.get_num_threads()
        self.name = _name()
        self.target = self._file.name
        self.measured: Mapping[str, Any] = {
            # By size: hashing would take minutes.
            "target": {"name": self.target, "bytes": self._file.stat().st_size},
            "draft": {"bytes": draft.stat().st_size},
            "threads": threads,
            "context": request.context,
        }
        self._alone = LlamaCpp(self._file, context=request.context, threads=threads)
        self._both = LlamaCpp(
            self._file,
            draft,
            draft_tokens=tokens,
            exit_threshold=manifest["settings"]["exit_threshold"],
            context=request.context,
            threads=threads,
        )

    def read(self, prompt: Prompt) -> WorkItem:
        check_characters(prompt, self._context)
        tokens = render(prompt, self._tokenizer, Template(self._options.template))
        fit_context(tokens, self._options.max_new_tokens, self._context, prompt_id=prompt.id)
        return WorkItem(prompt.id, prompt, tuple(tokens), Limits(self._options.max_new_tokens))

    def answer(self, item: WorkItem, *, with_draft: bool) -> Completion:
        return (self._both if with_draft else self._alone).complete(item.tokens, item.limits.max_new_tokens)

    @cached_property
    def _tokenizer(self) -> Any:
        from selfspec_tune.models.gguf import load_gguf_tokenizer

        return load_gguf_tokenizer(self._file)


class LlamaCppPair:
    """A target and its exported draft, for `verify`: exact where both are in float32.

    Other weights it multiplies with one token by another kernel than with several.
    """

    def __init__(self, target: Path, draft: Path, draft_tokens: int) -> None:
        import torch

        self.name, threads = _name(), torch.get_num_threads()
        kinds = {tensor.tensor_type.name for tensor in GgufFile(target).tensors.values()}
        self.rounds = kinds != {"F32"}
        self._draft = LlamaCpp(draft, threads=threads, is_exact=True)
        self._target = LlamaCpp(target, threads=threads, is_exact=True)
        self._both = LlamaCpp(target, draft, draft_tokens=draft_tokens, threads=threads, is_exact=True)

    def draft_alone(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        return _said(self._draft.complete(prompt, num_tokens))

    def plain(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        return _said(self._target.complete(prompt, num_tokens))

    def speculative(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        return _said(self._both.complete(prompt, num_tokens))


def _said(completion: Completion) -> RuntimeAnswer:
    if len(completion.tokens) < completion.num_tokens:
        raise NotComparableError("llama.cpp names no tokens that are parts of a character, as in this answer.")
    return RuntimeAnswer(completion.tokens, completion.logprobs, completion.drafted, completion.accepted)


def _name() -> str:
    library()
    return f"llama.cpp (xllamacpp {version('xllamacpp')})"


def library() -> Any:
    """``xllamacpp``. Raises `UsageError` where it is not installed."""
    try:
        import xllamacpp
    except ImportError as error:
        raise UsageError(
            f"llama.cpp is run through xllamacpp, which is not installed: pip install 'selfspec-tune[{EXTRA}]'."
        ) from error
    return xllamacpp
