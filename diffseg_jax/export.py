"""A trained model -> a folder that answers pictures of one size without this package.

python -m diffseg_jax.export --checkpoint=scenes --output=exported/scenes --size=96,128

model.stablehlo  the network with its weights, as jax.export writes it, for any number of pictures
model.json       classes, colours, what goes in and comes out, and the lines of Python that load it

Who loads it needs jax and flatbuffers, and nothing else.
"""

from pathlib import Path

from diffseg_jax.cli import Flags, use_cache, user_errors
from diffseg_jax.inference.exported import MODEL, NOTES, PLATFORMS, check_request, export
from diffseg_jax.inference.flags import OPENED, add_checkpoint_flags, sides
from diffseg_jax.inference.segmenter import load


def main(arguments=None):
    """The command line."""
    flags = Flags("export", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add)
    add("--output", required=True, help=f"a new folder: {MODEL} and {NOTES}")
    add("--size", type=sides, required=True, metavar="H,W", help="of the pictures it will take")
    add("--steps", type=int, help="reverse steps of ddp; as evaluated")
    add("--samples", type=int, help="of the noise that ddp starts from, averaged")
    add("--seed", type=int, help="of the noise; the run's")
    add("--platforms", default=",".join(PLATFORMS), metavar="NAME,...", help="where it runs")
    use_cache("")
    with user_errors():
        options = vars(flags.parse_args(arguments))
        opened = {name: options.pop(name) for name in OPENED}
        checkpoint = options.pop("checkpoint")
        options["platforms"] = tuple(filter(None, options["platforms"].split(",")))
        check_request(options["output"], options["size"], options["platforms"])
        facts = export(load(checkpoint, **opened), **options, say=print)
        output = Path(options["output"])
        print(f"{output / MODEL}: {(output / MODEL).stat().st_size / 1e6:,.1f} MB; {NOTES} says:")
        lines = [line.replace(MODEL, str(output / MODEL)) for line in facts["load"]]
        print(f"  # {facts['needs']}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
