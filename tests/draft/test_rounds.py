from __future__ import annotations

import pytest

from selfspec_tune.draft import Round
from selfspec_tune.draft.rounds import PLAIN_ROUND, acceptance_rate, mean_accepted_tokens, num_tokens


def test_each_round_gives_its_accepted_tokens_and_one_more() -> None:
    assert num_tokens([Round(4, 3), Round(2, 0), PLAIN_ROUND]) == 6
    assert num_tokens([]) == 0


@pytest.mark.parametrize(
    ("one", "passes"),
    [
        (Round(4, 0), 4),
        (Round(4, 0, "model"), 4),
        (Round(4, 0, "model", 2), 2),
        (Round(4, 0, "ngram"), 0),
        (Round(4, 0, "of another program"), 0),
        (PLAIN_ROUND, 0),
    ],
)
def test_passes_that_are_not_known_are_one_for_each_token_of_the_model(one: Round, passes: int) -> None:
    assert one.draft_passes == passes


def test_rates_are_over_all_rounds_together_and_none_without_any() -> None:
    rounds = [Round(4, 3), Round(0, 0), Round(2, 0)]
    assert acceptance_rate(rounds) == pytest.approx(0.5)
    assert mean_accepted_tokens(rounds) == pytest.approx(2.0)
    assert (acceptance_rate([PLAIN_ROUND]), mean_accepted_tokens([PLAIN_ROUND])) == (None, 1.0)
    assert (acceptance_rate([]), mean_accepted_tokens([])) == (None, None)
