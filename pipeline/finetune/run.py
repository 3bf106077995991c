"""A fine-tuning run: of each training set a network, trained, its predictions; the best one in the backbone format."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.backbones.replace_classifier import last_layer
from pipeline.finetune.breakeven import break_even
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.inputs import FromFeatures, compare_stored_rows
from pipeline.finetune.setup import HEAD, Paths, RunContext, build_job, load_run
from pipeline.loading import image_cache
from pipeline.loading.samples import locate_samples
from pipeline.model_record import FeaturesRecord, NetworkFit
from pipeline.runtime import SILENT, Reporter, repeatable_kernels
from pipeline.training import outputs
from pipeline.training.job import TrainingJob
from pipeline.training.loop import make_fabric, steps_per_epoch
from pipeline.training.lr_finder import ANY, RangeTest, choose_rate, range_test
from pipeline.training.run import RunResult, train_sets

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COMPARED = 64  # samples whose stored rows are compared with what the network computes at the end


@repeatable_kernels()
def finetune(
    config: FinetuneConfig, paths: Paths, *, datasets: Sequence[str], reporter: Reporter = SILENT
) -> NetworkFit:
    """Train, predict and write everything; return the record of the network that was kept.

    `datasets` have the samples of the task. A message says the break-even before anything is trained. Raises
    TrainingError, BackboneError, ConfigError, HeadError, StoreError or DataError where task, backbone, features and
    settings do not go together, where training fails, and where what was frozen is not what it was.
    """
    run = load_run(config, paths, datasets=datasets)
    rows = outputs.evaluation_rows(run.task, where=paths.task)
    fabric = make_fabric(config)
    run = replace(
        run,
        config=choose_rate(
            config,
            lambda config: build_job(replace(run, config=config), run.largest, fabric),
            cache=paths.cache,
            reporter=reporter,
        ),
    )
    steps = [config.epochs * steps_per_epoch(len(training.rows), config) for training in run.trainings]
    result = RunResult()
    with outputs.prediction_writer(paths.predictions, run.task, head=HEAD) as writer:
        for job, trained in train_sets(_jobs(run, fabric, reporter), steps=steps, paths=paths, reporter=reporter):
            samples = run.inputs.samples(rows, job.targets.of(rows), training=False, seed=0)
            writer.add(outputs.predict(job, samples, run.task, rows))
            job.targets.unfold(last_layer(job.network, job.architecture))
            result.add(trained)
    _check_stored_rows(run, result, paths, datasets)
    if fabric.is_global_zero:
        _write(run, result, paths)
        outputs.prune_training_cache(paths.cache)
    return result.best.record


def lr_range(config: FinetuneConfig, paths: Paths, *, datasets: Sequence[str]) -> RangeTest:
    """Run the learning-rate range test on the largest training set of a run; raises what `finetune` does."""
    run = load_run(config.model_copy(update={"learning_rate": ANY}), paths, datasets=datasets)
    job = build_job(run, run.largest, make_fabric(config))
    return range_test(job.module, job.samples, job.context, job.trainable)


def _jobs(run: RunContext, fabric: "Fabric", reporter: Reporter) -> Iterator[TrainingJob]:
    """Build the job of each training set; before the first, report the break-even of stored rows."""
    for number, training in enumerate(run.trainings):
        job = build_job(run, training, fabric)
        if number == 0:
            reporter.message(break_even(run, job))
        yield job


def _check_stored_rows(run: RunContext, result: RunResult, paths: Paths, datasets: Sequence[str]) -> None:
    """Raise TrainingError where stored rows are not what the frozen part of the trained network computes."""
    if isinstance(run.inputs, FromFeatures):
        samples = locate_samples(paths.manifests, datasets, run.inputs.keys[run.task.rows("train")[:COMPARED]])
        pixels = image_cache.load_pixels(run.source.spec.input, samples, folder=paths.cache / "pixels")
        compare_stored_rows(result.best.network, run.source.spec, pixels, run.inputs.clean, run.inputs.node)


def _write(run: RunContext, result: RunResult, paths: Paths) -> None:
    """Write the best network and model.json."""
    used = (run.inputs.clean, *run.inputs.views) if isinstance(run.inputs, FromFeatures) else ()
    outputs.write(
        paths.model,
        result,
        head=HEAD,
        settings=run.config.model_dump(mode="json"),
        task=run.task,
        task_path=paths.task,
        inputs=run.source.spec.input,
        classes=run.task.classes,
        source="finetuned",
        began_with=run.source.spec.weights_digest,
        features={
            features.folder.name: FeaturesRecord(address=features.index.address, identity=features.identity)
            for features in used
        },
    )
