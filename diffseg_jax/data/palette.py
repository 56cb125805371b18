"""Generated colours for classes without a palette."""

from diffseg_jax.data.labels import Labels

# The result of a search in CIE Lab: the first n colours are about as far apart as n colours can be,
# and far from black and from the vermillion of errors, for full colour vision and for each of the
# three types of dichromacy. Their minimum distance is 21 for n = 12, 15 for 20, 10 for 40 and 5 for
# 150.
DISTINCT = (
    "960f0f 6978ff f0d24b 4b3c78 5affa5 b4d2ff 87785a b4b4a5 871e4b 2dc35a 780fa5 c35a96 c378d2 "
    "96ff87 f087c3 a53cb4 78b4ff f08700 d20f3c 00692d 78b478 004bd2 e1d2e1 8787f0 d2f0d2 965a69 "
    "a54b00 d2873c e1e11e 781e5a 789687 694b78 a5d25a 965aa5 2d4b00 69e178 2d96a5 4b4b96 b4b42d "
    "a5875a 96d296 785ad2 b4692d c3d2c3 4b7887 00c3d2 ff87ff c35ad2 f0a5e1 e1e1ff 96a587 d2f069 "
    "c396a5 b4e1b4 960f96 e169b4 963c4b 784b69 d2c300 874b2d d2a55a 0078c3 008778 d2b4c3 5a3c2d "
    "f02d4b e19678 69783c ffe1a5 c3f0e1 2d2db4 4be187 2d3c87 ffb478 3cb43c c396e1 783cc3 96c396 "
    "695ae1 3c695a 87870f f01e78 785a1e 69693c 6978b4 4ba569 2db4a5 b42d1e 1e4b3c 5a5aa5 96003c "
    "ff4b96 b46978 8778f0 f01e96 4b3c5a 782d1e 1ee1d2 2d964b 96f087 96a5c3 692d69 782da5 e1f04b "
    "785a87 874b96 e17869 694b5a e1a5f0 7887c3 b4d2b4 f0692d a54b5a a587b4 964b78 7887e1 87c387 "
    "d2e169 781e78 e1b44b 5af0f0 f0964b b4a500 a5d2a5 a5e1a5 e1d22d a5d2f0 69a5f0 a5c369 962d78 "
    "5a5a4b b44bc3 007869 c3e1c3 87962d 784b87 693c69 5a3c4b d296b4 695ab4 9669a5 4bd2e1 e1c33c "
    "c35a4b 3c4bb4 b487c3 c3002d 870f2d 783c87 d22d69 691e87 b45a00 c3e196 a50000 78ffb4 78784b "
    "4b2d96 78692d 4b8796 c3b4b4 5a78e1 c369a5 b4c3ff 78d278 c3a5d2 a52da5 d2965a c35ab4 a55a87 "
    "b45a78 1ea5d2 6996e1 c3f078 c369c3 5a69f0 8778d2 005ac3 4b3cc3 872db4 6969e1 d2c3d2 c387d2 "
    "f078f0 d2e1d2 784bd2 96b487 c33c2d d26987 c38700 2d5a5a b40f5a c3a596 a59696 87b4c3 00b4e1 "
    "7887ff 782d3c f0a569 f07878 ffb4e1 c3e15a 005ae1 a5964b 5ad24b d23c3c d2d269 b4784b 5ac3ff "
    "4b8769 0f5a00 b4f0c3 698787 e1695a d2692d 69b4b4 b40096 f0d2f0 f0b42d 87c3f0 b4d287 96693c "
    "b4c3a5 ffe15a 2dd269 00ffff a5a52d 5a3c87 e15a69 69c3a5 b4a569 5ac33c 780096 6996ff c34bb4 "
    "a57800 a59678 e10f87 4b5a1e 69f096 5a2db4 e1963c 1ea52d c378a5 b40f0f 87b496 ff8787 96c3d2 "
    "00d2b4 a55ad2 2df078 a5e1ff d2c396 78f0d2 e1f096 c34b1e"
)


def distinct_colours(count):
    """The first `count` <= 255 colours (r, g, b) in 0..255 of one fixed sequence.

    About 20 of them can be told apart at a glance, also with colour blindness.
    """
    return tuple(tuple(bytes.fromhex(colour)) for colour in DISTINCT.split()[:count])


def numbered_labels(num_classes):
    """Labels class_0 .. class_{K-1} with generated colours, for data sets without class names."""
    return Labels(tuple(f"class_{k}" for k in range(num_classes)), distinct_colours(num_classes))
