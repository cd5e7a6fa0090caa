"""An exported draft in its runtime: the target alone against the target with it, interleaved by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfspec_tune.errors import FileFormatError, PromptError, UsageError
from selfspec_tune.export.drafts import MANIFEST
from selfspec_tune.export.gguf import FILE
from selfspec_tune.export.runtime_log import RuntimeLog
from selfspec_tune.export.runtimes.llamacpp import Completion, LlamaCpp, llamacpp_version
from selfspec_tune.files import read_json, short_hash
from selfspec_tune.prompts import Prompt, draw_prompts, fit_context, load_prompts, render
from selfspec_tune.provenance import collect
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, DraftFormat, RuntimeBenchRequest
from selfspec_tune.results import RuntimeBench, RuntimeRun
from selfspec_tune.statistics import Interval, cluster_bootstrap

_ARMS = ("plain", "speculative", "again")
_WARM_UP_TOKENS = 8


def run_runtime_bench(request: RuntimeBenchRequest, reporter: Reporter) -> RuntimeBench:
    """Answer every prompt by each arm, in turns that rotate from prompt to prompt.

    With ``request.log`` runs are kept as they come, and the same request goes on from them. Raises `UsageError` where
    the folder holds no GGUF export or its target is gone, or llama.cpp is not installed.
    """
    import torch

    manifest, target = _export(request.folder)
    threads = request.threads or torch.get_num_threads()
    tokens = request.draft_tokens or manifest["draft_tokens"]
    reporter.stage("load", f"{target.name}, alone and with {FILE}")
    alone = LlamaCpp(target, context=request.context, threads=threads)
    both = LlamaCpp(target, request.folder / FILE, draft_tokens=tokens, context=request.context, threads=threads)
    prompts = _prompts(request, target, frozenset(manifest["read_prompts"]))
    reporter.stage("measure", f"{len(prompts)} prompts of {request.prompts.max_new_tokens} tokens at most")
    log = RuntimeLog(request.log, _measurement(request, manifest, target, tokens, threads), fresh=request.fresh)
    done = {(run.prompt_id, run.arm) for run in log.runs}
    for engine in (alone, both):  # once, untimed: cold pages would count against whichever comes first
        engine.complete(prompts[0][1], _WARM_UP_TOKENS)
    for number, (prompt, ids) in enumerate(prompts):
        turn = number % len(_ARMS)
        for arm in (*_ARMS[turn:], *_ARMS[:turn]):
            if (prompt.id, arm) in done:
                continue
            answer = (both if arm == "speculative" else alone).complete(ids, request.prompts.max_new_tokens)
            log.add(_run(prompt, arm, answer))
        reporter.progress(Progress(number + 1, len(prompts), detail=prompt.id))
    return _result(request, manifest, tokens, threads, log.runs, target)


def _export(folder: Path) -> tuple[dict[str, Any], Path]:
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} holds no {MANIFEST}: give the folder that `selfspec-tune export --to gguf` made.")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != DraftFormat.GGUF:
        raise UsageError(
            f"{folder} is an export to {manifest.get('format')}; llama.cpp runs those to {DraftFormat.GGUF}."
        )
    target = Path(manifest["gguf"])
    if not target.is_file():
        raise FileFormatError(f"The target of {folder} is gone: {target}. Export again with --gguf.")
    return manifest, target


def _prompts(request: RuntimeBenchRequest, target: Path, read: frozenset[str]) -> list[tuple[Prompt, list[int]]]:
    """Prompts that no search read, with their tokens by the target's own tokenizer."""
    from transformers import AutoTokenizer

    from selfspec_tune.models.loading_output import quietly
    from selfspec_tune.prompts.render import Template

    options = request.prompts
    with quietly():
        tokenizer = AutoTokenizer.from_pretrained(target.parent, gguf_file=target.name, local_files_only=True)
    unread = [prompt for prompt in load_prompts(options.source, tasks=options.tasks) if prompt.hash not in read]
    wanted = options.num_prompts or min(len(unread), DEFAULT_NUM_PROMPTS)
    if wanted > len(unread) or not unread:
        raise PromptError(
            f"{options.source} has {len(unread)} prompts that the search did not read; {wanted} were asked for. Lower "
            "--num-prompts or give other --prompts."
        )
    chosen = draw_prompts(unread, wanted, seed=options.seed)
    rendered = [(prompt, render(prompt, tokenizer, Template(options.template))) for prompt in chosen]
    for prompt, tokens in rendered:
        fit_context(tokens, options.max_new_tokens, request.context, prompt_id=prompt.id)
    return rendered


def _run(prompt: Prompt, arm: Any, answer: Completion) -> RuntimeRun:
    return RuntimeRun(
        prompt_id=prompt.id,
        arm=arm,
        num_tokens=answer.num_tokens,
        prompt_seconds=answer.prompt_seconds,
        decode_seconds=answer.seconds,
        drafted=answer.drafted,
        accepted=answer.accepted,
        text_hash=short_hash(answer.text),
    )


def _measurement(
    request: RuntimeBenchRequest, manifest: dict[str, Any], target: Path, tokens: int, threads: int
) -> dict[str, Any]:
    """What answers must agree in to be one measurement; the files by size, which hashing would take minutes over."""
    return {
        "target": {"name": target.name, "bytes": target.stat().st_size},
        "draft": {"skip": manifest["skip"], "bytes": (request.folder / FILE).stat().st_size},
        "draft_tokens": tokens,
        "threads": threads,
        "context": request.context,
        "prompts": request.prompts.to_dict(),
        "xllamacpp": llamacpp_version(),
    }


def _result(
    request: RuntimeBenchRequest,
    manifest: dict[str, Any],
    tokens: int,
    threads: int,
    runs: Sequence[RuntimeRun],
    target: Path,
) -> RuntimeBench:
    by_arm = {arm: {run.prompt_id: run for run in runs if run.arm == arm} for arm in _ARMS}
    plain, ours = by_arm["plain"], by_arm["speculative"]
    drafted, accepted = (sum(getattr(run, name) for run in ours.values()) for name in ("drafted", "accepted"))
    produced = sum(run.num_tokens for run in ours.values())
    return RuntimeBench(
        runtime=f"llama.cpp (xllamacpp {llamacpp_version()})",
        model=target.name,
        draft=str(request.folder),
        draft_tokens=tokens,
        decode_speedup=_ratio(plain, ours, _decode),
        end_to_end_speedup=_ratio(plain, ours, _whole),
        again=_ratio(plain, by_arm["again"], _decode),
        tokens_per_second=sum(run.num_tokens for run in plain.values()) / sum(map(_whole, plain.values())),
        acceptance_rate=accepted / drafted if drafted else None,
        mean_accepted_tokens=produced / max(produced - accepted, 1),
        same_texts=sum(ours[name].text_hash == run.text_hash for name, run in plain.items()),
        num_prompts=len(plain),
        provenance=collect(
            threads=threads,
            seed=request.prompts.seed,
            prompts=request.prompts.to_dict(),
            xllamacpp=llamacpp_version(),
            skip=manifest["skip"],
        ),
        runs=list(runs),
    )


def _decode(run: RuntimeRun) -> float:
    """Seconds a token, so that answers that end elsewhere compare."""
    return run.decode_seconds / max(run.num_tokens, 1)


def _whole(run: RuntimeRun) -> float:
    return run.prompt_seconds + run.decode_seconds


def _ratio(
    plain: Mapping[str, RuntimeRun], other: Mapping[str, RuntimeRun], seconds: Callable[[RuntimeRun], float]
) -> Interval:
    names = list(plain)
    return cluster_bootstrap([seconds(plain[name]) for name in names], [seconds(other[name]) for name in names], names)
