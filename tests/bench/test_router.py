"""Picking a task by the direction of a prompt's vector."""

from __future__ import annotations

import numpy as np
import pytest

from selfspec_tune.bench.transfer import NearestTask

KNOWN = [np.array(vector, dtype=np.float64) for vector in ((9.0, 0.0, 1.0), (1.0, 0.1, 0.0), (0.0, 2.0, 0.3))]


def test_the_task_whose_prompts_point_the_same_way_is_picked() -> None:
    router = NearestTask.of(KNOWN, ["maths", "maths", "chat"])
    assert router.tasks == ("chat", "maths")
    assert router.pick(np.array([0.01, 0.0, 0.0])) == "maths"
    assert router.pick(np.array([0.1, 50.0, 0.0])) == "chat"


def test_the_length_of_a_vector_does_not_matter() -> None:
    near, far = [np.array([1.0, 0.0]), np.array([0.0, 1.0])], np.array([3.0, 2.9])
    router = NearestTask.of([near[0], 1000 * near[1]], ["a", "b"])
    assert router.pick(far) == router.pick(1e-6 * far) == "a"


def test_of_equally_near_tasks_the_first_by_name_is_picked() -> None:
    router = NearestTask.of([np.array([1.0, 0.0]), np.array([0.0, 1.0])], ["b", "a"])
    assert router.pick(np.array([1.0, 1.0])) == "a"
    assert router.pick(np.zeros(2)) == "a"


@pytest.mark.parametrize("tasks", [[], ["maths"]])
def test_every_known_vector_needs_its_task(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="expected as many"):
        NearestTask.of(KNOWN if tasks else [], tasks)
