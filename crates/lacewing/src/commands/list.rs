//! `lacewing list`: the tables that the program is made of.

use super::{CommandResult, print};
use crate::cli::{ListArgs, Topic};
use lacewing::recipes::{self, RECIPES};
use lacewing_core::Key;
use lacewing_train::augment::AUGMENTATIONS;
use lacewing_train::data::{DATASETS, Origin};
use lacewing_train::loss::LOSSES;
use lacewing_train::report::{Align, Table};
use lacewing_train::schedule::SHAPES;

pub(super) fn run(args: ListArgs) -> CommandResult {
    let rows = match args.what {
        Topic::Structures => structures(),
        Topic::Models => models(),
        Topic::Data => data(),
        Topic::Augmentations => {
            AUGMENTATIONS.iter().map(|row| (row.name.to_owned(), row.about.to_owned())).collect()
        }
        Topic::Recipes => recipes()?,
        Topic::Schedules => schedules(),
        Topic::Losses => LOSSES.iter().map(|row| (row.name.to_owned(), row.about.to_owned())).collect(),
        Topic::Kernels => kernels(),
    };
    let mut table = Table::new(&["name", "what"]).align(1, Align::Left);
    for (name, about) in rows {
        table.push(vec![name, about]);
    }
    print(&table.to_string())
}

fn structures() -> Vec<(String, String)> {
    lacewing_core::structures().flat_map(|kind| with_keys(kind.name, kind.about, kind.keys)).collect()
}

/// Schedules of structures, then those of the learning rate.
fn schedules() -> Vec<(String, String)> {
    let table = lacewing_core::schedules::TABLE.iter();
    let of_structures = table.flat_map(|kind| with_keys(kind.name, kind.about, kind.keys));
    let of_rates = SHAPES.iter().map(|row| (row.name.to_owned(), format!("learning rate: {}", row.about)));
    of_structures.chain(of_rates).collect()
}

/// A row for what a config names, and one for each of its keys.
fn with_keys(name: &str, about: &str, keys: &[Key]) -> Vec<(String, String)> {
    let mut rows = vec![(name.to_owned(), about.to_owned())];
    for key in keys {
        let default = if key.default.is_empty() { "none" } else { key.default };
        rows.push((format!("  {}", key.name), format!("{} (default: {default})", key.about)));
    }
    rows
}

fn models() -> Vec<(String, String)> {
    let mut rows = Vec::new();
    for family in lacewing_models::MODELS {
        let groups: Vec<&str> = family.groups.iter().map(|group| group.name).collect();
        rows.push((
            family.name.to_owned(),
            format!("{}; takes structures for {}", family.about, groups.join(", ")),
        ));
        rows.extend(family.variants.iter().map(|row| (format!("  {}", row.name), row.about.to_owned())));
    }
    rows
}

fn data() -> Vec<(String, String)> {
    let about = |origin: &Origin| match origin {
        Origin::Embedded(_) => "part of the program".to_owned(),
        Origin::AtPath { expects, .. } => format!("--data PATH: {expects}"),
    };
    let row = |row: &lacewing_train::data::DatasetEntry| {
        (row.name.to_owned(), format!("{} ({})", row.about, about(&row.origin)))
    };
    DATASETS.iter().map(row).collect()
}

fn recipes() -> Result<Vec<(String, String)>, Box<dyn std::error::Error>> {
    let row =
        |row: &recipes::EmbeddedRecipe| Ok((row.name.to_owned(), recipes::read(Some(row.name), &[])?.about));
    RECIPES.iter().map(row).collect()
}

fn kernels() -> Vec<(String, String)> {
    let layer = lacewing_nn::linear::KERNELS.iter().map(|row| (row.name.to_owned(), row.about.to_owned()));
    let cpu = lacewing_cpu::dsd::KERNELS.iter();
    let cpu = cpu.map(|row| (format!("cpu: {}", row.name), "block-sparse product on the host".to_owned()));
    let cuda = lacewing_cuda::dsd::KERNELS.iter();
    let cuda = cuda.map(|row| (format!("cuda: {}", row.name), row.about.to_owned()));
    layer.chain(cpu).chain(cuda).collect()
}
