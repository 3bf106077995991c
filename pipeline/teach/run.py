"""Write a teacher: compute its missing rows into the feature cache, then write its folders and teacher.json."""

from pipeline.errors import TrainingError
from pipeline.extract.commit import refuse_too_many
from pipeline.loading.samples import read_samples
from pipeline.model_record import has_record, read_record
from pipeline.runtime import SILENT, Reporter
from pipeline.teach.config import TeachConfig
from pipeline.teach.head_teacher import teach_head
from pipeline.teach.network_teacher import teach_network
from pipeline.teach.outputs import Paths, TeachSummary, write_teacher
from pipeline.teach.teacher import JSON


def teach(config: TeachConfig, paths: Paths, *, reporter: Reporter = SILENT) -> TeachSummary:
    """Write the teacher to `paths.out` and return its summary; rows in the cache are not computed again.

    Raises TrainingError, HeadError, BackboneError or DataError if run, backbone, features and settings are
    incompatible, and what `extract` raises.
    """
    samples = read_samples(paths.manifests, config.datasets)
    (paths.out / JSON).unlink(missing_ok=True)
    store_rows = teach_head if _is_head(config, paths) else teach_network
    teacher = store_rows(config, paths, samples, reporter)
    refuse_too_many(config.max_rejected, len(samples), teacher.refused)
    return write_teacher(config, paths, samples, teacher)


def _is_head(config: TeachConfig, paths: Paths) -> bool:
    """Return whether the teacher is a head of a run of `fit`; raises TrainingError if the run does not exist."""
    if paths.run is None:
        return False
    if not has_record(paths.run):
        raise TrainingError(
            f"{paths.run}: expected the folder of a run with model.json, got none. Run fit or finetune of "
            f"{config.run} first."
        )
    return read_record(paths.run).kind == "heads"
