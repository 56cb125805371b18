"""XML without a document type, so that no entity can grow or name another file."""

import re
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from diffseg_jax.errors import UserError

DEEPEST = 64  # elements within each other


class _Refused(ValueError):
    """What is wrong with a file, as the end of a sentence."""


def read_plain_xml(content: bytes, path) -> Element:
    """The root of an XML file; UserError if it is none, or has a document type."""
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag, attributes):
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise _Refused(f"has more than {DEEPEST} elements within each other")
        builder.start(tag, attributes)

    def end(tag):
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_):
        raise _Refused("has a document type (<!DOCTYPE ...>), which annotations have not")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except expat.ExpatError as error:
        reason = f"is no whole XML ({error})"
    except _Refused as error:
        reason = str(error)
    except (ValueError, LookupError) as error:  # encodings that Python does not know
        reason = f"is no whole XML ({error})"
    raise UserError(f"cannot read {path}: it {reason}. Export the labels again.")


def looks_like_xml(content: bytes) -> bool:
    """Whether a file begins as XML does."""
    return bool(re.match(rb"(\xef\xbb\xbf)?\s*<[?!\w]", content[:64]))
