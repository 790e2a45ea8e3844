# SPDX-License-Identifier: Apache-2.0
"""What is handed out: the wheel, the source distribution, the citation."""

import ast
from email.parser import BytesParser
import math
import os
from pathlib import Path
import re
import subprocess
import sys
import tarfile
import tomllib
from typing import Any
import zipfile

from packaging.metadata import Metadata
from packaging.requirements import Requirement
import pytest
import yaml

import numpyro_infograd as ig

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
README = (ROOT / "README.md").read_text()
RELEASE = f"{PROJECT['name']}-{PROJECT['version']}"
# A fresh process sees what it is given, and not what these tests import.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; its complaints are those of the test."""
    words, env = [str(part) for part in command], ENVIRONMENT | environment
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} says\n{done.stdout}{done.stderr}"
    return done.stdout


def build(tree: Path, folder: Path) -> tuple[Path, Path]:
    """Build a tree's wheel and source distribution into a folder."""
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=tree)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / RELEASE


def files_of(tree: Path) -> dict[str, bytes]:
    files = (path for path in tree.rglob("*") if path.is_file())
    return {str(path.relative_to(tree)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution of the tree that these tests stand in."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


# -- what is in them ---------------------------------------------------------------
def test_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    modules = ROOT.glob("numpyro_infograd/**/*.py")
    wanted = {str(path.relative_to(ROOT)) for path in modules}
    wanted |= {"numpyro_infograd/py.typed", "numpyro_infograd/__init__.pyi"}
    for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE"):
        wanted.add(f"{RELEASE}.dist-info/{name}")
    files = wheel_files(built[0])
    assert set(files) == wanted
    licence = files[f"{RELEASE}.dist-info/licenses/LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_wheel_says_what_pyproject_says(built: tuple[Path, Path]) -> None:
    files = wheel_files(built[0])
    found = Metadata.from_email(files[f"{RELEASE}.dist-info/METADATA"])
    extras = PROJECT["optional-dependencies"]
    needs = set(map(Requirement, PROJECT["dependencies"]))
    for extra, more in extras.items():
        needs |= {Requirement(f"{need}; extra == '{extra}'") for need in more}
    assert found.name == "numpyro_infograd"
    assert str(found.version) == ig.__version__ == PROJECT["version"]
    assert str(found.requires_python) == PROJECT["requires-python"]
    assert set(found.provides_extra or ()) == set(extras) == {"dev", "docs", "plots"}
    assert set(found.requires_dist or ()) == needs
    assert found.license_expression == "Apache-2.0"
    assert found.description == README
    about = BytesParser().parsebytes(files[f"{RELEASE}.dist-info/WHEEL"])
    assert about["Tag"] == "py3-none-any"


def known_to_git(*which: str) -> set[str]:
    """The files of the tree that git lists, or a skip where there is no repository."""
    command = ["git", "ls-files", *which]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"needs the git repository: {listed.stderr.strip()}")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_sdist_holds_what_pyproject_lists(built, tmp_path) -> None:
    """All but continuous integration; of new files, those that git does not ignore."""
    include = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    tops = {top.strip("/") for top in include} | {".gitignore", "pyproject.toml"}
    tracked = known_to_git("--cached")
    assert {name.partition("/")[0] for name in tracked} == tops | {".ci"}
    files = tracked | known_to_git("--others", "--exclude-standard")
    wanted = {name for name in files if name.partition("/")[0] in tops}
    assert set(files_of(unpack(built[1], tmp_path))) == wanted | {"PKG-INFO"}


def test_sdist_builds_the_same_and_a_used_tree_adds_nothing(built, tmp_path) -> None:
    tree = unpack(built[1], tmp_path / "tree")
    for stray in (
        ".venv/lib/stray.py",
        "build/lib/stray.py",
        "docs/_build/html/stray.html",
        "docs/generated/stray.md",
        "examples/output/stray.png",
        "benchmarks/output/stray.json",
        "numpyro_infograd/__pycache__/stray.cpython-311.pyc",
        "tests/__pycache__/stray.cpython-311.pyc",
        "tests/.hypothesis/stray",
        "stray.txt",
    ):
        (tree / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / stray).write_text("not for others\n")
    wheel, sdist = build(tree, tmp_path / "dist")
    assert wheel_files(wheel) == wheel_files(built[0])
    again = files_of(unpack(sdist, tmp_path / "again"))
    assert again == files_of(unpack(built[1], tmp_path / "first"))


def test_what_the_package_imports_is_declared() -> None:
    """By name: here the names of modules and of distributions are nearly the same."""
    plots = PROJECT["optional-dependencies"]["plots"]
    declared = {
        Requirement(need).name for need in [*PROJECT["dependencies"], *plots]
    } | {"orbax", PROJECT["name"], *sys.stdlib_module_names}
    imported = set()
    for path in ROOT.glob("numpyro_infograd/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert {"jax", "numpyro"} <= imported
    assert imported - declared == set()


# -- installed ---------------------------------------------------------------------
TINY = """
import numpyro, numpyro.distributions as dist
import numpyro_infograd as ig

def link():
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(x, 1))

print(ig.__file__)
print(float(ig.mutual_information(link, "x", "y").value))
"""


@pytest.mark.slow
def test_installed_wheel_works_outside_of_the_tree(built, tmp_path) -> None:
    folder = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", folder, built[0], cwd=tmp_path)
    printed = run(sys.executable, "-c", TINY, cwd=tmp_path, PYTHONPATH=str(folder))
    where, value = printed.splitlines()
    assert Path(where) == folder / "numpyro_infograd" / "__init__.py"
    assert math.isclose(float(value), math.log(2) / 2, rel_tol=1e-5)


@pytest.mark.slow
def test_wheel_brings_all_that_the_readme_needs(built, tmp_path) -> None:
    """An empty environment, the wheel with its dependencies, and the first example."""
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "tqdm"]
    network = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if network.returncode:
        pytest.skip(f"pip can not download: {network.stderr.strip()}")
    run(python, "-m", "pip", "install", "--quiet", built[0], cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    shown = re.search(r"objective: (\d\.\d\d)", README)
    assert example and shown
    where = "print(ig.__file__)\n"
    printed = run(python, "-c", example[1] + where, cwd=tmp_path)
    assert f"objective: {shown[1]}" in printed
    assert Path(printed.splitlines()[-1]).is_relative_to(tmp_path / "venv")


# -- citation ----------------------------------------------------------------------
def test_citation_is_valid_and_of_this_version() -> None:
    """The keys that version 1.2.0 of the Citation File Format requires."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"authors", "cff-version", "message", "title"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["title"] == PROJECT["name"]
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    cited = " ".join(README.replace("\n> ", "\n").split())
    for work in citation["references"]:
        assert {"authors", "title", "type"} <= set(work)
        assert all({"family-names", "given-names"} <= set(a) for a in work["authors"])
        assert work["title"] in cited
