"""Indexes that no search takes, or that get in each other's way."""

from sqlalchemy import TextClause, text


def select_bad_indexes() -> TextClause:
    """Indexes that were not built to the end, and vector indexes of which another one does the same.

    One that its own role builds now is not yet bad. Names are quoted, and have a schema where they need one.
    """
    return text(
        """
        with given as (
            select i.indexrelid, i.indrelid, cast(cast(i.indexrelid as regclass) as text) as name, i.indisvalid,
                a.amname, o.opcname, pg_get_indexdef(i.indexrelid, 1, true) as key
            from pg_index i
            join pg_class c on c.oid = i.indexrelid
            join pg_am a on a.oid = c.relam
            join pg_opclass o on o.oid = i.indclass[0]
            where i.indrelid in (cast('contexts' as regclass), cast('messages' as regclass))
                and (not i.indisvalid or (a.amname in ('hnsw', 'ivfflat') and i.indpred is null))
        )
        select 'invalid_index' as kind, cast(null as uuid) as context_id, cast(null as uuid) as message_id,
            name || ' was not built to the end' as detail
        from given
        where not indisvalid
            and not exists (select from pg_stat_progress_create_index p where p.index_relid = given.indexrelid)
        union all
        select 'repeated_index', null, null, string_agg(name, ', ' order by name) || ' all serve ' || opcname
        from given
        where indisvalid and amname in ('hnsw', 'ivfflat')
        group by indrelid, opcname, key
        having count(*) > 1
        """
    )
