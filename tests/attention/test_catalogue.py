"""docs/attention.md says of every block what the code says."""

import re

import pytest

from benchmarks import attention_catalogue
from benchmarks.attention_catalogue import PAGE, citation, families, summary, with_tables
from models.attention import ATTENTION
from models.attention.block import AttentionBlock
from tests.attention.zoo import every_key


def test_the_page_is_what_the_code_makes_of_it():
    page = PAGE.read_text("utf-8")
    assert page == with_tables(page), "run: python -m benchmarks.attention_catalogue"


def test_every_block_is_in_one_family_and_in_one_row():
    assert sorted(key for family in families() for key in family.keys) == sorted(ATTENTION)
    titles = [family.title for family in families()]
    assert len(set(titles)) == len(titles)
    page = PAGE.read_text("utf-8")
    for key in ATTENTION:
        assert len(re.findall(rf"^\| `{key}` \| .*arXiv", page, re.MULTILINE)) == 1, key


@every_key
def test_summary_and_citation_fit_in_a_cell(key):
    assert summary(key).endswith(".")
    assert len(summary(key)) < 120
    assert re.fullmatch(
        r"\S+ (et al\.|and \S+), .+, \[arXiv [\d.]+\]\(https://arxiv.org/abs/[\d.]+\)|\w+, .+", citation(key)
    )
    assert len(citation(key).split(". ")) <= 2, "more than one sentence"
    assert "|" not in summary(key) + citation(key)


def test_a_block_that_cites_nothing_is_refused(monkeypatch):
    class Silent(AttentionBlock):
        """Does something."""

    monkeypatch.setitem(attention_catalogue.ATTENTION, "silent", Silent)
    with pytest.raises(ValueError, match="silent: no paper"):
        citation("silent")
    with pytest.raises(ValueError, match="below the comment of a family"):
        families()
