"""Where each context of a fork tree is drawn: a lane each, parents above their forks."""

from collections import defaultdict

import pandas as pd


def with_lanes(forks: pd.DataFrame) -> pd.DataFrame:
    """The frame in the order of its trees, with where each context is drawn.

    Args:
        forks: from `forks_df`: context_id, parent_id, fork_version, depth, written_by, length.

    Returns:
        The columns given, lane (from 0), parent_lane (null where the parent is not in the frame), starts_at and
        ends_at. These count messages from the root on, as versions do, but go on where a renumbered fork begins again
        at 1. A context is at least as long as its forks need.
    """
    order, parents = _ordered(forks)
    frame = forks.iloc[order].reset_index(drop=True)
    lanes = {place: lane for lane, place in enumerate(order)}
    above = [parents[place] for place in order]
    frame["lane"] = range(len(frame))
    frame["parent_lane"] = pd.array([None if up is None else lanes[up] for up in above], dtype="Int64")
    return frame.assign(**_extents(frame))


def _ordered(forks: pd.DataFrame) -> tuple[list[int], list[int | None]]:
    """Rows with parents before their forks, and each row's parent; in a cycle of parents nobody has one."""
    places = {context_id: place for place, context_id in enumerate(forks["context_id"])}
    known = forks["depth"].notna() & forks["fork_version"].notna()
    parents = [places.get(id_) if inherits else None for id_, inherits in zip(forks["parent_id"], known, strict=True)]
    versions = forks["fork_version"].fillna(0).tolist()
    children: defaultdict[int | None, list[int]] = defaultdict(list)
    for place, parent in enumerate(parents):
        children[parent].append(place)
    order: list[int] = []
    waiting = children[None][::-1]
    while waiting:
        place = waiting.pop()
        order.append(place)
        # The last to part comes nearest, so that no line crosses another.
        waiting += sorted(children[place], key=lambda child: (versions[child], -child))
    return order, parents


def _extents(frame: pd.DataFrame) -> dict[str, list[int]]:
    starts: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    """How many messages come before a context's version 1."""
    columns = [frame[name] for name in ("parent_lane", "fork_version", "written_by", "length")]
    nullable = (column.astype(object).where(column.notna(), None) for column in columns)
    for parent, version, written_by, length in zip(*nullable, strict=True):
        offset = 0 if parent is None else before[parent]
        start = offset + (version or 0)
        starts.append(start)
        ends.append(max(start, length or 0))
        before.append(start if written_by == "renumbered" else offset)
        if parent is not None:
            ends[parent] = max(ends[parent], start)
    return {"starts_at": starts, "ends_at": ends}
