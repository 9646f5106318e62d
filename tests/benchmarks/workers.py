"""Words of each context's messages, counted by Dask in two processes beside one, and by pandas here.

All give the same numbers. What a worker opens stays open between the rounds.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pandas as pd
from dask.distributed import Client, LocalCluster
from sqlalchemy import Engine

from contextkit import messages_df
from contextkit.distributed import messages_dask
from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Measure, compared, in_turns

ROWS, PARTITIONS = 100_000, 8
ONE, PANDAS = "one process", "messages_df and pandas"


def measure(ground: Ground) -> Iterator[Measure]:
    engine = ground.sample(ROWS).engine
    with ExitStack() as stack:
        two, one = (stack.enter_context(_client(processes)) for processes in (2, 1))
        calls = {"contextkit": partial(_by_dask, engine, two), ONE: partial(_by_dask, engine, one)}
        calls[PANDAS] = partial(_by_pandas, engine)
        for call in calls.values():
            pd.testing.assert_series_equal(call(), _by_pandas(engine), check_dtype=False, check_names=False)
        seconds = in_turns(calls)
    case = f"messages_dask, {PARTITIONS} partitions of {ROWS:,} messages, two processes"
    yield from compared(case, seconds, {ONE: 1, PANDAS: None})


@contextmanager
def _client(processes: int) -> Iterator[Client]:
    places = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=processes, threads_per_worker=1, **places) as cluster, Client(cluster) as client:
        yield client


def _by_dask(engine: Engine, client: Client) -> "pd.Series[int]":
    with client.as_current():
        return messages_dask(engine, PARTITIONS).map_partitions(_words).compute().sort_index()


def _by_pandas(engine: Engine) -> "pd.Series[int]":
    return _words(messages_df(engine))


def _words(messages: pd.DataFrame) -> "pd.Series[int]":
    return messages["content"].str.split().str.len().groupby(messages["context_id"].to_numpy()).sum()
