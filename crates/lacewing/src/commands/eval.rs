//! `lacewing eval`: accuracy and latency of trained weights.

use super::{CommandResult, print};
use crate::cli::EvalArgs;
use lacewing_engine::Device;
use lacewing_train::checkpoint::SavedModel;
use lacewing_train::evaluate::{accuracy, latency, rebuild};
use lacewing_train::recipe::{Recipe, load};
use lacewing_train::run::{config_file, loaders, open_data};
use serde_json::json;

pub(super) fn run(args: EvalArgs) -> CommandResult {
    let saved = SavedModel::read(&args.model)?;
    let mut recipe: Recipe = saved.card.recipe.clone();
    let config = config_file(&args.model);
    if args.model.is_dir() && config.exists() {
        recipe.data.path = load(&config, &[])?.data.path;
    }
    recipe.data.path = args.data.or(recipe.data.path);
    recipe.data.eval_batch_size = args.batch_size.unwrap_or(recipe.data.eval_batch_size);
    if recipe.device != args.device {
        // What was implied by the run's device may not fit this one.
        (recipe.device, recipe.train.dtype) = (args.device, None);
    }
    recipe.check()?;
    let device = Device::open(&recipe.device)?;
    let built = rebuild(&saved, &device, recipe.dtype())?;
    let data = open_data(&recipe)?;
    data.require_classes(saved.card.input.n_classes)?;
    let (_, test) = loaders(&recipe, &data)?;
    let found = accuracy(&*built.model, &built.params, &test)?;
    let ms = latency(&*built.model, &built.params, saved.card.input.image)?;
    if args.json {
        let report = json!({
            "name": saved.card.label,
            "step": saved.card.step,
            "images": test.samples(),
            "accuracy": found.top1,
            "top5": found.top5,
            "images_per_s": found.images_per_s,
            "latency_ms": ms,
        });
        return print(&format!("{report}\n"));
    }
    print(&format!(
        "{} at step {}: {} test pictures of {}\n\
         accuracy {:.2} %, top-5 {:.2} %, {:.0} img/s\n\
         latency {:.3} ms at batch 1, {:.3} ms at batch 32\n",
        saved.card.label,
        saved.card.step,
        test.samples(),
        recipe.data.name,
        100.0 * found.top1,
        100.0 * found.top5,
        found.images_per_s,
        ms.batch_1,
        ms.batch_32,
    ))
}
