from __future__ import annotations

import subprocess
import sys
from collections import Counter

from selfspec_tune.prompts import Prompt, load_prompts

TASKS = {"code", "maths", "summarise", "qa", "chat", "rewrite"}


def test_the_builtin_set_has_128_prompts_or_more_and_20_of_every_task() -> None:
    counts = Counter(prompt.task for prompt in load_prompts("builtin"))
    assert set(counts) == TASKS
    assert min(counts.values()) >= 20
    assert counts.total() >= 128


def test_no_two_builtin_prompts_share_a_text_or_an_id() -> None:
    prompts = load_prompts()
    assert len({prompt.hash for prompt in prompts}) == len(prompts)
    assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_no_two_builtin_prompts_begin_alike() -> None:
    openings = Counter(prompt.text[:60] for prompt in load_prompts())
    assert max(openings.values()) == 1


def test_every_summary_prompt_holds_the_text_to_be_summarised() -> None:
    lengths = [len(prompt.text.split()) for prompt in load_prompts() if prompt.task == "summarise"]
    assert min(lengths) >= 165
    assert max(lengths) >= 550


def test_every_rewriting_prompt_holds_the_text_to_be_rewritten() -> None:
    texts = [prompt.text for prompt in load_prompts() if prompt.task == "rewrite"]
    assert all(len(text.split()) >= 100 and "\n\n" in text for text in texts)


def test_several_builtin_prompts_are_long() -> None:
    assert sum(len(prompt.text) >= 2800 for prompt in load_prompts()) >= 4


def test_a_prompts_hash_is_of_its_text_alone() -> None:
    first, second = Prompt("a/1", "qa", "Why?"), Prompt("b/2", "chat", "Why?")
    assert first.hash == second.hash == "5d8a995a6fa7cf7c"
    assert Prompt("a/1", "qa", "Why not?").hash != first.hash


def test_reading_the_builtin_set_loads_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; from selfspec_tune.prompts import load_prompts; load_prompts();"
        "print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
