"""The report: one page with everything inside, and a leaderboard, from small evaluated runs."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.files import write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.report import ReportConfig, figures, leaderboard, page
from pipeline.report.leaderboard import Run

VOID = {"meta", "br", "hr", "img", "input", "link"}
TEN = tuple(str(number) for number in range(10))


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, its text, its styles. Raises on tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another tag, in line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        (self.styles if self._open and self._open[-1] == "style" else self.text).append(data)

    def texts_in(self, tag: str) -> list[str]:
        """What stands in each element of a kind that holds nothing but text."""
        return re.findall(rf"<{tag}\b[^>]*>([^<]*)</{tag}>", self.rawdata_of)

    rawdata_of = ""

    def feed(self, data: str) -> None:
        self.rawdata_of = data
        super().feed(data)


def evaluated(
    folder: Path,
    name: str = "pets",
    *,
    task: str = "animals",
    classes: Sequence[str] = ("ape", "bee", "cat"),
    inputs: Sequence[str] = ("early", "late"),
    labels: Sequence[int | None] = (None,),
    scores: Scores = "probability",
    right: float = 0.7,
    interval: float = 0.95,
    params: dict[str, Any] | None = None,
) -> Path:
    """Make up the predictions of a run, evaluate them, and return the folder of evaluations."""
    random, names, each = np.random.default_rng(len(name)), np.array(classes, dtype=object), 4
    numbers = np.tile(np.arange(len(classes)), 2 * each)
    splits = np.repeat(np.array(["validation", "test"], dtype=object), each * len(classes))
    with Writer(
        folder / "predictions" / f"{name}.parquet", "classification", list(classes), {"logistic": scores}
    ) as writer:
        for tap in inputs:
            for count in labels:
                for draw in [None] if count is None else [0, 1]:
                    wrong = random.uniform(size=len(numbers)) > right
                    answers = (numbers + wrong) % len(classes)
                    found = np.full((len(numbers), len(classes)), 0.3 / (len(classes) - 1))
                    found[np.arange(len(numbers)), answers] = 0.7
                    keys = np.array([f"{number:032x}" for number in range(len(numbers))], dtype=object)
                    found = np.full_like(found, np.nan) if scores == "none" else found
                    writer.add(
                        Predictions(
                            "logistic",
                            tap,
                            count,
                            draw,
                            keys,
                            splits,
                            names[numbers],
                            names[answers],
                            found.astype(np.float32),
                        )
                    )
    identity = {"node": "block<3>", "pool": "mean", "dtype": "float16", "weights": "ab" * 32}
    settings = {"task": task, "backbone": "tiny", "inputs": list(inputs), "head": "logistic", "params": params or {}}
    write_json(
        folder / "models" / name / "model.json",
        {
            "settings": settings,
            "task": {"name": task, "sha256": "cd" * 32},
            "features": {tap: {"address": "ef" * 32, "identity": identity} for tap in inputs},
            "versions": {"scikit-learn": "1.0"},
        },
    )
    evaluate(
        EvaluateConfig(resamples=100, interval=interval),
        predictions=folder / "predictions" / f"{name}.parquet",
        model=folder / "models" / name,
        numbers=folder / "metrics" / f"{name}.json",
        tables=folder / "plots" / f"{name}.json",
    )
    return folder / "plots"


def one_run(folder: Path, **settings: Any) -> Run:
    """A single evaluated run, as the page takes it."""
    return leaderboard.read(evaluated(folder, **settings), [settings.get("name", "pets")])[0]


def write_page(folder: Path, runs: list[Run], title: str = "A report") -> Page:
    page.write(ReportConfig(title=title), runs, folder / "report" / "index.html")
    return Page(folder / "report" / "index.html")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Page]:
    """Three runs of different kinds, and their page."""
    folder = tmp_path_factory.mktemp("several")
    evaluated(folder, "pets_logistic", labels=(1, 5, 10))
    evaluated(folder, "pets_centroid", scores="none", right=0.9, inputs=("early",))
    plots = evaluated(folder, "digits_full", task="digits", classes=TEN)
    runs = leaderboard.read(plots, ["pets_logistic", "pets_centroid", "digits_full"])
    return runs, write_page(folder, runs)


# The page ------------------------------------------------------------------------------------------------------------


def test_the_page_fetches_nothing_and_runs_nothing(several: tuple[list[Run], Page]) -> None:
    _, read = several
    tags = {tag for tag, _ in read.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "base"}
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name, value in attributes.items():
            if name in ("href", "xlink:href"):
                assert value.startswith("data:image/png;" if tag == "image" else "#"), (tag, value)
            elif name not in ("rdf:resource",) and not name.startswith("xmlns"):
                assert "://" not in value, (tag, name, value)
            assert name not in ("src", "srcset", "action", "poster"), tag
            assert re.findall(r"url\((?!#)", value) == [], (tag, value)
    assert read.styles
    for style in read.styles:
        assert not re.search(r"url\(|@import|://", style), style


def test_every_link_and_reference_leads_to_an_element_of_the_page(several: tuple[list[Run], Page]) -> None:
    _, read = several
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    values = [value for _, attributes in read.tags for value in attributes.values()]
    targets = {value[1:] for value in values if value.startswith("#")}
    targets |= {name for value in values for name in re.findall(r"url\(#([^)]*)\)", value)}
    assert targets
    assert targets <= set(ids)
    assert len(ids) == len(set(ids)), "an id stands twice"


def test_every_run_is_on_the_page_with_its_numbers(several: tuple[list[Run], Page]) -> None:
    runs, read = several
    assert read.texts_in("h2")[1:] == [run["run"] for run in runs]
    for run in runs:
        best = run["selected"]
        assert f"{best['accuracy']:.3f}" in read.texts_in("strong")
        assert f"sha256 {run['made_from']['task']['sha256']}" in read.texts_in("code")
    assert sum(attributes.get("class") == "best" for _, attributes in read.tags) == len(runs)


def test_the_page_has_the_title_of_the_settings(tmp_path: Path) -> None:
    read = write_page(tmp_path, [one_run(tmp_path)], title="Cats & <dogs>")
    assert read.texts_in("title") == read.texts_in("h1") == ["Cats &amp; &lt;dogs&gt;"]


def test_names_with_special_characters_are_text_on_the_page_and_in_its_figures(tmp_path: Path) -> None:
    odd = ('<b>&"', "--> <script>alert(1)</script>", "it's ]]>")
    run = one_run(tmp_path, classes=odd, inputs=("<i>", "b&c"), labels=(1, 2), params={"C": "</code><script>"})
    read = write_page(tmp_path, [run])
    tags = [tag for tag, _ in read.tags]
    assert "script" not in tags
    assert all(attributes for tag, attributes in read.tags if tag in ("b", "i")), "only the bars of the leaderboard"
    text = "".join(read.text)
    for name in (*odd, "<i>", "b&c"):
        # In the table of classes, or of inputs, and in a figure.
        assert text.count(name) >= 2, name
    for drawn in (figures.confusion(run), figures.by_input(run), figures.by_labels(run)):
        assert drawn is not None
        texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
        assert set(odd) <= set(texts) or {"<i>", "b&c"} <= set(texts)


@pytest.mark.parametrize("name", ["$a$", r"$\foo$", "a_b^c", "字", "😀", "_hidden"])
def test_names_are_drawn_as_they_are_written(tmp_path: Path, name: str) -> None:
    drawn = figures.confusion(one_run(tmp_path, classes=(name, "plain")))
    assert drawn is not None
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(name) == texts.count("plain") == 2


def test_equal_runs_give_equal_bytes_also_in_another_process(tmp_path: Path) -> None:
    names = ["pets", "digits"]
    evaluated(tmp_path, "pets", labels=(1, 5))
    plots = evaluated(tmp_path, "digits", classes=TEN)
    first, second, third = (tmp_path / name for name in ("1.html", "2.html", "3.html"))
    for path in (first, second):
        page.write(ReportConfig(), leaderboard.read(plots, names), path)
    code = (
        "import sys; from pathlib import Path; from pipeline.report import ReportConfig, leaderboard, page\n"
        f"page.write(ReportConfig(), leaderboard.read(Path(sys.argv[1]), {names}), Path(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(plots), str(third)], env=environment, check=True)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_many_classes_have_no_confusion_figure_but_a_table_of_the_most_confused(tmp_path: Path) -> None:
    classes = [f"kind{number:02d}" for number in range(40)]
    run = one_run(tmp_path, classes=classes)
    assert figures.confusion(run) is None
    read = write_page(tmp_path, [run])
    assert "Confusion, percent of each target" not in read.texts_in("figcaption")
    counts = np.array(run["confusion"]) * (1 - np.eye(40, dtype=int))
    tables = re.split("Most confused", read.rawdata_of)
    pairs = re.findall(r"<td>(\w+)</td><td>(\w+)</td><td class=\"n\">(\d+)</td>", tables[1])
    assert len(pairs) == 10
    for target, predicted, count in pairs:
        assert counts[classes.index(target), classes.index(predicted)] == int(count)
    assert sorted((int(count) for *_, count in pairs), reverse=True) == sorted(counts.ravel(), reverse=True)[:10]


def test_a_run_without_mistakes_has_no_table_of_the_most_confused(tmp_path: Path) -> None:
    read = write_page(tmp_path, [one_run(tmp_path, right=1.0)])
    assert "Most confused" not in read.texts_in("summary")


def test_two_classes_have_every_figure(tmp_path: Path) -> None:
    read = write_page(tmp_path, [one_run(tmp_path, classes=("no", "yes"), labels=(1, 5))])
    assert read.texts_in("figcaption") == [
        "Accuracy against labels",
        "Inputs at the most labels",
        "Confusion, percent of each target",
        "Calibration",
    ]


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"labels": (None,)}, "Accuracy against labels"),
        ({"labels": (5,)}, "Accuracy against labels"),
        ({"inputs": ("early",)}, "Inputs at the most labels"),
        ({"scores": "none"}, "Calibration"),
        ({"scores": "decision"}, "Calibration"),
    ],
)
def test_a_figure_that_has_nothing_to_show_is_left_out(tmp_path: Path, settings: Any, missing: str) -> None:
    read = write_page(tmp_path, [one_run(tmp_path, **settings)])
    captions = read.texts_in("figcaption")
    assert "Confusion, percent of each target" in captions
    assert missing not in captions
    assert len(captions) == sum(tag == "svg" for tag, _ in read.tags)


def test_the_curves_show_every_input_and_every_number_of_labels(tmp_path: Path) -> None:
    run = one_run(tmp_path, inputs=("early", "middle", "late"), labels=(1, 5, 20))
    drawn = figures.by_labels(run)
    assert drawn is not None
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"early", "middle", "late", "1", "5", "20"} <= set(texts)


def test_a_page_of_no_runs_is_a_page(tmp_path: Path) -> None:
    assert "0 runs." in "".join(write_page(tmp_path, []).text)


# The leaderboard -----------------------------------------------------------------------------------------------------


def test_the_leaderboard_is_sorted_by_task_then_by_accuracy_then_by_name(tmp_path: Path) -> None:
    evaluated(tmp_path, "weak", right=0.0)
    evaluated(tmp_path, "strong", right=1.0)
    evaluated(tmp_path, "a_tie", right=1.0)
    plots = evaluated(tmp_path, "other", task="aardvarks", right=0.5)
    runs = leaderboard.read(plots, ["weak", "strong", "a_tie", "other"])
    lines = leaderboard.text(runs).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["aardvarks", "other"],
        ["animals", "a_tie"],
        ["animals", "strong"],
        ["animals", "weak"],
    ]


def test_the_leaderboard_shows_the_numbers_of_the_selected_input(tmp_path: Path) -> None:
    run = one_run(tmp_path, labels=(1, 5), interval=0.9)
    best = run["selected"]
    head, _, line = leaderboard.text([run]).splitlines()
    assert re.split(r" {2,}", head)[3:6] == ["labels a class", "accuracy", "90 % interval"]
    assert re.split(r" {2,}", line) == [
        "animals",
        "pets",
        best["input"],
        "5",
        f"{best['accuracy']:.3f}",
        f"{best['accuracy_low']:.3f}–{best['accuracy_high']:.3f}",
        f"{best['macro_f1']:.3f}",
        f"{best['log_loss']:.3f}",
        f"{best['ece']:.3f}",
    ]


def test_numbers_that_do_not_exist_are_dashes_and_all_of_train_reads_all(tmp_path: Path) -> None:
    line = leaderboard.text([one_run(tmp_path, scores="none")]).splitlines()[2]
    cells = re.split(r" {2,}", line)
    assert cells[3] == "all"
    assert cells[-2:] == ["–", "–"]


def test_the_columns_of_the_leaderboard_stand_below_each_other(several: tuple[list[Run], Page]) -> None:
    head, rule, *lines = leaderboard.text(several[0]).splitlines()
    starts = [match.start() for match in re.finditer("─+", rule)]
    assert len(starts) == 9
    assert all(head[start - 2 : start] == "  " and head[start] != " " for start in starts[1:])
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines for start in starts[1:])


def test_a_leaderboard_of_no_runs_is_its_head_alone() -> None:
    assert leaderboard.text([]).splitlines()[0].startswith("task  run  input")


def test_runs_that_were_not_evaluated_are_named(tmp_path: Path) -> None:
    plots = evaluated(tmp_path, "pets")
    with pytest.raises(DataError, match=r"plots: no evaluation of dogs, birds\. Run `dvc repro`"):
        leaderboard.read(plots, ["dogs", "pets", "birds"])
