"""What to write into classes.json for what masks hold: ids that nobody named, or colours."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diffseg_jax.data.class_ids import (
    MAX_ID,
    SIGNED_IGNORE,
    SMOOTHED,
    MaskRules,
    filled,
    id_table,
    ranges,
    share,
)
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import counted

SHOWN = 12  # colours in an error
BLACK = [0, 0, 0]
DENSE = 1.5  # ids are taken for 0..K-1 if K is at most so many times their number
TWO_TONES = 0.5  # share of 0 and 255 in black and white masks that were smoothed


def advice_without_names(
    pixels: Mapping[int, int], colours: Sequence[list], file: Path, ignore: tuple[int, ...] = ()
) -> str:
    """What to type where no classes.json names the classes.

    pixels   {stored id: number of pixels} of some masks
    colours  [r, g, b] of those that hold colours
    """
    rules = MaskRules(id_table(1), file=str(file), ignore=ignore)
    ids = sorted(set(pixels) - set(SIGNED_IGNORE))
    if len(colours) >= IGNORE:
        return (
            f"The masks hold {counted(len(colours), 'colour')}, as photographs and smoothed or "
            "lossy images do. Export the masks again, as PNG of ids."
        )
    if colours:
        listed = f"The masks hold {listed_colours(colours)}. {colour_advice(colours, rules)}"
    elif ids and not 0 <= ids[0] <= ids[-1] <= MAX_ID:
        return rules.advice(pixels)
    else:
        shown = ranges(ids) or "of ignored pixels"
        listed = f"The masks hold the ids {shown}. {_id_advice(ids, pixels, rules)}"
    return listed + (" Write your names in place of these." if '{"names"' in listed else "")


def _id_advice(ids, pixels, rules):
    plain = [value for value in ids if value != IGNORE]
    if len(ids) > SMOOTHED and _share_of_two(pixels) > TWO_TONES:
        return (
            "These are too many, as after smooth resizing or lossy compression of black and white "
            "masks. Export them again as PNG, resized with nearest neighbour."
        )
    if len(ids) < 2:
        return "Masks must show two classes, such as one for the background."
    if len(plain) >= IGNORE:
        return f'There can be at most {IGNORE} classes. List those in "names" and "ids" there.'
    if plain[-1] == MAX_ID and len(plain) > 2:  # -1 as 16 bits
        return (
            f"If {MAX_ID} is unlabelled, {rules.numbered(plain[:-1], [MAX_ID])}; if it is a class, "
            f"{rules.numbered(plain)}."
        )
    if 0 in ids and IGNORE in ids and 1 not in ids:
        return _black_and_white(ids, plain, rules)
    if plain == list(range(1, len(plain) + 1)) and len(plain) > 1:
        count = len(plain)
        return (
            f"No mask that was read holds 0. If ids count from 1, "
            f"{rules.naming(count, zero_is_ignored=True)}; if 0 is a class that is absent, give "
            f"--config.data.options.num_classes={count + 1}."
        )
    if 0 in plain and plain[-1] < DENSE * len(plain):
        return _counted_from_zero(plain, pixels, rules)
    return f"If these are the classes, {rules.numbered(plain if len(plain) > 1 else ids)}."


def _share_of_two(pixels):
    return (pixels.get(0, 0) + pixels.get(IGNORE, 0)) / sum(pixels.values())


def _black_and_white(ids, between, rules):
    """Masks of 0 and 255, and perhaps of others than 1 in between."""
    between = between[1:]
    if not between:
        rules = replace(rules, names=("background", "object"))
        return f"If 255 is a class, {rules.numbered([0, IGNORE])}."
    are = "is" if len(between) == 1 else "are"
    unlabelled = rules.numbered([0, IGNORE], between)
    return (
        f"If {ranges(between)} {are} unlabelled, {unlabelled}; if all are classes, "
        f"{rules.numbered(ids)}; if 255 is unlabelled, {rules.numbered([0, *between])}."
    )


def _counted_from_zero(plain, pixels, rules):
    count = plain[-1] + 1
    line = f"If the classes are 0..{count - 1}, {rules.naming(count)}"
    if count == 2:
        return f"{line}."
    shifted = rules.naming(count - 1, zero_is_ignored=True)
    return f"{line}; if 0, with {share(0, pixels)} of the pixels, is unlabelled, {shifted}."


# ---- colours -----------------------------------------------------------------------------------


def listed_colours(colours: Sequence[list]) -> str:
    """Colours as text: the first SHOWN of them, and how many there are."""
    more = f" and {len(colours) - SHOWN} more" if len(colours) > SHOWN else ""
    return f"the colours {str(list(colours[:SHOWN]))[1:-1]}{more}"


def colour_advice(colours: Sequence[list], rules: MaskRules) -> str:
    """What to write so that masks in these colours can be used, for every meaning of black."""
    others = [rgb for rgb in colours if rgb != BLACK]
    if len(others) < 2 or len(others) == len(colours):
        meaning, line = _palette(colours, rules)
        return f"If {meaning}, {line}.{_order_note(colours, rules)}"
    ignored = "black is unlabelled and {}, {}".format(*_palette(others, rules, [BLACK]))
    labelled = "black is a class and {}, {}".format(*_palette(colours, rules))
    readings = [ignored, labelled]
    if len(colours) == len(rules.names):
        readings.reverse()
    return "If {}; if {}.".format(*readings) + _order_note(others, rules)


def _order_note(colours, rules):
    """That the pairs of colours and given names are no finding; "" where there are none."""
    if not rules.names or len(colours) < 2:
        return ""
    return (
        " These pairs follow the numbers of the colours only: before you use them, bring the "
        "palette into the order of your names."
    )


def more_colours(unknown: Sequence[list], rules: MaskRules) -> str:
    """What to write so that masks can be used whose other colours are in the palette."""
    ignored = f"to ignore them, {rules.ignoring(unknown)}"
    palette, others = rules.entries["palette"], [rgb for rgb in unknown if rgb != BLACK]
    if any(rgb in palette for rgb in unknown):
        return f"Correct the palette in {rules.file}, or, {ignored}."
    readings = [f"If all of them are classes, {_longer(unknown, rules)}", ignored]
    if others and others != unknown:
        before = rules.entries.get("ignore", [])
        line = _longer(others, rules, ignore=[*before, BLACK])
        readings.insert(0, f"If black is unlabelled and the others are classes, {line}")
        readings[1] = f"i{readings[1][1:]}"
    return f"{'; '.join(readings)}."


def _longer(colours, rules, **entries):
    palette = [*rules.entries["palette"], *colours]
    return rules.naming(len(palette), palette=palette, **entries)


def _palette(colours, rules, ignore=()):
    """(which colour is which class, the line to write)."""
    count, entries = max(len(colours), len(rules.names)), {}
    if ignore:
        entries["ignore"] = [*rules.entries.get("ignore", []), *ignore]
    if rules.reading != "colours":  # black alone would be the id 0
        entries["masks"] = "colours"
    line = rules.naming(count, palette=filled(colours, count), **entries)
    names = rules.names or [f"class_{k}" for k in range(count)]
    pairs = [f'{rgb} is "{name}"' for rgb, name in zip(colours[:SHOWN], names)]
    more = " and so on" if len(colours) > len(pairs) else ""
    spare = count - len(colours)
    note = f" (no mask shows its last {counted(spare, 'colour')})" if spare else ""
    return f"{', '.join(pairs)}{more}", f"{line}{note}"
