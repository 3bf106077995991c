"""Train a small source network: `python -m stages.pretrain glyphs`."""

from pipeline.pretrain.run import pretrain
from stages import project, terminal


def main() -> None:
    """Write `data/pretrained/<name>/` in the backbone format."""
    name, config = project.entry("pretrain")
    with terminal.reporter(f"pretrain {name}", "steps") as reporter:
        spec = pretrain(config, project.PRETRAINED / name, manifests=project.MANIFESTS, reporter=reporter)
    print(f"{name}: {spec.origin['holdout_accuracy']:.1%} of the held-out samples are classified correctly")


if __name__ == "__main__":
    project.run(main)
