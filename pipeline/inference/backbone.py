"""`Backbone`, the backbone of the Python API: load a model by name, folder or module, and embed images at any layer."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import nn

from pipeline import embed
from pipeline.backbones import serialization
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.spec import SPEC_FILE, BackboneSpec, TapSpec, read_spec, resolve
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
from pipeline.model_record import has_record
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
    """The nodes of a network as dictionaries; prints as the table of `icecore layers`."""

    def __repr__(self) -> str:
        return node_table.text(self)


class Backbone:
    """A frozen network with its preprocessing: images in, rows (feature vectors or maps) of any layer out.

    model: a name of torchvision or timm, such as `resnet50`; the folder of a backbone; the folder of a run that trained
    a network, such as `data/models/tuned`; or a `torch.nn.Module`, which is copied and frozen.
    weights: for a name, an entry of torchvision's enum or a tag of timm; by default the library's default weights.
    file: for a name, a local weight file.
    source: `torchvision` or `timm`, for a name that both libraries have.
    transform: for a module, the function from a PIL image to the module's input tensor.

    A named model is frozen once, in the user's feature cache, and its weights are loaded at the first image. Raises
    BackboneError for an unknown model, and for weights or a transform that do not fit; ConfigError for arguments that
    conflict.

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
        self._spec = read_spec(self.folder)

    @property
    def spec(self) -> BackboneSpec:
        """The contents of backbone.json: input, nodes, aliases, classes, and the digest of the weights."""
        return self._spec

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the network's own classifier, in the order of its outputs; empty if they are unknown."""
        return self.spec.classes

    @property
    def identity(self) -> str:
        """A text that identifies the network: the digest of its weights, and for a module also a random token."""
        return self.spec.weights_digest if self.folder is not None else f"{self.spec.weights_digest}-{self._token}"

    def check_unchanged(self) -> None:
        """Raise BackboneError if the weights in the folder changed since the backbone was opened."""
        if self.folder is not None and read_spec(self.folder) != self.spec:
            raise BackboneError(f"{self.folder}: another network was written there since. Open the Backbone again.")

    def __repr__(self) -> str:
        return f"Backbone({self.name!r})"

    def __deepcopy__(self, _memo: Any) -> "Backbone":
        return self  # immutable; `sklearn.base.clone` deep-copies every parameter

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle; it has weights only of a module, which no folder can load again."""
        state = {**self.__dict__, "_extractors": {}}
        return state | ({"_network": None} if self.folder is not None else {})

    def layers(self, match: str = "", *, everything: bool = False) -> Nodes:
        """List the blocks of the network, which can be taps: aliases, shapes, bytes per row, share of the cost.

        match: list modules whose name, alias or kind contains this text, inside blocks too.
        everything: list all nodes.
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
        """Return the rows of a layer: `Features` for a folder, list, archive, Parquet or URL, an array otherwise.

        what: a path or URL of many images, as for `icecore extract --data`. Its rows are stored in the feature cache:
        a second call computes only new images, and a call after a kill continues. Or images in memory: a list of paths,
        PIL images, uint8 arrays or tensors, a batch of these, or a DataLoader. The array then has one row per image,
        in the given order, and nothing is stored. Float tensors must be normalised already.
        tap: a node or alias that `layers` lists, or `node:pooling`. For a list, the result is a dictionary by tap.
        pool: the pooling of taps that name none: none, flatten, mean, max, gem, mean+std, avg2x2, cls, mean_tokens.
        dtype: the dtype of stored values. Rows in memory are rounded to it; bfloat16 and int8 are returned as float32.
        cache: False returns an array for a folder too, and stores nothing. Files of a folder are sorted by path, and
        duplicates have rows of their own.
        out: the folder for the features and their table of files; by default a folder in the feature cache.
        image: for Parquet, the column of image bytes.
        engine: for cached rows: auto, torch, onnxruntime, openvino. All agree with torch within fixed tolerances.
        max_rejected: for cached rows, the share of unusable files above which the call fails.
        max_pixels: larger images are refused.

        Raises BackboneError for a tap or pooling that does not fit, DataError for unusable images.
        """
        specs = self.specs(tap, pool, dtype)
        if isinstance(what, str | os.PathLike):
            options = {"image": image, "max_pixels": max_pixels}
            rows = self._embed_stored(
                os.fspath(what), specs, dtype, options, cache=cache, out=out, engine=engine, rejected=max_rejected
            )
        else:
            rows = self.extractor(specs)(what, max_pixels=max_pixels)
        return rows[tap] if isinstance(tap, str) else rows

    def extractor(self, specs: Mapping[str, TapSpec]) -> InMemoryExtractor:
        """Return an extractor of some taps for images in memory; the last few extractors are reused."""
        name = digest({tap: spec.model_dump(mode="json") for tap, spec in specs.items()})
        if name not in self._extractors:
            while len(self._extractors) >= MAX_EXTRACTORS:
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
        """Parse the texts of taps, and return the settings of each.

        Raises BackboneError for nodes and poolings that do not fit, ConfigError for an invalid text.
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
        options: Mapping[str, Any],
        *,
        cache: bool,
        out: str | os.PathLike[str] | None,
        engine: str,
        rejected: float,
    ) -> dict[str, Any]:
        if filesystem.path_kind(data) == "file" and PurePosixPath(data).suffix.lower() in image_files.extensions():
            raise DataError(f"{data}: expected a folder, a list or an archive, got one file. Put it into a list.")
        if not cache:
            images = find_images(PrepareConfig.model_validate({"root": data, **options}))
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
            **options,
        )
        return dict(features)


MAX_EXTRACTORS = 4
"""Extractors that a backbone keeps; each has its hooks, and on a GPU its copy of the weights."""


def _folder_of(model: str, weights: Weights) -> Path:
    """Return the folder of a backbone: `model` itself, the folder in a run, or the folder where a name is frozen."""
    path = Path(model)
    for folder in (path, path / "backbone"):
        if (folder / SPEC_FILE).is_file():
            if weights != Weights():
                raise ConfigError(f"Backbone: {model}: a folder has its weights. Leave out weights, file and source.")
            return folder.resolve()
    if has_record(path):
        raise BackboneError(
            f"{model}: expected a run that trained a network (`finetune`, `distill`), got one of heads. Give its "
            "backbone, data/backbones/NAME, or load the run with `icecore.load`."
        )
    if len(path.parts) > 1 or path.is_absolute():
        raise BackboneError(
            f"{model}: expected the folder of a backbone or of a run that trained a network, got none: "
            f"{SPEC_FILE} is missing there."
        )
    folder = freeze_once(model_settings(model, weights), default_root(), REPORTER)
    touch(folder)
    return folder


def _first(error: ValueError) -> str:
    """Return the first problem of an error of pydantic, without its type."""
    listed: list[dict[str, Any]] = getattr(error, "errors", list)()
    return str(listed[0]["msg"]).removeprefix("Value error, ") if listed else str(error)
