"""The documentation builds without a warning, and names only what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".docs").glob("*.md"))]
NAMED = {  # what a page may name, and the file that it must then be
    r"(configs/\w+\.py)": "{}",
    r"`((?:ddep|dep|ddp|ddpm)_\w+\.py)": "configs/{}",
    r"-m diffseg_jax\.(\w+)": "diffseg_jax/{}.py",
    r"(launch/\w+\.\w+)": "{}",
    r"(tests/\w[\w/]+\.py)": "{}",
}

pages = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built pages: of a process of its own, as flags are defined at import."""
    folder = tmp_path_factory.mktemp("docs")
    arguments = ["-W", "--keep-going", "-q", "-b", "html", "-d", folder / "trees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments, ROOT / ".docs", folder / "html"],
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
def test_reference_holds(built, page, entry):
    assert f'id="{entry}"' in (built / "reference" / f"{page}.html").read_text()


def test_every_module_has_an_entry(built):
    text = "".join(page.read_text() for page in (built / "reference").glob("*.html"))
    for file in (ROOT / "diffseg_jax").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if file.read_text().strip():
            assert f'id="module-{name}"' in text, name


def test_a_table_of_shapes_keeps_its_columns(built):
    text = (built / "reference" / "inference.html").read_text()
    assert "\nlabels         i32[B, H, W], 0..K-1\n" in re.sub("<[^>]*>", "", text)


def targets(text):
    """What links and pictures of a page point to, but for addresses on the network."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def anchors(text):
    """The chapters of a page, as links name them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pages
def test_links_and_pictures_lead_somewhere(page):
    for link in targets(page.read_text()):
        path, _, chapter = link.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), link
        assert not chapter or chapter in anchors(file.read_text()), link


@pages
def test_commands_name_what_exists(page):
    for pattern, file in NAMED.items():
        for name in re.findall(pattern, page.read_text()):
            assert (ROOT / file.format(name)).exists(), name


@pages
def test_nothing_is_left_to_be_filled_in(page):
    assert "TODO" not in page.read_text()


@pages
def test_programs_are_python(page):
    for program in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(program, page.name, "exec")


def test_every_guide_is_reached_from_the_front_door():
    found = {link.partition("#")[0] for link in targets((ROOT / "README.md").read_text())}
    assert {f".docs/{page.name}" for page in PAGES[1:]} <= found
