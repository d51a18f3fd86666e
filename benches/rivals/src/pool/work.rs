//! What the callers do: in the manner of pgbench, with fewer rows and no more than one process.

use anyhow::Result;

use super::peers::Session;

const BRANCHES: i64 = 10;
const TELLERS: i64 = 10 * BRANCHES;
const ACCOUNTS: i64 = 10_000 * BRANCHES;
/// One call in so many is a report.
const REPORTS: u32 = 100;

pub(super) const SCHEMA: &str = "
    create table branches (id bigint primary key, balance bigint not null) with (fillfactor = 50);
    create table tellers (id bigint primary key, balance bigint not null) with (fillfactor = 50);
    create table accounts (id bigint primary key, balance bigint not null, filler text not null) \
        with (fillfactor = 80);
    create table history (teller bigint, branch bigint, account bigint, amount bigint, at timestamptz);
    insert into branches select id, 0 from generate_series(1, 10) as id;
    insert into tellers select id, 0 from generate_series(1, 100) as id;
    insert into accounts select id, 0, repeat('x', 84) from generate_series(1, 100000) as id;
    create role app login;
    grant select, insert, update on branches, tellers, accounts, history to app";

/// Every round begins with the same tables.
pub(super) const TIDY: [&str; 3] = ["truncate history", "vacuum analyze", "checkpoint"];

/// Every statement of every workload. Parameters are all of type `bigint`.
#[derive(Clone, Copy)]
pub(super) enum Sql {
    Balance,
    Report,
    Short,
    UpdateAccount,
    UpdateTeller,
    UpdateBranch,
    AddHistory,
    Own,
    Owner,
}

impl Sql {
    pub(super) const ALL: [Self; 9] = [
        Self::Balance,
        Self::Report,
        Self::Short,
        Self::UpdateAccount,
        Self::UpdateTeller,
        Self::UpdateBranch,
        Self::AddHistory,
        Self::Own,
        Self::Owner,
    ];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Balance => "select balance from accounts where id = $1",
            Self::Report => "select pg_sleep(0.2)",
            Self::Short => "select pg_sleep(0.002)",
            Self::UpdateAccount => "update accounts set balance = balance + $2 where id = $1",
            Self::UpdateTeller => "update tellers set balance = balance + $2 where id = $1",
            Self::UpdateBranch => "update branches set balance = balance + $2 where id = $1",
            Self::AddHistory => {
                "insert into history (teller, branch, account, amount, at) values ($1, $2, $3, $4, now())"
            }
            Self::Own => "select set_config('bench.owner', ($1::bigint)::text, true)",
            Self::Owner => "select coalesce(current_setting('bench.owner', true), '')",
        }
    }
}

/// One call is a query or a transaction.
#[derive(Clone, Copy)]
pub(super) enum Workload {
    /// A row by its key: the processor is all that counts.
    Select,
    /// A transfer: three rows are updated, of which one is one of ten that everybody wants, and the commit waits for
    /// the disk.
    TpcB,
    /// The same as `Select`, and one in a hundred waits for 200 ms for something else than the processor, as a report
    /// does for a disk or another server. Few connections are soon all taken by those.
    Reports,
    /// 2 ms that are nobody's work, so that connections are all that is short.
    Short,
}

impl Workload {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::TpcB => "tpcb",
            Self::Reports => "reports",
            Self::Short => "short",
        }
    }

    /// Which percentile, as a share, is the 99th of the calls that are no reports. A report takes 200 ms in any case; the
    /// 99th of all, where one in a hundred is a report, is one or none by chance.
    pub(super) fn tail(self) -> f64 {
        match self {
            Self::Reports => 0.99 * (1.0 - 1.0 / f64::from(REPORTS)),
            Self::Select | Self::TpcB | Self::Short => 0.99,
        }
    }

    pub(super) async fn call(self, session: &mut impl Session, random: &mut fastrand::Rng) -> Result<()> {
        match self {
            Self::Select => select(session, random).await,
            Self::TpcB => transfer(session, random).await,
            Self::Reports if random.u32(..REPORTS) == 0 => {
                session.query(Sql::Report, &[]).await?;
                Ok(())
            }
            Self::Reports => select(session, random).await,
            Self::Short => {
                session.query(Sql::Short, &[]).await?;
                Ok(())
            }
        }
    }
}

async fn select(session: &mut impl Session, random: &mut fastrand::Rng) -> Result<()> {
    let rows = session.query(Sql::Balance, &[random.i64(1..=ACCOUNTS)]).await?;
    anyhow::ensure!(rows.len() == 1, "{} rows", rows.len());
    Ok(())
}

async fn transfer(session: &mut impl Session, random: &mut fastrand::Rng) -> Result<()> {
    let (account, teller) = (random.i64(1..=ACCOUNTS), random.i64(1..=TELLERS));
    let (branch, amount) = (random.i64(1..=BRANCHES), random.i64(-5_000..=5_000));
    session
        .transaction(&[
            (Sql::UpdateAccount, &[account, amount]),
            (Sql::Balance, &[account]),
            (Sql::UpdateTeller, &[teller, amount]),
            (Sql::UpdateBranch, &[branch, amount]),
            (Sql::AddHistory, &[teller, branch, account, amount]),
        ])
        .await
}
