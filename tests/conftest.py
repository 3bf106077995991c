"""Fixtures that several test files share: small real files, never mocks of our own code."""

import contextlib
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import preloaded

Folder = Callable[..., Path]

# A shell that starts the tests in the background has Ctrl-C ignored, and so would all processes of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "test_engines.py",
    "test_matrix.py",
    "test_photos.py",
    "test_wheel.py",
    "test_pipeline.py",
    "test_cluster.py",
    "test_taps.py",
    "test_headed.py",
    "test_freeze.py",
    "test_sharing.py",
    "test_footprint.py",
    "test_report.py",
    "test_pairs.py",
    "test_extract.py",
    "test_distill.py",
    "test_loop.py",
    "test_export.py",
    "test_cut.py",
    "test_finetune.py",
    "test_teach.py",
    "test_store.py",
    "test_models.py",
    "test_projects.py",
    "test_skops_import.py",
    "test_predict.py",
    "test_examples_run.py",
    "test_timm_models.py",
    "test_student.py",
    "test_views.py",
    "test_forecast.py",
    "test_cifar.py",
    "test_examples.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run in several processes, start the process for commands here: one serves all."""
    if config.getoption("numprocesses", default=None):
        preloaded.start(wait=False)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: tests also wait, for disks and for processes that they start."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a process takes whole files, and the last one would keep a core waiting."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Keep this process to one of its cores: two that others use too are slower than one, and times say nothing.

    Processes of a test run take different cores.
    """
    every = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(every)[worker % len(every)]})
    yield
    os.sched_setaffinity(0, every)


@contextlib.contextmanager
def restored_environment() -> Iterator[None]:
    """Restore environment variables at the end: Dask, torch's compiler and others set some, for all later tests too.

    Commands of tests would then no longer start as forks, see `pipeline/forkserver/`.
    """
    before = dict(os.environ)
    yield
    for name in {*before, *os.environ}:
        if name.startswith("PYTEST_") or name == preloaded.FOLDER or os.environ.get(name) == before.get(name):
            continue
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


@pytest.fixture(autouse=True, scope="module")
def _environment_of_file() -> Iterator[None]:
    """No file of tests changes the environment of the next."""
    with restored_environment():
        yield


@pytest.fixture(autouse=True)
def _environment_of_test() -> Iterator[None]:
    """No test changes the environment of the next."""
    with restored_environment():
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's feature cache."""
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "feature-cache"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and data sets; tests that need it are skipped where ICECORE_ASSETS is not set."""
    folder = os.environ.get("ICECORE_ASSETS")
    if not folder:
        pytest.skip("ICECORE_ASSETS is not set: it names a folder of real weights and data sets")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread: networks may be so small that threads wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's hub, and no network: what is not in the cache cannot be had."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Folder:
    """A function that writes a class-folder data set of small PNG files, all of different content."""

    def write(classes: tuple[str, ...] = ("cat", "dog"), *, each: int = 6, name: str = "photos", side: int = 8) -> Path:
        random = np.random.default_rng(len(classes) * 1000 + each)
        for label in classes:
            for number in range(each):
                path = tmp_path / name / label / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
        return tmp_path / name

    return write
