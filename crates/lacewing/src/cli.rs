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
    /// Replace the layers of a trained model by structures, as near to them as they come
    Convert(ConvertArgs),
    /// Evaluate trained weights: accuracy and latency
    Eval(EvalArgs),
    /// Measure structures against a dense layer of the same shape and the density from which on they are faster, or a model
    /// against its dense twin
    Bench(BenchArgs),
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
    /// A YAML file of timm's train.py, or of its fork Progressive Gradient Flow, in place of a recipe; settings are those of
    /// the recipe that it becomes
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(crate) from_timm: Option<PathBuf>,
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
    /// Start from the weights of a run, of a converted model or of a model.safetensors (sets init)
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "resume")]
    pub(crate) init: Option<PathBuf>,
    /// Train in N processes on this machine, each on a GPU of its own or a share of the cores; data.batch_size stays that of
    /// all together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) ranks: Option<u16>,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// A run's folder, a model.safetensors, or another tool's checkpoint: .safetensors, .pth, .pt, .pth.tar, or a folder
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// A structure by name or config, such as monarch or "{structure: monarch, blocks: 4}"; with --budget the families to
    /// choose from (default: all)
    #[arg(long, value_name = "STRUCTURE", num_args = 1..)]
    pub(crate) to: Vec<String>,
    /// A YAML list of rules: {match: PATTERN, structure: NAME, ...}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "budget", "layers"])]
    pub(crate) rules: Option<PathBuf>,
    /// Patterns of the layers to convert
    #[arg(long, value_name = "PATTERN", num_args = 1.., default_values = ["*blocks.*"])]
    pub(crate) layers: Vec<String>,
    /// What the converted layers may cost of what they cost dense: params, bytes, macs or latency
    #[arg(long, value_name = "METRIC=FRACTION")]
    pub(crate) budget: Option<String>,
    /// The same share of the budget for every layer, in the one structure that --to names
    #[arg(long, requires = "budget")]
    pub(crate) uniform: bool,
    /// Measure each layer's inputs on the pictures here (a path, or the name of embedded data), and keep its outputs rather
    /// than its weights
    #[arg(long, value_name = "DATA")]
    pub(crate) calibrate: Option<PathBuf>,
    /// How many pictures are measured
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) samples: usize,
    /// Recipe whose data and augmentation go with a checkpoint of another tool (default: the checkpoint's own)
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Option<String>,
    /// Model of another tool's checkpoint: a name, or a config such as "{name: vit_tiny_patch16_224, n_classes: 10}"
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Leave out tensors without a place in the model, and draw parameters without a tensor
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// Write the model as a dense checkpoint for other tools, zeros included
    #[arg(long, conflicts_with_all = ["to", "rules", "budget", "calibrate"])]
    pub(crate) dense: bool,
    /// Folder for model.safetensors, config.json and rules.yaml
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of random patterns and hashes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// One JSON object on standard output
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
pub(crate) struct BenchArgs {
    /// Structures by name, each at every density, or by config, such as "{structure: monarch, blocks: 4}", as it is (default:
    /// unstructured block_sparse nm monarch block_diagonal low_rank butterfly)
    #[arg(long, value_name = "NAME|CONFIG", num_args = 1..)]
    pub(crate) structures: Vec<String>,
    /// Shapes of the layers
    #[arg(long, value_name = "INxOUT", num_args = 1.., default_values = ["768x3072", "3072x768"])]
    pub(crate) shapes: Vec<String>,
    /// Rows of input
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [1, 16, 128])]
    pub(crate) rows: Vec<usize>,
    /// Shares of the dense weights that may be stored: each structure named is taken at its largest size within
    #[arg(long, value_name = "D", num_args = 1.., default_values_t = [0.5, 0.25, 0.1, 0.05])]
    pub(crate) density: Vec<f64>,
    /// Where to measure: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Type of activations and weights: f32, or bf16 on a GPU (default there)
    #[arg(long, value_parser = ["f32", "bf16"])]
    pub(crate) dtype: Option<String>,
    /// Layers: measure the forward pass with the gradients of inputs and weights, not the forward pass alone. A model: measure
    /// a training step (forward pass, cross-entropy, backward pass, AdamW) after inference, in a table each
    #[arg(long)]
    pub(crate) backward: bool,
    /// One JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the rows to a CSV file as well, below a line on the machine: as they come, so that a run that is interrupted
    /// keeps its finished cases
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Plot speed-up over density for each shape, as INxOUT.svg in this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Measure other libraries beside each case, by the Python of this environment (default: the python3 of the PATH), and
    /// compare with the best dense product of all; those of others are measured once for each shape and number of rows. With
    /// --model: PyTorch's model of the same name in timm, eager and compiled, on any device, before ours
    #[arg(long, value_name = "VENV")]
    pub(crate) peers: Option<Option<PathBuf>>,
    /// Time every kernel that takes a structure, not the chosen one alone, and say where the choice is slower than another or
    /// than dense
    #[arg(long, conflicts_with = "peers")]
    pub(crate) autotune: bool,
    /// Measure a whole model against its dense twin, inference and with --backward training, time and peak memory: a model's
    /// name or config, a run's folder, or a recipe
    #[arg(long, value_name = "MODEL",
        conflicts_with_all = ["structures", "shapes", "rows", "density", "svg", "autotune"])]
    pub(crate) model: Option<String>,
    /// A YAML list of rules for the model: {match: PATTERN, structure: NAME, ...}
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with_all = ["to", "layers"])]
    pub(crate) rules: Option<PathBuf>,
    /// A structure for the model's layers, by name or config (default: what the model has)
    #[arg(long, value_name = "STRUCTURE", requires = "model")]
    pub(crate) to: Option<String>,
    /// Patterns of the layers that get it
    #[arg(long, value_name = "PATTERN", num_args = 1.., default_values = ["*blocks.*"], requires = "to")]
    pub(crate) layers: Vec<String>,
    /// Pictures in a batch
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',', default_values_t = [1, 8], requires = "model")]
    pub(crate) batch: Vec<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// A model's name, a run's folder, a model.safetensors file, or a recipe
    #[arg(value_name = "MODEL|CHECKPOINT|RECIPE", required_unless_present = "from_timm")]
    pub(crate) target: Option<String>,
    /// Settings: `mlp.structure=monarch` for a model, `model.mlp.structure=monarch` for a recipe
    #[arg(value_name = "KEY.PATH=VALUE")]
    pub(crate) settings: Vec<String>,
    /// A YAML file of timm's train.py in place of a recipe: what each of its keys becomes, then the model
    #[arg(long, value_name = "FILE")]
    pub(crate) from_timm: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Density and n:m over time of the layers that a recipe gives a schedule
    #[arg(long, conflicts_with = "json")]
    pub(crate) schedule: bool,
    /// With --schedule: a picture of it
    #[arg(long, value_name = "FILE", requires = "schedule")]
    pub(crate) svg: Option<PathBuf>,
    /// With --schedule: optimizer steps of an epoch, instead of counting the data
    #[arg(long, value_name = "N", requires = "schedule", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps_per_epoch: Option<u64>,
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
    /// Schedules of structures, with their settings, and of the learning rate
    Schedules,
    /// Losses
    Losses,
    /// Kernels, in the order in which they are tried
    Kernels,
}
