//! The arguments.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Make neural networks sparse and make it pay.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train the models of a recipe and compare them
    Train(TrainArgs),
    /// Evaluate trained weights: accuracy and latency
    Eval(EvalArgs),
    /// Show every layer of a model: structure, shape, parameters, density, MACs
    Info(InfoArgs),
    /// List what there is
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// A recipe's name or a YAML file (default: digits-vit), then settings such as `train.epochs=3`
    #[arg(value_name = "RECIPE] [KEY.PATH=VALUE")]
    pub(crate) recipe_and_settings: Vec<String>,
    /// Where the data lies (sets data.path)
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// cpu or cuda:N (sets device)
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Folder for the results (sets out; default: runs/NAME)
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in this folder with its own recipe
    #[arg(long, value_name = "DIR")]
    pub(crate) resume: Option<PathBuf>,
    /// Seed of everything random (sets seed)
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A run's folder, or a model.safetensors file
    #[arg(value_name = "DIR|FILE")]
    pub(crate) model: PathBuf,
    /// Where the data lies (default: where the run found it)
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Pictures a batch (default: the run's)
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// One JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// A model's name, a run's folder, a model.safetensors file, or a recipe
    #[arg(value_name = "MODEL|CHECKPOINT|RECIPE")]
    pub(crate) target: String,
    /// Settings: `mlp.structure=monarch` for a model, `model.mlp.structure=monarch` for a recipe
    #[arg(value_name = "KEY.PATH=VALUE")]
    pub(crate) settings: Vec<String>,
    /// One JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// What to list
    #[arg(value_enum)]
    pub(crate) what: Topic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Topic {
    /// Structures of linear maps, with their settings
    Structures,
    /// Models, with the groups of layers that take a structure
    Models,
    /// Data sets
    Data,
    /// Augmentations
    Augmentations,
    /// Recipes in the program
    Recipes,
    /// Learning-rate schedules
    Schedules,
    /// Kernels, in the order in which they are tried
    Kernels,
}
