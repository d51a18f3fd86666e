//! Everything that is asked of the server once the tables are there.

use super::schema::Tables;

/// How long a load may take and still be stored where nothing was.
const FENCE_LIFE: &str = "interval '10 minutes'";
/// How long what is dead stays: longer than any fence that was read before it died, and a minute for clocks that are
/// set back and statements that take their time.
const DEAD_LIFE: &str = "interval '11 minutes'";
/// Longer than any entry lives. A stamp that was forgotten comes back as another, and what depended on it is a
/// miss.
const STAMP_LIFE: &str = "interval '31 days'";
/// A stamp that was not noted as used for so long is noted when it is next read.
const STAMP_IS_DUE: &str = "interval '1 day'";

/// Everything that is asked of the server, each prepared once on each connection that asks it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Query {
    Read,
    Peek,
    MakeGeneration,
    MakeStamps,
    Put,
    PutAbsent,
    PutPresent,
    Remove,
    RemoveStamps,
    ExpireStamps,
    PurgeEntries,
    PurgeStamps,
    Ping,
    Notify,
}

impl Query {
    pub(super) const COUNT: usize = Self::Notify as usize + 1;

    /// The time of every statement is the time at which it came in: one that had to wait for a lock errs to the
    /// short side.
    pub(super) fn sql(self, tables: &Tables) -> String {
        let (entries, stamps, versions) = (tables.entries(), tables.stamps(), tables.versions());
        let now = "statement_timestamp()";
        // Lives are given in microseconds.
        let bytes = match self {
            Self::Peek => "CASE WHEN e.bytes IS NOT NULL THEN ''::bytea END",
            _ => "e.bytes",
        };
        let expires = format!("{now} + $4::bigint * interval '1 microsecond'");
        match self {
            // The generation is looked up only for the sake of an entry that is not there.
            // Bytes that are not asked for are not fetched from where the server keeps large ones.
            Self::Read | Self::Peek => format!(
                "SELECT false, n.place, coalesce(e.fence, (SELECT g.fence FROM {entries} g WHERE g.name = '')),
                        e.name IS NOT NULL, {now}, e.expires,
                        CASE WHEN e.expires > {now} THEN {bytes} END, NULL::bigint, NULL::bigint
                 FROM unnest($1::text[]) WITH ORDINALITY AS n(name, place)
                 LEFT JOIN {entries} e ON e.name = n.name
                 UNION ALL
                 SELECT true, n.place, NULL, s.used > {now} - {STAMP_IS_DUE}, {now}, NULL, NULL, s.removed, s.expired
                 FROM unnest($2::text[]) WITH ORDINALITY AS n(name, place)
                 LEFT JOIN {stamps} s ON s.name = n.name"
            ),
            // An update that changes nothing, because only what is written is returned.
            Self::MakeGeneration => format!(
                "INSERT INTO {entries} AS e (name, fence, bytes, expires) VALUES ('', $1, NULL, 'infinity')
                 ON CONFLICT (name) DO UPDATE SET fence = e.fence RETURNING e.fence"
            ),
            Self::MakeStamps => format!(
                "INSERT INTO {stamps} AS s (name, removed, expired, used)
                 SELECT n.name, n.removed, n.expired, {now}
                 FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS n(name, removed, expired)
                 ON CONFLICT (name) DO UPDATE SET used = excluded.used RETURNING s.name, s.removed, s.expired"
            ),
            Self::Put => format!(
                "INSERT INTO {entries} (name, fence, bytes, expires) VALUES ($1, $2, $3, {expires})
                 ON CONFLICT (name) DO UPDATE
                 SET fence = excluded.fence, bytes = excluded.bytes, expires = excluded.expires"
            ),
            Self::PutAbsent => format!(
                "INSERT INTO {entries} (name, fence, bytes, expires)
                 SELECT $1::text, $2::uuid, $3::bytea, {expires}
                 WHERE EXISTS (SELECT FROM {entries} g WHERE g.name = '' AND g.fence = $5::uuid)
                   AND $6::timestamptz BETWEEN {now} - {FENCE_LIFE} AND {now}
                 ON CONFLICT (name) DO NOTHING"
            ),
            Self::PutPresent => format!(
                "UPDATE {entries} SET fence = $2, bytes = $3, expires = {expires}
                 WHERE name = $1::text AND fence = $5::uuid"
            ),
            Self::Remove => format!(
                "INSERT INTO {entries} (name, fence, bytes, expires)
                 SELECT n.name, $2::uuid, NULL, {now} + $3::bigint * interval '1 microsecond'
                 FROM unnest($1::text[]) AS n(name)
                 ON CONFLICT (name) DO UPDATE
                 SET fence = excluded.fence, bytes = excluded.bytes, expires = excluded.expires"
            ),
            Self::RemoveStamps | Self::ExpireStamps => {
                let removed = if matches!(self, Self::RemoveStamps) { "removed = excluded.removed," } else { "" };
                format!(
                    "INSERT INTO {stamps} (name, removed, expired, used)
                     SELECT n.name, n.removed, n.expired, {now}
                     FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS n(name, removed, expired)
                     ON CONFLICT (name) DO UPDATE
                     SET {removed} expired = excluded.expired, used = excluded.used"
                )
            }
            Self::PurgeEntries => purge(&entries, "expires", DEAD_LIFE),
            Self::PurgeStamps => purge(&stamps, "used", STAMP_LIFE),
            Self::Ping => format!(
                "SELECT v.version, current_setting('transaction_read_only')::boolean,
                        (SELECT bool_and(has_table_privilege(t.name, p.privilege))
                         FROM (VALUES ('{entries}'), ('{stamps}')) AS t(name),
                              (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p(privilege))
                 FROM {versions} v"
            ),
            Self::Notify => "SELECT pg_notify($1::text, $2::text)".to_owned(),
        }
    }
}

/// Locks a batch without waiting for anybody, then deletes it.
fn purge(table: &str, column: &str, life: &str) -> String {
    format!(
        "WITH dead AS MATERIALIZED (
             SELECT name FROM {table} WHERE {column} < statement_timestamp() - {life}
             ORDER BY {column} LIMIT $1::bigint FOR UPDATE SKIP LOCKED
         )
         DELETE FROM {table} t USING dead WHERE t.name = dead.name"
    )
}
