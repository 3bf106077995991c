"""Train a small source network: `python -m stages.pretrain glyphs`."""

from pipeline.pretrain.run import pretrain
from stages import project


def main() -> None:
    """Write `data/pretrained/<name>/` in the backbone format."""
    name, config = project.entry("pretrain")
    with project.bar(f"pretrain {name}", "steps") as progress:
        spec = pretrain(config, project.PRETRAINED / name, manifests=project.MANIFESTS, progress=progress)
    print(f"{name}: {spec.origin['holdout_accuracy']:.1%} of the samples held out are classified right")


if __name__ == "__main__":
    project.run(main)
