"""The content of a Pascal VOC xml file, which nobody vouches for: defusedxml refuses entities, and size is limited."""

from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from clq.data.formats.files import finite, read_small
from clq.data.formats.findings import shown
from clq.data.formats.values import LARGEST_SIDE
from clq.errors import reason_of

_SIDES = "xmin", "ymin", "xmax", "ymax"


class XmlError(Exception):
    """An xml file cannot be used; the message is the reason, in words that follow its name."""


@dataclass
class Xml:
    """Content of an xml file.

    Attributes:
        filename: name of the image; empty if it is not given.
        size: (width, height) of the image; None if it is not given, or 0 as some tools write it.
        objects: the objects.
    """

    filename: str
    size: tuple[int, int] | None
    objects: list[Element] = field(default_factory=list)


def read_xml(path: str) -> Xml:
    """Reads an xml file.

    Raises:
        XmlError: it cannot be read, is no xml or not that of Pascal VOC, declares entities, or is too large.
    """
    try:
        root = fromstring(read_small(path))
    except DefusedXmlException as e:
        raise XmlError(f"is refused, because it declares entities ({type(e).__name__}); remove them") from e
    except (ParseError, OSError, ValueError, LookupError, RecursionError, MemoryError) as e:
        raise XmlError(f"cannot be read as xml ({reason_of(e)}); write it again") from e
    if root.tag != "annotation":
        raise XmlError(f"has the element {shown(root.tag)} in place of annotation, with which Pascal VOC xml begins")
    width, height = (_read_side(root, key) for key in ("width", "height"))
    filename = (root.findtext("filename") or "").strip()
    return Xml(filename, (width, height) if width and height else None, root.findall("object"))


def _read_side(root: Element, key: str) -> int:
    text = (root.findtext(f"size/{key}") or "").strip()
    value = finite(text or "0")
    if value is None or value != int(value) or not 0 <= value <= LARGEST_SIDE:
        raise XmlError(f"has {key} {shown(text)} in its size; it must be a number of pixels")
    return int(value)


def name_of(element: Element) -> str:
    """The name of the class of an object; empty if it has none."""
    return (element.findtext("name") or "").strip()


def read_box(element: Element) -> list[float] | str:
    """Reads the box of an object, whose coordinates count pixels from 1 and include both ends.

    Returns:
        [x, y, width, height] in pixels; or what is wrong, in words that follow the name of the object.
    """
    box = element.find("bndbox")
    if box is None:
        return "has no bndbox"
    values: list[float] = []
    for side in _SIDES:
        value = finite(text := box.findtext(side))
        if value is None or abs(value) > LARGEST_SIDE:
            what = f"has no {side}" if text is None else f"has {side} {shown(text.strip())}"
            return f"{what}; it must be a coordinate in pixels"
        values.append(value)
    left, top, right, bottom = values
    if right < left or bottom < top:
        return f"has a box from {left:g}, {top:g} to {right:g}, {bottom:g} (x, y), which ends before it begins"
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]
