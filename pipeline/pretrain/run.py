"""Train the source network and write it in the backbone format."""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import BackboneSpec
from pipeline.files import AnyPath, as_path
from pipeline.pretrain.augment import distort
from pipeline.pretrain.config import PretrainConfig
from pipeline.pretrain.images import load_images, normalise
from pipeline.runtime import SILENT, Reporter, repeatable_kernels, seed_everything


@repeatable_kernels()
def pretrain(
    config: PretrainConfig, folder: AnyPath, *, manifests: AnyPath, reporter: Reporter = SILENT
) -> BackboneSpec:
    """Train on a data set with random distortions and write the network to `folder`; return its spec.

    A twentieth of the samples, at least one, is held out. `origin` of the spec records the accuracy on the held-out
    samples without distortions.
    """
    folder = as_path(folder, "pretrain: folder")
    manifests = as_path(manifests, "pretrain: manifests")
    images, targets, classes = load_images(config, manifests)
    seed_everything(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator)
    holdout_size = max(1, len(order) // 20)
    holdout, train = order[:holdout_size], order[holdout_size:]
    network = glyphs.GlyphNet(classes=len(classes), widths=config.widths)
    _train(network, images[train], targets[train], config, generator, reporter)
    with torch.inference_mode():
        correct = network.eval()(normalise(images[holdout])).argmax(1) == targets[holdout]
    return serialization.write(
        folder,
        network,
        architecture={"family": "glyphs", "classes": len(classes), "widths": list(config.widths)},
        origin={
            "source": "pretrained",
            **config.model_dump(mode="json"),
            "holdout_accuracy": round(correct.float().mean().item(), 4),
        },
        inputs=glyphs.INPUT,
        classes=classes,
    )


def _train(
    network: torch.nn.Module,
    images: Tensor,
    targets: Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    reporter: Reporter,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    network.to(memory_format=torch.channels_last).train()
    for step in range(config.steps):
        rows = torch.randint(len(images), (config.batch_size,), generator=generator)
        batch = normalise(distort(images[rows], generator))
        loss = functional.cross_entropy(network(batch), targets[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        reporter.progress(step + 1, config.steps)
