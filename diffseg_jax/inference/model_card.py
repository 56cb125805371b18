"""The model card of a checkpoint: README.md with the header that the Hugging Face Hub reads."""

import re
from pathlib import Path

import yaml

from diffseg_jax.inference.description_text import data_line
from diffseg_jax.inference.outputs import REPORTS, predicts
from diffseg_jax.inference.task_report import plain_text
from diffseg_jax.storage.paths import write_atomically
from diffseg_jax.systems.methods import SYSTEMS

CARD = "README.md"
PLACEHOLDER = "hf://USER/REPOSITORY"  # in a card, until the checkpoint is shared
MARK = "<!-- written by diffseg_jax: remove this line to keep what you write here -->"


def model_card(
    description: dict, *, address: str = PLACEHOLDER, picture: str = "", command: str = "",
    licence: str = "",
) -> str:  # fmt: skip
    """The text of a card in Markdown, which begins with its metadata as YAML.

    description  as `describe_checkpoint` returns it
    address      from which others load the checkpoint
    picture      path of a sheet of predictions, relative to the card; "": none
    command      that trained it; "": unknown
    licence      identifier as in the Hub, such as apache-2.0; "": none is stated
    """
    system, report = SYSTEMS[description["system"]], REPORTS[description["task"]]
    what, paper, link = system.origin
    what = system.networks.get(description["task"], what)
    title = _title(description, address)
    head = yaml.safe_dump(metadata_of_card(description, title, licence), sort_keys=False)
    data = description["trained_on"]
    learned = report.learned(description["classes"])
    lines = [
        f"---\n{head}---", MARK, f"# {title}",
        f"{_capital(what)}, in JAX with diffseg_jax. The method is that of [{paper}]({link}). "
        f"{learned}".rstrip(),
    ]  # fmt: skip
    if picture:
        lines.append(f"![Images, ground truth, predictions, uncertainty and errors]({picture})")
    lines += ["## Use", _code("python", _python(description, address))]
    lines += _numbers(description)
    if data:
        lines += ["## Training", f"Data: {_without_folders(data_line(data, report.examples))}."]
        lines += [_code("bash", [command])] if command else []
        lines.append("All options are in `config.json`.")
    lines += ["## Intended use and limits", _limits(description)]
    return "\n\n".join(lines) + "\n"


def metadata_of_card(description: dict, title: str, licence: str) -> dict:
    """The header of a card; values that are not known are left out."""
    results, data = description["results"] or {}, description["trained_on"]
    report = REPORTS[description["task"]]
    pipeline = report.pipeline if predicts(description) else "image-feature-extraction"
    head = {"library_name": "diffseg_jax", "pipeline_tag": pipeline}
    head |= {"license": licence} if licence else {}
    head["tags"] = ["jax", "flax", report.tag, description["system"]]
    metrics = report.metrics(results)
    if not data or not metrics:
        return head
    split = description["evaluation"]["split"] or "val"
    return head | {
        "model-index": [{"name": title, "results": [{
            "task": {"type": report.pipeline, "name": report.tag.replace("-", " ")},
            "dataset": {"type": data["source"], "name": _name_of(data), "split": split},
            "metrics": [
                {"type": kind, "name": name, "value": round(float(value), 4)}
                for kind, (name, value) in metrics.items()
            ],
        }]}]
    }  # fmt: skip


def write_card(folder: Path, text: str) -> bool:
    """Writes README.md, unless one is there without MARK, which people wrote; whether it did."""
    file = folder / CARD
    if file.exists() and MARK not in file.read_text(errors="replace"):
        return False
    write_atomically(file, text.encode())
    return True


def _python(description, address):
    lines = [f'segmenter = diffseg_jax.load("{address}")']
    return ["import diffseg_jax", *lines, *description["use"]["python"][2:]]


def _numbers(description):
    """The sections of classes and of results."""
    names, report = description["classes"], REPORTS[description["task"]]
    shown = report.protocol(description["evaluation"])
    if paragraphs := report.measured(description["results"] or {}, names, shown):
        return ["## Results", *paragraphs]
    return ["## Classes", ", ".join(map(plain_text, names)) + "."] if names else []


def _limits(description):
    if not predicts(description):
        return (
            "It describes images like those of its training; on others it was not measured."
        )
    report, data = REPORTS[description["task"]], description["trained_on"]
    few = data and data["labelled"] and data["labelled"]["n"]
    learned = f"{few:,} {report.examples}" if few else f"{report.examples}"
    return report.limits(learned)


def _title(description, address):
    if address != PLACEHOLDER:
        return address.rstrip("/").rpartition("/")[2].partition("@")[0]
    given = Path(description["directory"])
    return given.parent.parent.name if _in_run(description) else given.name


def _in_run(description):
    return Path(description["directory"]).parent.name == "checkpoints"


def _name_of(data):
    return Path(data["path"]).name or data["source"]


def _without_folders(line):
    """The sentence about data without the folders above the last, which are of one machine."""
    return re.sub(r"(?<= in )\S*/(?=[^/\s,]+)", "", line)


def _code(language, lines):
    return "\n".join([f"```{language}", *lines, "```"])


def _capital(text):
    return text[:1].upper() + text[1:]
