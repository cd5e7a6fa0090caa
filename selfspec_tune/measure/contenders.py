"""What is measured: the skip.json files and texts that are given, or the newest study."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfspec_tune.draft import Draft, DraftPrecision, PolicyKind
from selfspec_tune.draft.dialects import parse_skip_set, read_skip_set, stated_depth
from selfspec_tune.draft.skip_set import MOST_LAYERS, SkipSet
from selfspec_tune.draft.sources import wanted
from selfspec_tune.errors import FileFormatError, SkipSetError, UsageError
from selfspec_tune.files import read_json, read_text
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.origin import find_origin
from selfspec_tune.requests import BenchRequest, ModelOptions, PromptOptions
from selfspec_tune.requests.draft import check_limits
from selfspec_tune.results import SkipConfig
from selfspec_tune.results.skip_config import SKIP_FILE, newest_skip_file


@dataclass(frozen=True, slots=True)
class Contender:
    """One skip set to measure: our own ``config``, or the ``text`` of another form."""

    label: str
    config: SkipConfig | None = None
    text: str | None = None

    def draft(self, loaded: LoadedModel, default: Draft | None) -> Draft:
        """The draft for ``loaded``; other dialects state no policy and take the ``default``'s."""
        if self.config is None:
            skip_set = _parsed(self.text or "", loaded.num_layers)
            return replace(default, skip_set=skip_set) if default else Draft(skip_set)
        check_same_model(self.config, loaded, self.label)
        return _draft_of(self.config)

    def as_written(self, num_layers: int) -> Draft:
        """The draft for whatever model it was made for; at ``num_layers`` where the source does not state a depth."""
        if self.config is not None:
            return _draft_of(self.config)
        text = self.text or ""
        return Draft(parse_skip_set(text, self.stated_depth or num_layers))

    @property
    def stated_depth(self) -> int | None:
        """The number of layers that the source says its model has; None where it does not say."""
        if self.config is not None:
            return self.config.model.num_layers
        return stated_depth(self.text) if self.text and _is_file(self.text) else None

    def dialect(self, num_layers: int) -> str | None:
        """The dialect of the file that it was read from; None for our own files and for texts."""
        if self.text is None or not _is_file(self.text):
            return None
        return read_skip_set(self.text, num_layers=num_layers)[1]


def overridden(draft: Draft, request: BenchRequest) -> Draft:
    """``draft`` with what the request says of policy, sources, precision and experts. Raises `UsageError`."""
    options: dict[str, Any] = dict(request.draft_overrides)
    if "policy" in options:
        if options["policy"] not in list(PolicyKind):
            raise UsageError(f"`policy` {options['policy']!r}: expected one of {', '.join(PolicyKind)}.")
        draft = replace(draft, policy=replace(draft.policy, kind=PolicyKind(options["policy"])))
    if "exit_threshold" in options and draft.policy.kind not in (PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE):
        raise UsageError(
            f"`exit_threshold` {options['exit_threshold']}: the {draft.policy.kind} policy has no threshold. Add "
            f"`policy` {PolicyKind.THRESHOLD} or {PolicyKind.ADAPTIVE}, or leave it out."
        )
    check_limits(options.get("max_draft_tokens"), options.get("exit_threshold"))
    limits = {name: options[name] for name in ("max_draft_tokens", "exit_threshold") if name in options}
    draft = replace(draft, policy=replace(draft.policy, **limits), sources=wanted(options, draft.sources))
    if "precision" in options:
        draft = replace(draft, precision=DraftPrecision.parse(options["precision"], draft.skip_set.num_layers))
    if "experts" in options:
        draft = replace(draft, experts=None if options["experts"] == "same" else int(options["experts"]))
    return draft


def gather(request: BenchRequest) -> list[Contender]:
    """The request's skip sets, files first; with none given, the newest study's."""
    sources = [_read(path) for path in request.skip_files]
    sources += [read_contender(text) for text in request.skip_sets]
    for source in sources:
        if source.text is not None and not _is_file(source.text):
            _parsed(source.text, MOST_LAYERS)  # what cannot be read is refused before a model is loaded
    return sources or [_read(newest_study(request.studies))]


def newest_study(studies: Path) -> Path:
    """The skip.json that was written last under ``studies``."""
    found = newest_skip_file(studies)
    if found is None:
        raise UsageError(
            f"There is no {SKIP_FILE} under {studies}/. Give a SKIP.json or `skip_sets` with `model`, "
            "or run selfspec-tune search first."
        )
    return found


def model_options(request: BenchRequest, configs: Sequence[SkipConfig]) -> ModelOptions:
    """The first skip.json's model with the request's overrides."""
    overrides: dict[str, Any] = dict(request.model_overrides)
    if configs:
        recorded = configs[0].model
        options = ModelOptions(recorded.id, dtype=recorded.dtype or "auto", revision=recorded.revision)
    elif "name" in overrides:
        options = ModelOptions()
    else:
        raise UsageError(
            "A skip set in this form does not say which model it is for. Add `model` (an alias, a hub id, "
            "a directory or a GGUF file)."
        )
    if overrides.get("name", options.name) != options.name:  # whose commits are others
        options = replace(options, revision=None)
    return replace(options, **overrides)


def as_begun(model: ModelOptions, commits: Mapping[str, str]) -> ModelOptions:
    """The model at the commit that its bench was begun with, by ids on the hub, where no revision is asked for."""
    if model.revision is not None or not commits:
        return model
    return replace(model, revision=commits.get(find_origin(model.name).id))


def prompt_options(request: BenchRequest, configs: Sequence[SkipConfig]) -> PromptOptions:
    """The first skip.json's prompt options with the request's overrides."""
    recorded: dict[str, Any] = configs[0].provenance.get("prompts", {}) if configs else {}
    fields = PromptOptions.__dataclass_fields__
    options = PromptOptions(**{name: value for name, value in recorded.items() if name in fields})
    overrides: dict[str, Any] = dict(request.prompt_overrides)
    if "source" in overrides:  # whose tasks are others
        options = replace(options, tasks=())
    return replace(options, **overrides)


def check_same_model(config: SkipConfig, loaded: LoadedModel, label: str) -> None:
    """Raise where a skip.json was made for a model of another depth or with other weights."""
    recorded = config.model
    if recorded.num_layers != loaded.num_layers:
        raise SkipSetError(
            f"{label} is for {recorded.id} with {recorded.num_layers} layers; {loaded.name} has "
            f"{loaded.num_layers}. Use the model that it was searched for, or search again for this one."
        )
    if recorded.fingerprint != loaded.fingerprint:
        raise SkipSetError(
            f"{label} was searched for {recorded.id} (fingerprint {recorded.fingerprint}, {recorded.dtype}); "
            f"{loaded.name} is another model (fingerprint {loaded.fingerprint}). Use that model, or measure the "
            f"layers alone with `skip_sets` '{config.skip_set()}'."
        )


def _parsed(text: str, num_layers: int) -> SkipSet:
    """One of ``skip_sets``. Raises `SkipSetError` that names it."""
    try:
        return parse_skip_set(text, num_layers)
    except SkipSetError as error:
        raise SkipSetError(f"`skip_sets` {text}: {error}") from error


def read_contender(text: str) -> Contender:
    """A skip set given as a text; where it names a file or a study, that is read, its prompts and policy included."""
    if _is_file(text) or os.path.isdir(text):
        return _read(Path(text))
    return Contender(text, text=text)


def _is_file(text: str) -> bool:
    """Whether ``text`` is a file's name, with or without ``#KEY``; a text longer than any name is none."""
    return os.path.isfile(text.partition("#")[0])


def _draft_of(config: SkipConfig) -> Draft:
    """The draft of a skip.json."""
    return Draft.from_dict(config.skip_set(), config.draft.model_dump())


def _json_or_none(file: str) -> Any:
    """A file's JSON value; None for one dialect's files, which hold Python. Raises `FileFormatError` if corrupt."""
    text = read_text(file)
    is_python = "skip_layers" in text and not text.lstrip().startswith(("{", "["))
    return None if is_python else read_json(file)


def _read(path: Path) -> Contender:
    """A skip.json as such; any other dialect by its path."""
    if path.is_dir():
        if not (path / SKIP_FILE).exists() and (path / "study.toml").exists():
            raise FileFormatError(
                f"{path} holds a search that has come to no result yet: there is no {SKIP_FILE}. The command that "
                "began it goes on with it."
            )
        if not (path / SKIP_FILE).exists():
            raise FileFormatError(
                f"{path / SKIP_FILE} does not exist: {path} is no study whose search has come to a result. Check the "
                "path, or run selfspec-tune search first."
            )
        path = path / SKIP_FILE
    name, _, _ = str(path).partition("#")
    if not Path(name).exists():
        raise FileFormatError(f"{name} does not exist. Check the path, or run selfspec-tune search first.")
    value = _json_or_none(name)
    if isinstance(value, dict) and value.get("schema") == SkipConfig.SCHEMA:
        return Contender(str(path), config=SkipConfig.from_dict(value, origin=str(path)))
    return Contender(str(path), text=str(path))
