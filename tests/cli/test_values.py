from __future__ import annotations

from pathlib import Path

import pytest

from selfspec_tune.arguments import (
    bench_request,
    budget_seconds,
    default_folder,
    parse_contexts,
    parse_duration,
    parse_extra_memory,
    parse_precision,
    parse_vocabulary,
    search_request,
    slug,
)
from selfspec_tune.cli.command import Asked
from selfspec_tune.cli.options import options_of
from selfspec_tune.cli.options.shared import complete_model
from selfspec_tune.draft import PolicyKind
from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.requests import (
    BenchRequest,
    CompareRequest,
    DraftFormat,
    DraftOptions,
    Dtype,
    ExportRequest,
    ExtraMemory,
    PolicyChoice,
    PromptOptions,
    RuntimeBenchRequest,
    RuntimeName,
    StrategyName,
    SweepKind,
    SweepRequest,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("45m", 2700),
        ("1h30m", 5400),
        ("2H", 7200),
        ("1.5h", 5400),
        ("1m5s", 65),
        ("0", 0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5 m", "30m1h", "m", "1d"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BudgetError, match="no duration; expected a form like 90, 90s, 45m"):
        parse_duration(text)


def test_without_any_budget_a_search_takes_45_minutes() -> None:
    assert budget_seconds(None, None) == 2700
    assert budget_seconds(10, None) is None
    assert budget_seconds(10, "1h") == 3600


def test_only_given_options_count() -> None:
    values = {"dtype": Dtype.FLOAT32, "seed": 0, "top_p": None, "allow_pickle": False, "trust_remote_code": True}
    asked = Asked(options_of("search"), {**values, "ngram": False})
    found = asked.given(*asked)
    assert found == {"dtype": "float32", "seed": 0, "trust_remote_code": True, "ngram": False}
    assert type(found["dtype"]) is str


@pytest.mark.parametrize("text", [None, "auto", "full", "8192"])
def test_draft_vocabularies_are_read(text: str | None) -> None:
    assert parse_vocabulary(text) == text


@pytest.mark.parametrize("text", ["0", "-1", "half", ""])
def test_other_draft_vocabularies_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected auto, full, or a positive number"):
        parse_vocabulary(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("meta-llama/Llama-2-13b-hf", "llama-2-13b-hf"),
        ("/models/My Model/", "my-model"),
        ("models/tiny.Q4_K.gguf", "tiny.q4-k"),
        ("gsm8k:questions.jsonl", "gsm8k-questions"),
        ("...", "unnamed"),
    ],
)
def test_slugs_are_fit_for_folders(text: str, name: str) -> None:
    assert slug(text) == name


def test_a_study_is_named_after_model_and_prompts() -> None:
    assert str(default_folder("org/Tiny", "data/My set.csv")) == "studies/tiny-my-set"


def test_the_shell_completes_aliases() -> None:
    assert "llama-2-13b" in complete_model("Llama-2")
    assert complete_model("nothing-like-it") == []


@pytest.mark.parametrize(
    ("text", "of", "number"),
    [
        ("30%", 1000, 300),
        ("12.5%", 1000, 125),
        ("0", 1000, 0),
        ("0%", 1000, 0),
        ("2GiB", 1, 2 << 30),
        ("512 MiB", 1, 512 << 20),
        ("1.5gb", 1, 1_500_000_000),
        ("700B", 1, 700),
    ],
)
def test_extra_memory_is_a_share_of_the_weights_or_a_size(text: str, of: int, number: int) -> None:
    memory = parse_extra_memory(text)
    assert memory is not None
    assert memory.bytes(of=of) == number
    assert ExtraMemory.parse(str(memory)) == memory


@pytest.mark.parametrize("text", ["", "lots", "5", "-1GiB", "30 percent", "2PiB", "1e9B"])
def test_other_amounts_of_memory_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 30%, a size such as 2GiB or 512MiB, or 0 for none"):
        parse_extra_memory(text)


def test_what_was_not_given_stays_open() -> None:
    assert parse_extra_memory(None) is None
    assert parse_precision(None) is None
    assert str(DraftOptions().extra_memory) == "30%"


def test_a_precision_is_checked_before_there_is_a_model() -> None:
    assert parse_precision("int4 attn 0-79; head int8") == "int4 attn 0-79; head int8"
    with pytest.raises(UsageError, match="is not same, int8 or int4"):
        parse_precision("int5")


def test_auto_searches_two_policies_and_a_threshold_asks_for_the_one_that_has_one() -> None:
    assert DraftOptions().policy_kinds == (PolicyKind.COST_AWARE, PolicyKind.THRESHOLD)
    assert DraftOptions(exit_threshold=0.5).policy_kinds == (PolicyKind.THRESHOLD,)
    assert DraftOptions("adaptive", exit_threshold=0.5).policy_kinds == (PolicyKind.ADAPTIVE,)
    assert {choice.value for choice in PolicyChoice} == {"auto", *(kind.value for kind in PolicyKind)}
    for policy in ("cost-aware", "fixed"):
        with pytest.raises(UsageError, match=f"the {policy} policy has no threshold"):
            DraftOptions(policy, exit_threshold=0.5)


@pytest.mark.parametrize(
    "options", [{"exit_threshold": float("nan")}, {"exit_threshold": 1.5}, {"max_draft_tokens": 0}]
)
def test_a_draft_that_means_nothing_is_refused_by_the_library_too(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        DraftOptions(policy="threshold", **options)  # type: ignore[arg-type]


def test_digits_of_other_scripts_are_no_numbers() -> None:
    for parse, text in (
        (parse_duration, "\u0669m"),
        (parse_vocabulary, "\u0661"),
        (parse_contexts, "128,\u0661"),
        (parse_extra_memory, "\u0661\u0660%"),
    ):
        with pytest.raises(UsageError):
            parse(text)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": float("nan")},
        {"top_k": 2.5},
        {"seed": 10**30},
        {"max_new_tokens": float("inf")},
        {"num_prompts": "all"},
        {"tasks": 3},
        {"source": 5},
        {"template": None},
    ],
)
def test_prompt_options_that_mean_nothing_are_refused_wherever_they_come_from(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        PromptOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [-0.0, 0.0, 1e-320, 1e-40, 9e-6])
def test_a_temperature_of_all_but_nothing_is_none(temperature: float) -> None:
    assert str(PromptOptions(temperature=temperature).temperature) == "0.0"


@pytest.mark.parametrize(
    ("kind", "values"),
    [("temperature", (0.0, 1e-40)), ("temperature", (0.0, 101.0)), ("max-draft", (1, 2000))],
)
def test_a_sweep_over_what_means_nothing_is_refused(kind: str, values: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"`sweep_values` .*expected"):
        SweepRequest(BenchRequest(), SweepKind(kind), values)


def test_rounds_are_bounded() -> None:
    with pytest.raises(UsageError, match="`rounds` 1000000: expected at least 1, up to 1000"):
        BenchRequest(rounds=10**6)


def test_answers_longer_than_a_runtime_s_context_are_refused_before_it_loads() -> None:
    options = PromptOptions(max_new_tokens=4096)
    with pytest.raises(UsageError, match=r"`max_new_tokens` 4096: the runtime's context has 4096 positions"):
        RuntimeBenchRequest(Path("draft"), RuntimeName.LLAMACPP, options)
    RuntimeBenchRequest(Path("draft"), RuntimeName.TRANSFORMERS, options)


def test_an_option_that_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no option 'temprature' of a search\. Did you mean temperature\?"):
        search_request(temprature=1.0)
    with pytest.raises(UsageError, match="no option 'frobnicate' of a bench"):
        bench_request(frobnicate=True)


@pytest.mark.parametrize("option", ["policy", "template", "objective", "strategy"])
def test_a_word_that_means_nothing_is_refused_with_those_that_do(option: str) -> None:
    with pytest.raises(UsageError, match=f"`{option}` 'quickly': expected one of "):
        search_request(**{option: "quickly"})  # type: ignore[arg-type]


def test_a_request_looks_at_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stat", "lstat", "readlink", "scandir", "open", "mkdir"):
        monkeypatch.setattr(f"os.{name}", lambda *_, **__: pytest.fail("it touched a file"))
    request = search_request(model="m", prompts="p.jsonl", out=Path("s"), start_from=["s"], trials=1)
    CompareRequest(request, (StrategyName.STAGED, StrategyName.TPE))
    bench_request(skip_files=[Path("s/skip.json")], skip_sets=["s"], log=Path("s/bench.json"))
    ExportRequest(Path("s"), DraftFormat.GGUF, Path("d"), gguf=Path("m.gguf"))
