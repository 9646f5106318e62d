"""Another library as a process: a request as a line of JSON in, its figures as a line of JSON out.

`python peer.py NAME URL QUERIES`, in the environment that has the peers; ends with its input.
"""

import json
import sys
import time
import uuid
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

M, EF_CONSTRUCTION = 16, 64


class Vecs:
    """Vectors in `vecs.messages`, what is said in their metadata."""

    def __init__(self, url: str, dimensions: int) -> None:
        import vecs

        self.vecs = vecs
        self.client = vecs.create_client(url.replace("postgresql:", "postgresql+psycopg2:"))
        self.collection = self.client.get_or_create_collection(name="messages", dimension=dimensions)

    def fill(self) -> None:
        from sqlalchemy import text

        with self.client.Session() as session, session.begin():
            session.execute(
                text(
                    "insert into vecs.messages (id, vec, metadata)"
                    " select id::text, embedding, jsonb_build_object('content', content) from messages"
                )
            )

    def index(self) -> None:
        self.collection.create_index(
            measure=self.vecs.IndexMeasure.cosine_distance,
            method=self.vecs.IndexMethod.hnsw,
            index_arguments=self.vecs.IndexArgsHNSW(m=M, ef_construction=EF_CONSTRUCTION),
        )

    def search(self, vector: list[float], k: int, ef_search: int) -> list[str]:
        records = self.collection.query(
            data=vector, limit=k, include_value=True, include_metadata=True, ef_search=ef_search
        )
        return [record[0] for record in records]

    def append(self, contents: list[str], vectors: list[list[float]]) -> None:
        metadata = [{"content": content} for content in contents]
        ids = [str(uuid.uuid4()) for _ in contents]
        self.collection.upsert(records=list(zip(ids, vectors, metadata, strict=True)))


class LangChain:
    """Documents in a table of `PGVectorStore`."""

    def __init__(self, url: str, dimensions: int) -> None:
        from langchain_core.embeddings import DeterministicFakeEmbedding
        from langchain_postgres import PGEngine, PGVectorStore
        from langchain_postgres.v2.indexes import HNSWQueryOptions

        self.engine = PGEngine.from_connection_string(url.replace("postgresql:", "postgresql+asyncpg:"))
        self.engine.init_vectorstore_table("langchain", vector_size=dimensions)
        # Vectors are given everywhere, so this embeds nothing.
        embedder = DeterministicFakeEmbedding(size=dimensions)

        @cache
        def store(ef_search: int = 40) -> Any:
            options = HNSWQueryOptions(ef_search=ef_search)
            return PGVectorStore.create_sync(self.engine, embedder, "langchain", index_query_options=options)

        self.store = store

    def fill(self) -> None:
        from sqlalchemy import text

        async def fill() -> None:
            async with self.engine._pool.begin() as connection:
                await connection.execute(
                    text(
                        "insert into langchain (langchain_id, content, embedding, langchain_metadata)"
                        " select id, content, embedding, '{}' from messages"
                    )
                )

        self.engine._run_as_sync(fill())

    def index(self) -> None:
        from langchain_postgres.v2.indexes import HNSWIndex

        self.store().apply_vector_index(HNSWIndex(m=M, ef_construction=EF_CONSTRUCTION))

    def search(self, vector: list[float], k: int, ef_search: int) -> list[str]:
        found = self.store(ef_search).similarity_search_with_score_by_vector(vector, k=k)
        return [str(document.id) for document, _ in found]

    def append(self, contents: list[str], vectors: list[list[float]]) -> None:
        self.store().add_embeddings(contents, vectors)


PEERS: dict[str, Any] = {"vecs": Vecs, "langchain-postgres": LangChain}


def answer(peer: Any, queries: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The seconds that a request takes and, of a search, the ids found."""
    call, found = getattr(peer, request["do"]), None
    if request["do"] == "search":
        vector = queries[request["row"]].tolist()
        start = time.perf_counter()
        found = call(vector, request["k"], request["ef_search"])
    elif request["do"] == "append":
        contents = [f"message {number}" for number in range(request["count"])]
        vectors = queries[: len(contents)].tolist()
        start = time.perf_counter()
        call(contents, vectors)
    else:
        start = time.perf_counter()
        call()
    return {"seconds": time.perf_counter() - start, "found": found}


def main(name: str, url: str, path: str) -> None:
    queries = np.load(path)
    peer = PEERS[name](url, queries.shape[1])
    print(json.dumps({"version": version(name)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(peer, queries, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
