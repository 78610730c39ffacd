//! The fork's masks, of N:M or over whole layers, and how they come about: mask decay (MdGF), structure decay (SdGF), SR-STE,
//! straight-through.
//!
//! A `prune_rate` above 0 makes the whole layer one group, whatever the type of sparsity and its n and m say.
//!
//! Times are whole epochs, as the fork has them: `⌊dense_steps · epochs⌋` dense ones first, `⌊fine_tune_steps · epochs⌋`
//! with the final mask before the cooldown, and stages in equal parts of what is between.

use super::keys::Keys;
use super::{Draft, TimmError};
use lacewing_models::ModelConfig;
use serde_json::{Value, json};

pub(super) fn read(keys: &Keys, model: &ModelConfig, draft: &mut Draft) -> Result<(), TimmError> {
    let types = [
        ("DENSE", None),
        ("STRUCTURED_NM", Some(false)),
        ("SRSTE", Some(true)),
        ("UNSTRUCTURED", Some(false)),
    ];
    if keys.value("sparsity_type").is_null() {
        return Ok(());
    }
    let Some(sr_ste) = keys.choice("sparsity_type", &types)? else { return Ok(()) };
    let mlp = ["n_sparsity", "m_sparsity", "prune_rate"];
    let pattern = |name: &str| model.family().groups.iter().find(|g| g.name == name).map(|g| g.pattern);
    let group = |name: &str| pattern(name).is_some();
    if !group("mlp") && group("conv") {
        // The fork's ResNets have sparse convolutions wherever sparsity_loc points.
        return put(keys, draft, "model.conv", mlp, sr_ste);
    }
    let places = Places::read(keys)?;
    if places.mlp {
        if !group("mlp") {
            return Err(keys.refuse("sparsity_loc", format!("{} has no MLPs in blocks", model.name())));
        }
        put(keys, draft, "model.mlp", mlp, sr_ste)?;
    }
    if places.letters.is_empty() {
        return Ok(());
    }
    let qkv = ["n_sparsity_qkv", "m_sparsity_qkv", "prune_rate_qkv"];
    let Some(all) = pattern("qkv") else {
        return Err(keys.refuse("sparsity_loc", format!("{} has no attention", model.name())));
    };
    if places.letters.len() == 3 {
        // Groups lie within q, k or v either way, so that the fused layer has the masks of the three.
        return put(keys, draft, "model.qkv", qkv, sr_ste);
    }
    if model.get("split_qkv").is_none() {
        let reason = format!("single letters need separate projections, and {} has none", model.name());
        return Err(keys.refuse("sparsity_loc", reason));
    }
    draft.set(&["sparsity_loc"], "model.split_qkv", true);
    let mut scratch = Draft { recipe: json!({}), settings: Vec::new() };
    put(keys, &mut scratch, "rule", qkv, sr_ste)?;
    let mut rule = scratch.recipe["rule"].take();
    rule["match"] = json!(all.replace("{qkv,q,k,v}", &format!("{{{}}}", places.letters.join(","))));
    let size = if rule["structure"] == "nm" { &qkv[..2] } else { &qkv[2..] };
    draft.set(&[&["sparsity_loc"], size].concat(), "model.rules", json!([rule]));
    Ok(())
}

/// What `sparsity_loc` names.
struct Places {
    mlp: bool,
    /// `q`, `k` and `v`, those that are named.
    letters: Vec<&'static str>,
}

impl Places {
    fn read(keys: &Keys) -> Result<Self, TimmError> {
        let text = keys.text("sparsity_loc")?.unwrap_or_default();
        let rest = text.replace("FF", "");
        let letters = [('Q', "q"), ('K', "k"), ('V', "v")];
        let known = |c: char| letters.iter().any(|&(letter, _)| letter == c) || "C,+_- ".contains(c);
        let letters: Vec<&str> =
            letters.iter().filter(|(letter, _)| rest.contains(*letter)).map(|&(_, name)| name).collect();
        let mlp = text.contains("FF");
        if !rest.chars().all(known) || (!mlp && letters.is_empty()) {
            return Err(keys.wrong("sparsity_loc", "`FF`, any of `Q`, `K`, `V`, or both"));
        }
        Ok(Self { mlp, letters })
    }
}

/// Sets the structure under `at` with the n and m, or the rate, of the keys given.
fn put(
    keys: &Keys,
    draft: &mut Draft,
    at: &str,
    [n_key, m_key, rate_key]: [&'static str; 3],
    sr_ste: bool,
) -> Result<(), TimmError> {
    let whole = |key| Ok::<u64, TimmError>(keys.whole(key)?.unwrap_or_default());
    let (n, m) = (whole(n_key)?, whole(m_key)?);
    let rate = keys.number(rate_key)?.unwrap_or_default();
    if !(0.0..1.0).contains(&rate) {
        return Err(keys.wrong(rate_key, "0 or more and below 1, the share of weights that is pruned"));
    }
    if rate > 0.0 {
        draft.set(&["sparsity_type", "sparsity_loc"], &format!("{at}.structure"), "unstructured");
        draft.set(&[rate_key], &format!("{at}.sparsity"), rate);
    } else {
        if n == 0 || n > m {
            return Err(keys.wrong(n_key, format!("1 to {m_key} = {m}")));
        }
        draft.set(&["sparsity_type", "sparsity_loc"], &format!("{at}.structure"), "nm");
        draft.set(&[n_key], &format!("{at}.n"), n);
        draft.set(&[m_key], &format!("{at}.m"), m);
        if keys.choice("sparse_dim", &[("ROW", false), ("COL", true)])? {
            draft.set(&["sparse_dim"], &format!("{at}.axis"), "col");
        }
    }
    let mut set = |from: &[&'static str], key: &str, value: Value| {
        draft.set(from, &format!("{at}.schedule.{key}"), value);
    };
    let epochs = whole("epochs")?;
    let phase = |key| {
        let share = keys.number(key)?.unwrap_or_default();
        if !(0.0..1.0).contains(&share) {
            return Err(keys.wrong(key, "0 or more and below 1, a share of the epochs"));
        }
        Ok((share * epochs as f64) as u64)
    };
    let (dense, fine_tune) = (phase("dense_steps")?, phase("fine_tune_steps")?);
    if dense + fine_tune >= epochs.max(1) {
        return Err(keys.wrong("fine_tune_steps", "such that dense_steps + fine_tune_steps leave an epoch"));
    }
    let decay = keys.choice("decay_type", &[("STEP", "step"), ("LINEAR", "linear"), ("EXP", "exp")])?;
    let staged = keys.flag("structure_decay_flag")?;
    let name = match (sr_ste, staged, decay) {
        (true, true, _) => {
            let reason = "SRSTE keeps one n:m, and the fork does not look at this key then: write false";
            return Err(keys.refuse("structure_decay_flag", reason));
        }
        (false, true, _) if rate > 0.0 => {
            let reason =
                format!("{rate_key} overrides the stages' n:m, so that the fork has none then: write false");
            return Err(keys.refuse("structure_decay_flag", reason));
        }
        (true, false, _) => "sr_ste",
        (false, true, _) => "structure_decay",
        (false, false, "step") => "straight_through",
        (false, false, _) => "mask_decay",
    };
    let from = ["sparsity_type", "structure_decay_flag", "decay_type"];
    set(if sr_ste { &from[..1] } else { &from }, "name", json!(name));
    if staged {
        let from = ["structure_decay_type", "structure_decay_config"];
        let stages = stages(keys, (n, m), dense, epochs - dense - fine_tune)?;
        set(if stages.is_array() { &from } else { &from[..1] }, "stages", stages);
    }
    if !sr_ste && decay != "step" {
        set(&["decay_type"], "decay", json!(decay));
        set(&["decay_coef"], "coef", json!(keys.number("decay_coef")?));
    }
    // The cooldown is after the run's end: the mask is final there without being told so.
    if dense > 0 {
        set(&["dense_steps"], "dense", json!(format!("{dense} epochs")));
    }
    // SR-STE has its final mask all along.
    if fine_tune > 0 && !sr_ste {
        set(&["fine_tune_steps"], "fine_tune", json!(format!("{fine_tune} epochs")));
    }
    set(&["sparsity_type"], "align", json!("epoch"));
    Ok(())
}

/// The stages; those of a list begin in equal parts of `sparse` epochs after `dense` ones.
fn stages(keys: &Keys, target: (u64, u64), dense: u64, sparse: u64) -> Result<Value, TimmError> {
    let names = [
        ("SPARSIFY", Some("sparsify")),
        ("FINE", Some("fine")),
        ("DENSIFY", Some("densify")),
        ("CONFIG", None),
        ("CUSTOM", None),
    ];
    if let Some(name) = keys.choice("structure_decay_type", &names)? {
        return Ok(json!(name));
    }
    const CONFIG: &str = "structure_decay_config";
    let text = match keys.value(CONFIG) {
        Value::String(text) => text,
        _ => return Err(keys.wrong(CONFIG, "text such as `16:32, 8:32, 1:32`")),
    };
    let stage = |text: &str| {
        let (n, m) = text.trim().split_once(':')?;
        let (n, m): (u64, u64) = (n.trim().parse().ok()?, m.trim().parse().ok()?);
        (1 <= n && n <= m).then_some((n, m))
    };
    let list: Option<Vec<(u64, u64)>> = text.trim().trim_matches(['[', ']']).split(',').map(stage).collect();
    let list = list.ok_or_else(|| keys.wrong(CONFIG, "a list of N:M, separated by commas"))?;
    if list.last() != Some(&target) {
        let (n, m) = target;
        return Err(keys.wrong(CONFIG, format!("a list that ends with n_sparsity:m_sparsity = {n}:{m}")));
    }
    let begin = |i: usize| dense + (i as f64 * (sparse as f64 / list.len() as f64)) as u64;
    let stage = |(i, &(n, m))| json!([format!("{} epochs", begin(i)), n, m]);
    Ok(list.iter().enumerate().map(stage).collect::<Vec<_>>().into())
}
