"""Every SELECT, as a function that builds a statement and never runs it."""

from contextkit.queries.columns import Condition as Condition
from contextkit.queries.embed import lock_free_contexts as lock_free_contexts
from contextkit.queries.embed import lock_messages as lock_messages
from contextkit.queries.embed import select_missing as select_missing
from contextkit.queries.forks import select_families as select_families
from contextkit.queries.forks import select_forks as select_forks
from contextkit.queries.history import history_parameters as history_parameters
from contextkit.queries.history import history_template as history_template
from contextkit.queries.history import select_history as select_history
from contextkit.queries.history import select_lineage_state as select_lineage_state
from contextkit.queries.history import select_renumbered as select_renumbered
from contextkit.queries.neighbors import OPERATORS as OPERATORS
from contextkit.queries.neighbors import Distance as Distance
from contextkit.queries.neighbors import select_embeddings as select_embeddings
from contextkit.queries.neighbors import select_neighbors as select_neighbors
from contextkit.queries.neighbors import select_neighbors_of_many as select_neighbors_of_many
from contextkit.queries.rows import after_message as after_message
from contextkit.queries.rows import lock_contexts as lock_contexts
from contextkit.queries.rows import select_contexts as select_contexts
from contextkit.queries.rows import select_embedding_dimensions as select_embedding_dimensions
from contextkit.queries.rows import select_end as select_end
from contextkit.queries.rows import select_messages as select_messages
from contextkit.queries.rows import select_owners as select_owners
from contextkit.queries.rows import select_places as select_places
from contextkit.queries.rows import select_row_counts as select_row_counts
from contextkit.queries.rows import select_tips as select_tips
