"""The documentation builds without a warning and names only what exists."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD_NAMES = sorted((ROOT / "diffseg_jax" / "old_names").glob("*.py"))
BUILD = """
import functools, gc, inspect, os, sys
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.cmd.build import main
from sphinx.domains.python import PythonDomain
gc.disable()  # a fifth of the time would go into searching trees of pages for garbage
inspect.getsource = functools.cache(inspect.getsource)  # autodoc reads a function three times
PythonDomain.find_obj = functools.cache(PythonDomain.find_obj)  # it goes through all objects
StandaloneHTMLBuilder.search = False
code = main(sys.argv[1:])
sys.stderr.flush()
os._exit(code)  # a tenth would go into giving memory back
"""
PAGES = [ROOT / "README.md", *sorted((ROOT / ".docs").glob("*.md"))]
FILES = {  # pattern of a name on a page -> the file that must exist then
    r"(configs/\w+\.py)": "{}",
    r"`((?:ddep|dep|ddp|ddpm)_\w+\.py)": "configs/{}",
    r"-m diffseg_jax\.(\w+)": "diffseg_jax/{}.py",
    r"(launch/\w+\.\w+)": "{}",
    r"(tests/\w[\w/]+\.py)": "{}",
}

pages = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built pages. Importing main defines flags, so a new process builds them."""
    folder = tmp_path_factory.mktemp("docs")
    arguments = ["-W", "--keep-going", "-q", "-b", "html", "-d", folder / "trees"]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *arguments, ROOT / ".docs", folder / "html"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.parametrize(
    "page, entry",
    [
        ("inference", "diffseg_jax.inference.segmenter.Segmenter.predict"),
        ("systems", "diffseg_jax.systems.ddp.make_task"),
        ("models", "diffseg_jax.models.adm_unet.ADMUNet"),
        ("commands", "diffseg_jax.main.run"),
    ],
)
def test_the_reference_has_an_entry_for(built, page, entry):
    assert f'id="{entry}"' in (built / "reference" / f"{page}.html").read_text()


def test_the_reference_has_an_entry_for_every_module(built):
    text = "".join(page.read_text() for page in (built / "reference").glob("*.html"))
    for file in set((ROOT / "diffseg_jax").rglob("*.py")) - set(OLD_NAMES):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if file.read_text().strip():
            assert f'id="module-{name}"' in text, name


def test_a_table_of_shapes_keeps_its_columns(built):
    text = (built / "reference" / "inference.html").read_text()
    assert "\nlabels         i32[B, H, W], 0..K-1\n" in re.sub("<[^>]*>", "", text)


def targets(text):
    """The targets of the links and images of a page, without addresses on the network."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def anchors(text):
    """The headings of a page, as links name them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pages
def test_links_and_images_have_targets(page):
    for link in targets(page.read_text()):
        path, _, heading = link.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), link
        assert not heading or heading in anchors(file.read_text()), link


@pages
def test_files_that_commands_name_exist(page):
    for pattern, file in FILES.items():
        for name in re.findall(pattern, page.read_text()):
            assert (ROOT / file.format(name)).exists(), name


@pages
def test_files_and_functions_of_the_package_that_a_page_names_exist(page):
    """They stand as folder/file.py, or folder/file.py:name, below diffseg_jax/."""
    cited = r"(?<![\w/.*])(?!configs/|tests/)((?:[a-z_]+/)?[a-z_]+\.py)\b(?::(\w+))?"
    for path, name in re.findall(cited, page.read_text()):
        file = ROOT / "diffseg_jax" / path
        if not file.exists():
            assert (ROOT / "configs" / path).exists(), path  # whose presets follow the colon
            continue
        stated = rf"^((def|class) {name}\b|{name} = )"
        assert not name or re.search(stated, file.read_text(), re.MULTILINE), (path, name)


def texts_of_the_package():
    """All strings in the source; what a format fills in is a NUL byte."""
    for file in (ROOT / "diffseg_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_what_the_questions_page_quotes_is_said_by_the_package():
    """Quotes are **`bold code`**; "…" in them stands for what the program fills in."""
    page = (ROOT / ".docs" / "faq.md").read_text()
    quotes = [" ".join(quote.split()) for quote in re.findall(r"\*\*`([^`]+)`\*\*", page)]
    texts = "\1".join(texts_of_the_package())
    patterns = ["[^\1]*?".join(map(re.escape, quote.split("…"))) for quote in quotes]
    assert len(quotes) > 100
    assert not [q for q, pattern in zip(quotes, patterns) if not re.search(pattern, texts)]


@pages
def test_prose_wraps_at_120_columns(page):
    """Tables, images and code may be wider."""
    wide = r"(?s:^```.*?^```)|^(\||!\[).*$"
    prose = re.sub(wide, "", page.read_text(), flags=re.MULTILINE)
    assert not [line for line in prose.split("\n") if len(line) > 120]


@pages
def test_no_page_holds_a_todo(page):
    assert "TODO" not in page.read_text()


@pages
def test_python_programs_compile(page):
    for program in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(program, page.name, "exec")


def test_the_readme_links_to_every_guide():
    found = {link.partition("#")[0] for link in targets((ROOT / "README.md").read_text())}
    assert {f".docs/{page.name}" for page in PAGES[1:]} <= found


@pytest.mark.filterwarnings("ignore:diffseg_jax:FutureWarning")
def test_imports_of_the_guides_of_version_0_1_0_work():
    from diffseg_jax.checkpoints import open_network
    from diffseg_jax.command import CACHE, use_cache
    from diffseg_jax.visualise import prediction_sheet

    from diffseg_jax import UserError, load
    from diffseg_jax.config import UserError as from_config
    from diffseg_jax.data.scenes import draw_scene
    from diffseg_jax.diffusion.process import make_process, noising
    from diffseg_jax.experiment import train
    from diffseg_jax.metrics.segmentation import confusion, scores
    from diffseg_jax.sample import open_diffusion

    functions = (
        load, open_network, use_cache, draw_scene, make_process, noising, train, confusion, scores,
        open_diffusion, prediction_sheet,
    )  # fmt: skip
    assert all(map(callable, functions))
    assert from_config is UserError and issubclass(UserError, ValueError) and CACHE
    network, _ = open_network(str(ROOT / "diffseg_jax" / "pretrained" / "scenes"))
    assert set(network) == {"params", "stats"}


@pytest.mark.parametrize("file", OLD_NAMES, ids=[file.stem for file in OLD_NAMES])
def test_an_old_name_says_the_new_one(file):
    with pytest.warns(FutureWarning, match=f"diffseg_jax.{file.stem}.* is now diffseg_jax."):
        exec(compile(file.read_text(), file, "exec"), {})
