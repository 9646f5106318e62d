"""Random forests of contexts, and what they mean: the design's H(c, n, t) read off in plain Python."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
from hypothesis import strategies as st

START = datetime(2026, 1, 1, tzinfo=UTC)
END = 10**9


def instant(second: int) -> datetime:
    return START + timedelta(seconds=second)


@dataclass(frozen=True)
class Row:
    id: str
    context: int
    version: int
    role: str
    content: str
    created: int
    deleted: int | None

    def is_gone(self, second: int | None) -> bool:
        return self.deleted is not None and (second is None or self.deleted <= second)


@dataclass
class Node:
    place: int
    parent: int | None
    fork_version: int | None
    deleted: int | None
    rows: dict[int, Row] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(UUID(int=self.place + 1))

    @property
    def is_fork(self) -> bool:
        return self.parent is not None and self.fork_version is not None


class Forest:
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.nodes))

    def parent(self, node: Node) -> Node:
        assert node.parent is not None
        return self.nodes[node.parent]

    def lineage(self, node: Node) -> list[Node] | None:
        """The node and its ancestors, None if they form a cycle."""
        found = [node]
        while found[-1].is_fork:
            above = self.parent(found[-1])
            if above in found:
                return None
            found.append(above)
        return found

    def inherited_row(self, node: Node, version: int) -> Row | None:
        seen: list[int] = []
        while node.is_fork and version <= node.fork_version and node.place not in seen:
            seen.append(node.place)
            node = self.parent(node)
            if version in node.rows:
                return node.rows[version]
        return None

    def is_renumbered(self, node: Node) -> bool:
        version = node.fork_version
        if not node.is_fork or version < 1 or 1 not in node.rows:
            return False
        first, last = self.inherited_row(node, 1), self.inherited_row(node, version)
        if version not in node.rows and last is not None:
            return True
        return first is not None and not same(node.rows[1], first) and not same(node.rows.get(version), last)

    def written_by(self, node: Node) -> str:
        if not node.is_fork:
            return "root"
        if self.is_renumbered(node):
            return "renumbered"
        return "copy" if any(version <= node.fork_version for version in node.rows) else "reference"

    def stretches(self, node: Node, bound: int, second: int) -> list[dict[int, Row]]:
        own = {v: row for v, row in node.rows.items() if v <= bound and row.created <= second}
        if not node.is_fork:
            return [own]
        if self.is_renumbered(node):
            return [*self.stretches(self.parent(node), node.fork_version, second), own]
        *before, last = self.stretches(self.parent(node), min(node.fork_version, bound), second)
        return [*before, last | own]

    def history(
        self, node: Node, at_version: int | None, second: int | None, *, include_deleted: bool
    ) -> Iterator[Row]:
        bound = END if at_version is None else at_version
        for stretch in self.stretches(node, bound, END if second is None else second):
            for _, row in sorted(stretch.items()):
                if include_deleted or not row.is_gone(second):
                    yield row

    def is_asked_in_vain(self, node: Node, second: int | None, *, include_deleted: bool) -> bool:
        gone = node.deleted is not None and (second is None or node.deleted <= second)
        return gone and not include_deleted

    def write(self, url: str) -> None:
        """Replace everything in a database by this forest."""
        with psycopg.connect(url, prepare_threshold=None) as connection, connection.cursor() as cursor:
            cursor.execute("delete from messages")
            cursor.execute("delete from contexts")
            cursor.executemany(
                "insert into contexts (id, fork_version, deleted_at, created_at) values (%s, %s, %s, %s)",
                [
                    (n.id, n.fork_version, None if n.deleted is None else instant(n.deleted), instant(n.place))
                    for n in self.nodes
                ],
            )
            cursor.executemany(
                "update contexts set parent_id = %s where id = %s",
                [(self.parent(n).id, n.id) for n in self.nodes if n.parent is not None],
            )
            cursor.executemany(
                "insert into messages (id, context_id, version, role, content, token_count, created_at, deleted_at)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    (
                        row.id,
                        n.id,
                        row.version,
                        row.role,
                        row.content,
                        row.version,
                        instant(row.created),
                        None if row.deleted is None else instant(row.deleted),
                    )
                    for n in self.nodes
                    for row in n.rows.values()
                ],
            )


def same(own: Row | None, inherited: Row | None) -> bool:
    return own is not None and inherited is not None and (own.role, own.content) == (inherited.role, inherited.content)


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    size = draw(st.integers(1, 6))
    nodes = [_node(draw, place, size) for place in range(size)]
    forest = Forest(nodes)
    for node in nodes:
        for version in _versions(draw, node):
            inherited = forest.inherited_row(node, version)
            copied = inherited is not None and draw(st.integers(0, 3)) > 0
            role, content = (inherited.role, inherited.content) if copied else _words(draw)
            created = draw(st.integers(0, 9))
            deleted = draw(st.none() | st.none() | st.integers(created, 12))
            id_ = str(UUID(int=(node.place + 1) * 1000 + version))
            node.rows[version] = Row(id_, node.place, version, role, content, created, deleted)
    return forest


def _node(draw: st.DrawFn, place: int, size: int) -> Node:
    # Mostly parents that came before; now and then any, which makes cycles, or half a fork, which inherits nothing.
    earlier = st.integers(0, place - 1) if place else st.none()
    parent = draw(st.one_of(earlier, earlier, earlier, earlier, st.none(), st.integers(0, size - 1)))
    version = draw(st.one_of(*[st.integers(0, 6)] * 9, st.none())) if parent is not None else None
    orphaned = parent is not None and draw(st.integers(0, 15)) == 0
    deleted = draw(st.one_of(*[st.none()] * 5, st.integers(0, 12)))
    return Node(place, None if orphaned else parent, version, deleted)


def _versions(draw: st.DrawFn, node: Node) -> list[int]:
    """Versions of a root, or of a fork written in one of the ways, or of no way at all."""
    start = node.fork_version or 0
    own = range(start + 1, start + 1 + draw(st.integers(0, 4)))
    if not node.is_fork:
        versions = list(range(1, 1 + draw(st.integers(0, 7))))
    else:
        way = draw(st.sampled_from(["reference", "copy", "copy", "renumbered", "any"]))
        if way == "reference":
            versions = list(own)
        elif way == "copy":
            versions = [*range(1, start + 1), *own]
        elif way == "renumbered":
            versions = list(range(1, 1 + draw(st.integers(1, 7))))
        else:
            versions = draw(st.lists(st.integers(1, 8), unique=True).map(sorted))
    gaps = draw(st.sets(st.integers(1, 8), max_size=2)) if draw(st.booleans()) else set()
    return [version for version in versions if version not in gaps]


def _words(draw: st.DrawFn) -> tuple[str, str]:
    return draw(st.sampled_from(["user", "assistant"])), draw(st.sampled_from(["a", "b", "c"]))
