"""What `icecore layers` lists: the backbone of a project, one in a folder, or a model of a library."""

from pathlib import Path

from pipeline.inference.node_table import Network


def read_nodes(name: str) -> Network:
    """Return the nodes of a backbone: of the project, in a folder, or of a model of torchvision or timm by its name.

    A model's name is looked up last; its weights are not downloaded. Raises BackboneError where nothing has the name.
    """
    from pipeline.backbones.serialization import read_spec
    from stages import project

    of_project = project.BACKBONES / name
    if of_project.is_dir() and not Path(name).is_absolute():
        return read_spec(of_project)
    if Path(name).exists() or len(Path(name).parts) > 1:
        return read_spec(name)
    from pipeline.freeze.library_model import model_settings
    from pipeline.freeze.outline import survey_model

    return survey_model(model_settings(name))
