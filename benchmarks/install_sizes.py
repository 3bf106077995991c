"""Sum the downloads of `pip install icecore-features` and of each extra, for Linux x86-64 and CPython 3.11.

    python benchmarks/install_sizes.py

`uv lock` chooses the newest versions that pyproject.toml allows and lists the bytes of each wheel; nothing is
installed.
"""

import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
GLIBC = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
PLATFORMS = [*GLIBC, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
LINUX = {
    **{"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    **{"python_version": "3.11", "python_full_version": "3.11.7", "implementation_name": "cpython"},
    **{"platform_python_implementation": "CPython", "extra": ""},
}
CUDA = re.compile(r"nvidia-|cuda-|triton$|torch$")
"""Distributions that a build of torch without CUDA replaces by one wheel."""


def main() -> None:
    tags = [*cpython_tags((3, 11), ["cp311"], PLATFORMS), *compatible_tags((3, 11), "cp311", PLATFORMS)]
    order = {tag: rank for rank, tag in enumerate(tags)}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        for package in ("pipeline", "stages"):
            (Path(folder) / package).mkdir()
            shutil.copy(ROOT / package / "__init__.py", Path(folder) / package)
        subprocess.run(["uv", "lock", "--quiet", "--python", "3.11"], cwd=folder, check=True)
        lock = tomllib.loads((Path(folder) / "uv.lock").read_text())
        packages = {(entry["name"], entry["version"]): entry for entry in lock["package"]}
        base = chosen_packages(folder)
        without_cuda = {package for package in base if not CUDA.match(package[0])}
        for title, distributions in [("no extra", base), ("no extra, without torch and CUDA", without_cuda)]:
            show(title, distributions, packages, order)
        for extra in [name for name in sorted(extras) if name != "dev"]:
            show(f"[{extra}] adds", chosen_packages(folder, extra) - base, packages, order)


def chosen_packages(folder: str, extra: str | None = None) -> set[tuple[str, str]]:
    """Return name and version of every distribution that an installation on Linux has."""
    command = ["uv", "export", "--frozen", "--quiet", "--no-dev", "--no-emit-project", "--no-hashes"]
    command += ["--extra", extra] if extra else []
    lines = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()
    requirements = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate(LINUX)]
    return {(item.name, str(item.specifier).removeprefix("==")) for item in needed}


def show(title: str, distributions: set[tuple[str, str]], packages: dict, order: dict[Tag, int]) -> None:
    sizes = {name: wheel_bytes(packages[name, version], order) for name, version in distributions}
    largest = ", ".join(f"{name} {sizes[name] / 1e6:,.0f}" for name in sorted(sizes, key=lambda name: -sizes[name])[:3])
    print(f"{title:<36}{len(sizes):>4} distributions {sum(sizes.values()) / 1e6:>8,.0f} MB; largest: {largest}")


def wheel_bytes(package: dict, order: dict[Tag, int]) -> int:
    """Return the size of the wheel that pip takes on Linux, or of the source archive where there is no such wheel."""
    ranked = []
    for wheel in package.get("wheels", []):
        tags = parse_wheel_filename(wheel["url"].rpartition("/")[2])[3]
        if ranks := [order[tag] for tag in tags if tag in order]:
            ranked.append((min(ranks), wheel["size"]))
    return min(ranked)[1] if ranked else package["sdist"]["size"]


if __name__ == "__main__":
    main()
