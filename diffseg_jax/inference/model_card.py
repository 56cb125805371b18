"""The model card of a checkpoint: README.md with the header that the Hugging Face Hub reads."""

import re
from pathlib import Path

import yaml

from diffseg_jax.inference.description_text import data_line, depth_lines, protocol_line
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
    what, paper, link = SYSTEMS[description["system"]].origin
    title = _title(description, address)
    head = yaml.safe_dump(metadata_of_card(description, title, licence), sort_keys=False)
    data = description["trained_on"]
    classes = description["classes"]
    learned = f" It tells {len(classes)} classes apart." if classes else ""
    lines = [
        f"---\n{head}---", MARK, f"# {title}",
        f"{_capital(what)}, in JAX with diffseg_jax. The method is that of [{paper}]({link})."
        f"{learned}",
    ]  # fmt: skip
    if picture:
        lines.append(f"![Images, ground truth, predictions, uncertainty and errors]({picture})")
    lines += ["## Use", _code("python", _python(description, address))]
    lines += _numbers(description)
    if data:
        lines += ["## Training", f"Data: {_without_folders(data_line(data))}."]
        lines += [_code("bash", [command])] if command else []
        lines.append("All options are in `config.json`.")
    lines += ["## Intended use and limits", _limits(description)]
    return "\n\n".join(lines) + "\n"


def metadata_of_card(description: dict, title: str, licence: str) -> dict:
    """The header of a card; values that are not known are left out."""
    results, data = description["results"] or {}, description["trained_on"]
    head = {"library_name": "diffseg_jax", "pipeline_tag": "image-segmentation"}
    kind = "semantic-segmentation"
    if not description["classes"]:
        head["pipeline_tag"] = "image-feature-extraction"
    if description["task"] == "depth":
        head["pipeline_tag"] = kind = "depth-estimation"
    head |= {"license": licence} if licence else {}
    head["tags"] = ["jax", "flax", kind, description["system"]]
    if not data or results.get("mIoU") is None:
        return head
    split = description["evaluation"]["split"] or "val"
    metrics = {"mean_iou": ("mean IoU", results["mIoU"])}
    if "aAcc" in results:
        metrics["accuracy"] = "accuracy", results["aAcc"]
    return head | {
        "model-index": [{"name": title, "results": [{
            "task": {"type": "image-segmentation", "name": "semantic segmentation"},
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
    results, names = description["results"] or {}, description["classes"]
    if results.get("abs_rel") is not None:
        return ["## Results", "; ".join(depth_lines(results)) + ". Depths are in metres."]
    if not names:
        return []
    if results.get("mIoU") is None:
        return ["## Classes", ", ".join(map(_cell, names)) + "."]
    second, of_class, mean = ("accuracy", "Acc", "mAcc") if "Acc" in results else (
        "IoU of a constant map", "constant IoU", "constant"
    )  # fmt: skip
    rows = [f"| class | IoU, % | {second}, % |", "|---|---|---|"]
    rows += [
        f"| {_cell(name)} | {_percent(results['IoU'].get(name))} "
        f"| {_percent(results[of_class].get(name))} |" for name in names
    ]  # fmt: skip
    rows.append(f"| **mean** | **{_percent(results['mIoU'])}** | **{_percent(results[mean])}** |")
    shown = protocol_line(description["evaluation"])
    said = [f"Measured on {results['images']:,} images, {shown}."]
    scores = results.get("calibrated") or results.get("calibration") or {}
    if None not in (scores.get("AUROC"), scores.get("ECE")):  # there is none without an error
        said.append(
            f"Uncertainty is the chance that a label is wrong: it ranks wrong pixels above right "
            f"ones with an AUROC of {scores['AUROC']:.3f}, and its calibration error (ECE) is "
            f"{scores['ECE']:.3f}."
        )
    return ["## Results", "\n".join(rows), " ".join(said)]


def _limits(description):
    if description["task"] == "depth":
        return (
            "It estimates the depth of images like those from which it learned. With other cameras "
            "or places its depth and its uncertainty can be wrong: the scale of a scene cannot be "
            "seen in one image. Measure it on your own data before you rely on it, and do not use "
            "it where an error endangers people."
        )
    if not description["classes"]:
        return (
            "It describes images like those of its training; on others it was not measured."
        )
    data = description["trained_on"]
    few = data and data["labelled"] and data["labelled"]["n"]
    learned = f"{few:,} labelled images" if few else "images"
    if description["task"] == "bev":
        return (
            f"It predicts maps for cars whose cameras are like those of the {learned} from which "
            "it learned. With other cameras, places or weather its maps can be wrong. Measure it "
            "on your own maps before you rely on it, and do not use it where an error endangers "
            "people."
        )
    return (
        f"It segments images like the {learned} from which it learned. With other cameras, places, "
        "seasons or sizes, its labels and its uncertainty can be wrong, and every pixel gets one "
        "of its classes, whatever it shows. Measure it on your own labels before you rely on it, "
        "and do not use it where an error endangers people."
    )


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


def _cell(name):
    """A name that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", name)


def _percent(ratio):
    return "-" if ratio is None else f"{100 * ratio:.1f}"


def _capital(text):
    return text[:1].upper() + text[1:]
