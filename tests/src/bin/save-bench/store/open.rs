//! Opening a store with many blobs, beside the bare opening of the tables that it opens.

use std::{path::Path, time::Instant};

use veilid_core::TableDB;

use super::{Node, Sizes, sides, work};
use crate::{Arguments, Result, report::Figure, store::Side};

/// The size of each blob.
const BLOB: usize = 1024;

pub(super) async fn measure(
    arguments: &Arguments,
    node: &Node,
    dir: &Path,
    sizes: Sizes,
) -> Result<Figure> {
    let dir = tempfile::tempdir_in(dir)?;
    let store = node.open(dir.path()).await?;
    work::import_small(&store, dir.path(), sizes.many, BLOB, 0).await?;
    store.close().await?;
    let store = node.open(dir.path()).await?;
    let opened = open_tables(node)?;
    store.close().await?;
    drop(store);
    let mut tables = Vec::new();
    for name in opened {
        let table = node.api.open_table_db(&name, 1).await?;
        tables.push((name, table.get_column_count()?));
    }
    let mut figure = Figure::default();
    for round in 0..arguments.rounds {
        for side in sides(round) {
            work::settle(dir.path())?;
            if !open_tables(node)?.is_empty() {
                return Err("a closed store still has tables open".into());
            }
            let start = Instant::now();
            match side {
                Side::Ours => {
                    let store = node.open(dir.path()).await?;
                    figure.values.push(milliseconds(start));
                    store.close().await?;
                }
                Side::Files => {
                    let tables = bare(node, &tables).await?;
                    figure.baselines.push(milliseconds(start));
                    drop(tables);
                }
            }
        }
    }
    dir.close()?;
    Ok(figure)
}

async fn bare(node: &Node, tables: &[(String, u32)]) -> Result<Vec<TableDB>> {
    let mut opened = Vec::new();
    for (name, columns) in tables {
        opened.push(node.api.open_table_db(name, *columns).await?);
    }
    Ok(opened)
}

/// The store's tables whose files this process has open.
fn open_tables(node: &Node) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        // The directory that is being read is closed by the time its own entry is looked at.
        if let Ok(target) = std::fs::read_link(entry?.path()) {
            files.push(target);
        }
    }
    let mut names: Vec<String> = node
        .api
        .list_table_dbs()?
        .into_iter()
        .filter(|(name, file)| {
            name.starts_with("save_store_")
                && files
                    .iter()
                    .any(|open| open.file_name().is_some_and(|open| open == file.as_str()))
        })
        .map(|(name, _)| name)
        .collect();
    names.sort();
    Ok(names)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
