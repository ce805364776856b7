"""Names that stand beside those of the classes."""

from collections.abc import Sequence


def name_beside(class_names: Sequence[str], name: str) -> str:
    """The name of a row or column beside those of the classes, such as a total.

    Stars are put behind it until no class has the name.
    """
    while name in class_names:
        name += "*"
    return name
