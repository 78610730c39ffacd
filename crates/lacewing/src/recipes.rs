//! The recipes that come with the program: one YAML file in `configs/`, one row here.

use lacewing_train::recipe::{Override, Recipe, RecipeError, load, parse};
use std::path::Path;

/// A recipe in the binary.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedRecipe {
    /// Its name, that of its file.
    pub name: &'static str,
    /// Its YAML.
    pub text: &'static str,
}

/// Every recipe; the first is what `lacewing train` does when none is named.
pub const RECIPES: &[EmbeddedRecipe] = &[
    EmbeddedRecipe { name: "digits-vit", text: include_str!("../../../configs/digits-vit.yaml") },
    EmbeddedRecipe { name: "digits-k-winners", text: include_str!("../../../configs/digits-k-winners.yaml") },
    EmbeddedRecipe {
        name: "cifar10-vit-monarch",
        text: include_str!("../../../configs/cifar10-vit-monarch.yaml"),
    },
    EmbeddedRecipe {
        name: "cifar10-vit-sparse-training",
        text: include_str!("../../../configs/cifar10-vit-sparse-training.yaml"),
    },
    EmbeddedRecipe {
        name: "cifar10-resnet18-nm",
        text: include_str!("../../../configs/cifar10-resnet18-nm.yaml"),
    },
    EmbeddedRecipe {
        name: "mixer-b16-pixelfly",
        text: include_str!("../../../configs/mixer-b16-pixelfly.yaml"),
    },
    EmbeddedRecipe {
        name: "imagenet-vit-base-mdgf",
        text: include_str!("../../../configs/imagenet-vit-base-mdgf.yaml"),
    },
    EmbeddedRecipe {
        name: "imagenet-swin-v2-base-nm",
        text: include_str!("../../../configs/imagenet-swin-v2-base-nm.yaml"),
    },
];

/// The embedded recipe called `name`.
pub fn find(name: &str) -> Option<&'static EmbeddedRecipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

/// Whether `name` is to be read as a file: it is there, or it looks like the path of one.
pub fn is_file(name: &str) -> bool {
    Path::new(name).is_file() || name.ends_with(".yaml") || name.ends_with(".yml")
}

/// The recipe called `name` (embedded, or a path to a YAML file; the first embedded one without a name) with `overrides`.
///
/// # Errors
///
/// [`RecipeError`]: no recipe of that name, and whatever is wrong in it.
pub fn read(name: Option<&str>, overrides: &[Override]) -> Result<Recipe, RecipeError> {
    let name = name.unwrap_or(RECIPES[0].name);
    match find(name) {
        Some(recipe) => parse(&format!("recipe {name}"), recipe.text, overrides),
        None if is_file(name) => load(Path::new(name), overrides),
        None => Err(RecipeError::unknown_name("RECIPE", name, RECIPES.iter().map(|recipe| recipe.name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_train::run::contenders;

    #[test]
    fn folder_and_table_agree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder of recipes")
            .map(|entry| entry.expect("a readable folder").path())
            .map(|path| path.file_stem().expect("a file has a name").display().to_string())
            .collect();
        files.sort();
        let mut names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }

    #[test]
    fn every_recipe_is_valid_and_counts() {
        for embedded in RECIPES {
            let recipe = read(Some(embedded.name), &[]).expect("a valid recipe");
            assert_eq!(recipe.name, embedded.name);
            assert!(!recipe.about.is_empty(), "{}", embedded.name);
            for contender in contenders(&recipe).expect("valid models") {
                let summary = contender.config.summary().expect("a model that fits itself");
                assert!(summary.parameters > 0 && summary.macs() > 0, "{}", embedded.name);
            }
        }
    }

    #[test]
    fn the_pixelfly_mixer_has_the_published_number_of_parameters() {
        let recipe = read(Some("mixer-b16-pixelfly"), &[]).expect("a valid recipe");
        let models = contenders(&recipe).expect("valid models");
        assert_eq!(models[0].config.summary().expect("a model").parameters, 27_486_256);
        let dense = models[0].config.clone().dense_twin().summary().expect("a model");
        assert_eq!(dense.parameters, 59_880_472);
    }

    #[test]
    fn unknown_recipes_name_the_nearest() {
        let error = read(Some("digit-vit"), &[]).expect_err("no such recipe").to_string();
        assert!(error.contains("digit-vit") && error.contains("did you mean `digits-vit`"), "{error}");
        let error = read(Some("/no/such.yaml"), &[]).expect_err("no such file").to_string();
        assert!(error.contains("/no/such.yaml"), "{error}");
    }
}
