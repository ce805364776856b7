"""Whether the images of a run are packed (`data.cache`), and what is said meanwhile."""

from collections.abc import Callable

from yogo_jax.config import DataConfig
from yogo_jax.data.pack import (
    CannotPackError,
    PackedImages,
    Tell,
    find_pack,
    make_pack,
    pack_bytes,
    room_for_packs,
)
from yogo_jax.data.records import Records
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.training.tracking import Tracker


# Of the free room, what "auto" takes at most.
_SHARE_OF_ROOM = 0.5


def open_pack(
    name: str,
    records: Records,
    spec: ModelSpec,
    data: DataConfig,
    tracker: Tracker,
    check: Callable[[], None],
) -> PackedImages | None:
    """The images of a split from a pack, made first if need be; None to decode them each time.

    "auto" packs what takes no more than half of the free room. Where that cannot be it decodes each
    time; so does "device", which reads the images of the training only once.

    Args:
      name: of the split.
      records: of the split.
      spec: says in which size and colours images are wanted.
      data: with `cache`.
      tracker: takes lines, and what is being done.
      check: called every few images; what it raises ends the packing.

    Raises:
      UserError: an image cannot be read, or cannot be packed where "disk" asks for it.
    """
    if data.cache == "none" or len(records) == 0:
        return None
    try:
        packed = find_pack(
            records.image_paths,
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            apply_orientation=spec.apply_orientation,
        )
        if packed.made:
            return packed
        needed, room = pack_bytes(len(records), spec.image_hw, rgb=spec.rgb), room_for_packs()
        if data.cache == "auto" and needed > _SHARE_OF_ROOM * room:
            raise CannotPackError(
                f"packed they take {needed / 2**30:.1f} GiB, and {room / 2**30:.1f} GiB are free "
                "(--config.data.cache=disk packs them, where YOGO_JAX_CACHE says)"
            )
        make_pack(
            packed,
            records.image_paths,
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            workers=data.workers,
            tell=_telling(name, tracker, check),
            apply_orientation=spec.apply_orientation,
        )
    except CannotPackError as error:
        if data.cache == "disk":
            raise
        tracker.say(f"images of {name} are decoded each time: {error}")
        return None
    return packed


def _telling(name: str, tracker: Tracker, check: Callable[[], None]) -> Tell:
    def tell(done: int, total: int) -> None:
        check()
        tracker.doing(f"packing images of {name}, {done} of {total}")

    return tell
