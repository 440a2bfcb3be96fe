"""Every architecture of transformers and timm, on the meta device: a new release shows here what broke."""

import re
from pathlib import Path

import pytest

from tests import architectures

DOCS = Path(__file__).parent.parent / "docs" / "models.md"


def listed(heading: str) -> set[str]:
    """Return the names in backticks of a table of docs/models.md."""
    section = DOCS.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    return set(re.findall(r"`([\w. -]+)`", section))


@pytest.mark.slow
def test_blocks_of_transformers_are_found_but_for_those_that_the_docs_list() -> None:
    outcomes = dict(architectures.transformers_outcomes())
    refused = {name for name, (kind, _) in outcomes.items() if kind == "refused"}
    assert refused <= listed("transformers")
    assert all("model.loader.blocks=" in why for kind, why in outcomes.values() if kind == "refused")
    assert sum(kind == "found" for kind, _ in outcomes.values()) >= 520


@pytest.mark.slow
def test_blocks_of_timm_keep_the_contract_but_for_those_that_the_docs_list() -> None:
    outcomes = dict(architectures.timm_outcomes())
    refused = {name.partition(":")[0] for name, (kind, _) in outcomes.items() if kind == "refused"}
    assert refused <= listed("timm")
    assert sum(kind == "found" for kind, _ in outcomes.values()) >= 165
