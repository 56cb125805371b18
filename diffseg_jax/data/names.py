"""Names of files and texts that list them, whatever file systems and editors made of them."""

import codecs
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

MARKS = {  # byte order mark -> encoding; that of UTF-32 begins as that of UTF-16 does
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(file: Path, errors: str = "strict") -> str:
    """The text of a file that a person wrote: UTF-8 or UTF-16, with a byte order mark or without.

    errors  "surrogateescape" keeps other bytes as names of files keep them
    """
    content = file.read_bytes()
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding)
    if 0 in content[:2]:
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be")
    return content.decode("utf-8", errors)


def folded(name: str) -> str:
    """The name without what differs between systems for the same file.

    That is: the form of accents (NFC on Windows and Linux, NFD on old Macs), upper and lower case,
    spaces around it, and the encoding, where bytes that are not UTF-8 count as Latin-1.
    """
    text = "".join(chr(ord(c) - 0xDC00) if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)
    return unicodedata.normalize("NFC", text.strip()).casefold()


def partners(wanted: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """{name: the known name that is the same} of those that have one.

    An equal name counts first; else the only one that is equal when folded, if nothing else wants
    it.
    """
    found = {name: name for name in wanted if name in known}
    seekers, free = defaultdict(list), defaultdict(list)
    for name in sorted(set(wanted) - found.keys()):
        seekers[folded(name)].append(name)
    for name in sorted(set(known) - found.keys()) if seekers else ():
        free[folded(name)].append(name)
    pairs = ((names, free.get(key, [])) for key, names in seekers.items())
    return found | {a[0]: b[0] for a, b in pairs if len(a) == len(b) == 1}


def digest_of(names: Iterable[str]) -> str:
    """The SHA-256 of names, one per line; bytes that are no text are escaped."""
    lines = "".join(f"{name}\n" for name in names)
    return hashlib.sha256(lines.encode(errors="backslashreplace")).hexdigest()
