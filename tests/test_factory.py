"""Networks of the user's own: frozen by import path, and a hostile backbone.json that calls nothing else."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline import embed
from pipeline.backbones import glyphs, serialization, user_code, user_module
from pipeline.backbones.user_code import source_digest
from pipeline.errors import BackboneError, StoreError
from pipeline.files import sha256_file
from pipeline.freeze.config import FreezeConfig
from pipeline.freeze.run import freeze
from stages.freeze import link_code

Folder = Callable[..., Path]

INPUT = {"resize": [8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
CODE = '''
"""Networks of a user."""
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from nowhere import Nothing


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def make(width: int) -> Net:
    return Net(width)


def lies() -> nn.Module:
    return "no network"


def fails() -> Net:
    raise KeyError("width")


def says_nothing():
    Path("the code ran").touch()


def says_other() -> int:
    Path("the code ran").touch()
    return 0


def says_unknown() -> Nothing:
    Path("the code ran").touch()


made = Net()
'''


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user's on the import path: `theirnets.small`. Nothing has imported it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "theirnets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "small.py").write_text(CODE)
    yield package / "small.py"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("theirnets", "loose")]:
        del sys.modules[name]


def settings_of(**settings: Any) -> Any:
    """Checked settings; those of the small network where no others are stated."""
    stated = {"source": "module", "factory": "theirnets.small:make", "input": INPUT} | settings
    return TypeAdapter(FreezeConfig).validate_python(stated)


def build(path: str, **arguments: Any) -> Any:
    """What a backbone.json with this path would build."""
    return serialization.build(user_module.architecture(path, arguments))


# What works -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["make", "Net"])
def test_a_network_of_the_users_own_is_frozen_with_weights_from_a_file(code: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    path = f"theirnets.small:{name}"
    state = {f"model.{key}": value for key, value in build(path, width=6).state_dict().items()}
    file = tmp_path / "w.ckpt"
    torch.save({"state_dict": state}, file)
    digest = sha256_file(file)
    config = settings_of(factory=path, arguments={"width": 6}, file=file, sha256=digest[:8], strip_prefix="model.")
    spec = freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert spec.architecture == {
        "family": "module",
        "factory": path,
        "arguments": {"width": 6},
        "code": {"theirnets": source_digest(code.with_name("__init__.py")), "theirnets.small": source_digest(code)},
        "packages": {"torch": metadata.version("torch").partition("+")[0]},
    }
    assert spec.origin == {
        "source": "module",
        "factory": path,
        "file": "w.ckpt",
        "sha256": digest,
        "entry": "state_dict",
    }
    assert spec.taps["conv"].shape == (6, 6, 6)
    backbone = serialization.read(tmp_path / "backbone")
    assert backbone.spec == spec
    assert torch.equal(backbone.module.get_parameter("fc.bias"), state["model.fc.bias"])


def test_random_weights_follow_from_their_seed_and_leave_the_generator_alone(code: Path, tmp_path: Path) -> None:
    assert code.is_file()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    digests = []
    for seed in (0, 0, 1):
        config = settings_of(arguments={"width": 4}, seed=seed)
        spec = freeze(config, tmp_path / "backbone", pretrained=tmp_path)
        assert spec.origin == {"source": "module", "factory": "theirnets.small:make", "seed": seed}
        digests.append(spec.weights_digest)
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected `file`, or `seed` for random weights, got neither"),
        ({"seed": 0, "file": "w.pth", "sha256": "12345678"}, "expected `file`, or `seed` for random weights, got both"),
        ({"seed": 0, "factory": "theirnets/small"}, "expected the import path of a class or a function"),
        ({"seed": 0, "input": {"resize": 8}}, "input: expected 3 numbers in `mean` for mode RGB, got 0; .*both sides"),
        ({"seed": 0, "arguments": {"width": {1, 2}}}, "not a valid JSON value"),
    ],
)
def test_incomplete_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings_of(**settings)


def test_settings_without_an_input_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"module.input\n  Field required"):
        TypeAdapter(FreezeConfig).validate_python({"source": "module", "factory": "a:b", "seed": 0})


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["theirnets.small:says_nothing", "theirnets.small:says_other", "theirnets.small:says_unknown",
             "theirnets.small:made", "theirnets.small:Path", "subprocess:run", "shutil:rmtree", "torch.hub:load"],
)  # fmt: skip
def test_what_is_not_made_to_return_a_network_is_never_called(code: Path, path: str) -> None:
    name = path.partition(":")[2]
    message = (
        rf"^{path}: expected a subclass of torch.nn.Module, or a function annotated to .*, got \w+ {name}. Write `def"
    )
    with pytest.raises(BackboneError, match=message):
        build(path)
    assert not (code.parent.parent / "the code ran").exists()


def test_a_module_that_python_has_no_file_of_is_refused() -> None:
    with pytest.raises(
        BackboneError, match=r"^sys:exit: expected a module in regular packages, got 'sys', which has no"
    ):
        build("sys:exit")


def test_a_module_that_does_not_exist_is_refused(code: Path) -> None:
    assert code.is_file()
    with pytest.raises(BackboneError, match=r"^theirnets.big:make: .*there is no module 'theirnets.big'."):
        build("theirnets.big:make")
    with pytest.raises(BackboneError, match=r"there is no module 'theirnets.small.deeper'."):
        build("theirnets.small.deeper:make")


def test_code_beside_a_backbone_is_not_imported(code: Path) -> None:
    root = code.parent.parent
    folder = root / "loose" / "backbones"
    folder.mkdir(parents=True)
    (folder / "net.py").write_text("open('the code ran', 'w')\nfrom theirnets.small import Net")
    with pytest.raises(
        BackboneError, match=r"regular packages, got 'loose', which .*put an empty __init__.py into it."
    ):
        build("loose.backbones.net:Net")
    assert not (root / "the code ran").exists()
    assert "loose" not in sys.modules


def test_a_name_that_does_not_exist_is_refused_with_its_neighbours(code: Path) -> None:
    assert code.is_file()
    with pytest.raises(BackboneError, match=r"^theirnets.small: unknown name 'maker'. Did you mean 'make'"):
        build("theirnets.small:maker")


def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(code: Path) -> None:
    code.write_text("import nowhere")
    with pytest.raises(
        BackboneError, match=r"the module cannot be imported: ModuleNotFoundError: No module named 'nowh"
    ):
        build("theirnets.small:make")


def test_arguments_that_do_not_fit_are_refused_with_the_reason(code: Path) -> None:
    assert code.is_file()
    with pytest.raises(
        BackboneError, match=r"for the arguments {'w': 3}, got TypeError: .*'w'. Correct `arguments` or the c"
    ):
        build("theirnets.small:make", w=3)
    with pytest.raises(BackboneError, match=r"for the arguments {}, got KeyError: 'width'"):
        build("theirnets.small:fails")


def test_a_function_that_does_not_return_what_it_says_is_refused(code: Path) -> None:
    assert code.is_file()
    with pytest.raises(BackboneError, match=r"^theirnets.small:lies: expected a torch.nn.Module, got str."):
        build("theirnets.small:lies")


def test_code_that_changed_since_it_was_frozen_is_refused(code: Path, tmp_path: Path) -> None:
    freeze(settings_of(arguments={"width": 4}, seed=0), tmp_path / "backbone", pretrained=tmp_path)
    code.write_text(CODE.replace(".relu()", ".sigmoid()"))
    message = (
        r"small:make: expected the code that was frozen, but theirnets.small changed \(.*\). .* "
        "`icecore repro -f freeze@"
    )
    with pytest.raises(BackboneError, match=message):
        serialization.read(tmp_path / "backbone")


def test_a_hostile_backbone_calls_nothing(code: Path, tmp_path: Path) -> None:
    freeze(settings_of(arguments={"width": 4}, seed=0), tmp_path / "backbone", pretrained=tmp_path)
    file = tmp_path / "backbone" / "backbone.json"
    said = json.loads(file.read_text())
    said["architecture"] |= {"factory": "subprocess:run", "arguments": {"args": ["touch", "the code ran"]}}
    said["architecture"] |= {"code": {"subprocess": sha256_file(Path(subprocess.__file__))}, "packages": {}}
    file.write_text(json.dumps(said))
    with pytest.raises(BackboneError, match=r"subprocess:run: expected a subclass of torch.nn.Module"):
        serialization.read(tmp_path / "backbone")
    assert code.is_file()
    assert not (tmp_path / "the code ran").exists()


# Code that the network's module imports ------------------------------------------------------------------------------

PARTS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))
"""
WHOLE = """
from torch import nn
{imported}

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))
"""
WAYS = {
    "from the package": "from theirnets.blocks import Block",
    "relative": "from .blocks import Block",
    "of the package": "from theirnets import blocks; Block = blocks.Block",
    "through another": "from theirnets.more import Block",
    "in a function": "def Block(width):\n    from theirnets.blocks import Block as B\n    return B(width)",
    "by a text": "import importlib; Block = importlib.import_module('theirnets.blocks').Block",
    "from a folder without __init__": "from plain.blocks import Block",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_change_of_any_module_that_is_imported_is_noticed(code: Path, tmp_path: Path, way: str) -> None:
    package = code.parent
    blocks = tmp_path / "plain" / "blocks.py" if "folder" in way else package / "blocks.py"
    blocks.parent.mkdir(exist_ok=True)
    blocks.write_text(PARTS)
    (package / "more.py").write_text("from .blocks import *")
    (package / "net.py").write_text(WHOLE.format(imported=WAYS[way]))
    spec = freeze(settings_of(factory="theirnets.net:Net", seed=0), tmp_path / "backbone", pretrained=tmp_path)
    name = "plain.blocks" if "folder" in way else "theirnets.blocks"
    assert spec.architecture["code"][name] == source_digest(blocks)
    serialization.read(tmp_path / "backbone")
    blocks.write_text(PARTS.replace("torch.relu", "torch.tanh"))
    with pytest.raises(BackboneError, match=rf"expected the code that was frozen, but {name} changed"):
        serialization.read(tmp_path / "backbone")
    again = freeze(settings_of(factory="theirnets.net:Net", seed=0), tmp_path / "again", pretrained=tmp_path)
    assert again.weights_digest == spec.weights_digest
    assert again.architecture != spec.architecture
    if "folder" in way:
        sys.modules.pop("plain.blocks")


def test_other_versions_and_imports_are_noticed(code: Path, tmp_path: Path) -> None:
    freeze(settings_of(arguments={"width": 4}, seed=0), tmp_path / "backbone", pretrained=tmp_path)
    file = tmp_path / "backbone" / "backbone.json"
    said = json.loads(file.read_text())
    said["architecture"]["packages"] = {"torch": "1.0", "gone": "2"}
    said["architecture"]["code"]["theirnets.old"] = "ab" * 32
    file.write_text(json.dumps(said))
    message = r"but theirnets.old is no longer imported; gone is no longer imported; torch changed \(1.0 to [\d.]+\)"
    with pytest.raises(BackboneError, match=message):
        serialization.read(tmp_path / "backbone")
    said["architecture"]["code"] = sha256_file(code)
    file.write_text(json.dumps(said))
    with pytest.raises(
        BackboneError, match=r"frozen by a version of icecore that did not record the imports of its mod"
    ):
        serialization.read(tmp_path / "backbone")


def test_other_outputs_of_the_same_weights_and_code_are_noticed_and_their_rows_never_mixed(
    tmp_path: Path, image_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    architecture = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    folder, photos = tmp_path / "net", image_folder()
    spec = serialization.write(folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
    assert spec.probe is not None
    assert set(spec.probe.versions) == {"torch", "torchvision"}

    def embed_photos() -> int:
        job = embed.job(str(folder), ["logits"], photos, engine="torch")
        found = embed.embed(job, tmp_path / "features", cache_root=tmp_path / "cache")
        return sum(found.extracted.plan.missing.values())

    assert embed_photos() == 12
    # As an upgrade of torch would do that changes what a layer computes.
    forward = torch.nn.BatchNorm2d.forward
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: forward(self, x) * 1.01)
    with pytest.raises(
        BackboneError, match=r"outputs that the network gave when it was .* difference of 0.0\d+. The v"
    ):
        serialization.read(folder)
    serialization.write(folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)  # frozen again
    next((photos / "cat").iterdir()).unlink()
    with pytest.raises(StoreError, match=r"logits: expected cached rows of a network .* `icecore cache prune --add"):
        embed_photos()


def test_a_network_that_draws_at_random_has_no_probe(code: Path, tmp_path: Path) -> None:
    code.write_text(CODE.replace(".relu()", ".relu().mul(torch.rand(1))"))
    spec = freeze(settings_of(arguments={"width": 4}, seed=0), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.probe is None
    assert serialization.read(tmp_path / "backbone").spec == spec


def test_dvc_is_given_links_to_the_code(code: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "code" / "module"
    folder.mkdir(parents=True)
    (folder / ".gitignore").touch()
    (folder / "gone.py").symlink_to("nowhere.py")
    own, ours = (
        settings_of(arguments={"width": 4}, seed=0),
        settings_of(factory="pipeline.backbones.glyphs:GlyphNet", seed=0),
    )
    for _ in range(2):
        link_code([own, ours, object()], folder)
        assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "theirnets.py", "theirnets.small.py"]
        assert (folder / "theirnets.small.py").read_text() == code.read_text()
    link_code([ours], folder)
    assert [path.name for path in folder.iterdir()] == [".gitignore"]


# The code of icecore that trains -------------------------------------------------------------------------------------


def test_the_cache_of_trainings_depends_on_all_code_that_trains_and_on_no_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune = user_code.trace_imports("pipeline.finetune.run", of_icecore=True)
    distill = user_code.trace_imports("pipeline.distill.run", of_icecore=True)
    shared = {
        "pipeline.readers.augment",
        "pipeline.backbones.replace_classifier",
        "pipeline.loading.batches",
        "pipeline.training.loop",
    }
    assert shared <= {*finetune.files} & {*distill.files}
    assert "pipeline.distill.kd_losses" not in finetune.files  # distillation alone
    assert "pipeline.report.run" not in distill.files
    assert finetune.packages == {}
    file = tmp_path / "module.py"

    def digest_with(text: str) -> str:
        file.write_text(text)
        code = user_code.Code({"pipeline.finetune.run": file})
        monkeypatch.setattr(user_code, "trace_imports", lambda *_, **__: code)
        user_code.digest_of_icecore.cache_clear()
        return user_code.digest_of_icecore("pipeline.finetune.run")

    plain = digest_with(PLAIN)
    assert digest_with(SAME["documented"]) == plain
    assert digest_with(OTHER["number"]) != plain
    user_code.digest_of_icecore.cache_clear()


PLAIN = (
    "class Half:\n    share = 0.5\n\n    def of(self, x, name='é'):\n        return f'{x:.3f}', self.share * x, None\n"
)
SAME = {
    "documented": '''"""Words."""
class Half:  # a reason
    """A half."""

    share = 0.5
    """A text under an attribute."""

    def of(self, x, name='é'):
        """Halve."""

        # before it
        return f'{x:.3f}', self.share * x, None
''',
    "another layout": PLAIN.replace("'", '"').replace("(self, x, name", "(\n        self,\n    x, name"),
    "line ends": PLAIN.replace("\n", "\r\n"),
    "another encoding": ("# -*- coding: latin-1 -*-\n" + PLAIN).encode("latin-1"),
}
OTHER = {
    "number": PLAIN.replace("0.5", "0.25"),
    "name": PLAIN.replace("share * x", "other * x"),
    "text": PLAIN.replace(".3f", ".4f"),
    "a text in the place of None": PLAIN.replace("None", "'None'"),
    "nested otherwise": PLAIN.replace("self.share * x, None", "(self.share * x, None)"),
    "order": PLAIN.replace("self.share * x, None", "None, self.share * x"),
    "default": PLAIN.replace(", name='é'", ", *, name='é'"),
}


def test_a_digest_of_a_module_is_of_what_it_does_in_every_version_of_python(tmp_path: Path) -> None:
    file = tmp_path / "module.py"

    def digest_with(text: str | bytes) -> str:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return source_digest(file)

    plain = digest_with(PLAIN)
    assert plain == "4132762be0dc0c87795d71b493c639382fdae3232c11008bac1b1c529bde0ee7"
    assert {name: digest_with(text) for name, text in SAME.items()} == dict.fromkeys(SAME, plain)
    others = {digest_with(text) for text in OTHER.values()}
    assert len({*others, plain}) == len(OTHER) + 1
    deep = f"total = {' + '.join(['1'] * 400)}"
    assert digest_with(deep) == digest_with(f"{deep}  # a reason") != digest_with(f"{deep} + 1")
    for text in (
        "def (",
        b"\xff\0",
        f"{'-' * 50_000}1",
        f"total = {'1 + ' * 5000}1",
    ):  # Python cannot import it, and says why
        assert digest_with(text) == sha256_file(file)
    assert source_digest(file.rename(tmp_path / "compiled.so")) == sha256_file(tmp_path / "compiled.so")


def test_words_about_code_change_no_backbone_and_no_address(code: Path, tmp_path: Path) -> None:
    config = settings_of(arguments={"width": 4}, seed=0)
    freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    before = (tmp_path / "backbone" / "backbone.json").read_bytes()
    code.write_text(CODE.replace('"""Networks of a user."""', "# Networks of mine.") + "# the end\n")
    assert serialization.read(tmp_path / "backbone").spec.architecture["code"]["theirnets.small"] == source_digest(code)
    freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert (tmp_path / "backbone" / "backbone.json").read_bytes() == before


def test_a_backbone_with_digests_of_bytes_is_read_and_keeps_its_addresses(code: Path, tmp_path: Path) -> None:
    spec = freeze(settings_of(arguments={"width": 4}, seed=0), tmp_path / "backbone", pretrained=tmp_path)
    file = tmp_path / "backbone" / "backbone.json"
    said = json.loads(file.read_text())
    said["architecture"]["code"] = {
        "theirnets": sha256_file(code.with_name("__init__.py")),
        "theirnets.small": sha256_file(code),
    }
    file.write_text(json.dumps(said))
    found = serialization.read(tmp_path / "backbone")
    assert found.spec.architecture["code"] == said["architecture"]["code"] != spec.architecture["code"]
    code.write_text(CODE.replace(".relu()", ".sigmoid()"))
    with pytest.raises(BackboneError, match=r"but theirnets.small changed \("):
        serialization.read(tmp_path / "backbone")
