"""Training by several processes, against one: networks and students."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import several_devices


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    alone, together = (tmp_path / name for name in ("alone", "together"))
    for folder in (alone, together):
        folder.mkdir()
    several_devices.both(alone, devices=1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, several_devices.__file__, str(together), "2"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    for name in ("network.pt", "student.pt"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (alone, together))
        assert all(torch.allclose(one[key].float(), two[key].float(), atol=1e-5) for key in one)
