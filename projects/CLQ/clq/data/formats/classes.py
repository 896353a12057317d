"""The choice of classes by name (``DATASETS.CLASSES``)."""

import difflib
from collections import Counter
from collections.abc import Sequence

from clq.data.formats.findings import Findings
from clq.data.formats.values import integer, is_id
from clq.errors import UserError

_SHOWN = 20  # names in a message


def choose_classes(data: dict, classes: Sequence[str], findings: Findings, *, listed: bool = True) -> dict:
    """Leaves the annotations of other classes out, and puts the classes in order.

    The outputs of a model are in the order of the category ids. These stay as they are if the chosen classes are in
    their order; otherwise the classes are numbered from 1 on.

    Args:
        data: content of a COCO json, with categories that have been checked. It is not changed.
        classes: names of the classes; all if empty.
        findings: receives what is found.
        listed: whether the data set has a list of its classes. One without it may lack classes without objects.

    Returns:
        The content. Annotations without a usable category id are left to the checks.

    Raises:
        UserError: a class does not exist, or two classes have its name.
    """
    if not classes:
        return data
    by_name = {c["name"]: integer(c["id"]) for c in data["categories"]}
    twice = [name for name, n in Counter(c["name"] for c in data["categories"]).items() if n > 1 and name in classes]
    if twice:
        raise UserError(f"data set {findings.name}: two classes are called {twice[0]}, which is in DATASETS.CLASSES.")
    for name in (name for name in classes if name not in by_name):
        near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        has = f"{hint}It has {', '.join(list(by_name)[:_SHOWN])}"
        if listed:
            raise UserError(f"data set {findings.name}: it has no class {name}, which is in DATASETS.CLASSES; {has}.")
        findings.note("classes in DATASETS.CLASSES have no object", f"{name}; {has}")
    ids = [by_name.get(name) for name in classes]
    usable = None not in ids and ids == sorted(ids, key=lambda i: (isinstance(i, str), i))
    new = {by_name.get(name, name): ids[i] if usable else i + 1 for i, name in enumerate(classes)}
    categories = [{"id": i, "name": name} for i, name in zip(new.values(), classes, strict=True)]
    if not isinstance(data.get("annotations"), list):
        return {**data, "categories": categories}
    gone = {i for i in by_name.values() if i not in new}
    annotations = []
    for a in data["annotations"]:
        given = a.get("category_id") if isinstance(a, dict) else None
        category = integer(given) if is_id(given) else None
        if category not in gone:
            known = category is not None and category in new
            annotations.append({**a, "category_id": new[category]} if known and not usable else a)
    return {**data, "categories": categories, "annotations": annotations}
