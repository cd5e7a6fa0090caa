from __future__ import annotations

from collections import Counter

import pytest

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import Prompt, Splits, default_split_sizes, draw_prompts, split_each_task, split_prompts


def make_prompts(**num_of_task: int) -> list[Prompt]:
    return [
        Prompt(f"{task}/{number}", task, f"{task} question {number}")
        for task, num in num_of_task.items()
        for number in range(num)
    ]


def tasks(prompts: tuple[Prompt, ...]) -> Counter[str]:
    return Counter(prompt.task for prompt in prompts)


def test_splits_are_disjoint_and_have_the_sizes_asked_for() -> None:
    splits = split_prompts(make_prompts(code=30, qa=30), seed=3, calibration=10, selection=15, test=20)
    parts = (splits.calibration, splits.selection, splits.test)
    assert [len(part) for part in parts] == [10, 15, 20]
    assert len({prompt.hash for part in parts for prompt in part}) == 45


def test_every_split_keeps_the_mix_of_tasks() -> None:
    prompts = make_prompts(code=40, qa=20, chat=20)
    splits = split_prompts(prompts, seed=1, calibration=20, selection=20, test=40)
    for part in (splits.calibration, splits.selection, splits.test):
        share = tasks(part)
        assert share["code"] == pytest.approx(len(part) / 2, abs=1)
        assert share["qa"] == pytest.approx(len(part) / 4, abs=1)


def test_the_same_seed_splits_alike_whatever_the_order_of_the_file() -> None:
    prompts = make_prompts(code=12, qa=9)
    sizes = {"calibration": 5, "selection": 5, "test": 11}
    once = split_prompts(prompts, seed=7, **sizes)
    again = split_prompts(prompts[::-1], seed=7, **sizes)
    other = split_prompts(prompts, seed=8, **sizes)
    assert once == again
    assert once != other


def test_a_text_given_twice_cannot_land_in_two_splits() -> None:
    prompts = make_prompts(qa=6)
    doubled = prompts + [Prompt(f"copy/{prompt.id}", "chat", prompt.text) for prompt in prompts]
    splits = split_prompts(doubled, seed=0, calibration=2, selection=2, test=2)
    hashes = splits.hashes()
    assert len({digest for part in hashes.values() for digest in part}) == 6
    with pytest.raises(PromptError, match=r"need 7 distinct prompts \(2 calibration .* but there are 6"):
        split_prompts(doubled, seed=0, calibration=2, selection=2, test=3)


def test_a_negative_split_size_is_refused() -> None:
    with pytest.raises(PromptError, match="selection split's size is -1"):
        split_prompts(make_prompts(qa=6), seed=0, calibration=1, selection=-1, test=1)


def test_default_split_sizes_are_a_quarter_a_quarter_and_the_rest() -> None:
    assert default_split_sizes(64) == (16, 16, 32)
    assert default_split_sizes(67) == (16, 16, 35)


def test_a_draw_keeps_the_mix_of_tasks() -> None:
    drawn = draw_prompts(make_prompts(code=60, qa=30), 30, seed=5)
    assert tasks(drawn)["code"] == pytest.approx(20, abs=1)


def test_a_larger_draw_contains_the_smaller_one() -> None:
    prompts = make_prompts(code=20, qa=20)
    assert draw_prompts(prompts, 25, seed=2)[:10] == draw_prompts(prompts, 10, seed=2)


@pytest.mark.parametrize(("num", "message"), [(0, "expected at least 1"), (41, "41 .* has 40 distinct")])
def test_an_impossible_draw_is_refused_with_numbers(num: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        draw_prompts(make_prompts(code=20, qa=20), num, seed=0)


def test_prompts_that_were_read_before_are_never_tested_on() -> None:
    prompts = make_prompts(code=12, qa=12)
    sizes = {"calibration": 6, "selection": 6, "test": 12}
    plain = split_prompts(prompts, seed=0, **sizes)
    other = split_prompts(prompts, seed=1, **sizes)
    read = {prompt.hash for prompt in (*other.calibration, *other.selection)}
    found = split_prompts(prompts, seed=0, read=read, **sizes)
    assert [len(part) for part in (found.calibration, found.selection, found.test)] == [6, 6, 12]
    assert read.isdisjoint(prompt.hash for prompt in found.test)
    own = {prompt.hash for prompt in (*plain.calibration, *plain.selection)}
    assert split_prompts(prompts, seed=0, read=own, **sizes) == plain


def test_where_more_was_read_than_is_searched_on_the_test_is_smaller() -> None:
    prompts = make_prompts(code=24)
    read = {prompt.hash for prompt in prompts[:20]}
    found = split_prompts(prompts, seed=0, calibration=6, selection=6, test=12, read=read)
    assert {prompt.hash for prompt in found.test} == {prompt.hash for prompt in prompts[20:]}
    with pytest.raises(PromptError, match="were all read by a search that this one starts from"):
        split_prompts(prompts, seed=0, calibration=6, selection=6, test=12, read={p.hash for p in prompts})


def parts_of(splits: Splits) -> tuple[set[str], set[str], set[str]]:
    calibration, selection, test = (set(hashes) for hashes in splits.hashes().values())
    return calibration, selection, test


def test_a_prompt_is_in_the_same_split_whether_its_task_is_split_alone_or_beside_others() -> None:
    prompts = make_prompts(code=9, qa=14, chat=4)
    together = parts_of(split_each_task(prompts, ("code", "qa", "chat"), seed=5))
    alone = [
        parts_of(split_each_task([p for p in prompts if p.task == task], (task,), seed=5))
        for task in ("code", "qa", "chat")
    ]
    for part, of_tasks in zip(together, zip(*alone, strict=True), strict=True):
        assert part == set().union(*of_tasks)
    calibration, selection, test = together
    assert not test & (calibration | selection)
    assert not calibration & selection


def test_joined_splits_hold_every_task_from_their_beginning() -> None:
    splits = split_each_task(make_prompts(code=40, qa=40), ("code", "qa"), seed=2)
    for part in (splits.calibration, splits.selection, splits.test):
        assert tasks(part[:6])["code"] == pytest.approx(3, abs=1)


def test_tasks_with_too_few_prompts_are_named_with_the_others() -> None:
    with pytest.raises(PromptError) as caught:
        split_each_task(make_prompts(code=8, qa=3), ("code", "maths", "qa"), seed=0)
    for words in ("code 8, maths 0, qa 3", "at least 4", "`num_prompts`", "`task`"):
        assert words in str(caught.value)
