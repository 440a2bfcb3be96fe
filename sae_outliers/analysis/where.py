"""The conditions of `where=`: comparisons of columns with literals, joined by and, or, not. Nothing in one is run.

    train_steps == 0 and n_eval == 20000
    model in ["minilm", "smollm2"] and not gamma < 1
    `data.tokens_per_item` == 8 or planted_gamma.isna()

Python's own parser reads them; only what is listed here is then understood, and no name but a column's.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import pairwise
from typing import Any

import pandas as pd

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}
LONGEST = 10_000  # characters: Python's parser recurses
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`([^`]*)`')


def condition(where: str, columns: pd.DataFrame) -> pd.Series:
    """Return for each row whether the condition holds.

    Raises:
        ValueError: it is no condition on these columns.
    """
    names: dict[str, str] = {}

    def plain(found: re.Match[str]) -> str:
        if found[1] is None:  # a text, in which backticks mean nothing
            return found[0]
        name = f"backticked_{len(names)}_"
        names[name] = found[1]
        return name

    try:
        if len(where) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} characters")
        tree = ast.parse(QUOTED.sub(plain, where.strip()), mode="eval")
        keep = _value(tree.body, columns, names)
    except SyntaxError as error:
        raise ValueError(f"where={where!r} is not a condition on the records' columns ({error.msg})") from error
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"where={where!r} is not a condition on the records' columns ({error})") from error
    if not (isinstance(keep, pd.Series) and keep.dtype == bool):
        raise ValueError(f"where={where!r} is not a boolean expression over the records' columns")
    return keep


def _value(node: ast.expr, columns: pd.DataFrame, names: Mapping[str, str]) -> Any:  # noqa: C901 - a case a kind
    """Return a column, a literal, or for each row whether a condition holds."""

    def value(one: ast.expr) -> Any:
        return _value(one, columns, names)

    match node:
        case ast.Constant(str() | int() | float() | None as literal):
            return literal
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.List(items) | ast.Tuple(items):
            return [_literal(value(item)) for item in items]
        case ast.Name(name):
            return _column(names.get(name, name), columns)
        case ast.UnaryOp(ast.Not(), inner):
            return ~_truth(value(inner))
        case ast.BoolOp(joined, parts):
            return reduce(
                operator.and_ if isinstance(joined, ast.And) else operator.or_, [_truth(value(part)) for part in parts]
            )
        case ast.Compare(first, comparisons, others):
            terms = pairwise([value(term) for term in (first, *others)])
            return reduce(operator.and_, map(_compared, terms, comparisons))
        case ast.Call(ast.Attribute(ast.Name(name), "isna"), [], []):
            return _column(names.get(name, name), columns).isna()
        case ast.Call(ast.Attribute(ast.Name(name), "notna"), [], []):
            return _column(names.get(name, name), columns).notna()
    raise ValueError("use columns and literals with ==, !=, <, <=, >, >=, in, and, or, not, .isna() and parentheses")


def _column(name: str, columns: pd.DataFrame) -> Any:
    if name in ("true", "false"):
        return name == "true"
    if name not in columns:
        raise ValueError(f"name '{name}' is not defined")
    return columns[name]


def _literal(value: Any) -> Any:
    if isinstance(value, pd.Series | list):
        raise ValueError("a list holds literals only")
    return value


def _truth(value: Any) -> pd.Series:
    if not (isinstance(value, pd.Series) and value.dtype == bool):
        raise ValueError("and, or, not join conditions")
    return value


def _compared(terms: tuple[Any, Any], how: ast.cmpop) -> pd.Series:
    left, right = terms
    if type(how) not in COMPARISONS:
        raise ValueError("compare with ==, !=, <, <=, >, >= or in")
    among = isinstance(how, ast.In | ast.NotIn)
    if isinstance(left, list) or isinstance(right, list) != among:
        raise ValueError("a list comes after in, and only there")
    if not (isinstance(left, pd.Series) or isinstance(right, pd.Series)) or (among and not isinstance(left, pd.Series)):
        raise ValueError("a comparison needs a column")
    found: pd.Series = COMPARISONS[type(how)](left, right)
    return found
