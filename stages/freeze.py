"""Freeze a backbone: `python -m stages.freeze glyphs`."""

from pipeline.freeze.run import freeze
from stages import project


def main() -> None:
    """Write `data/backbones/<name>/`."""
    name, config = project.entry("freeze")
    spec = freeze(config, project.BACKBONES / name, pretrained=project.PRETRAINED)
    print(f"{name}: weights {spec.weights_digest[:16]}, input {spec.input.shape}, {len(spec.taps)} taps")
    print(f"  `icecore info {project.BACKBONES / name}` lists them")


if __name__ == "__main__":
    project.run(main)
