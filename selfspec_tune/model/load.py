"""``load``: from a study, a skip set's file or a model's name to a model that answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfspec_tune.arguments import bench_request
from selfspec_tune.checks import checked_arguments, text_or_none
from selfspec_tune.cpu import cpu_quota
from selfspec_tune.draft import LONGEST_SEARCHED, Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sources import wanted
from selfspec_tune.engine import choose_runner
from selfspec_tune.measure.contenders import Contender, gather, model_options, overridden
from selfspec_tune.measure.run_log import measurement_provenance
from selfspec_tune.measure.workload import Workload
from selfspec_tune.model.model import Model
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.models.aliases import resolve
from selfspec_tune.models.generation_settings import in_words
from selfspec_tune.models.model_files import begins_like_gguf
from selfspec_tune.prompts import Template
from selfspec_tune.requests import BenchRequest, DraftOptions, ModelOptions, PromptOptions
from selfspec_tune.results import SkipConfig, StudyConfig
from selfspec_tune.results.logs import first_difference
from selfspec_tune.search.session import place_of
from selfspec_tune.search.stages.ranking import read_ranking
from selfspec_tune.search.study import template_hash, vocabulary_hash

_ENGINE = ("runner", "dtype", "device")
_FASTEST = ("native", "graphs")  # where the study had one of these, it need not be compared with others again
_STUDY_FILES = ("skip.json", "study.toml", "compare.json", "transfer.json")


def step_costs(workload: Workload, draft: Draft, found: Contender | None, notice: Callable[[str], None]) -> StepCosts:
    """Seconds of the draft's steps; ``notice`` is told why they are timed, where a study had measured some."""
    if found is None or found.config is None:
        return workload.step_costs(draft)
    file = Path(found.label).parent / "ranking.json"
    reason = _elsewhere(workload, found.config.provenance) if file.is_file() else "its study's step times are not by it"
    if reason is None:
        measured = read_ranking(file, workload.loaded.num_layers).costs
        try:
            return measured.steps(draft)
        except ValueError as error:  # another precision was asked for
            reason = str(error)
    notice(f"the draft's steps are timed here, for a second or two: {reason}")
    return workload.step_costs(draft)


def _elsewhere(workload: Workload, provenance: dict[str, Any]) -> str | None:
    """The first condition that the study measured under and that is another here; None where there is none."""
    here = measurement_provenance(workload, None, cpu_quota=cpu_quota())
    then = place_of(provenance) | {name: provenance[name] for name in _ENGINE if name in provenance}
    now = place_of(here) | {name: here[name] for name in _ENGINE}
    if not then:
        return "nothing says where the study measured"
    difference = first_difference(then, {name: now.get(name) for name in then})
    return None if difference is None else f"the study measured elsewhere ({difference})"


@checked_arguments
def load(
    source: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    runner: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    policy: str | None = None,
    max_draft_tokens: int | None = None,
    exit_threshold: float | None = None,
    ngram: bool | None = None,
    precision: str | None = None,
    experts: str | None = None,
    template: str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Model:
    """A model that answers, drafting as ``source`` says.

    Args:
        source: a study's folder or what `search` returned; a skip.json; another project's file or a text such as
            ``attn 2-9 · mlp 3,5``, with ``model``; or a model's name alone, which then looks tokens up in the context.
            None: ``model`` alone, or else the newest study under ``studies``.
        model: alias, hub id, directory or GGUF file; None: the one that ``source`` names.
        dtype: float32, bfloat16, float16 or auto; None: the study's.
        device: auto, cpu, cuda or cuda:N; None: auto.
        runner: auto, native, graphs, fast or reference; None: auto.
        revision: branch, tag or commit of a hub id; None: the study's, else the hub's default.
        trust_remote_code: run model code that comes with the checkpoint.
        allow_pickle: also load weights that are no safetensors.
        policy: fixed, threshold, adaptive or cost-aware instead of the draft's own.
        max_draft_tokens: longest draft instead of the draft's own.
        exit_threshold: probability below which a draft ends, instead of the draft's own.
        ngram: whether tokens are looked up in the context; None: as the draft says.
        precision: of the draft's weights, as in ``int4 head int8``, instead of the draft's own.
        experts: of a mixture that a token goes to while drafting, a number or ``same``, instead of the draft's own.
        template: auto, chat or raw: whether prompts go through the model's chat template; None: auto.
        notice: is told what is not as it was when the draft was searched, and what takes long; None: nobody is.

    Raises:
        UsageError: ``source`` is no draft of this model, an option means nothing, or the study has no result yet.
        SelfSpecError: the model cannot be had, or cannot run so here.
    """
    text, name = text_or_none(source), text_or_none(model)
    if text is not None and name is None and _names_model(text):
        text, name = None, text
    request = bench_request(
        skip_sets=() if text is None else (text,),
        model=name,
        dtype=dtype,
        device=device,
        runner=runner,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        template=template,
        policy=policy,
        max_draft_tokens=max_draft_tokens,
        exit_threshold=exit_threshold,
        ngram=ngram,
        precision=precision,
        experts=experts,
    )
    found = gather(request)[0] if text is not None or name is None else None
    return _opened(request, found, Template(template or Template.AUTO), notice or (lambda _: None))


def _opened(request: BenchRequest, found: Contender | None, template: Template, notice: Callable[[str], None]) -> Model:
    """The model that ``request`` or else ``found`` names, ready to draft as ``found`` says."""
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        notice(line)

    config = None if found is None else found.config
    options = model_options(request, [] if config is None else [config])
    loaded = _loaded(options)
    draft = _draft(found, loaded, request)
    for line in _told(found, draft, loaded):
        note(line)
    then = None if config is None else config.provenance.get("runner")
    chosen = choose_runner(loaded, options.runner, note, begun_with=then if then in _FASTEST else None)
    workload = Workload(loaded, chosen, PromptOptions())
    costs = None
    if draft is not None:
        workload.runner.set_draft(draft)  # makes its low-precision copies now, or says why it cannot
        costs = step_costs(workload, draft, found, note) if draft.policy.kind is PolicyKind.COST_AWARE else None
    return Model(loaded, workload.runner, draft, costs, template, notes)


def _names_model(text: str) -> bool:
    """Whether a model is meant and no study, file or text of a skip set."""
    if os.path.isdir(text):
        has_result = any((Path(text) / name).exists() for name in _STUDY_FILES)
        return not has_result and ((Path(text) / "config.json").is_file() or resolve(text) is not None)
    name = text.partition("#")[0]
    if os.path.isfile(name):
        return Path(name).suffix.lower() == ".gguf" or begins_like_gguf(Path(name))
    return not name.endswith(".json")


def _loaded(options: ModelOptions) -> LoadedModel:
    return load_model(
        options.name,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        revision=options.revision,
    )


def _draft(found: Contender | None, loaded: LoadedModel, request: BenchRequest) -> Draft | None:
    """The source's, or the whole model's from the context; None where nothing is left to draft with."""
    if found is not None:
        return overridden(found.draft(loaded, None), request)
    options = dict(request.draft_overrides)
    sources = wanted(DraftOptions().source_choices | options)
    by_model = "precision" in options or "experts" in options
    if not sources and not by_model:
        return None
    draft = Draft(
        SkipSet.empty(loaded.num_layers),
        DraftPolicy(PolicyKind.COST_AWARE, LONGEST_SEARCHED),
        sources=sources,
        model_drafts=by_model,
    )
    return overridden(draft, request)


def _told(found: Contender | None, draft: Draft | None, loaded: LoadedModel) -> list[str]:
    """What a user may not expect of the model and of what was found for it."""
    told = list(loaded.notes)
    if own := loaded.generation_settings:
        told.append(f"the checkpoint's generation_config asks for {in_words(own)}, which is not followed unless asked")
    config = None if found is None else found.config
    if draft is None:
        told.append(f"{loaded.name} is used without a study: every token is decoded plainly")
    elif found is None and draft.model_drafts:
        told.append(f"{loaded.name} is used without a study: all its layers draft, at {draft.precision}")
    elif found is None:
        deeds = ", ".join(source.deed for source in draft.sources)
        told.append(f"{loaded.name} is used without a study: {deeds}, no layer drafts")
    if config is None or found is None:
        return told
    if config.provenance.get("interrupted"):
        told.append(f"{found.label} is the best draft of a search that was stopped: what it gains was not measured")
    elif config.score.verdict != "faster":
        told.append(f"{found.label} was not found faster than plain decoding ({config.score.verdict})")
    if config.objective == "standalone":
        told.append(f"{found.label} was searched as a draft with a cache of its own; here it shares the model's")
    return [*told, *_changes(found, config, loaded)]


def _changes(found: Contender, config: SkipConfig, loaded: LoadedModel) -> list[str]:
    """What decides the tokens and is not as it was when the study beside a skip.json was searched."""
    file = Path(found.label).parent / "study.toml"
    if not file.is_file():
        return []
    study = StudyConfig.load(file)
    template = template_hash(loaded.tokenizer, Template(study.template)) if study.template in list(Template) else None
    pairs = {
        "tokenizer": (study.tokenizer, vocabulary_hash(loaded.tokenizer)),
        "chat template": (study.chat_template, template),
        "end-of-sequence tokens": (study.eos_token_ids, sorted(loaded.eos_token_ids)),
    }
    changed = [name for name, (then, now) in pairs.items() if then is not None and then != now]
    if study.model_fingerprint != config.model.fingerprint or not changed:
        return []
    return [f"the model has another {', '.join(changed)} than when it was searched: what it gains may be other, too"]
