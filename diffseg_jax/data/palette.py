"""Generated colours for classes without a palette."""

from diffseg_jax.data.labels import Labels

# The result of a search on distances of CIEDE2000, for full colour vision and the three types of
# dichromacy: 12 colours with the largest minimum distance, in the best order, then always the
# colour farthest from those before it; all far from black, white, the vermillion of errors and the
# greys of ignored pixels. The minimum distance is 16 for n = 5, 14 for 12, 10 for 16, 8 for 20 and
# 3 for 150.
DISTINCT = (
    "960f00 0f00f0 ffe100 78f0ff 966996 0f694b 5ab496 c3f0b4 a5a5ff e1a55a 870f87 965aff 5a1e1e "
    "87875a c396c3 4b2d4b e100c3 5a8778 96ff87 a55a2d 87d2a5 0f00b4 f0e1d2 784b78 783c2d f08700 "
    "00e187 871eb4 690000 f0c34b a5c3f0 961eff b4965a b478ff c378c3 5a0f5a ff4b87 964b96 7869c3 "
    "d2b4d2 d22d69 4b0087 78a5a5 a53c00 b4783c 2d3c3c 5a6969 e1e1e1 69b41e b4a578 692d69 1e96e1 "
    "a500d2 d2ff5a 3c3c2d 9687a5 2d963c e1002d 4b784b 00b4e1 0f4b87 b4b4b4 96e169 87003c 3c6996 "
    "5a00d2 ffd2ff f0c3b4 789678 87d2e1 b4ffa5 3c4b5a f01ee1 c3003c b47887 2d4b1e ff8796 3cc34b "
    "3c785a 7878c3 ffb487 4b690f c396e1 3c4b0f 96c32d 785a78 2dd269 d200a5 690fa5 f0f0d2 a5963c "
    "a569ff e16969 3c2d2d ffd24b ff69b4 f02d5a 78c3ff c36996 005ae1 870f0f e1d2e1 784b3c 69f096 "
    "694b69 3c874b 5a78a5 a5b4a5 87b4d2 875a87 3cff69 b45a87 5a693c 874b4b 5a2d5a a5d200 5aa5b4 "
    "c3b4c3 4b3c4b 5ac396 693c69 4b1e78 003c1e f0c3f0 ff2d78 782d5a e1f0ff 005aff 5a7878 783c78 "
    "d27800 695a5a b4e1c3 872d96 699669 787869 d2c3d2 a596ff b43c87 5a69a5 b4c3b4 963c2d b48796 "
    "f07887 96f087 fff02d 7878e1 002dff 4b3c78 2d78d2 9678a5 b4ffe1 694b1e 694b87 ff3cb4 69a587 "
    "a578b4 c3a5c3 c33c00 b4874b a5f0f0 b43c1e 5a3c3c a5e1a5 4b69b4 5a0096 8796d2 69e1f0 6996c3 "
    "c3782d 788796 96c3e1 c3a53c e196d2 e169d2 4b4b96 0f4be1 003c4b 780000 b4f0c3 96fff0 b42d5a "
    "5a5aa5 c33c4b 78e1b4 d2a587 e1b469 e12d1e d287a5 3c4bc3 2d2d5a 87785a 4b5a3c a5a569 96c3a5 "
    "87b4f0 a54bb4 001ec3 96d2ff fff0c3 f0d2d2 690f3c ffa5e1 c3ff78 96d296 875a3c 87c378 967878 "
    "ffa587 e1a5ff c3d2c3 875a69 3c3cc3 870078 c35a3c d27887 a5e100 1e2d69 e178d2 7869e1 8787f0 "
    "1e781e 1e8796 5a1eb4 0f3ca5 78b4b4 78002d 78ff96 c3692d 2d4ba5 a5a596 87e196 e11ed2 e1c35a "
    "002de1 b496f0 c32db4 0f2d96 d2ff96 c3b400 f0a54b a5692d ff5a00 a54b2d 007887 961e1e 96b469 "
    "5a1e87 a5e1e1 7896b4 a5f0a5 b4a5a5 8778d2 d2e1b4 a50f00"
)


def distinct_colours(count):
    """The first `count` <= 255 colours (r, g, b) in 0..255 of one fixed sequence.

    Up to 12 of them can be told apart at a glance, also with colour blindness.
    """
    return tuple(tuple(bytes.fromhex(colour)) for colour in DISTINCT.split()[:count])


def numbered_labels(num_classes):
    """Labels class_0 .. class_{K-1} with generated colours, for data sets without class names."""
    return Labels(tuple(f"class_{k}" for k in range(num_classes)), distinct_colours(num_classes))
