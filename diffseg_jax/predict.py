"""Pictures in files or folders -> label maps, uncertainty, and a summary.

python -m diffseg_jax.predict --checkpoint=scenes --images=photos --output=labelled

For every picture <name>_labels.png (class ids, 8-bit grey), <name>_color.png, <name>_overlay.png
and <name>_uncertainty.png (dark 0, bright 1); and legend.png and summary.json for all. Stopped, the
same command goes on.
"""

from diffseg_jax.cli import CACHE, Flags, truth, use_cache, user_errors
from diffseg_jax.errors import counted
from diffseg_jax.inference.batch import PALETTES, predict_files
from diffseg_jax.inference.flags import OPENED, add_checkpoint_flags, factors, sides
from diffseg_jax.inference.segmenter import load

LISTED = 5  # unreadable files that are named at the end; all of them stand in the summary


def read_flags(arguments) -> dict:
    """The flags of the command line."""
    parser = Flags("predict", __doc__)
    add = parser.add_argument
    add_checkpoint_flags(add)
    add("--images", required=True, nargs="+", help="pictures, or folders with their subfolders")
    add("--output", required=True, help="a folder for the answers")
    add("--palette", choices=PALETTES, default="own", help="readable: for any colour vision")
    add("--compilation_cache", default=CACHE, help="where compiled programs go; empty for nowhere")
    group = parser.add_argument_group("how pictures are shown; without, as the run was evaluated")
    add = group.add_argument
    add("--steps", type=int, help="reverse steps (ddp)")
    add("--samples", type=int, help="of the noise that the steps start from, averaged (ddp)")
    add("--tile", type=sides, metavar="N[,N]", help="windows, for what does not fit; 0 = whole")
    add("--stride", type=sides, metavar="N[,N]", help="from tile to tile; 3/4 of the tile")
    add("--scales", type=factors, metavar="X,X,...", help="sizes at which they are shown, averaged")
    add("--flip", type=truth, metavar="True|False", help="the mirror image too, averaged")
    add("--seed", type=int, help="of the noise")
    add("--round_to", type=int, help="resized to multiples of it: many sizes share programs")
    add("--batch_size", type=int, help="pictures of one size at a time; 1 on CPUs, else 4")
    return vars(parser.parse_args(arguments))


def main(arguments=None):
    """The command line."""
    with user_errors("stopped; the same command goes on with the remaining images"):
        flags = read_flags(arguments)
        use_cache(flags.pop("compilation_cache"))
        opened = {name: flags.pop(name) for name in OPENED}
        checkpoint, images, output = map(flags.pop, ("checkpoint", "images", "output"))
        segmenter = load(checkpoint, **opened)
        print(segmenter, flush=True)
        content = predict_files(segmenter, images, output, **flags)
        failed = list(content["unreadable"].values())
        for sentence in failed[:LISTED]:
            print(f"not read: {sentence}")
        more = f", {counted(len(failed), 'file')} could not be read" if failed else ""
        done = counted(len(content["pictures"]), "picture")
        print(f"{done} in {output}{more}; facts in {output}/summary.json")


if __name__ == "__main__":
    main()
