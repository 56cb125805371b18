"""The documentation: guides in Markdown, and a reference made from the docstrings of the package.

pip install -e ".[docs]" && python -m sphinx -W -b html .docs build/docs
"""

import os
import pkgutil
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed, so no accelerator is claimed

import diffseg_jax  # noqa: E402

project = "diffseg_jax"
release = version = diffseg_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["build"]
myst_heading_anchors = 3  # links to headings, as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # default values as written, not as evaluated
autodoc_use_type_comments = False  # there are none
highlight_language = "none"  # tables of shapes are not code; fences name their language
html_theme = "alabaster"
html_theme_options = {
    "description": diffseg_jax.__doc__.strip(),
    "page_width": "1240px",
    "body_max_width": "none",
}
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # two hyphens before an option stay two

FIRST = ("inference", "systems", "diffusion", "layers", "models", "weights", "data", "metrics",
         "training", "experiment", "storage", "devices", "figures", "annotations",
         "server", "config")  # fmt: skip
TITLES = {"commands": "Commands", "others": "The rest of the package"}
COMMAND = re.compile(r"^if __name__ == .__main__.:", re.MULTILINE)


def modules():
    """Page -> the names of its modules: one page per folder, one of commands, one of the rest."""
    pages = {name: [] for name in (*FIRST, *TITLES)}
    for found in pkgutil.walk_packages(diffseg_jax.__path__, "diffseg_jax."):
        file = Path(found.module_finder.find_spec(found.name).origin)
        if file.parent.name == "old_names":
            continue
        text = file.read_text()
        top = found.name.split(".")[1]
        page = top if top in pages else "commands" if COMMAND.search(text) else "others"
        if text.strip():  # the __init__.py of a folder may be empty
            pages[page].append(found.name)
    return {page: names for page, names in pages.items() if names}


def write_reference(app):
    """Writes reference/*.rst where their text changed, and removes the files of former pages."""
    pages = modules()
    listed = "".join(f"\n   {page}" for page in pages)
    texts = {page: page_of(page, names) for page, names in pages.items()}
    texts["index"] = f"""{titled("Reference", "=")}
{documented("diffseg_jax")}
.. toctree::
   :maxdepth: 2
{listed}
"""
    folder = HERE / "reference"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.stem not in texts:
            file.unlink()
    for page, text in texts.items():
        file = folder / f"{page}.rst"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def page_of(page, names):
    """The text of a page, with a heading for each module if there are several."""
    title = TITLES.get(page, f"diffseg_jax.{page}")
    sections = [
        "\n".join([titled(name, "-") if len(names) > 1 else "", documented(name)]) for name in names
    ]
    return "\n".join([titled(title, "="), *sections])


def titled(title, line):
    return f"{title}\n{line * len(title)}\n"


def documented(name):
    return f".. automodule:: {name}\n   :members:\n"


def as_written(app, what, name, obj, options, lines):
    """Converts plain docstrings to reST: prose stays prose, tables of shapes keep their columns."""
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    lines[:] = "\n\n".join(map(_block, blocks)).split("\n")


def _block(text):
    if not text.strip():
        return ""
    # Columns, indented lines, commands and lists keep their line breaks.
    if re.search(r"\S {2,}\S|^\s|^python -m|^[-*] ", text, re.MULTILINE):
        return "::\n\n" + "\n".join("    " + line for line in text.split("\n"))
    pieces = re.split(r"`+([^`]+)`+", text)  # prose and code alternate
    return r"\ " + "".join(  # an escaped space prints nothing but separates markup
        rf"\ ``{piece}``\ " if odd else re.sub(r"([\\*_|<>:\[\]])", r"\\\1", piece)
        for odd, piece in ((i % 2, piece) for i, piece in enumerate(pieces))
    )


def setup(app):
    """Registers the two hooks above with sphinx."""
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", as_written)
