"""Fields that were once called otherwise: files and checkpoints with their old names are read."""

from collections.abc import Callable, Mapping
from typing import Any

from yogo_jax.config.fields import with_fields


# New dotted names by old ones; a field stays in its group.
RENAMED = {
    "loss.usual_objects": "loss.reference_count",
    "loss.by_fullness": "loss.reference_count_from_data",
    "augment.closed_epochs": "augment.epochs_without_paste",
}


def with_current_names(
    values: Mapping[str, Any], say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """A copy of the values of a config, with today's names of fields.

    Args:
      values: nested, or by dotted name. A value under an old name goes before one under the new.
      say: takes one line for each old name that is used.
    """
    result = with_fields(values, {})
    for old, new in RENAMED.items():
        group, _, old_name = old.rpartition(".")
        inner = result.get(group), old_name, new.rpartition(".")[2]
        for place, old_key, new_key in ((result, old, new), inner):
            if isinstance(place, dict) and old_key in place:
                place[new_key] = place.pop(old_key)
                if say is not None:
                    say(f"config.{old} is now called config.{new}; the old name is still read")
    return result
