"""Combinations of the settings of `fit`: what runs predicts what scikit-learn's classes predict."""

from pathlib import Path

import pytest
from pairs_of_settings import cells, make_places, run

from pipeline import heads


@pytest.mark.filterwarnings("ignore")  # scikit-learn's on the heads that values are compared with
def test_every_two_settings_together_give_the_values_of_scikit_learn(tmp_path: Path) -> None:
    places = make_places(tmp_path)
    outcomes = [(cell, run(cell, places[cell.kind])) for cell in cells(2)]
    assert [(cell, one) for cell, one in outcomes if one.state == "FAILED"] == []
    assert {cell.head for cell, _ in outcomes} == set(heads.HEADS)
    assert sum(one.state == "ok" for _, one in outcomes) >= 15
