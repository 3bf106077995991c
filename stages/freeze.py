"""Freeze a backbone: `python -m stages.freeze glyphs`."""

from pipeline.files import write_json
from pipeline.freeze.run import freeze
from stages import project


def main() -> None:
    """Write `data/backbones/<name>/`, and its digest for stages that may read stored rows of it."""
    name, config = project.entry("freeze")
    spec = freeze(config, project.BACKBONES / name, pretrained=project.PRETRAINED)
    write_json(project.DIGESTS / name / "backbone.json", {"weights_digest": spec.weights_digest})
    print(f"{name}: weights {spec.weights_digest[:16]}, input {spec.input.shape}, {len(spec.taps)} taps")
    print(f"  `icecore info {project.BACKBONES / name}` lists them")


if __name__ == "__main__":
    project.run(main)
