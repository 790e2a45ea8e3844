# SPDX-License-Identifier: Apache-2.0
"""The documentation does what it says: code runs, links lead somewhere."""

from collections.abc import Iterator
import contextlib
import functools
import inspect
import io
import math
from pathlib import Path
import re
from types import ModuleType
from typing import Any

import matplotlib
from methods import slow
import pytest

import numpyro_infograd as ig
from numpyro_infograd import scores

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if "_build" not in page.relative_to(DOCS).parts
)
README = ROOT / "README.md"
GALLERY = (DOCS / "gallery.md").read_text()
LINKED = [README, *PAGES]
RUN = [
    README,
    *(DOCS / name for name in ("index.md", "tutorial.md", "values.md")),
    *sorted(DOCS.glob("howto/*.md")),
]
# run by `make test-all`
SLOW = """baseband constraints debugging divergence experimental_design index
large_models memory outage rate_regions scores tutorial trust values""".split()


# -- code --------------------------------------------------------------------------
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Each block of Python, padded to its line, and the output shown right below it."""
    text = page.read_text()
    fences = list(_FENCE.finditer(text))
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] != "python":
            continue
        line = text.count("\n", 0, fence.start(2))
        is_shown = after and after[1] == "text"
        is_shown = is_shown and not text[fence.end() : after.start()].strip()
        yield "\n" * line + fence[2], after[2] if is_shown else ""


def says(printed: str, shown: str) -> bool:
    """Whether a page shows what was printed.

    Numbers may differ by five percent, 0.002 or one in their last decimal, standard
    errors by anything, and "..." stands for any text: settings here are smaller, and
    machines differ.
    """

    def plain(text: str) -> str:
        text = re.sub(r"\+- (\[[^]]*\]|\S+)", "+- error", text)
        return re.sub(r"\s+", " ", re.sub(r"\s*([\[\]])\s*", r"\1", text)).strip()

    pattern, expected = "", []
    for part in re.split(rf"(\.\.\.|(?<![\w.]){_NUMBER})", plain(shown)):
        if part == "...":
            pattern += ".*?"
        elif re.fullmatch(_NUMBER, part):
            decimals = len(part.partition(".")[2]) if "e" not in part else 0
            expected.append((float(part), 1.01 * 10.0**-decimals if decimals else 0.0))
            pattern += f"({_NUMBER})"
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, plain(printed))
    return bool(found) and all(
        math.isclose(float(a), b, rel_tol=0.05, abs_tol=max(2e-3, unit))
        for a, (b, unit) in zip(found.groups(), expected, strict=True)
    )


@pytest.fixture
def small(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small networks, except where a page shows their errors; few samples of a step;
    and a folder to write figures to.
    """
    settings: Any = {
        "hidden": (32,),
        "num_networks": 2,
        "num_steps": 100,
        "pool_size": 2**14,
        "num_samples": 2**14,
    }
    for name in ("denoising", "sliced") if page.stem != "trust" else ():
        fewer = functools.partial(scores.REGISTRY[name], **settings)
        monkeypatch.setitem(scores.REGISTRY, name, fewer)
    monkeypatch.setattr(scores.Mixture, "step_samples", 256)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "page",
    [slow(page) if page.stem in SLOW else page for page in RUN],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_of_a_page_prints_what_it_shows(page: Path, small: None) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem}
    for code, shown in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)
        if shown:
            line = code.count("\n", 0, len(code) - len(code.lstrip("\n"))) + 1
            where = f"{page.relative_to(ROOT)}, line {line}"
            assert says(printed.getvalue(), shown), (
                f"{where} prints\n{printed.getvalue()}and not\n{shown}"
            )


def test_outputs_are_compared() -> None:
    shown = "a = [1.02 2. ] +- [0.1 2e-5] nats (...)"
    assert says("a = [1.021  2.01] +- [0.2 1e-05] nats (nested)\n", shown)
    assert not says("a = [1.2 2.01] +- [0.2 1e-05] nats (nested)\n", shown)
    assert not says("b = [1.021 2.01] +- [0.2 1e-05] nats (nested)\n", shown)
    assert not says("a = [1.021 2.01] nats (nested)\n", shown)


# -- names -------------------------------------------------------------------------
def public_names() -> dict[str, Any]:
    """Every public object by name: of the package, then of the modules in it."""
    modules = [n for n in ig.__all__ if isinstance(getattr(ig, n), ModuleType)]
    found = {n: getattr(ig, n) for n in ig.__all__ if n not in modules}
    for name in modules:
        module = getattr(ig, name)
        own = [
            n
            for n, value in vars(module).items()
            if not n.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
        ]
        for each in getattr(module, "__all__", own):
            value = getattr(module, each)
            if all(value is not other for other in found.values()):
                found[f"{name}.{each}"] = value
    return found


def test_public_names_have_docstrings_with_examples() -> None:
    """An example has all but errors, whose module has one for all of them."""
    for name, value in public_names().items():
        assert value.__doc__, name
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        assert is_error or ">>>" in value.__doc__, name


def test_public_functions_document_what_they_take_and_return() -> None:
    for name, value in public_names().items():
        if not inspect.isfunction(value):
            continue
        text = inspect.cleandoc(value.__doc__ or "")
        section = re.search(r"^Args:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
        documented = re.findall(
            r"^    \**(\w+):", section[1] if section else "", re.MULTILINE
        )
        assert documented == [*inspect.signature(value).parameters], name
        assert "Returns" in text, name


def test_reference_has_every_public_name() -> None:
    text = (DOCS / "api.md").read_text()
    listed = set(re.findall(r"auto(?:class|function):: (?:\w+\.)*(\w+)", text))
    names = {
        n.rpartition(".")[2] for n in public_names() if not n.startswith("errors.")
    }
    assert names - listed == set()
    assert "automodule:: numpyro_infograd.errors\n   :members:" in text


# -- links -------------------------------------------------------------------------
def headings(page: Path) -> set[str]:
    """The anchors of a page, by the names that a heading gets."""
    text = _FENCE.sub("", page.read_text())
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in found}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", _FENCE.sub("", page.read_text()))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in (link for link in links if not re.match(r"\w+:", link)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {link}"
        if anchor:
            assert anchor in headings(target), f"{page.relative_to(ROOT)}: {link}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for script in set(re.findall(r"\b(?:examples|benchmarks|docs)/\w+\.\w+", text)):
        assert (ROOT / script).exists(), f"{page.relative_to(ROOT)} names {script}"


def test_gallery_has_every_script() -> None:
    scripts = {path.name for path in ROOT.glob("examples/*.py")}
    shown = re.findall(r"\(\.\./examples/(\w+\.py)\)", GALLERY)
    assert sorted(shown) == sorted(scripts)


def test_gallery_has_every_figure() -> None:
    """Of the examples that save one, small enough to be kept with the sources."""
    saved = {p.stem for p in ROOT.glob("examples/*.py") if "savefig" in p.read_text()}
    shown = re.findall(r"!\[[^]]+\]\(figures/(\w+)\.png\)", GALLERY)
    assert sorted(shown) == sorted(saved)
    sizes = {p.stem: p.stat().st_size for p in DOCS.glob("figures/*")}
    assert set(sizes) == saved
    assert max(sizes.values()) <= 40_000
