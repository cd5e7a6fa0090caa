from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.bench import run_bench
from selfspec_tune.draft.dialects import DIALECTS, Dialect, to_dialect
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import PromptError, SkipSetError, UsageError
from selfspec_tune.measure import lossless
from selfspec_tune.models import load_model
from selfspec_tune.prompts import Splits, default_split_sizes, load_prompts, split_prompts
from selfspec_tune.report.bench import check_lines
from selfspec_tune.requests import BenchRequest
from selfspec_tune.results import BenchResult, ModelInfo, SkipConfig, SkipLayers
from tests import kit
from tests.results_kit import skip_config
from tests.search_kit import Listener, ScriptedEngine, prompt_file, steady, without_caches

TAIL = SkipSet(4, (2, 3), (2, 3))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts") / "set.jsonl", 20)


@pytest.fixture
def bench(tiny_llama_dir: Path, source: str) -> Any:
    """A bench of four prompts and eight new tokens on the tiny model."""

    def run(
        *skip_sets: str, files: Sequence[Path] = (), listener: Listener | None = None, **fields: Any
    ) -> BenchResult:
        model = {"name": str(tiny_llama_dir), "dtype": fields.pop("dtype", "float32"), "device": "cpu"}
        model["runner"] = fields.pop("runner", "auto")
        prompts = {"source": source, "num_prompts": 4, "max_new_tokens": 8, "template": "raw"}
        for name in ("temperature", "max_new_tokens", "num_prompts"):
            if name in fields:
                prompts[name] = fields.pop(name)
        request = BenchRequest(
            tuple(files), skip_sets, tuple(model.items()), tuple(prompts.items()), **({"reference_prompts": 2} | fields)
        )
        return run_bench(request, listener or Listener())

    return run


def ids(result: BenchResult) -> list[str]:
    return [method.id.split(":")[0] for method in result.methods]


def test_a_text_is_benched_against_every_reference(bench: Any) -> None:
    listener = Listener()
    result = bench("attn 2,3 · mlp 2-3", listener=listener)
    assert ids(result) == ["autoregressive", "self-speculative", "hf-generate", "uniform", "random"]
    main = result.methods[1]
    assert main.skip == SkipLayers(attention=[2, 3], mlp=[2, 3])
    assert (main.num_prompts, main.lossless.identical, main.lossless.mismatches) == (4, 4, 0)
    assert main.acceptance_rate is not None
    assert main.mean_accepted_tokens is not None
    assert main.mean_accepted_tokens >= 1.0
    assert main.draft_cost_fraction is not None
    assert main.verify_cost_fraction is not None
    for method in result.methods[2:]:
        assert method.num_prompts == 2
        assert method.lossless.mismatches == 0
    for method in result.methods[3:]:
        assert method.skip is not None
        assert (len(method.skip.attention), len(method.skip.mlp)) == (2, 2)
    assert result.a_a is not None
    assert result.baseline_vs_generate is not None
    assert listener.stages[-1] == ("bench", "4 prompts, 6 methods")


def test_each_method_has_its_share_of_the_memorys_limit(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench("attn 1").memory_limit is None  # which the caches hold
    without_caches(monkeypatch)
    result = bench("attn 1")
    assert result.memory_limit is not None
    for method in result.methods:
        assert method.of_memory_limit is not None
        assert method.decode_tokens_per_second is not None
    plain = result.methods[0]
    allowed = plain.decode_tokens_per_second / result.memory_limit.tokens_per_second
    assert plain.of_memory_limit.value == pytest.approx(allowed)


def test_a_benchs_json_is_what_scripts_expect(bench: Any) -> None:
    value = json.loads(json.dumps(bench("attn 1").to_dict()))
    assert (value["schema"], value["version"]) == ("selfspec-tune/bench", 1)
    for method in value["methods"]:
        assert {"name", "id", "tokens_per_second", "decode_speedup", "end_to_end_speedup", "lossless"} <= set(method)
        assert set(method["decode_speedup"]) >= {"value", "low", "high"}
        assert {"identical", "numerical_ties", "mismatches"} <= set(method["lossless"])
    assert len(value["runs"]) == 4 + 4 * 2
    assert value["provenance"]["dtype"] == "float32"
    assert len(value["provenance"]["prompts"]["test"]) == 4
    assert BenchResult.from_dict(value, origin="here").methods[1].num_runs == 4


def test_an_empty_skip_set_accepts_every_draft(bench: Any) -> None:
    result = bench("none")
    assert ids(result) == ["autoregressive", "self-speculative", "hf-generate"]
    assert result.methods[1].acceptance_rate == 1.0
    assert result.methods[1].lossless.identical == 4


def test_several_skip_sets_are_rows_of_one_table_and_repetitions_are_not(bench: Any) -> None:
    result = bench("attn 1", "mlp 2", "attention 1", uniform_and_random=False)
    assert ids(result) == ["autoregressive", "self-speculative", "self-speculative", "hf-generate"]
    assert [m.skip for m in result.methods[1:3]] == [SkipLayers(attention=[1]), SkipLayers(mlp=[2])]
    assert len({method.id for method in result.methods}) == 4
    assert [method.num_prompts for method in result.methods] == [4, 4, 4, 2]


def test_uniform_and_random_can_be_left_out_but_not_generate(bench: Any) -> None:
    with pytest.raises(UsageError, match="`reference_prompts` 0: expected at least 1"):
        bench("attn 1", reference_prompts=0)
    assert ids(bench("attn 1", uniform_and_random=False)) == ["autoregressive", "self-speculative", "hf-generate"]


def test_model_generate_that_fails_leaves_the_other_rows_and_withholds_the_verdict(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("no such argument")

    monkeypatch.setattr("selfspec_tune.measure.arms.hf_generate", fail)
    result = bench("attn 1", uniform_and_random=False)
    assert result.methods[1].num_runs == 4
    assert result.methods[2].unavailable == "TypeError: no such argument"
    assert "model.generate could not run" in result.withheld_because[0]


def test_every_round_measures_every_prompt_again(bench: Any) -> None:
    result = bench("attn 1", rounds=2, reference_prompts=1)
    assert result.methods[1].num_runs == 8
    assert result.methods[1].num_prompts == 4
    assert sorted(run.round for run in result.runs if run.method == result.methods[1].id) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_in_any_dialect_is_benched(bench: Any, tmp_path: Path, dialect: Dialect) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(to_dialect(TAIL, dialect, model_name="tiny-1b", task="code")))
    by_path = bench(files=[file], uniform_and_random=False, num_prompts=2)
    assert by_path.methods[1].skip == SkipLayers.model_validate(TAIL.to_dict())
    assert by_path.methods[1].lossless.mismatches == 0
    by_option = bench(str(file), uniform_and_random=False, num_prompts=2)
    assert by_option.methods[1].id == by_path.methods[1].id


def test_a_set_that_skips_every_attention_can_be_benched(bench: Any) -> None:
    assert bench("attn 0-3").methods[1].lossless.mismatches == 0


def test_a_cost_aware_bench_with_a_lookup_is_lossless_and_says_who_drafted(bench: Any) -> None:
    options = (("policy", "cost-aware"), ("ngram", True))
    result = bench("attn 2", draft_overrides=options, max_new_tokens=24)
    main = result.methods[1]
    assert (main.lossless.mismatches, main.num_prompts) == (0, 4)
    assert "cost-aware" in main.description
    runs = [run.candidate for run in result.runs if run.method == main.id]
    assert {one.source for run in runs for one in run.rounds} <= {"plain", "ngram", "model"}


def test_sampled_decoding_is_benched_by_time_per_token(bench: Any) -> None:
    result = bench("attn 2", temperature=0.8)
    assert {run.lossless for run in result.runs} == {"sampled"}
    assert result.methods[1].lossless.sampled == 4
    assert result.methods[1].end_to_end_speedup is not None
    assert "empty-skip-set" not in ids(result)


def test_in_bfloat16_nothing_skipped_is_the_yardstick_for_ties(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing where a processor rounds one row and several alike, so that it is given here.
    monkeypatch.setattr(lossless, "numeric_floor", lambda *_: 0.0125)
    result = bench("attn 2", dtype="bfloat16", runner="fast", uniform_and_random=False)
    assert ids(result) == ["autoregressive", "self-speculative", "hf-generate", "empty-skip-set"]
    assert result.provenance["numeric_floor"] == pytest.approx(0.0125)
    assert result.methods[3].acceptance_rate is not None
    assert result.methods[1].lossless.mismatches == 0


def test_in_bfloat16_the_native_kernels_leave_no_ties(bench: Any) -> None:
    result = bench("attn 2", dtype="bfloat16", runner="native", uniform_and_random=False)
    assert result.provenance["numeric_floor"] == 0
    assert result.methods[1].lossless.identical == 4


def test_a_layer_that_the_model_lacks_is_refused(bench: Any) -> None:
    with pytest.raises(SkipSetError, match="layer 9 is out of range; the model has 4 layers"):
        bench("attn 2,9")


def test_a_text_that_cannot_be_read_is_refused(bench: Any) -> None:
    with pytest.raises(SkipSetError, match="Cannot read the skip set 'attn two'"):
        bench("attn two")


def test_a_text_without_a_model_is_refused(source: str) -> None:
    request = BenchRequest(skip_sets=("attn 1",), prompt_overrides=(("source", source), ("num_prompts", 4)))
    with pytest.raises(UsageError, match="Add `model`"):
        run_bench(request, Listener())


# A study's own file


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path, source: str) -> tuple[Path, Splits]:
    """A skip.json that a search on 16 of the 20 prompts might have left, and its splits."""
    loaded = load_model(str(tiny_llama_dir), dtype="float32", device="cpu")
    calibration, selection, test = default_split_sizes(16)
    prompts = load_prompts(source, num_prompts=16, seed=0)
    splits = split_prompts(prompts, seed=0, calibration=calibration, selection=selection, test=test)
    options = {"source": source, "num_prompts": 16, "max_new_tokens": 6, "template": "raw"}
    config = skip_config(
        model=ModelInfo.model_validate(loaded.describe()),
        skip=SkipLayers(attention=[2], mlp=[3]),
        provenance={"prompts": {**options, **splits.hashes()}},
    )
    file = tmp_path_factory.mktemp("studies") / "tiny" / "skip.json"
    config.save(file)
    return file, splits


def test_with_nothing_given_the_newest_study_is_benched_on_its_test_split(study: tuple[Path, Splits]) -> None:
    file, splits = study
    result = run_bench(BenchRequest(studies=file.parent.parent, reference_prompts=1), Listener())
    assert result.methods[1].skip == SkipLayers(attention=[2], mlp=[3])
    assert {run.prompt_hash for run in result.runs} == {prompt.hash for prompt in splits.test}
    assert (result.split, result.in_sample) == ("test", False)
    assert result.model.dtype == "float32"
    assert result.provenance["prompts"]["max_new_tokens"] == 6


def test_too_few_unread_prompts_end_with_exit_code_two_before_a_model_is_loaded(
    study: tuple[Path, Splits], tmp_path: Path
) -> None:
    file, _ = study
    request = BenchRequest(
        skip_files=(file,),
        model_overrides=(("name", str(tmp_path / "no-such-model")),),
        prompt_overrides=(("num_prompts", 13),),
    )
    with pytest.raises(PromptError, match="12 prompts that the search did not read; 13 were asked for") as caught:
        run_bench(request, Listener())
    assert caught.value.exit_code == 2


def test_calibration_prompts_are_used_where_allowed_and_the_result_says_so(
    study: tuple[Path, Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.4)).install(monkeypatch)
    file, _ = study
    result = run_bench(BenchRequest(skip_files=(file,), allow_calibration=True), Listener())
    assert (result.split, result.in_sample) == ("in_sample", True)
    assert result.methods[1].num_prompts == 16


def test_a_file_is_refused_with_another_model(study: tuple[Path, Splits], tiny_qwen2_dir: Path) -> None:
    file, _ = study
    request = BenchRequest(skip_files=(file,), model_overrides=(("name", str(tiny_qwen2_dir)),))
    with pytest.raises(SkipSetError, match="is another model"):
        run_bench(request, Listener())


def test_a_file_and_a_text_compete_under_the_files_policy(
    study: tuple[Path, Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(steady(1.4)).install(monkeypatch)
    file, _ = study
    config = SkipConfig.load(file)
    policy = config.draft.model_copy(update={"max_draft_tokens": 9})
    other = file.with_name("other.json")
    config.model_copy(update={"draft": policy}).save(other)
    result = run_bench(BenchRequest(skip_files=(other,), skip_sets=("mlp 1",)), Listener())
    other.unlink()
    assert ids(result) == ["autoregressive", "self-speculative", "self-speculative", "hf-generate", "uniform", "random"]
    assert {draft.policy.max_draft_tokens for draft in engine.drafts} == {9}
    assert result.verdict == "faster"


def test_a_model_that_repeats_one_token_gets_no_verdict(tmp_path: Path, source: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = kit.tiny_llama(tmp_path / "model", layers=2)
    circling = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        circling.lm_head.weight.mul_(1e-3)
        circling.lm_head.weight[7] = 1.0
        circling.lm_head.weight[8] = -1.0  # either is most probable, whatever the text
        for layer in circling.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        circling.model.embed_tokens.weight.copy_(1.0 + 0.01 * circling.model.embed_tokens.weight)
    circling.save_pretrained(model)
    options = {"name": str(model), "dtype": "float32", "device": "cpu"}
    prompts = {"source": source, "num_prompts": 4, "max_new_tokens": 16, "template": "raw"}
    overrides = tuple(options.items()), tuple(prompts.items()), (("ngram", True),)
    result = run_bench(BenchRequest((), ("mlp 1",), *overrides, reference_prompts=1), Listener())
    assert {run.degenerate for run in result.runs} == {True}
    assert result.verdict == "withheld"
    assert "All 4 answers degenerate" in result.withheld_because[0]
    assert result.methods[1].degenerate_share == 1.0


def test_answers_of_fewer_than_12_tokens_are_too_short_to_tell(bench: Any) -> None:
    result = bench("mlp 1", reference_prompts=1)
    assert {(run.degenerate, run.too_short) for run in result.runs} == {(None, True)}
    assert result.methods[1].num_too_short == 4
    assert "Degenerate answers: not known: all 4 are too short to tell." in check_lines(result)
