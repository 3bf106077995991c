"""The report: one page with everything inside, and a leaderboard, from small evaluated runs."""

import json
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
import pyarrow as pa
import pytest
from support.model_records import heads, network, teacher

from pipeline.compare.config import CompareConfig
from pipeline.compare.run import compare
from pipeline.engines.profiling import Footprint, Latency
from pipeline.errors import DataError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.files import read_json, write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.report import curves, figures, leaderboard, trained
from pipeline.report.config import ReportConfig
from pipeline.report.costs import Cost, costs
from pipeline.report.leaderboard import Run
from pipeline.report.run import report
from pipeline.task import GIVEN, RARE, Kind, Task, column_of

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
    head: str = "logistic",
    kept: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    rare: dict[str, dict[str, int]] | None = None,
    given: Sequence[str] = (),
) -> Path:
    """Make up the predictions of a run, evaluate them, and return the folder of evaluations.

    kept: values of the record of a run that trained a network; None of a run of heads.
    """
    random, names, each = np.random.default_rng(len(name)), np.array(classes, dtype=object), 4
    numbers = np.tile(np.arange(len(classes)), 2 * each)
    splits = np.repeat(np.array(["validation", "test"], dtype=object), each * len(classes))
    with Writer(folder / "predictions" / f"{name}.parquet", "classification", list(classes), {head: scores}) as writer:
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
                            head,
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
    told = {"task": task, "backbone": "tiny", "inputs": list(inputs), "head": head, "params": params or {}}
    record: dict[str, Any] = {
        "settings": told | (settings or {}),
        "features": {tap: {"address": "ef" * 32, "identity": identity} for tap in inputs},
    }
    made = heads(task, **record) if kept is None else network(task, **record | kept)
    write_json(folder / "models" / name / "model.json", made)
    path = folder / "tasks" / f"{task}-{name}.parquet"
    rows = {"key": [f"{number:032x}" for number in range(len(numbers))], "target": names[numbers], "split": splits}
    about = {RARE: json.dumps(rare or {}), GIVEN: json.dumps(list(given))}
    Task(pa.table(rows).replace_schema_metadata(about)).write(path)
    evaluate(
        EvaluateConfig(resamples=100, confidence_level=interval),
        predictions=folder / "predictions" / f"{name}.parquet",
        task=path,
        model=folder / "models" / name,
        numbers=folder / "metrics" / f"{name}.json",
        tables=folder / "plots" / f"{name}.json",
        confusion=folder / "plots" / "confusion" / f"{name}.csv",
        curve=folder / "plots" / "curves" / f"{name}.csv",
    )
    return folder / "plots"


def one_run(folder: Path, **settings: Any) -> Run:
    """A single evaluated run, as the page takes it."""
    return leaderboard.read(evaluated(folder, **settings), [settings.get("name", "pets")])[0]


def write_page(folder: Path, runs: list[Run], title: str = "A report") -> Page:
    report(ReportConfig(title=title), runs, folder / "report" / "index.html")
    return Page(folder / "report" / "index.html")


def test_classes_that_lack_rows_stand_in_the_report(tmp_path: Path) -> None:
    run = one_run(tmp_path, rare={"unlearnt": {"emu": 3}, "unmeasured": {"yak": 1200}})
    text = " ".join(write_page(tmp_path, [run]).text)
    assert "1 class has no training row and is left out, with its rows (rows: emu 3)." in text
    assert "1 class has no test row: it is learnt and not measured (training rows: yak 1,200)." in text


def test_who_gave_the_split_stands_in_the_report(tmp_path: Path) -> None:
    given = ("val rows are used as test rows, as `use` says.", "`split` of pets says the split: 9 train, 3 test.")
    read = write_page(tmp_path, [one_run(tmp_path, given=given)])
    assert all(line in " ".join(read.text) for line in given)
    assert f'<p class="warn">{given[0]}</p>' in Path(tmp_path / "report" / "index.html").read_text()


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
    for drawn in (figures.confusion(run), curves.by_input(run), curves.by_labels(run)):
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
        report(ReportConfig(), leaderboard.read(plots, names), path)
    code = (
        "import sys; from pathlib import Path; from pipeline.report import leaderboard; "
        "from pipeline.report.config import ReportConfig; from pipeline.report.run import report\n"
        f"report(ReportConfig(), leaderboard.read(Path(sys.argv[1]), {names}), Path(sys.argv[2]))"
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
    text, table = " ".join(read.text), leaderboard.text([one_run(tmp_path, right=1.0)])
    for shown in (text, table):  # of 12 test rows
        assert "0.735–1.000*" in shown
        assert "* all test rows are right, or all wrong: all resamples are equal, so the interval is that of" in shown
    assert "Clopper and Pearson" not in leaderboard.text([one_run(tmp_path, right=0.5)])


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
    drawn = curves.by_labels(run)
    assert drawn is not None
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"early", "middle", "late", "1", "5", "20"} <= set(texts)


def test_a_page_of_no_runs_is_a_page(tmp_path: Path) -> None:
    assert "0 runs." in "".join(write_page(tmp_path, []).text)


# What other stages found ---------------------------------------------------------------------------------------------


def compared(folder: Path, names: Sequence[str], task: str = "animals") -> Path:
    """Compare runs as if they were of one task; the folder of comparisons."""
    predictions = folder / "predictions"
    runs = {name: read_json(folder / "plots" / f"{name}.json") for name in names}
    out = folder / "comparisons" / f"{task}.json"
    path = folder / "tasks" / f"{task}-{names[0]}.parquet"
    compare(CompareConfig(resamples=200), task=path, predictions=predictions, runs=runs, out=out)
    return folder / "comparisons"


def test_the_page_says_which_differences_are_real(tmp_path: Path) -> None:
    classes = [f"kind{number}" for number in range(9)]
    evaluated(tmp_path, "strong", right=1.0, classes=classes)
    plots = evaluated(tmp_path, "weaker", right=0.2, classes=classes)
    found = compared(tmp_path, ["strong", "weaker"])
    runs = leaderboard.read(plots, ["strong", "weaker"])
    report(ReportConfig(), runs, tmp_path / "report" / "index.html", comparisons=found)
    read = Page(tmp_path / "report" / "index.html")
    assert "Which differences are significant" in read.texts_in("summary")
    assert read.texts_in("summary").count("The chosen method against the others") == 2
    [across, *_] = read.rawdata_of.split("Which differences are significant")[1].split("</table>")
    assert "<td>strong: logistic on early</td><td>weaker: logistic on" in across
    assert "A is better" in across
    assert "on the same 36 test rows" in across
    assert "identical predictions" not in across


def test_the_page_says_where_two_runs_predict_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plots = evaluated(tmp_path, name, right=0.5)
    comparisons = compared(tmp_path, ["one", "two"])
    page = tmp_path / "report" / "index.html"
    report(ReportConfig(), leaderboard.read(plots, ["one", "two"]), page, comparisons=comparisons)
    [across, *_] = Page(page).rawdata_of.split("Which differences are significant")[1].split("</table>")
    assert '+0.000<br><span class="soft">identical predictions</span>' in across


AUDIT: dict[str, Any] = {
    "format": 1,
    "task": "animals",
    "kind": "classification",
    "classes": {"train": {f"kind{n:02d}": n for n in range(30)}, "test": {"kind07": 1234}},
    "targets": None,
    "domains": {"train": {"web": 8}, "test": {"<shop>": 9}},
    "shift": {
        "measure": "total variation",
        "splits": [{"between": ["train", "test"], "distance": 0.125}],
        "domains": None,
    },
    "byte_duplicates": {"across_splits": 0, "excluded": 17, "conflicts": 2},
    "near_duplicates": {
        "backbone": "tiny",
        "tap": "late",
        "threshold": 0.95,
        "audited": 50,
        "of": 60,
        "count": 33,
        "pairs": [
            {"similarity": 0.987, "splits": ["train", "test"], "keys": ["a", "b"], "paths": [f"a&{n}.png", f"b{n}.png"]}
            for n in range(33)
        ],
    },
    "contradicted": {
        "neighbours": 10,
        "count": 1,
        "rows": [
            {
                "key": "a",
                "path": "cat/<1>.png",
                "split": "train",
                "target": "cat",
                "neighbours_say": "dog",
                "share": 0.9,
            }
        ],
    },
}


def with_audit(folder: Path, audit: Any) -> Page:
    """The page of one run whose task was audited."""
    runs = [one_run(folder)]
    write_json(folder / "audits" / "animals.json", audit)
    report(ReportConfig(), runs, folder / "report" / "index.html", audits=folder / "audits")
    return Page(folder / "report" / "index.html")


def test_the_page_shows_what_the_audit_found_and_how_much_is_left_out(tmp_path: Path) -> None:
    read = with_audit(tmp_path, AUDIT)
    text = re.sub(r"\s+", " ", "".join(read.text))
    assert "33 near duplicates across splits, 1 label that neighbours contradict" in text
    assert "20 of 30 are shown" in text
    assert "1234" in text
    assert "total variation train and test0.125" in text
    assert "<shop>" in text
    assert "0 files are in two splits with equal bytes. 17 copies of files were left out" in text
    assert "33 pairs with a cosine of 0.95 or more, by late of tiny; 50 of 60 rows were compared" in text
    assert "20 of 33 are shown" in text
    assert text.count("a&") == 20
    assert "cat/<1>.png" in text


def test_what_the_audit_could_not_look_for_says_why(tmp_path: Path) -> None:
    why = "no extraction has all data sets of the task: animals"
    targets = {"train": {"count": 5, "mean": 0.5, "std": 0.1, "quantiles": {"0.5": 0.4}}}
    nothing = {"near_duplicates": {"why": why}, "contradicted": {"why": why}, "classes": None, "targets": targets}
    text = "".join(with_audit(tmp_path, AUDIT | nothing).text)
    assert text.count(f"Not searched: {why}.") == 2
    assert "Rows of each class" not in text
    assert "0.500" in text


def backbone(folder: Path, taps: Sequence[str], *, weights: str = "ab" * 32) -> Path:
    """The folder of backbones, with one that has those taps after each other."""
    tap = {"layout": "CHW", "shape": [8, 4, 4]}
    write_json(
        folder / "backbones" / "tiny" / "backbone.json",
        {
            "format": 2,
            "architecture": {"family": "glyphs"},
            "origin": {},
            "weights_digest": weights,
            "input": {"image": {"mode": "L", "resize": [4, 4]}, "mean": [0.5], "std": [0.5]},
            "taps": {name: tap | {"multiply_adds": 1000 * place} for place, name in enumerate(taps)},
        },
    )
    return folder / "backbones"


def test_the_cost_of_an_input_is_that_of_its_taps(tmp_path: Path) -> None:
    run = one_run(tmp_path, inputs=("early", "late", "early+late"))
    features = run["made_from"]["features"]
    del features["early+late"]
    features["early"]["identity"] |= {"node": "one", "pool": "mean", "dtype": "float16"}
    features["late"]["identity"] |= {"node": "two", "pool": "none", "dtype": "float32"}
    found = costs(run, backbone(tmp_path, ["input", "one", "two", "three", "four"]))
    assert found == {
        "early": Cost(depth=0.25, bytes=16, multiply_adds=1000),
        "late": Cost(depth=0.5, bytes=512, multiply_adds=2000),
        "early+late": Cost(depth=0.5, bytes=528, multiply_adds=2000),
    }
    drawn = curves.by_cost(run, found)
    assert drawn is not None
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"early", "late", "early+late", "kB per row", "million multiply-adds", "depth, % of the nodes"} <= set(texts)
    assert not any("$" in (text or "") for text in texts)


def test_the_width_of_a_projection_is_that_of_the_row(tmp_path: Path) -> None:
    run = one_run(tmp_path, inputs=("early",))
    run["made_from"]["features"]["early"]["identity"] |= {"node": "one", "projection": {"dimensions": 3}}
    assert costs(run, backbone(tmp_path, ["input", "one"]))["early"].bytes == 6


def test_a_backbone_that_is_gone_or_is_another_has_no_costs(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    assert costs(run, tmp_path / "nowhere") == {}
    assert costs(run, backbone(tmp_path, ["block<3>"], weights="00" * 32)) == {}
    assert curves.by_cost(run, {}) is None


def test_costs_are_on_the_page(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    path = tmp_path / "report" / "index.html"
    report(ReportConfig(), [run], path, backbones=backbone(tmp_path, ["input", "block<3>"]))
    assert "Accuracy against the costs of inputs" in Page(path).texts_in("figcaption")


# Networks that were trained ------------------------------------------------------------------------------------------

FINETUNE = {"start": "backbone", "input": "pixels", "tap": None, "train": None, "unfreeze": {}}
KEPT = {"labels": 10, "draw": 0}


def tuned(folder: Path, name: str, *, labels: Sequence[int | None] = (5, 10), **settings: Any) -> Path:
    """A run of finetune."""
    told = FINETUNE | settings
    given: dict[str, Any] = {"head": "finetune", "inputs": ("pixels",), "labels": labels, "kept": KEPT}
    return evaluated(folder, name, settings=told, **given)


def table_after(read: Page, title: str, number: int = 0) -> list[list[str]]:
    """The rows of a table below a summary, as the texts of their cells."""
    table = read.rawdata_of.split(f"<summary>{title}</summary>")[1].split("</table>")[number]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_frozen_features_and_trained_networks_stand_beside_each_other(tmp_path: Path) -> None:
    evaluated(tmp_path, "frozen", labels=(1, 10))
    evaluated(tmp_path, "frozen_full")
    tuned(tmp_path, "tuned")
    tuned(tmp_path, "new_head", train="head")
    tuned(tmp_path, "last", train={"last_k": 2}, unfreeze={"2": "block1"})
    tuned(tmp_path, "lpft", start="frozen")
    tuned(tmp_path, "more", start="tuned")
    tuned(tmp_path, "middle", input="features", tap="block1_whole", labels=(None,))
    tuned(tmp_path, "lpft_middle", start="frozen", input="features", tap="block1_whole")
    plots = tuned(tmp_path, "scratch", start="scratch")
    names = ["scratch", "more", "middle", "lpft", "lpft_middle", "last", "new_head", "tuned", "frozen_full", "frozen"]
    runs = leaderboard.read(plots, names)
    head, *rows = table_after(write_page(tmp_path, runs), "Frozen and trained")
    assert head == ["how", "run", "1", "5", "10", "all"]
    assert [row[:2] for row in rows] == [
        ["frozen features of tiny", "frozen"],
        ["frozen features of tiny", "frozen_full"],
        ["fine-tuned: only a new classifier", "new_head"],
        ["fine-tuned: the last 2 blocks, unfrozen step by step", "last"],
        ["fine-tuned: the layers after the stored tap block1_whole", "middle"],
        ["LP-FT: the head of frozen first, then all layers", "lpft"],
        ["LP-FT: the head of frozen first, then the layers after the stored tap block1_whole", "lpft_middle"],
        ["from the network of tuned: all layers", "more"],
        ["fine-tuned: all layers", "tuned"],
        ["tiny from scratch", "scratch"],
    ]
    frozen, full = runs_by_name(runs)["frozen"], rows[1]
    best = max((row for row in frozen["table"] if row["labels"] == 1), key=lambda row: row["validation_accuracy"])
    low, high = best["accuracy_low"], best["accuracy_high"]
    ends = f"{low:.3f}–{high:.3f}"
    assert rows[0][2] == f"{best['accuracy']:.3f} {ends} logistic on {best['input']} 2 draws"
    assert [bool(cell) for cell in rows[0][2:]] == [True, False, True, False]
    assert [bool(cell) for cell in full[2:]] == [False, False, False, True]


def of_one_method(name: str, value: float, record: dict[str, Any], *, higher: bool) -> Run:
    """A run with one method of that value on test rows."""
    row = {"head": "h", "input": "i", "labels": None, "accuracy": value, "validation_accuracy": value}
    return {"run": name, "metric": "accuracy", "higher_is_better": higher, "table": [row], "made_from": record}


@pytest.mark.parametrize(
    ("value", "higher", "below"), [(0.8, True, True), (0.9, True, False), (0.9, False, False), (0.95, False, True)]
)
def test_a_network_below_the_probe_of_its_own_backbone_is_named(value: float, higher: bool, below: bool) -> None:
    probe = of_one_method("probe", 0.9, heads(), higher=higher)
    other = of_one_method("elsewhere", 0.99, heads(settings={"backbone": "large"}), higher=higher)
    trained_run = of_one_method("tuned", value, network(), higher=higher)
    numbers = f"accuracy {value:.3f} against 0.900, all labels"
    line = f"tuned is below the frozen probe of its own backbone, probe: {numbers}"
    assert trained.below_probe([probe, other, trained_run]) == ([line] if below else [])


def runs_by_name(runs: Sequence[Run]) -> dict[str, Run]:
    return {run["run"]: run for run in runs}


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ("full", "all layers"),
        ({"last_k": 1}, "the last block"),
        ({"from_tap": "block2"}, "the layers after block2"),
        ({"patterns": ["block3.*", "fc"]}, "parameters block3.*, fc"),
    ],
)
def test_what_was_trained_is_said_in_words(tmp_path: Path, train: Any, what: str) -> None:
    [run] = leaderboard.read(tuned(tmp_path, "pets", train=train), ["pets"])
    assert trained.approach(run, {"pets": run})[1] == f"fine-tuned: {what}"
    assert f"Fine-tuned: {what}." in " ".join("".join(write_page(tmp_path, [run]).text).split())


def test_a_task_of_frozen_features_alone_has_no_such_table(several: tuple[list[Run], Page]) -> None:
    assert "Frozen and trained" not in several[1].texts_in("summary")
    assert "Teacher and student" not in several[1].texts_in("summary")


def test_the_curves_of_frozen_and_trained_have_a_line_a_run(tmp_path: Path) -> None:
    evaluated(tmp_path, "frozen", labels=(1, 10))
    plots = tuned(tmp_path, "network")
    runs = leaderboard.read(plots, ["frozen", "network"])
    found = trained.table_of_networks(runs, runs_by_name(runs))
    assert found is not None
    drawn = curves.by_training(runs, found["lines"], name="animals")
    assert drawn is not None
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"frozen", "network", "1", "5", "10"} <= set(texts)
    assert "animals: accuracy against labels" in write_page(tmp_path, runs).texts_in("figcaption")


def test_what_is_best_at_a_number_of_labels_is_chosen_on_validation_rows() -> None:
    rows = [
        {"labels": 5, "r2": 0.9, "validation_r2": 0.1, "input": "a"},
        {"labels": 5, "r2": 0.2, "validation_r2": 0.8, "input": "b"},
        {"labels": 5, "r2": None, "validation_r2": 0.9, "input": "c"},
        {"labels": 9, "r2": 0.3, "validation_r2": None, "input": "d"},
    ]
    run: Run = {"metric": "r2", "higher_is_better": True, "table": rows}
    assert trained.best(run, 5) == rows[1]
    errors = [{name.replace("r2", "mae"): value for name, value in row.items()} for row in rows]
    assert trained.best({"metric": "mae", "higher_is_better": False, "table": errors}, 5) == errors[0]
    assert trained.best(run, 9) == rows[3], "there is no other"
    assert trained.best(run | {"table": [rows[3], rows[3]]}, 9) is None, "and the test rows choose nothing"


# Students ------------------------------------------------------------------------------------------------------------

TEACHER = teacher("wise", "grown", task="animals")
CLASSES = [f"kind{number}" for number in range(9)]


def student(folder: Path, name: str, teachers: Sequence[Any], *, right: float) -> Path:
    """A run of distill."""
    kept = {"student": "small", "teachers": list(teachers), "losses": {}, "features": {}}
    given: dict[str, Any] = {"head": "distill", "inputs": ("pixels",), "classes": CLASSES, "right": right}
    return evaluated(folder, name, settings={"student": "small"}, kept=kept, **given)


def measured(parameters: int, *, engine: str = "torch") -> dict[str, Any]:
    """A footprint, as JSON has it."""
    times = {"1": (1.25, 1.0, 1.5), "32": (123.4, 120.0, 130.0)}
    return Footprint(
        parameters=parameters,
        bytes=4 * parameters,
        multiply_adds=2_500_000,
        threads=2,
        latency_ms={
            int(size): Latency(engine=engine, median=median, low=low, high=high)
            for size, (median, low, high) in times.items()
        },
    ).model_dump(mode="json")


def taught(folder: Path, teachers: Sequence[Any] = (TEACHER,), *, costs: bool = True) -> Page:
    """The page of a teacher, a student, and the same student on labels alone."""
    given: dict[str, Any] = {"settings": FINETUNE, "head": "finetune", "inputs": ("pixels",), "classes": CLASSES}
    evaluated(folder, "grown", kept={}, right=1.0, **given)
    student(folder, "alone", [], right=0.3)
    plots = student(folder, "learned", teachers, right=0.9)
    names = ["grown", "alone", "learned"]
    if costs:
        found = {"student": measured(100), "teachers": {"wise": measured(12345, engine="openvino")}}
        write_json(folder / "footprints" / "learned.json", found)
        write_json(folder / "footprints" / "alone.json", {"student": measured(100), "teachers": {}})
    path = folder / "report" / "index.html"
    report(
        ReportConfig(),
        leaderboard.read(plots, names),
        path,
        comparisons=compared(folder, names),
        footprints=folder / "footprints",
    )
    return Page(path)


def test_a_teacher_and_its_student_stand_beside_each_other_with_their_costs(tmp_path: Path) -> None:
    read = taught(tmp_path)
    head, *rows = table_after(read, "Teacher and student")
    assert head[-2:] == ["ECE", "log loss"]
    assert [row[:2] for row in rows] == [
        ["wise teacher, of grown", "–"],
        ["learned student", "wise"],
        ["alone student", "labels only"],
    ]
    wise, learned, _ = (dict(zip(head, row, strict=True)) for row in rows)
    assert wise["parameters"] == "12,345"
    assert wise["weights"] == "49.4 kB"
    assert wise["multiply-adds"] == "2.5 M"
    assert wise["ms, 1 image"] == "1.25 1–1.5 openvino"
    assert wise["ms, 32 images"] == "123 120–130 openvino"
    assert wise["accuracy, interval"] == "1.000 0.903–1.000*"
    assert learned["ms, 1 image"] == "1.25 1–1.5 torch"
    run = read_json(tmp_path / "plots" / "learned.json")["selected"]
    assert learned["ECE"] == f"{run['ece']:.3f}"
    assert learned["log loss"] == f"{run['log_loss']:.3f}"
    assert "on 2 CPU threads" in " ".join("".join(read.text).split())


def test_a_student_is_compared_with_its_teacher_and_with_labels_alone(tmp_path: Path) -> None:
    head, *rows = table_after(taught(tmp_path), "Teacher and student", 1)
    [beside, alone] = read_json(tmp_path / "comparisons" / "animals.json")["taught"]
    first, second = (dict(zip(head, row, strict=True)) for row in rows)
    assert (first["student"], first["compared with"]) == ("learned", "wise")
    ends = f"{beside['agreement_low']:.3f}–{beside['agreement_high']:.3f}"
    assert first["agreement, interval"] == f"{beside['agreement']:.3f} {ends}"
    assert first["divergence"] == f"{beside['divergence']:.3f}"
    assert second["compared with"] == "alone, on labels only"
    assert second["agreement, interval"] == second["divergence"] == "–"
    assert second["verdict"] == "student is better"
    assert second["difference, interval"].startswith(f"{alone['difference']:+.3f} ")


def test_what_was_not_measured_is_a_dash_and_who_has_no_predictions_is_named(tmp_path: Path) -> None:
    own = TEACHER | {"name": "off the shelf", "run": "backbone"}
    other = TEACHER | {"name": "of another task", "task": "plants"}
    read = taught(tmp_path, [own, TEACHER, other], costs=False)
    _, *rows = table_after(read, "Teacher and student")
    assert [row[0] for row in rows] == [
        "off the shelf teacher",
        "wise teacher, of grown",
        "learned student",
        "alone student",
    ]
    assert rows[0][1:] == ["–"] * (len(rows[0]) - 1)
    assert rows[2][1] == "off the shelf + wise"
    assert "Without predictions of this task: off the shelf." in "".join(read.text)


def test_students_are_told_apart_from_other_networks(tmp_path: Path) -> None:
    read = taught(tmp_path)
    _, *rows = table_after(read, "Frozen and trained")
    assert [row[:2] for row in rows] == [
        ["fine-tuned: all layers", "grown"],
        ["small, distilled from wise", "learned"],
        ["small, trained on labels only", "alone"],
    ]
    assert "Small, distilled from wise. Chosen on held-out rows" in " ".join("".join(read.text).split())


def test_a_page_without_comparisons_has_no_pairs_of_students(tmp_path: Path) -> None:
    plots = student(tmp_path, "learned", [TEACHER], right=0.9)
    read = write_page(tmp_path, leaderboard.read(plots, ["learned"]))
    _, *rows = table_after(read, "Teacher and student")
    assert [row[0] for row in rows] == ["wise teacher", "learned student"]
    assert "p McNemar" not in read.texts_in("th")


# Kinds of task -------------------------------------------------------------------------------------------------------


def other_kinds(folder: Path) -> list[Run]:
    """A regression and a multilabel run."""
    random, rows = np.random.default_rng(0), 40
    keys = np.array([f"{number:032x}" for number in range(rows)], dtype=object)
    splits = np.where(np.arange(rows) % 2 == 0, "validation", "test").astype(object)
    values, labels = random.normal(size=rows), random.uniform(size=(rows, 3)) < 0.5
    scores = (labels + random.normal(0, 0.3, size=(rows, 3))).astype(np.float32)
    names = ["red", "round", "soft"]
    made: dict[Kind, Predictions] = {
        "regression": Predictions("ridge", "late", None, None, keys, splits, values, values + 0.1, np.empty((rows, 0))),
        "multilabel": Predictions("logistic", "late", None, None, keys, splits, labels, scores > 0.5, scores),
    }

    for kind, one in made.items():
        classes = names if kind == "multilabel" else []
        with Writer(folder / f"{kind}.parquet", kind, classes, {one.head: "decision" if classes else "none"}) as writer:
            writer.add(one)
        table = pa.table({"key": keys, "target": column_of(one.targets, kind, classes), "split": splits})
        Task(table.replace_schema_metadata({"kind": kind})).write(folder / "task.parquet")
        write_json(folder / "model" / "model.json", heads(f"a_{kind}"))
        evaluate(
            EvaluateConfig(resamples=100),
            predictions=folder / f"{kind}.parquet",
            task=folder / "task.parquet",
            model=folder / "model",
            numbers=folder / "numbers.json",
            tables=folder / "plots" / f"{kind}.json",
            confusion=folder / "confusion.csv",
            curve=folder / "curve.csv",
        )
    return leaderboard.read(folder / "plots", list(made))


def test_each_kind_of_task_has_its_own_columns(tmp_path: Path) -> None:
    runs = [*other_kinds(tmp_path), one_run(tmp_path)]
    tables = leaderboard.text(runs).split("\n\n")
    heads = [re.split(r" {2,}", table.splitlines()[0])[5:] for table in tables]
    assert heads == [
        ["mAP", "95 % interval", "micro-F1", "macro-F1", "subset accuracy"],
        ["R²", "95 % interval", "MAE", "RMSE", "Spearman"],
        ["accuracy", "95 % interval", "macro-F1", "log loss", "ECE"],
    ]
    read = write_page(tmp_path, runs)
    assert read.texts_in("h3") == ["a_multilabel", "a_regression", "animals"]
    assert "Predictions of test rows" in read.texts_in("figcaption")
    assert {"R²", "mAP", "Hamming loss", "Spearman", "Brier"} <= set(read.texts_in("th"))


def test_a_metric_of_which_less_is_better_puts_the_smallest_first(tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    for name, error in {"rough": 0.9, "fine": 0.1}.items():
        selected = {"mae": error}
        run = {"run": name, "metric": "mae", "higher_is_better": False, "selected": selected}
        write_json(plots / f"{name}.json", run | {"made_from": heads("t")})
    assert [run["run"] for run in leaderboard.read(plots, ["rough", "fine"])] == ["fine", "rough"]


def test_why_there_is_a_dash_stands_below_the_table(tmp_path: Path) -> None:
    text = "".join(write_page(tmp_path, [one_run(tmp_path, scores="none")]).text)
    assert text.count("Dashes: logistic gives no probabilities; logistic gives no scores.") == 2


# The leaderboard -----------------------------------------------------------------------------------------------------


def test_the_leaderboard_is_sorted_by_task_then_by_accuracy_then_by_name(tmp_path: Path) -> None:
    evaluated(tmp_path, "weak", right=0.0)
    evaluated(tmp_path, "strong", right=1.0)
    evaluated(tmp_path, "a_tie", right=1.0)
    plots = evaluated(tmp_path, "other", task="aardvarks", right=0.5)
    runs = leaderboard.read(plots, ["weak", "strong", "a_tie", "other"])
    lines = leaderboard.text(runs).splitlines()
    assert lines.pop().startswith("* all test rows are right, or all wrong")
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
    assert re.split(r" {2,}", head)[2:7] == ["head", "input", "labels per class", "accuracy", "90 % interval"]
    assert re.split(r" {2,}", line) == [
        "animals",
        "pets",
        "logistic",
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
    assert cells[4] == "all"
    assert cells[-2:] == ["–", "–"]


def test_the_columns_of_the_leaderboard_stand_below_each_other(several: tuple[list[Run], Page]) -> None:
    head, rule, *lines = leaderboard.text(several[0]).splitlines()
    starts = [match.start() for match in re.finditer("─+", rule)]
    assert len(starts) == 10
    assert all(head[start - 2 : start] == "  " and head[start] != " " for start in starts[1:])
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines for start in starts[1:])


def test_a_leaderboard_of_no_runs_is_its_head_alone() -> None:
    assert leaderboard.text([]).splitlines()[0].startswith("task  run  head  input")


def test_runs_that_were_not_evaluated_are_named(tmp_path: Path) -> None:
    plots = evaluated(tmp_path, "pets")
    with pytest.raises(DataError, match=r"plots: no evaluation of dogs, birds\. Run `icecore repro`"):
        leaderboard.read(plots, ["dogs", "pets", "birds"])
