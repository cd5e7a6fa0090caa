"""Each preset reads a local file that has the published set's own columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import PRESETS, load_prompts


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_cnn_dailymail_asks_for_a_summary_of_the_article(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "article", "highlights"])
        writer.writerow(["92c514c913c0bdfe25341af9fd72b29db544099b", "A bridge,\nclosed.", "Bridge closed ."])
    (prompt,) = load_prompts(f"cnn-dailymail:{path}")
    assert prompt.id == "cnn-dailymail/92c514c913c0bdfe25341af9fd72b29db544099b"
    assert prompt.task == "summarise"
    assert prompt.text.startswith("Summarise this news article")
    assert "A bridge,\nclosed." in prompt.text
    assert "Bridge closed" not in prompt.text


def test_xsum_asks_what_the_document_is_about(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "test.parquet"
    row = {"document": "The ferry has stopped.", "summary": "No ferry.", "id": "38264402"}
    pd.DataFrame([row]).to_parquet(path)
    (prompt,) = load_prompts(f"xsum:{path}")
    assert (prompt.id, prompt.task) == ("xsum/38264402", "summarise")
    assert "The ferry has stopped." in prompt.text
    assert "No ferry." not in prompt.text


def test_gsm8k_asks_for_the_solution_without_giving_it(tmp_path: Path) -> None:
    rows = [
        {"question": "Ann has 2 {apples}.", "answer": "2 #### 2"},
        {"question": "And?", "answer": "3 #### 3"},
    ]
    prompts = load_prompts(f"gsm8k:{write_jsonl(tmp_path / 'test.jsonl', rows)}")
    assert [prompt.id for prompt in prompts] == ["gsm8k/0", "gsm8k/1"]
    assert {prompt.task for prompt in prompts} == {"maths"}
    assert "Ann has 2 {apples}." in prompts[0].text
    assert "####" not in prompts[0].text


def test_humaneval_gives_the_function_to_complete(tmp_path: Path) -> None:
    row = {
        "task_id": "HumanEval/7",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    (prompt,) = load_prompts(f"humaneval:{write_jsonl(tmp_path / 'HumanEval.jsonl', [row])}")
    assert (prompt.id, prompt.task) == ("HumanEval/7", "code")
    assert prompt.text.endswith('def double(x):\n    """Twice x."""')


def test_mt_bench_is_read_from_the_hubs_copy(tmp_path: Path) -> None:
    rows = [
        {"prompt": ["Write a poem.", "Shorten it."], "reference": [], "category": "writing", "prompt_id": 81},
        {"prompt": ["2 + 2?", "Why?"], "reference": ["4", ""], "category": "math", "prompt_id": 111},
    ]
    prompts = load_prompts(f"mt-bench:{write_jsonl(tmp_path / 'train.jsonl', rows)}")
    assert [(prompt.id, prompt.task, prompt.text) for prompt in prompts] == [
        ("mt-bench/81", "writing", "Write a poem."),
        ("mt-bench/111", "math", "2 + 2?"),
    ]


def test_mt_bench_is_read_from_the_question_file(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."]},
        {"question_id": 111, "category": "math", "turns": ["2 + 2?", "Why?"], "reference": ["4", "Sum."]},
    ]
    prompts = load_prompts(f"mt-bench:{write_jsonl(tmp_path / 'question.jsonl', rows)}")
    assert [prompt.id for prompt in prompts] == ["mt-bench/81", "mt-bench/111"]
    assert prompts[0].text == "Write a poem."


def test_spec_bench_is_read_from_its_question_file(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."]},
        {"question_id": 161, "category": "translation", "turns": ["Translate: Guten Tag."]},
        {"question_id": 401, "category": "rag", "turns": ["Context: none. Who?"], "reference": ["Nobody"]},
    ]
    path = write_jsonl(tmp_path / "question.jsonl", rows)
    prompts = load_prompts(str(path), preset="spec-bench")
    assert [prompt.id for prompt in prompts] == ["spec-bench/81", "spec-bench/161", "spec-bench/401"]
    assert [prompt.task for prompt in prompts] == ["writing", "translation", "rag"]
    assert prompts == load_prompts(f"spec-bench:{path}")


def test_a_preset_on_another_sets_file_is_refused_with_both_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [{"question": "Why?", "answer": "So."}])
    with pytest.raises(PromptError, match=r"preset xsum expects a column document, .* question, answer"):
        load_prompts(f"xsum:{path}")


def test_a_column_may_be_named_for_a_preset(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [{"body": "Two and two?", "answer": "4"}])
    (prompt,) = load_prompts(f"gsm8k:{path}#body")
    assert prompt.task == "maths"
    assert "Solve this problem" in prompt.text


class FakeHub:
    """Stands in for ``datasets.load_dataset``: records what was asked for, gives it or fails."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def __call__(self, hub_id: str, config: str | None = None, *, split: str | None = None) -> Any:
        self.asked.append((hub_id, config, split))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def plant(monkeypatch: pytest.MonkeyPatch, answer: Any) -> FakeHub:
    hub = FakeHub(answer)
    monkeypatch.setattr("datasets.load_dataset", hub)
    return hub


def test_a_preset_alone_asks_the_hub_for_its_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = plant(monkeypatch, [{"question": "How many?", "answer": "3"}])
    (prompt,) = load_prompts("gsm8k")
    assert hub.asked == [("openai/gsm8k", "main", "test")]
    assert "How many?" in prompt.text


def test_a_hub_data_set_is_read_with_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = plant(monkeypatch, [{"text": "Why?", "label": 1}])
    (prompt,) = load_prompts("someone/questions:hard:train")
    assert hub.asked == [("someone/questions", "hard", "train")]
    assert (prompt.id, prompt.text) == ("questions/0", "Why?")


def test_a_hub_data_set_without_a_split_gives_its_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, {"train": [{"text": "Trained."}], "test": [{"text": "Held out."}]})
    assert load_prompts("someone/questions")[0].text == "Held out."


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, ConnectionError("Couldn't reach the Hub"))
    with pytest.raises(PromptError, match=r"EdinburghNLP/xsum cannot be loaded: .*PRESET:PATH"):
        load_prompts("xsum")


def test_spec_bench_alone_asks_for_its_question_file() -> None:
    with pytest.raises(PromptError, match="spec-bench:PATH"):
        load_prompts("spec-bench")


def test_every_wording_surrounds_the_text() -> None:
    assert all(preset.wording.count("{text}") == 1 for preset in PRESETS.values())
