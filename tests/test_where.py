"""The conditions of `where=`, against pandas' own query language, and what must not be run."""

import pandas as pd
import pytest

from sae_outliers.analysis.select import select
from sae_outliers.analysis.where import condition

ROWS = pd.DataFrame(
    {
        "model": ["a", "b", "it's", "c`d"],
        "n_eval": [1, 2, 3, 4],
        "gamma": [0.5, -1.0, float("nan"), 2.0],
        "special_tokens": [True, False, True, False],
        "data.tokens_per_item": pd.Series([8, None, 8, "all"], dtype=object),
    }
)


@pytest.mark.parametrize(
    "where",
    [
        "n_eval == 2",
        "2 <= n_eval < 4 and not gamma > 1",
        "gamma < 0 or gamma >= 2",
        "gamma == -1",
        "gamma.isna() or n_eval != 4",
        'model in ["a", "b"]',
        "model not in ['a'] and (n_eval == 1 or n_eval == 2)",
        'model == "it\'s"',
        'model == "c`d"',
        "`data.tokens_per_item` == 8",
        "`data.tokens_per_item`.notna()",
        "special_tokens",
        "special_tokens == True and not n_eval == 1",
    ],
)
def test_a_condition_means_what_it_means_to_pandas(where: str) -> None:
    expected = ROWS.eval(where, engine="python")
    assert condition(where, ROWS).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "where",
    [
        "@pd.read_pickle('x')", "__import__('os').system('true')", "n_eval.pipe(print)", "n_eval.to_pickle('x')",
        "model.str.contains('a')", "n_eval", "n_eval + 1", "n_eval == [1]", "1 == 1", "nothing == 1", "n_eval ==",
        "[x for x in n_eval]", "n_eval < 'a'", "(lambda: 1)()", "n_eval == 1 and 2", "(" * 500 + "n_eval",
        "n_eval is 1", "n_eval.isna(1)", "\0", "model in 'abc'", "'a' in model", "not " * 3000,
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_a_sentence(where: str) -> None:
    with pytest.raises(ValueError, match="where=") as error:
        select(ROWS.assign(settings=None, train_steps=0), where)
    assert "\n" not in str(error.value)
