"""A digest of the model of a run, which stages that build on the run depend on: `data/model_digests/<run>/`.

`start` and `run` in params.yaml name a run, or the word `backbone` or `scratch`. DVC makes one path of either, and git
keeps a folder for each of the two words: here, and not among the models.
"""

from pipeline.files import digest, sha256_file, write_json
from stages import project


def write_model_digest(run: str) -> None:
    """Write `data/model_digests/<run>/digest.json`, of all files in `data/models/<run>/`."""
    folder = project.MODELS / run
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    write_json(project.MODEL_DIGESTS / run / "digest.json", {"model": digest(files)})
