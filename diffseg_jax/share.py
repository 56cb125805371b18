"""Copies a trained network to the Hugging Face Hub, a bucket or a folder, with its model card.

  python -m diffseg_jax.share --checkpoint=runs/a --to=hf://anna/streets --dry-run
  python -m diffseg_jax.share --checkpoint=runs/a --to=hf://anna/streets --licence=apache-2.0

The parameters of one stage are copied, with config, results, pictures and README.md, the model
card, which training has written into the workdir: read it before. Then
`diffseg_jax.load("hf://anna/streets")` opens the copy.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.cli import Flags, add_checkpoint_flags, use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.display.console import Display
from diffseg_jax.display.output import print_whole
from diffseg_jax.errors import counted, size
from diffseg_jax.inference import sharing
from diffseg_jax.inference.converted import STORED_DTYPES
from diffseg_jax.inference.model_card import CARD


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("share", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add, ("checkpoint", "stage", "step", "ema"))
    to = "hf://user/repository (created if it is new), gs://bucket/folder, or a new folder"
    add("--to", required=True, metavar="ADDRESS", help=to)
    licence = "licence of the weights in the model card, such as apache-2.0 or cc-by-4.0"
    add("--licence", default="", metavar="NAME", help=licence)
    dtype = f"dtype of the copied parameters: {', '.join(STORED_DTYPES)}; default: float32"
    add("--dtype", default="float32", metavar="NAME", help=dtype)
    public = "let all read a new repository of the Hub; without it, only you can"
    add("--public", action="store_true", help=public)
    pictures = "leave out the pictures, which show images of your data"
    add("--no-pictures", action="store_true", help=pictures)
    add("--dry-run", action="store_true", help="list the files and print the card; copy nothing")
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors(), tempfile.TemporaryDirectory() as temporary:
        given = make_flags().parse_args(arguments)
        use_cache("")
        find_devices()
        sharing.require_target(given.to)
        folder = Path(temporary) / "copy"
        display = Display()
        with display.progress(f"reads {given.checkpoint}"):
            sharing.prepare_copy(
                given.checkpoint, given.to, folder, given.licence, given.stage,
                pictures=not given.no_pictures, step=given.step, ema=given.ema, dtype=given.dtype,
            )  # fmt: skip
        files = sharing.files_in(folder)
        for note in sharing.notes_on_copy(files, given.to, given.licence):
            print(note, flush=True)  # before others can see the copy
        if given.dry_run:
            print_whole(*files, f"\n{(folder / CARD).read_text()}")
        else:
            with display.progress(f"copies to {given.to}"):
                print(sharing.copy_to(given.to, folder, given.public))
        what = f"{counted(len(files), 'file')}, {size(sum(files.values()))}"
        print(f"{what}, {'would be copied' if given.dry_run else 'copied'} to {given.to}")


if __name__ == "__main__":
    main()
