"""How much work the statements over lineages are, by rows and plans instead of times."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import CTE, Engine, Select, func, literal, select

from contextkit import LineageError, history_df, read_df, select_forks, select_history
from contextkit.literals import literal_sql
from contextkit.plans import plan_of
from contextkit.queries import select_families
from contextkit.queries.descent import descent_of, family_of, kin_of
from contextkit.queries.lineage import asked_of, lineage_of, stretches_of, text_of, written_of
from tests.forest import Forest, Node, Row


def chain(length: int, *, copies: bool = False, cyclic: bool = False) -> Forest:
    """Forks of forks, two messages further each; the first one the child of the last in a cycle."""
    nodes = []
    for place in range(length):
        parent = place - 1 if place else length - 1 if cyclic else None
        nodes.append(Node(place, parent, None if parent is None else 2 * place, None))
        for version in range(1 if copies else 2 * place + 1, 2 * place + 3):
            id_ = str(UUID(int=(place + 1) * 1000 + version))
            nodes[-1].rows[version] = Row(id_, place, version, "user", f"message {version}", 0, None)
    return Forest(nodes)


def lineage(*nodes: Node) -> CTE:
    return lineage_of(asked_of(literal(text_of(node.id for node in nodes)), None, include_deleted=True))


def count(engine: Engine, rows: CTE) -> int:
    return int(read_df(engine, select(func.count().label("rows")).select_from(rows))["rows"].iloc[0])


def test_a_lineage_has_one_row_per_ancestor(database_url: str, reader: Engine) -> None:
    forest = chain(30)
    forest.write(database_url)
    assert count(reader, lineage(forest.nodes[-1])) == 30
    assert count(reader, lineage(*forest.nodes)) == 30 * 31 / 2


def test_a_cycle_is_noticed_from_outside_of_it(database_url: str, reader: Engine) -> None:
    forest = chain(20)
    forest.nodes[0].parent, forest.nodes[0].fork_version = 3, 0
    forest.write(database_url)
    assert 20 < count(reader, lineage(forest.nodes[-1])) <= 3 * 20


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 30])
def test_a_cycle_is_noticed_before_the_third_turn_is_over(database_url: str, reader: Engine, length: int) -> None:
    forest = chain(length, cyclic=True)
    forest.write(database_url)
    for node in forest.nodes:
        assert length < count(reader, lineage(node)) <= 3 * length + 1


def test_a_cycle_is_told_by_one_turn(database_url: str, reader: Engine) -> None:
    forest = chain(5, cyclic=True)
    forest.write(database_url)
    turn = [forest.nodes[place].id for place in (2, 1, 0, 4, 3)]
    with pytest.raises(LineageError, match=f"form a cycle: {' -> '.join(turn)} and 1 more;"):
        history_df(reader, forest.nodes[2].id)


def test_the_fork_tree_takes_each_context_of_a_chain_once(database_url: str, reader: Engine) -> None:
    forest = chain(30)
    forest.write(database_url)
    asked = asked_of(literal(text_of([forest.nodes[-1].id, forest.nodes[9].id])), None, include_deleted=True)
    family = family_of(asked)
    assert count(reader, descent_of(kin_of(family, written_of(family)), include_deleted=False)) == 30


def test_nothing_is_read_of_ancestors_above_a_complete_copy(database_url: str, reader: Engine) -> None:
    forest = chain(4, copies=True)
    del forest.nodes[2].rows[3]  # the third one replaces only part of what it inherits
    forest.write(database_url)
    nodes = lineage(forest.nodes[-1])
    bounds = read_df(reader, select(stretches_of(nodes, written_of(nodes))).order_by("depth"))["bound"]
    assert bounds.tolist() == [2**63 - 1, 0, 0, 0]
    nodes = lineage(forest.nodes[2])
    bounds = read_df(reader, select(stretches_of(nodes, written_of(nodes))).order_by("depth"))["bound"]
    assert bounds.tolist() == [2**63 - 1, 4, 0]


STATEMENTS: dict[str, Callable[[Forest], Select[Any]]] = {
    "forks": lambda forest: select_forks(),
    "families": lambda forest: select_families(),
    "histories": lambda forest: select_history([node.id for node in forest.nodes]),
    "one history": lambda forest: select_history([forest.nodes[-1].id]),
}


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_part_without_an_index_is_read_once_per_row(
    database_url: str, engine: Engine, statement: str, analyzed: bool
) -> None:
    forest = chain(20, copies=True)
    forest.write(database_url)
    with engine.begin() as connection:
        if analyzed:
            connection.exec_driver_sql("analyze contexts, messages")
        # So that loops are taken wherever they can be, as they are with bad estimates.
        connection.exec_driver_sql("set local enable_hashjoin = off")
        connection.exec_driver_sql("set local enable_mergejoin = off")
        sql = literal_sql(connection, STATEMENTS[statement](forest))
        assert sql is not None
        plan = plan_of(connection, sql)
    repeated = [node for parent in nodes_of(plan) for node in parent.get("Plans", []) if is_repeated(parent, node)]
    assert not [node["CTE Name"] for part in repeated for node in nodes_of(part) if node["Node Type"] == "CTE Scan"]


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan, but for those of single values, which are read once wherever they stand."""
    yield plan
    for child in plan.get("Plans", []):
        if child["Parent Relationship"] != "InitPlan" or "CTE" in child["Subplan Name"]:
            yield from nodes_of(child)


def is_repeated(parent: dict[str, Any], node: dict[str, Any]) -> bool:
    inner = parent["Node Type"] == "Nested Loop" and node["Parent Relationship"] == "Inner"
    return inner or node["Parent Relationship"] == "SubPlan"
