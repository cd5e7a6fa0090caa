"""Where a search may begin: skip sets of files, of earlier studies and of texts (``start_from``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from selfspec_tune.draft import Draft, PolicyKind, rescaled
from selfspec_tune.draft.dialects import parse_skip_set
from selfspec_tune.draft.sublayer import SubLayerId
from selfspec_tune.errors import FileFormatError, SkipSetError, UsageError
from selfspec_tune.files import read_json, read_text, short_hash
from selfspec_tune.measure.contenders import Contender, read_contender
from selfspec_tune.models import LoadedModel
from selfspec_tune.requests import SearchRequest
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.study import StudyFolder
from selfspec_tune.search.study_files import Trajectory, read_prediction

START = "start"  # the origin of candidates that come from here
_FARTHEST = 4  # times as many layers, up or down, as a draft can be rescaled to
_MOST_MEASURED = 3  # bests of a study's trials, beside its winner
_MANY_LAYERS = 1000  # more than any model has


def check_starts(request: SearchRequest) -> None:
    """Raise `UsageError` where a search would start from its own folder."""
    own = {os.path.realpath(path) for path in (request.out, request.out / "skip.json")}
    for start in request.start_from:
        if os.path.realpath(start) in own:
            raise UsageError(
                f"`start_from` {start} is this search's own folder, where it resumes by itself. Leave it out, or give "
                "another `out`."
            )


@dataclass(frozen=True, slots=True)
class StartFile:
    """What one ``start_from`` names, read but not yet made to fit a model.

    ``measured`` and ``predicted``: of a study the best drafts of its trials, the last found first, and its candidates.
    """

    name: str
    source: Contender
    content_hash: str
    measured: tuple[Draft, ...] = ()
    predicted: tuple[Draft, ...] = ()

    @property
    def read_prompts(self) -> frozenset[str]:
        """Hashes of the prompts by which it was found, as far as it says."""
        return frozenset() if self.source.config is None else self.source.config.read_prompts


@dataclass(frozen=True, slots=True)
class Start:
    """One ``start_from`` in a search's own space: its ``drafts``, and those that were only ``predicted`` to be good.

    ``about`` says what became of it, in words.
    """

    file: StartFile
    drafts: tuple[Draft, ...]
    predicted: tuple[Draft, ...]
    about: str

    def to_dict(self) -> dict[str, Any]:
        """For skip.json's provenance."""
        config = self.file.source.config
        return {
            "name": self.file.name,
            "hash": self.file.content_hash,
            "model": None if config is None else config.model.model_dump(include={"id", "fingerprint", "num_layers"}),
            "num_drafts": len(self.drafts) + len(self.predicted),
            "about": self.about,
        }


def read_start(name: str) -> StartFile:
    """Read a file or a study, or check a text. Raises `UsageError`; needs no model."""
    source = read_contender(name)
    if os.path.isdir(name) and source.config is not None:
        return _read_study(os.path.normpath(name), source, source.config.model.num_layers)
    if os.path.exists(name.partition("#")[0]):
        return StartFile(os.path.normpath(name), source, short_hash(read_text(source.label.partition("#")[0])))
    try:
        parse_skip_set(name, _MANY_LAYERS)
    except SkipSetError as error:
        raise SkipSetError(f"`start_from` {name!r} is no file or folder here, nor a skip set. {error}") from error
    return StartFile(name, source, short_hash(name))


def _read_study(name: str, source: Contender, num_layers: int) -> StartFile:
    study = StudyFolder(Path(name))
    read = [file for file in (study.skip, study.trajectory, study.ranking) if file.exists()]
    try:
        incumbents = Trajectory(study.trajectory).read(num_layers)
        measured = dict.fromkeys(best.draft for best in reversed(incumbents) if best.stage != "proxy")
        candidates = read_json(study.ranking)["candidates"] if study.ranking in read else []
        predicted = [read_prediction(record, num_layers).draft for record in candidates]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"The candidates of {name} do not fit ({error!r}). Start from its {study.skip.name} alone."
        ) from error
    content_hash = short_hash("\n".join(read_text(file) for file in read))
    return StartFile(name, source, content_hash, tuple(measured)[:_MOST_MEASURED], tuple(predicted))


def fit_start(file: StartFile, loaded: LoadedModel, space: SearchSpace, policies: Sequence[PolicyKind]) -> Start:
    """A start as drafts of ``space``, rescaled where its model has another depth.

    Raises `UsageError` where its layers are not the model's, or nothing is left of it.
    """
    config, meant = file.source.config, _meant(file, space)
    chosen = [meant, *(rescaled(draft, space.num_layers) for draft in file.measured)]
    if meant.precision.is_same:  # what skips layers only says nothing of lower precisions
        chosen.append(replace(space.skipping(meant.skip_set.indices), policy=meant.policy))
    drafts = _usable(chosen, space)
    predicted = _usable([rescaled(draft, space.num_layers) for draft in file.predicted], space)
    predicted = [draft for draft in predicted if draft not in drafts]
    if not drafts and not predicted:
        raise UsageError(f"`start_from` {file.name}: {_why_unusable(meant, file, space)}")
    facts = [*_origin(file, loaded), *_changes(meant, space)]
    if config is not None and config.draft.policy not in policies:
        facts.append(f"drafts by this search's {' or '.join(policies)} policy, not its {config.draft.policy}")
    num = len(drafts) + len(predicted)
    about = "; ".join([f"{num} draft{'s' if num > 1 else ''}", *facts])
    return Start(file, tuple(drafts), tuple(predicted), about)


def to_measure(starts: Sequence[Start]) -> list[Draft]:
    """The starts' own drafts and measured ones, each start's first before any one's second."""
    return _in_turn([start.drafts for start in starts])


def to_predict(starts: Sequence[Start]) -> list[Draft]:
    """Everything to begin from, in such turns."""
    return _in_turn([(*start.drafts, *start.predicted) for start in starts])


def _in_turn(groups: Sequence[Sequence[Draft]]) -> list[Draft]:
    drafts = (draft for turn in zip_longest(*groups) for draft in turn if draft is not None)
    return list(dict.fromkeys(drafts))


def _meant(file: StartFile, space: SearchSpace) -> Draft:
    """What the file says, at this model's depth; what states no precision drafts at the base's."""
    source, num_layers = file.source, space.num_layers
    depth = source.stated_depth or num_layers
    if max(depth, num_layers) > _FARTHEST * min(depth, num_layers):
        raise UsageError(
            f"`start_from` {file.name} is for a model of {depth} layers; this one has {num_layers}. Drafts are not "
            f"rescaled by a factor above {_FARTHEST}: start from a model of a nearer depth."
        )
    try:
        meant = rescaled(source.as_written(num_layers), num_layers)
    except SkipSetError as error:
        no_depth = "" if source.stated_depth else " It states no depth, so its layers are taken to be this model's."
        named = "" if file.name in str(error) else f"{file.name}: "
        raise SkipSetError(f"`start_from` {named}{error}{no_depth}") from error
    return meant if source.config is not None else space.skipping(meant.skip_set.indices)


def _usable(drafts: Sequence[Draft], space: SearchSpace) -> list[Draft]:
    """``drafts`` in the space, without those that draft with nothing or with the model itself."""
    there = [space.projected(draft) for draft in drafts if _keeps_any(draft, space)]
    return [draft for draft in dict.fromkeys(there) if not _is_plain(draft)]


def _is_plain(draft: Draft) -> bool:
    return draft.skip_set.is_empty and draft.precision.is_same and draft.experts is None


def _keeps_any(draft: Draft, space: SearchSpace) -> bool:
    """Whether a sub-layer is left of those that may be skipped."""
    return any(draft.sublayers[i] is not None for i in space.skippable)


def _why_unusable(meant: Draft, file: StartFile, space: SearchSpace) -> str:
    depth = file.source.stated_depth
    after = "" if depth in (None, space.num_layers) else f" after rescaling from {depth} to {space.num_layers} layers"
    if not _keeps_any(meant, space):
        return f"no layer is left to draft with{after}. Give a skip set that keeps some."
    remedy = "Give another." if meant.precision.is_same else "Give another, or allow its `precision`."
    return (
        f"nothing is left of it in this search{after}: no sub-layer is skipped and none drafts at lower precision. "
        f"{remedy}"
    )


def _origin(file: StartFile, loaded: LoadedModel) -> Iterator[str]:
    """How the model that it was made for differs from this one."""
    config, depth = file.source.config, file.source.stated_depth
    if config is not None and config.model.fingerprint != loaded.fingerprint:
        made_for = config.model.architecture
        if made_for and made_for != loaded.architecture:
            yield (
                f"made for another family, {config.model.id} ({made_for}, this one is {loaded.architecture}), whose "
                "sub-layers may matter elsewhere"
            )
        else:
            yield f"made for another model, {config.model.id}{f' ({made_for})' if made_for else ''}"
    if depth not in (None, loaded.num_layers):
        yield f"rescaled from {depth} to {loaded.num_layers} layers"


def _changes(meant: Draft, space: SearchSpace) -> Iterator[str]:
    """What the search's space changes of a draft."""
    allowed = space.allowed(meant)
    kept = [i for i, p in enumerate(meant.sublayers) if p is None and allowed.sublayers[i] is not None]
    if kept:
        yield f"{', '.join(str(SubLayerId.of(index)) for index in kept)} is kept"
    lost = _lost(meant, allowed)
    if lost:
        yield f"this search's own precision in place of {', '.join(lost)}"
    if meant.experts != allowed.experts:
        yield "this search's own number of experts"
    fitted = space.fitted(allowed)
    num_others = sum(a is not b for a, b in zip(allowed.sublayers, fitted.sublayers, strict=True))
    if fitted != allowed:
        yield f"brought within `extra_memory`: {num_others} sub-layers at another precision"


def _lost(meant: Draft, allowed: Draft) -> list[str]:
    """The precisions that a draft has somewhere but not as it is allowed."""
    pairs = [*zip(meant.sublayers, allowed.sublayers, strict=True), (meant.precision.head, allowed.precision.head)]
    return sorted({one.value for one, other in pairs if one is not None and one is not other})
