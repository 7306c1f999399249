//! The SQLite file: written by one thread that puts everything waiting into one transaction.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::Key;
use crate::Error;

/// A change on its way to disk; no bytes means removed.
pub(super) struct Record {
    pub key: Key,
    pub revision: u64,
    pub raw: Option<Bytes>,
}

pub(super) struct Loaded {
    pub revision: u64,
    pub objects: Vec<(Key, u64, Bytes)>,
}

pub(super) struct Disk {
    queue: Option<mpsc::Sender<Record>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS objects (
        resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        revision INTEGER NOT NULL, raw BLOB NOT NULL,
        PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS revision (one INTEGER PRIMARY KEY CHECK (one = 1), last INTEGER NOT NULL);";

/// Opens the file and reads everything.
pub(super) fn load(path: &Path) -> Result<(Connection, Loaded), Error> {
    let read = || -> rusqlite::Result<(Connection, Loaded)> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // WAL with synchronous=NORMAL: a killed process loses nothing, a power cut the last moments.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -512)?;
        connection.execute_batch(SCHEMA)?;
        let revision = connection
            .query_row("SELECT last FROM revision", [], |row| row.get::<_, i64>(0))
            .or_else(|e| if e == rusqlite::Error::QueryReturnedNoRows { Ok(0) } else { Err(e) })?;
        let mut statement =
            connection.prepare("SELECT resource, namespace, name, revision, raw FROM objects")?;
        let rows = statement.query_map([], |row| {
            let key = Key { resource: row.get(0)?, namespace: row.get(1)?, name: row.get(2)? };
            Ok((key, row.get::<_, i64>(3)?.unsigned_abs(), Bytes::from(row.get::<_, Vec<u8>>(4)?)))
        })?;
        let objects = rows.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        Ok((connection, Loaded { revision: revision.unsigned_abs(), objects }))
    };
    read().map_err(|source| Error::Storage { path: path.to_owned(), source })
}

impl Disk {
    pub(super) fn start(connection: Connection, committed: watch::Sender<u64>) -> Self {
        let (queue, records) = mpsc::channel();
        let writer = std::thread::spawn(move || write_groups(connection, &records, &committed));
        Self { queue: Some(queue), writer: Some(writer) }
    }

    pub(super) fn write(&self, record: Record) {
        // A closed queue means that the writer failed; it has marked the store, and `settled` says so.
        if let Some(queue) = &self.queue {
            let _ = queue.send(record);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write_groups(
    mut connection: Connection,
    records: &mpsc::Receiver<Record>,
    committed: &watch::Sender<u64>,
) {
    while let Ok(first) = records.recv() {
        let mut group = vec![first];
        group.extend(records.try_iter().take(1023));
        match write_group(&mut connection, &group) {
            Ok(last) => _ = committed.send_replace(last),
            Err(e) => {
                // Answering from memory what disk does not hold would be a lie: every request fails from here.
                tracing::error!(error = %e, "API storage: cannot write; no request is answered any more");
                committed.send_replace(u64::MAX);
                return;
            }
        }
    }
}

fn write_group(connection: &mut Connection, group: &[Record]) -> rusqlite::Result<u64> {
    let transaction = connection.transaction()?;
    let mut last = 0;
    {
        let mut put = transaction.prepare(
            "INSERT INTO objects (resource, namespace, name, revision, raw) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET revision = ?4, raw = ?5",
        )?;
        let mut remove = transaction
            .prepare("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?;
        for Record { key, revision, raw } in group {
            last = *revision;
            let revision = revision.cast_signed();
            match raw {
                Some(raw) => {
                    put.execute(params![key.resource, key.namespace, key.name, revision, &raw[..]])?
                }
                None => remove.execute(params![key.resource, key.namespace, key.name])?,
            };
        }
        transaction.execute(
            "INSERT INTO revision (one, last) VALUES (1, ?1) ON CONFLICT DO UPDATE SET last = ?1",
            [last.cast_signed()],
        )?;
    }
    transaction.commit()?;
    Ok(last)
}
