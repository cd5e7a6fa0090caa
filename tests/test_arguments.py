"""Texts and keywords that make a request: durations, sizes, names; the nearest option for one that is not known."""

from __future__ import annotations

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
from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.requests import DraftOptions, ExtraMemory


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


def test_digits_of_other_scripts_are_no_numbers() -> None:
    for parse, text in (
        (parse_duration, "\u0669m"),
        (parse_vocabulary, "\u0661"),
        (parse_contexts, "128,\u0661"),
        (parse_extra_memory, "\u0661\u0660%"),
    ):
        with pytest.raises(UsageError):
            parse(text)


def test_an_option_that_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no option 'temprature' of a search\. Did you mean temperature\?"):
        search_request(temprature=1.0)
    with pytest.raises(UsageError, match="no option 'frobnicate' of a bench"):
        bench_request(frobnicate=True)


@pytest.mark.parametrize("option", ["policy", "template", "objective", "strategy"])
def test_a_word_that_means_nothing_is_refused_with_those_that_do(option: str) -> None:
    with pytest.raises(UsageError, match=f"`{option}` 'quickly': expected one of "):
        search_request(**{option: "quickly"})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"ngram": True}, {"extra_memory": "1GiB"}])
def test_what_only_this_engine_drafts_with_is_refused_of_a_standalone_search(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"`{name}` is for a draft in this program's engine"):
        search_request(objective="standalone", **options)
    search_request(objective="standalone", ngram=False)


@pytest.mark.parametrize("options", [{"tasks": 3}, {"vocabulary": 5}, {"model": 5}, {"extra_memory": 1}])
def test_options_of_another_kind_are_refused_by_their_own_names(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"^`{name}` .*: expected"):
        search_request(**options)
