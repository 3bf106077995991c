"""Combinations of settings: runs predict what scikit-learn's classes predict, and save the networks that predicted."""

from pathlib import Path

import pytest
from support import pairs_of_training as training
from support.pairs_of_settings import cells, make_places, run

from pipeline import heads


@pytest.mark.filterwarnings("ignore")  # scikit-learn's on the heads that values are compared with
def test_every_two_settings_together_give_the_values_of_scikit_learn(tmp_path: Path) -> None:
    places = make_places(tmp_path)
    outcomes = [(cell, run(cell, places[cell.kind])) for cell in cells(2)]
    assert [(cell, one) for cell, one in outcomes if one.state == "FAILED"] == []
    assert {cell.head for cell, _ in outcomes} == set(heads.HEADS)
    assert sum(one.state == "ok" for _, one in outcomes) >= 15


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> training.Place:
    return training.Place(tmp_path_factory.mktemp("pairs") / "world")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stage", training.AXES)
def test_with_every_setting_the_saved_network_gives_what_was_predicted_and_measured(
    photos: training.Place, stage: str, tmp_path: Path
) -> None:
    chosen = training.covering(stage)
    for axis, values in training.AXES[stage].items():
        assert {cell[axis] for cell in chosen} == set(values)
    outcomes = [photos.run(stage, cell, tmp_path / str(number)) for number, cell in enumerate(chosen)]
    wrong = [(cell, one) for cell, one in zip(chosen, outcomes, strict=True) if one.state != "ok"]
    assert wrong == []


@pytest.mark.parametrize("stage", training.AXES)
def test_settings_that_conflict_are_refused_with_both_of_them(
    photos: training.Place, stage: str, tmp_path: Path
) -> None:
    for cell, message in training.conflicts(stage):
        one = photos.run(stage, cell, tmp_path)
        assert one.state == "refused", cell
        assert message in one.why, cell
