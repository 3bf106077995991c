"""The backbone of the Python API: one object from a model's name, a folder or a module to rows of any layer."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import nn

from pipeline import embed
from pipeline.backbones import serialization
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.spec import BackboneSpec, TapSpec, resolve
from pipeline.errors import BackboneError, ConfigError, DataError
from pipeline.extract.request import row_shapes
from pipeline.files import digest
from pipeline.freeze.library_model import Weights, freeze_once, model_settings
from pipeline.inference import node_table
from pipeline.inference.cached_embedding import embed_through_cache
from pipeline.inference.module_in_memory import freeze_module
from pipeline.inference.reporting import REPORTER
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.stored_images import find_images, read_images
from pipeline.inference.transforms import Transform
from pipeline.prepare.config import PrepareConfig
from pipeline.readers import image_files
from pipeline.readers.image import ImageReader
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.sources import filesystem
from pipeline.store.location import default_root
from pipeline.store.use import touch

Taps = str | Sequence[str]
Dtype = Literal["float16", "bfloat16", "float32", "int8"]


class Nodes(list[dict[str, Any]]):
    """The nodes of a network, a dictionary each; prints as the table of `icecore layers`."""

    def __repr__(self) -> str:
        return node_table.text(self)


class Backbone:
    """A frozen network with its preprocessing: images in, rows of any of its layers out.

    model: a name of torchvision or timm, such as `resnet50`; the folder of a backbone; the folder of a run that trained
    a network, such as `data/models/tuned`; or a `torch.nn.Module`, of which a copy is frozen.
    weights: of a name, an entry of torchvision's enum or a tag of timm; the default ones if None.
    file: of a name, weights on disk.
    source: of a name that both libraries have, `torchvision` or `timm`.
    transform: of a module, the function from a PIL image to the tensor that the module takes.

    A name is frozen once, below the user's feature cache, and loaded when the first image comes. Raises BackboneError
    for a model that is not there and for weights or a transform that do not fit, ConfigError for arguments that do not
    go together.

    >>> backbone = Backbone("data/backbones/tiny")
    >>> features = backbone.embed("photos/", tap="block1", pool="mean")
    >>> len(features), features.shape, [path[-5:] for path in sorted(features.paths)]
    (2, (4,), ['0.png', '1.png'])
    >>> backbone.embed(["photos/0.png"]).shape
    (1, 4)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        *,
        weights: Any = None,
        file: str | os.PathLike[str] | None = None,
        source: Literal["torchvision", "timm"] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._network: nn.Module | None = None
        self._reader: ImageReader | None = None
        self._extractors: dict[str, InMemoryExtractor] = {}
        self.folder: Path | None = None
        self._spec: BackboneSpec
        chosen = Weights(
            source=source, name=getattr(weights, "name", weights), file=None if file is None else Path(file)
        )
        if isinstance(model, nn.Module):
            if chosen != Weights():
                raise ConfigError(
                    f"Backbone: a {type(model).__name__} has its weights. Leave out weights, file and source."
                )
            self.name = type(model).__name__
            self._network, self._spec, self._reader = freeze_module(model, transform)
            self._token = secrets.token_hex(8)
            return
        if not isinstance(model, str | os.PathLike):
            raise TypeError(
                "Backbone: model: expected a name, the folder of a backbone or a torch.nn.Module, got "
                f"{type(model).__name__}."
            )
        if transform is not None:
            raise ConfigError(
                f"Backbone: {model}: has its own preprocessing. Leave `transform` out, or give the module itself."
            )
        self.name = str(os.fspath(model))
        self.folder = _folder_of(self.name, chosen)
        self._spec = serialization.read_spec(self.folder)

    @property
    def spec(self) -> BackboneSpec:
        """What backbone.json says: input, nodes, aliases, classes, and the digest of the weights."""
        return self._spec

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the network's own classifier, in the order of its outputs; empty where it names none."""
        return self.spec.classes

    @property
    def identity(self) -> str:
        """What tells this network from all others: the digest of its weights, of a module also a random token."""
        return self.spec.weights_digest if self.folder is not None else f"{self.spec.weights_digest}-{self._token}"

    def check_unchanged(self) -> None:
        """Raise BackboneError where the folder has other weights than when the backbone was opened."""
        if self.folder is not None and serialization.read_spec(self.folder) != self.spec:
            raise BackboneError(f"{self.folder}: another network was written there since. Open the Backbone again.")

    def __repr__(self) -> str:
        return f"Backbone({self.name!r})"

    def __deepcopy__(self, _memo: Any) -> "Backbone":
        return self  # nothing of it changes, and `sklearn.base.clone` copies every parameter

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be loaded from the folder again: the weights of a module alone go along."""
        state = {**self.__dict__, "_extractors": {}}
        return state | ({"_network": None} if self.folder is not None else {})

    def layers(self, match: str = "", *, everything: bool = False) -> Nodes:
        """List the blocks of the network, which can be taps: aliases, shapes, bytes per row, share of the cost.

        match: also the modules inside of blocks that have this in their name, alias or kind. everything: all nodes.
        """
        short = not everything and not match
        return Nodes(node_table.rows(self.spec, functions=everything, short=short, match=match))

    def embed(
        self,
        what: Any,
        tap: Taps = PENULTIMATE,
        pool: str | None = None,
        *,
        dtype: Dtype = "float16",
        cache: bool = True,
        out: str | os.PathLike[str] | None = None,
        image: str | None = None,
        engine: str = "auto",
        max_rejected: float = 0.05,
        max_pixels: int = MAX_PIXELS,
    ) -> Any:
        """Return the rows of a layer: `Features` of a folder, list, archive, Parquet or URL, else an array.

        what: a path or URL of many images, as `icecore extract --data` takes it: its rows go through the feature cache,
        so that a second call computes what is new, and one after a kill goes on. Or images in memory: paths, PIL
        images, uint8 arrays or tensors, a batch of these or a DataLoader: the array has a row for each, in the given
        order, and nothing is stored. Float tensors are taken as normalised already.
        tap: a node or alias that `layers` lists, or `node:pooling`; of several, a dictionary of what each gives.
        pool: the pooling of taps that name none: none, flatten, mean, max, gem, mean+std, avg2x2, cls, mean_tokens.
        dtype: of stored values; rows in memory are rounded to it, bfloat16 and int8 come as float32.
        cache: False: an array for a folder too, nothing stored. Files of a folder are sorted by path, copies are rows.
        out: the folder for the features and their table of files; by default one below the feature cache.
        image: of Parquet, the column of the images' bytes.
        engine: of cached rows: auto, torch, onnxruntime, openvino; all within the limits of parity of torch.
        max_rejected: of cached rows, the share of unusable files above which the call fails.
        max_pixels: larger files are refused.

        Raises BackboneError for a tap or pooling that does not fit, DataError for images that cannot be used.
        """
        specs = self.specs(tap, pool, dtype)
        if isinstance(what, str | os.PathLike):
            asked = {"image": image, "max_pixels": max_pixels}
            found = self._embed_stored(
                os.fspath(what), specs, dtype, asked, cache=cache, out=out, engine=engine, rejected=max_rejected
            )
        else:
            found = self.extractor(specs)(what, max_pixels=max_pixels)
        return found[tap] if isinstance(tap, str) else found

    def extractor(self, specs: Mapping[str, TapSpec]) -> InMemoryExtractor:
        """Return what runs the network on images in memory for some taps; the last few are kept."""
        name = digest({tap: spec.model_dump(mode="json") for tap, spec in specs.items()})
        if name not in self._extractors:
            while len(self._extractors) >= KEPT:
                self._extractors.pop(next(iter(self._extractors)))
            network = serialization.Backbone(self.spec, self._loaded())
            self._extractors[name] = InMemoryExtractor(network, specs, reader=self._reader)
        return self._extractors[name]

    def _loaded(self) -> nn.Module:
        if self._network is None:
            assert self.folder is not None, "a module is loaded from the start"
            self.check_unchanged()
            self._network = serialization.read(self.folder).module
            touch(self.folder)
        return self._network

    def specs(self, tap: Taps, pool: str | None, dtype: str) -> dict[str, TapSpec]:
        """Return the settings of taps by the text that asks for each.

        Raises BackboneError for nodes and poolings that do not fit, ConfigError for a text that is no tap.
        """
        texts = [tap] if isinstance(tap, str) else list(tap) if isinstance(tap, Sequence) else [tap]
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"taps: expected a node, or a list of nodes, as text, got {type(odd[0]).__name__}.")
        if not texts or len(set(texts)) < len(texts):
            raise ConfigError(f"taps: expected one tap or more, each once, got {texts}.")
        specs = {}
        for text in texts:
            _, settings = embed.parse_tap(text, dtype)
            if pool is not None:
                settings = {"pool": pool} | settings
            try:
                specs[text] = TapSpec.model_validate(settings)
            except ValueError as error:
                raise ConfigError(f"tap {text!r}: {_first(error)}") from None
        nodes = resolve(specs, self.spec, where=self.name)
        row_shapes(nodes, self.spec, where=self.name)
        return specs

    def _embed_stored(
        self,
        data: str,
        specs: Mapping[str, TapSpec],
        dtype: str,
        asked: Mapping[str, Any],
        *,
        cache: bool,
        out: str | os.PathLike[str] | None,
        engine: str,
        rejected: float,
    ) -> dict[str, Any]:
        if filesystem.path_kind(data) == "file" and PurePosixPath(data).suffix.lower() in image_files.extensions():
            raise DataError(f"{data}: expected a folder, a list or an archive, got one file. Put it into a list.")
        if not cache:
            images = find_images(PrepareConfig.model_validate({"root": data, **asked}))
            names = [image.path for image in images]
            return dict(self.extractor(specs)(read_images(images), names=names, max_pixels=None))
        if self.folder is None:
            raise ConfigError(
                f"Backbone: a {self.name} in memory has no name under which the feature cache finds rows again: what "
                "its code does is not known. Set `cache=False` for an array, or freeze the network as a backbone "
                "(`source: module` in params.yaml, with the import path of what builds it) and give that folder."
            )
        self.check_unchanged()
        touch(self.folder)
        features = embed_through_cache(
            self.folder,
            self.spec,
            data,
            specs,
            out=None if out is None else Path(out),
            dtype=dtype,
            engine=engine,
            max_rejected=rejected,
            **asked,
        )
        return dict(features)


KEPT = 4
"""Extractors of one backbone that are kept, each with its hooks and on a GPU with its copy of the weights."""


def _folder_of(model: str, weights: Weights) -> Path:
    """Return the folder of a frozen backbone: a folder itself, that of a run, or one where a name is frozen once."""
    path = Path(model)
    for folder in (path, path / "backbone"):
        if (folder / serialization.JSON).is_file():
            if weights != Weights():
                raise ConfigError(f"Backbone: {model}: a folder has its weights. Leave out weights, file and source.")
            return folder.resolve()
    if (path / "model.json").is_file():
        raise BackboneError(
            f"{model}: expected a run that trained a network (`finetune`, `distill`), got one of heads. Give its "
            "backbone, data/backbones/NAME, or load the run with `icecore.load`."
        )
    if len(path.parts) > 1 or path.is_absolute():
        raise BackboneError(
            f"{model}: expected the folder of a backbone or of a run that trained a network, got none: "
            f"{serialization.JSON} is missing there."
        )
    folder = freeze_once(model_settings(model, weights), default_root(), REPORTER)
    touch(folder)
    return folder


def _first(error: ValueError) -> str:
    """Return the first problem of an error of pydantic, without its type."""
    listed: list[dict[str, Any]] = getattr(error, "errors", list)()
    return str(listed[0]["msg"]).removeprefix("Value error, ") if listed else str(error)
