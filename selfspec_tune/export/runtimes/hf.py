"""transformers with an exported directory, for ``verify`` and for a bench with ``runtime``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from selfspec_tune.draft.rounds import num_accepted, num_drafted
from selfspec_tune.export.runtimes.completion import Completion, RuntimeAnswer
from selfspec_tune.measure.hf_generate import counted_rounds, hf_generate, only_settings
from selfspec_tune.measure.workload import WorkItem, open_workload
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.auto import AutoModelForCausalLM
from selfspec_tune.models.loading_output import quietly
from selfspec_tune.prompts import Prompt
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import ModelOptions, RuntimeBenchRequest
from selfspec_tune.results import ExportManifest


class AssistedGeneration:
    """``model.generate`` with the exported draft as its assistant."""

    rounds = False

    def __init__(self, loaded: LoadedModel, draft: Path, draft_tokens: int, *, has_own_code: bool) -> None:
        """``has_own_code``: whether the export wrote the draft's modelling code itself; no other is run."""
        self.name = f"transformers {transformers.__version__}"
        self._model: Any = loaded.model
        self._draft = _assistant(loaded, draft, draft_tokens, 0.0, has_own_code=has_own_code)

    def draft_alone(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        answer = _generate(self._draft, prompt, num_tokens, output_logits=True, return_dict_in_generate=True)
        tokens = answer.sequences[0, len(prompt) :].tolist()
        rows = torch.cat(answer.logits).float().log_softmax(-1)
        return RuntimeAnswer(tuple(tokens), tuple(row[token].item() for row, token in zip(rows, tokens, strict=True)))

    def plain(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        return RuntimeAnswer(_new_tokens(_generate(self._model, prompt, num_tokens), prompt))

    def speculative(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        with counted_rounds(self._model) as rounds:
            answer = _generate(self._model, prompt, num_tokens, assistant_model=self._draft)
        return RuntimeAnswer(_new_tokens(answer, prompt), (), num_drafted(rounds), num_accepted(rounds))


class CustomGeneration:
    """``model.generate(custom_generate=DIR)``: there is no draft to run alone."""

    rounds = False

    def __init__(self, loaded: LoadedModel, folder: Path) -> None:
        self.name = f"transformers {transformers.__version__}, custom_generate"
        self._model: Any = loaded.model
        self._how = _custom(folder)

    def draft_alone(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        return RuntimeAnswer(())

    def plain(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        return RuntimeAnswer(_new_tokens(_generate(self._model, prompt, num_tokens), prompt))

    def speculative(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        counts: dict[str, int] = {}
        answer = _generate(self._model, prompt, num_tokens, draft_counts=counts, **self._how)
        return RuntimeAnswer(_new_tokens(answer, prompt), (), counts["drafted"], counts["accepted"])


class _Timed(ABC):
    """The target of an export by ``generate`` alone, and with the export; for a bench in it."""

    def __init__(self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter) -> None:
        """Raises what loading the target raises."""
        options = ModelOptions(manifest.model, request.dtype, request.device, "reference", revision=manifest.revision)
        self._workload = open_workload(options, request.prompts, reporter)
        loaded = self._workload.loaded
        self.name = f"transformers {transformers.__version__}"
        self.target = Path(manifest.model).name
        self.measured: Mapping[str, Any] = {
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "device": str(loaded.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def read(self, prompt: Prompt) -> WorkItem:
        return self._workload.items([prompt])[0]

    def answer(self, item: WorkItem, *, with_draft: bool) -> Completion:
        counts: dict[str, int] = {}
        made = hf_generate(self._workload, item, **(self._drafting(counts) if with_draft else {}))
        return Completion(
            str(self._workload.loaded.tokenizer.decode(made.tokens)),
            len(made.tokens),
            tuple(made.tokens),
            (),
            counts.get("drafted", num_drafted(made.rounds)),
            counts.get("accepted", num_accepted(made.rounds)),
            made.decode_seconds,
            made.prefill_seconds,
            made.first_tokens,
        )

    @abstractmethod
    def _drafting(self, counts: dict[str, int]) -> dict[str, Any]:
        """How ``generate`` is told to draft; what counts drafted and accepted tokens itself does so in ``counts``."""


class TimedAssisted(_Timed):
    """With the export as ``assistant_model``."""

    def __init__(
        self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter, *, has_own_code: bool
    ) -> None:
        """Raises what loading the target or the draft raises. ``has_own_code`` as in `AssistedGeneration`."""
        super().__init__(request, manifest, reporter)
        tokens, threshold = manifest.draft_tokens, manifest.exit_threshold
        loaded = self._workload.loaded
        self._draft = _assistant(loaded, request.folder, tokens, threshold, has_own_code=has_own_code)

    def _drafting(self, counts: dict[str, int]) -> dict[str, Any]:
        return {"assistant_model": self._draft}


class TimedCustomGeneration(_Timed):
    """With the export as ``custom_generate``."""

    def __init__(self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter) -> None:
        super().__init__(request, manifest, reporter)
        self._how = _custom(request.folder)

    def _drafting(self, counts: dict[str, int]) -> dict[str, Any]:
        return {**self._how, "draft_counts": counts}


def _custom(folder: Path) -> dict[str, Any]:
    """How ``generate`` is told to run the code in an export."""
    return {"custom_generate": str(folder), "trust_remote_code": True}


def _assistant(
    loaded: LoadedModel, draft: Path, draft_tokens: int, exit_threshold: float, *, has_own_code: bool
) -> Any:
    """An exported draft as ``assistant_model``: so many tokens each time, fewer where it is less sure than that."""
    with quietly():
        model: Any = AutoModelForCausalLM.from_pretrained(
            draft,
            dtype=loaded.dtype,
            trust_remote_code=has_own_code,
            local_files_only=True,
            use_safetensors=True,
        )
    model = model.to(loaded.device).eval()
    model.generation_config.update(
        num_assistant_tokens=draft_tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=exit_threshold,
    )
    return model


@torch.inference_mode()
def _generate(model: Any, prompt: Sequence[int], num_tokens: int, **how: Any) -> Any:
    """Greedy, for exactly so many tokens."""
    ids = torch.tensor([list(prompt)], device=model.device)
    settings = GenerationConfig(max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    given = {name: how.pop(name) for name in ("output_logits", "return_dict_in_generate") if name in how}
    settings.update(**given)
    with quietly(), only_settings(model, settings):
        return model.generate(ids, attention_mask=torch.ones_like(ids), **how)


def _new_tokens(answer: Any, prompt: Sequence[int]) -> tuple[int, ...]:
    return tuple(answer[0, len(prompt) :].tolist())
