"""The loads whose memory and growth are measured, each on a database of a given size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from sqlalchemy import Engine

from contextkit import contexts_df, forks_df, history_df, messages_df
from tests.benchmarks.ground import Database, Ground


@dataclass(frozen=True)
class Load:
    """`prepared` gives the load alone; `rows` are contexts in a forest, or else messages in a sample."""

    prepared: Callable[[Engine], Callable[[], pd.DataFrame]]
    forest: bool = False

    def database(self, ground: Ground, rows: int) -> Database:
        return ground.forest(rows) if self.forest else ground.sample(rows)


def _histories(engine: Engine) -> Callable[[], pd.DataFrame]:
    return partial(history_df, engine, contexts_df(engine)["context_id"])


LOADS = {
    "messages_df": Load(lambda engine: partial(messages_df, engine)),
    "messages_df with embeddings": Load(lambda engine: partial(messages_df, engine, embeddings=True)),
    "history_df of all contexts": Load(_histories),
    "contexts_df": Load(lambda engine: partial(contexts_df, engine), forest=True),
    "forks_df": Load(lambda engine: partial(forks_df, engine), forest=True),
    "history_df of all contexts, half of them forks": Load(_histories, forest=True),
}
