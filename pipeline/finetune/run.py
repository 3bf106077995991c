"""A fine-tuning run: of each training set a network, trained, its predictions; the best one in the backbone format.

A training set that was trained before, with the same settings, data, weights and code, comes from the cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.backbones.classifier import last_layer
from pipeline.errors import counted
from pipeline.files import digest
from pipeline.finetune.breakeven import break_even
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.inputs import FromFeatures, compare
from pipeline.finetune.setup import Paths, RunContext, build_job, load_run
from pipeline.loading import image_cache
from pipeline.loading.samples import stored
from pipeline.predictions import Writer
from pipeline.runtime import SILENT, Reporter, repeatable_kernels
from pipeline.task import training_sets
from pipeline.training import outputs as record
from pipeline.training.job import TrainingJob
from pipeline.training.loop import make_fabric, predict_logits, steps_per_epoch
from pipeline.training.lr_finder import ANY, RangeTest, range_test, with_rate
from pipeline.training.outputs import Trained

HEAD = "finetune"  # what predictions call the head
COMPARED = 64  # samples whose stored rows are compared with live ones at the end


@repeatable_kernels()
def finetune(
    config: FinetuneConfig,
    paths: Paths,
    *,
    datasets: Sequence[str],
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Train, predict and write everything; return the record of the network that was kept.

    `datasets` have the samples of the task. A message says the break-even before anything is trained. Raises
    TrainingError, BackboneError, ConfigError, HeadError, StoreError or DataError where task, backbone, features and
    settings do not go together, where training fails, and where what was frozen is not what it was.
    """
    run = load_run(config, paths, datasets=datasets)
    trainings = list(training_sets(run.task, config.labels_per_class, draws=config.draws, where=str(paths.task)))
    measured = record.evaluation_rows(run.task, where=paths.task)
    fabric = make_fabric(config)
    largest = max(trainings, key=lambda one: len(one.rows))
    config = with_rate(
        config, lambda some: build_job(replace(run, config=some), largest, fabric), cache=paths.cache, reporter=reporter
    )
    run = replace(run, config=config)
    steps = [config.epochs * steps_per_epoch(len(one.rows), config) for one in trainings]
    best: Trained | None = None
    records = []
    scores, paths_of = {HEAD: record.scores_of(run.task)}, run.task.paths_of
    with Writer(paths.predictions, run.task.kind, run.task.classes, scores, paths_of=paths_of) as writer:
        for number, training in enumerate(trainings):
            one = build_job(run, training, fabric)
            if number == 0:
                reporter.message(_foreseen(run, one, max(len(each.rows) for each in trainings)))
            trained = record.train_or_load(
                one,
                training,
                head=HEAD,
                inputs=run.inputs.name,
                folder=paths.cache / "training" / digest(one.made_from)[:32],
                curves=paths.curves / str(training),
                reporter=reporter.part(sum(steps[:number]), sum(steps)).named(str(training)),
            )
            samples = run.inputs.samples(measured, one.targets.of(measured), training=False, seed=0)
            logits = torch.cat([found.cpu() for found, _ in predict_logits(one.module, samples, one.setting)])
            writer.add(
                record.predictions(run.task, measured, logits, one.targets, training, head=HEAD, inputs=run.inputs.name)
            )
            one.targets.unfold(last_layer(one.network, one.architecture))
            records.append(trained.record)
            best = trained if best is None or trained.order > best.order else best
    assert best is not None, "there is a training set"
    if isinstance(run.inputs, FromFeatures):
        some = stored(paths.manifests, datasets, run.inputs.keys[run.task.rows("train")[:COMPARED]])
        live = image_cache.decoded(run.source.spec.input, some, folder=paths.cache / "pixels")
        compare(best.network, run.source.spec, live, run.inputs.clean, run.inputs.node)
    if fabric.is_global_zero:
        _write(run, best, records, paths)
        record.prune_training_cache(paths.cache)
    return best.record


def lr_range(config: FinetuneConfig, paths: Paths, *, datasets: Sequence[str]) -> RangeTest:
    """The learning-rate range test on the largest training set of a run; raises what `finetune` does."""
    run = load_run(config, paths, datasets=datasets)
    every = training_sets(run.task, config.labels_per_class, draws=config.draws, where=str(paths.task))
    tried = config.model_copy(update={"learning_rate": ANY})
    one = build_job(replace(run, config=tried), max(every, key=lambda one: len(one.rows)), make_fabric(config))
    return range_test(one.module, one.samples, one.setting, one.frozen)


def _foreseen(run: RunContext, one: TrainingJob, rows: int) -> str:
    """The break-even of stored rows, for this run or in its place."""
    config, spec, inputs = run.config, run.source.spec, run.inputs
    if isinstance(inputs, FromFeatures):
        reading = (inputs.clean, inputs.keys[run.task.rows("train")])
        return break_even(one.network, spec, inputs.node, rows=rows, config=config, reading=reading)
    node = one.frozen.cut(0)
    if node in (None, "input") or config.augment or config.unfreeze:
        return f"pixels: {counted(rows, 'row')}; nothing is frozen that stored rows could stand for"
    return break_even(one.network, spec, node, rows=rows, config=config, reading=None)


def _write(run: RunContext, best: Trained, records: list[dict[str, Any]], paths: Paths) -> None:
    used = (run.inputs.clean, *run.inputs.views) if isinstance(run.inputs, FromFeatures) else ()
    record.write(
        paths.model,
        best,
        records,
        head=HEAD,
        settings=run.config.model_dump(mode="json"),
        task=run.task,
        task_path=paths.task,
        inputs=run.source.spec.input,
        classes=run.task.classes,
        source="finetuned",
        made_from=run.source.spec.weights_digest,
        features={one.folder.name: {"address": one.index.address, "identity": one.identity} for one in used},
    )
