"""Several workers: what they make is what one would have made, whatever is killed; what is said where none are."""

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image
from support.forkserver import forked_command, forked_processes, forked_workers
from test_decoders import gone
from test_extract import Job, contents, write_backbone

from pipeline.backbones import glyphs, user_module
from pipeline.backbones import serialization as artefact
from pipeline.errors import ClusterError, EngineError, StoreError
from pipeline.extract import dask_run, dask_tasks, job_files
from pipeline.extract.config import ExtractConfig
from pipeline.files import scratch
from pipeline.readers.sample_key import content_key
from pipeline.runtime import core_numbers
from pipeline.workers import client

Folder = Callable[..., Path]
Process = subprocess.Popen[str]

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
TAPS = {"mean": {"node": "penultimate"}, "wide": {"node": "wide", "dtype": "float32"}}  # eight rows a unit
DELAY = 0.1  # seconds a batch of four


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    """Workers of this process are forked; those of processes that the tests start are spawned, as a user's are."""
    with forked_workers():
        yield


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes its time, and ends its process at a white image, while `trap` lies beside it."""
    folder = tmp_path_factory.mktemp("backbones")
    arguments = {"trap": str(folder / "trap"), "delay": DELAY}
    architecture = user_module.architecture("support.crashing_network:build", arguments)
    artefact.write(
        folder / "net", user_module.build(architecture), architecture=architecture, origin={}, inputs=glyphs.INPUT
    )
    return folder / "net"


@pytest.fixture
def trap(slow: Path) -> Iterator[Path]:
    """The file that makes the network slow and deadly."""
    path = slow.parent / "trap"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def job(tmp_path: Path, slow: Path, image_folder: Folder) -> Job:
    """Forty pictures: five units."""
    return Job(tmp_path, slow, image_folder(each=20))


def kept(folder: Path) -> dict[str, bytes]:
    """What of a cache must be equal: cards are measured on other samples, locks and `used` name who was there."""
    apart = ("locks", "parity", "used")
    return {path: data for path, data in contents(folder).items() if not set(apart) & set(path.split("/"))}


def same_as_undisturbed(job: Job, taps: Mapping[str, Any] = TAPS) -> None:
    """Compare features and cache with those of a run in this process."""
    job.extract(taps, out=job.root / "undisturbed", cache_root=job.root / "other cache")
    features = {path: data for path, data in contents(job.out).items() if not path.endswith("card.json")}
    undisturbed = contents(job.root / "undisturbed")
    assert features == {path: data for path, data in undisturbed.items() if not path.endswith("card.json")}
    assert kept(job.cache) == kept(job.root / "other cache")


@contextlib.contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread; its errors are those of the block."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


# Processes on this machine --------------------------------------------------------------------------------------------


def listening() -> set[str]:
    """The addresses at which this process and its children wait for others."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            found |= {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    return found


def narrowest(pid: int) -> frozenset[int]:
    """The cores of that thread of a process which may use the fewest."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found.append(frozenset(os.sched_getaffinity(int(thread.name))))
    return min(found, key=len)


@pytest.mark.slow
def test_killed_workers_change_nothing_and_each_has_its_own_core_and_hears_this_machine_only(
    job: Job, trap: Path
) -> None:
    random, environment = np.random.default_rng(20261121), dict(os.environ)
    begun, told = threading.Event(), []
    addresses: set[str] = set()
    cores: set[frozenset[int]] = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        begun.set()

    def kill() -> None:
        assert begun.wait(60)
        addresses.update(listening())
        cores.update(narrowest(pid) for pid in forked_processes())
        for _ in range(2):
            time.sleep(random.uniform(0, 4 * DELAY))
            os.kill(int(random.choice(forked_processes())), signal.SIGKILL)

    with meanwhile(kill):
        done = job.extract(TAPS, run={"workers": 2}, progress=progress)
    assert done.plan.missing == {"mean": 40, "wide": 40}
    assert done.rejected == 0
    assert told[-1] == (40, 40)
    assert told == sorted(told)
    assert addresses == {"127.0.0.1"}
    if len(core_numbers()) > 1:
        assert {core for own in cores for core in own} <= set(core_numbers())
        assert len(cores) == 2
        assert not frozenset.intersection(*cores)
    assert done.spent.processes == 2
    assert list((job.cache / "jobs").iterdir()) == []
    assert list(job.cache.rglob(".*.tmp")) == []  # also of those that were killed
    assert not forked_processes()
    assert dict(os.environ) == environment  # Dask's nannies set variables before they start a worker
    trap.unlink()
    same_as_undisturbed(job)


def put_white(job: Job) -> str:
    """Put a white picture among the others whose key stands in the first unit; the key."""
    path = job.photos / "cat" / "white.png"
    before = sorted(job.keys)
    for width in range(8, 200):
        Image.new("RGB", (width, 8), (255, 255, 255)).save(path)
        key = content_key(path.read_bytes())
        if key < before[6]:
            job.list()
            return key
    raise AssertionError("no such key")


@pytest.mark.slow
def test_workers_that_end_while_the_engine_is_chosen_are_said_to(
    job: Job, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEATHS", 0)
    assert trap.exists()
    put_white(job)
    for path in job.files:
        if path.name != "white.png":
            path.unlink()
    job.list()
    message = (
        r"workers: expected one that runs the network on the samples of one of 1 units, but each ended.*batch_size"
    )
    with pytest.raises(ClusterError, match=message):
        job.extract(TAPS, run={"workers": 2})
    assert list((job.cache / "jobs").iterdir()) == []
    assert not forked_processes()


@pytest.mark.slow
def test_a_unit_that_ends_every_worker_is_recorded_and_the_rest_is_stored(
    job: Job, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEATHS", 0)  # one worker to choose the engine, one more, and another while it is alone
    white, number = put_white(job), 0
    unit = sorted(job.keys)[:8]
    assert white in unit
    said: list[str] = []
    done = job.extract(TAPS, run={"workers": 2}, max_rejected=0.5, message=lambda line: said.append(str(line)))
    reason = "its shard ended every worker that it was given to, by a kill or for want of memory; look at their logs"
    assert done.rejected == len(unit)
    assert done.reasons == {reason: len(unit)}
    assert f"unit {number}: {reason}" in said
    for tap in TAPS:
        assert sorted(job.reasons(tap)) == unit
        written = job.index(tap)
        assert (written.samples, written.stored) == (41, 41 - len(unit))
    trap.unlink()
    assert job.missing(TAPS) == {"mean": len(unit), "wide": len(unit)}
    same_as_undisturbed(job)


MAIN = """
import os, sys
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.runtime import Reporter
from stages import project

def main():
    config = ExtractConfig.model_validate_json(sys.argv[1])
    backbone, manifests, out, cache = map(Path, sys.argv[2:])
    extract(config, backbone=backbone, manifests=manifests, out=out, cache_root=cache,
            reporter=Reporter(progress=lambda done, total: print(done, flush=True)))

project.run(main)
"""


@contextlib.contextmanager
def extraction(job: Job, **settings: Any) -> Iterator[Process]:
    """An extraction in a process, and a session, of its own, as soon as it has done with some samples."""
    config = ExtractConfig(
        **{"datasets": ("photos",), "taps": TAPS, "batch_size": 4, "shard_mb": 1, "engine": "torch"} | settings
    )
    folders = map(str, (job.backbone, job.manifests, job.out, job.cache))
    with started("-c", MAIN, config.model_dump_json(), *folders) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        yield process


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[Process]:
    """A Python process that is killed in the end, with its children."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def family(process: Process) -> set[int]:
    """A process and its children."""
    found = psutil.Process(process.pid)
    return {process.pid, *(child.pid for child in found.children(recursive=True))}


@pytest.mark.slow
def test_a_killed_main_process_leaves_no_process_and_its_orders_are_swept(job: Job, trap: Path) -> None:
    with extraction(job, run={"workers": 2, "decode": "processes"}) as main:
        pids = family(main)
        assert len(pids) >= 4  # a worker and its decoding process at the least
        main.kill()
        main.wait()
        assert gone(pids, within=20)
    assert len(list((job.cache / "jobs").iterdir())) == 1
    trap.unlink()
    assert job.missing(TAPS)["wide"] <= 40
    assert list((job.cache / "jobs").iterdir()) == []
    same_as_undisturbed(job)


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_leaves_no_process(job: Job, trap: Path) -> None:
    with extraction(job, run={"workers": 2}) as main:
        pids = family(main)
        os.killpg(main.pid, signal.SIGINT)  # as a terminal does
        _, said = main.communicate(timeout=60)
        assert main.returncode == 130, said
        assert gone(pids)
    assert said.startswith("interrupted: "), said
    assert said.endswith(" of 80 rows are in the feature cache; the same command goes on from there\n"), said
    assert said.count("\n") == 1, said
    assert list((job.cache / "jobs").iterdir()) == []
    trap.unlink()
    job.extract(TAPS)
    same_as_undisturbed(job)


def test_workers_that_cannot_start_are_an_error_with_what_to_do() -> None:
    script = """
from pipeline.errors import ClusterError
from pipeline.extract.config import RunConfig
from pipeline.workers.client import open_client
try:
    with open_client(RunConfig(workers=2), gpus=0):
        pass
except ClusterError as error:
    print(error)
"""
    done = subprocess.run(  # what comes from a pipe has no file that another process could read
        [sys.executable, "-"], input=script, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("workers: expected 2 processes on this machine, got Nanny failed to start"), done
    assert done.stdout.endswith("or set `run: {workers: 1}`.\n")


def test_orders_of_dead_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with scratch(tmp_path / "jobs", "job") as alive:
        alive.mkdir()
        os.utime(alive, (0, 0))  # it takes long
        dead = alive.with_name(alive.name.replace(f".{os.getpid()}.", f".{ended.pid}."))
        dead.mkdir()
        (dead / "job.json").write_text("{}")
        assert job_files.remove_stale_jobs(tmp_path) == 1
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == [alive.name]
        alive.rmdir()
    assert job_files.remove_stale_jobs(tmp_path / "nothing") == 0


# A cluster that is there ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scheduler(file: Path, *more: str) -> Iterator[BaseProcess]:
    """A scheduler that listens on this machine only and says where in a file."""
    place = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file))
    file.unlink(missing_ok=True)
    with forked_command("distributed.cli.dask_scheduler", *place, *more) as process:
        end = time.monotonic() + 60
        while not file.exists():
            assert process.is_alive()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process


@contextlib.contextmanager
def dask_workers(file: Path, count: int, *more: str) -> Iterator[list[BaseProcess]]:
    """Workers that join a scheduler."""
    place = ("--scheduler-file", str(file), "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    rest = ("--no-nanny", "--nthreads", "1", "--local-directory", str(file.parent), "--memory-limit", "0", *more)
    with contextlib.ExitStack() as stack:
        command = ("distributed.cli.dask_worker", *place, *rest)
        yield [stack.enter_context(forked_command(*command)) for _ in range(count)]


def address_of(file: Path) -> str:
    """Of the scheduler that wrote the file."""
    return str(json.loads(file.read_text())["address"])


@pytest.mark.slow
def test_workers_that_join_by_a_scheduler_file_make_the_same_and_go_on_after_it_was_killed(
    job: Job, trap: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = job.root / "scheduler.json"
    begun = threading.Event()
    with scheduler(file) as first, dask_workers(file, 2):
        address = address_of(file)

        def kill() -> None:
            assert begun.wait(60)
            first.kill()

        def progress(done: int, _: int) -> None:
            if done >= 16:
                begun.set()

        message = rf"scheduler {address}: expected it to be there until the end, but it is gone .*Every shard that was"
        with meanwhile(kill), pytest.raises(ClusterError, match=message):
            job.extract(TAPS, run={"scheduler": str(file)}, progress=progress)
        assert begun.is_set()
    assert list((job.cache / "jobs").iterdir()) == []
    trap.unlink()

    monkeypatch.setattr(dask_run, "PATIENCE", 0.5)
    said: list[str] = []
    with scheduler(file), contextlib.ExitStack() as stack:

        def message(line: Any) -> None:
            if isinstance(line, str):  # the forecast comes first
                said.append(line)
            if "no worker" in str(line):
                stack.enter_context(dask_workers(file, 1))

        done = job.extract(TAPS, run={"scheduler": str(file)}, message=message)
        address = address_of(file)
        waiting = f"scheduler {address}: no worker is there; waiting for one (`dask worker {address}`)"
        assert next(line for line in said if not line.startswith("note: ")) == waiting
        assert sum("no worker" in line for line in said) == 1
        assert 0 < done.plan.missing["wide"] < 40
        same_as_undisturbed(job)

        # What workers raise on purpose arrives as what it is.
        job.backbone = job.root / "loud"
        write_backbone(job.backbone, scale=9e38)
        with pytest.raises(EngineError, match=r"tap 'big', node 'logits': values that are not finite"):
            job.extract({"big": {"node": "logits"}}, run={"scheduler": address})
        write_backbone(job.backbone, scale=1e7)
        with pytest.raises(StoreError, match=r"^tap 'big': .* rows have values that float16 cannot hold"):
            job.extract({"big": {"node": "logits"}}, run={"scheduler": address})
    capfd.readouterr()


def test_a_worker_that_does_not_see_the_orders_says_what_to_share(tmp_path: Path) -> None:
    message = r"job.json: expected the job's file in the feature cache, got no such file.*set ICECORE_CACHE to a shared"
    for made in (dask_tasks.make_ready(str(tmp_path), 0), dask_tasks.make_one(str(tmp_path), 3)):
        assert isinstance(made.error, StoreError)
        with pytest.raises(StoreError, match=message):
            raise made.error


# Encryption -----------------------------------------------------------------------------------------------------------


def certificates(folder: Path) -> dict[str, str]:
    """The files of a new authority, and of a certificate for this machine that it signed."""
    folder.mkdir()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "127.0.0.1")]
    now = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    for name, key, file in zip(names, keys, ("ca.pem", "cert.pem"), strict=True):
        built = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
            now + datetime.timedelta(days=1)
        )
        built = built.add_extension(x509.BasicConstraints(ca=file == "ca.pem", path_length=None), critical=True)
        signed = built.add_extension(here, critical=False).sign(keys[0], hashes.SHA256())
        (folder / file).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}


def configured(files: dict[str, str]) -> dict[str, str]:
    """The certificates of a client, as Dask's configuration has them."""
    assert distributed.config["distributed"]["comm"]["tls"].keys() >= {"ca-file", "client"}
    own = {"client.cert": files["cert"], "client.key": files["key"], "ca-file": files["ca"]}
    return {f"distributed.comm.tls.{name}": path for name, path in own.items()}


@pytest.mark.slow
def test_an_encrypted_cluster_makes_the_same_and_another_authority_is_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT", 3)
    tls, wrong = certificates(job.root / "tls"), certificates(job.root / "wrong")
    more = ("--tls-ca-file", tls["ca"], "--tls-cert", tls["cert"], "--tls-key", tls["key"], "--protocol", "tls")
    file = job.root / "scheduler.json"
    with scheduler(file, *more), dask_workers(file, 1, *more):
        address = address_of(file)
        assert address.startswith("tls://127.0.0.1:")
        for others, said in ((configured(wrong), r".*certificate"), ({}, r".*")):
            message = (
                rf"^scheduler {address}: expected a Dask scheduler there, got {said}.*look at `run.scheduler`. .*"
                "`distributed.comm.tls`"
            )
            with dask.config.set(others), pytest.raises(ClusterError, match=message):
                job.extract(TAPS, run={"scheduler": address})
        monkeypatch.setattr(client, "CONNECT", 30)
        with dask.config.set(configured(tls)):
            job.extract(TAPS, run={"scheduler": str(file)})
    same_as_undisturbed(job)


# No cluster there -----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute would be long for a test."""
    monkeypatch.setattr(client, "CONNECT", 2)


def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["nobody", "no port", "no scheme", "no file", "no JSON", "no address", "a list"])
def test_where_no_scheduler_is_it_says_so(job: Job, what: str) -> None:
    file = job.root / "scheduler.json"
    texts = {"no JSON": "not JSON", "no address": "{}", "a list": "[1]"}
    if what in texts:
        file.write_text(texts[what])
    where = {"nobody": nobody(), "no port": "tcp://127.0.0.1", "no scheme": "what://127.0.0.1:1"}.get(what, str(file))
    got = {"no address": "a file without a scheduler's address", "a list": "a file without a scheduler's address"}
    message = rf"^scheduler {where}: expected a Dask scheduler there, got {got.get(what, '')}.+ Start one"
    with pytest.raises(ClusterError, match=message):
        job.extract(TAPS, run={"scheduler": where})
    assert not job.out.exists()
    assert list((job.cache / "jobs").iterdir()) == []
