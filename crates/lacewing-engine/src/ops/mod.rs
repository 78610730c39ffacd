//! The ops, one folder each: `mod.rs` checks shapes and records, `cpu.rs` and `cuda.rs` compute.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod binary_cross_entropy;
pub mod block_linear;
pub mod block_mask;
pub mod block_sparse;
pub mod chain;
pub mod copy2d;
pub mod dense_gradient;
pub mod distillation;
pub mod dropout;
pub mod elementwise;
pub mod gather;
pub mod k_winners;
mod launch;
pub mod layer_norm;
pub mod linear;
pub mod magnitude_scale;
pub mod matmul;
pub mod max_pool;
pub mod monarch;
pub mod nm_scale;
pub(crate) mod optimizer;
pub mod patchify;
pub mod scatter;
pub mod score_step;
pub mod softmax_cross_entropy;
pub mod strided_blocks;
pub mod tokens;
pub mod transpose;
pub mod two_four;
pub mod unfold;
pub mod window_attention;

pub use activation::{ACTIVATIONS, Activation, activation, bias_activation};
pub use attention::{attention, attention_separate};
pub use batch_norm::{RunningStats, batch_norm};
pub use binary_cross_entropy::binary_cross_entropy;
pub use block_linear::block_linear;
pub use block_mask::{mask_blocks, score_blocks};
pub use block_sparse::{BlockIndex, block_sparse_linear};
pub use chain::{ChainPlan, chain};
pub use copy2d::resize_cols;
pub use dense_gradient::{DenseGradient, SumOver};
pub use distillation::{Distillation, distillation};
pub use dropout::{drop_path_scale, dropout};
pub use elementwise::{add, cast, gated_sum, residual, scale, sigmoid};
pub use gather::{GatherIndex, gather};
pub use k_winners::{Competition, DutyCycles, DutyRate, k_winners};
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::{FilledWeight, PackedWeight, linear, linear_packed};
pub use magnitude_scale::magnitude_scale;
pub use matmul::matmul;
pub use max_pool::max_pool;
pub use monarch::{MonarchPlan, monarch};
pub use nm_scale::{MaskFactors, NmGroups, nm_scale};
pub use patchify::patchify;
pub use scatter::scatter_blocks;
pub use score_step::{ScoreStep, score_step};
pub use softmax_cross_entropy::{Target, ranks, softmax_cross_entropy};
pub use strided_blocks::strided_blocks;
pub use tokens::{embed_tokens, mean_tokens, select_token};
pub use transpose::transpose;
pub use two_four::{TwoFourIndex, two_four_linear};
pub use unfold::{Window, unfold};
pub use window_attention::{WindowIndex, window_attention, window_attention_separate};

/// Every kernel source of the engine, so that a machine without a GPU can compile them all.
pub static SOURCES: &[&lacewing_cuda::Source] = &[
    &activation::cuda::SOURCE,
    &attention::cuda::SOURCE,
    &attention::cuda::NAIVE,
    &attention::cuda::WIDE,
    &batch_norm::cuda::SOURCE,
    &binary_cross_entropy::cuda::SOURCE,
    &block_mask::cuda::SOURCE,
    &copy2d::cuda::SOURCE,
    &distillation::cuda::SOURCE,
    &dropout::cuda::SOURCE,
    &elementwise::cuda::SOURCE,
    &gather::cuda::SOURCE,
    &k_winners::cuda::SOURCE,
    &layer_norm::cuda::SOURCE,
    &magnitude_scale::cuda::SOURCE,
    &max_pool::cuda::SOURCE,
    &nm_scale::cuda::SOURCE,
    &optimizer::cuda::SOURCE,
    &patchify::cuda::SOURCE,
    &scatter::cuda::SOURCE,
    &score_step::cuda::SOURCE,
    &softmax_cross_entropy::cuda::SOURCE,
    &strided_blocks::cuda::SOURCE,
    &tokens::cuda::SOURCE,
    &transpose::cuda::SOURCE,
    &unfold::cuda::SOURCE,
    &window_attention::cuda::SOURCE,
];

#[cfg(test)]
mod tests {
    use super::SOURCES;
    use std::collections::BTreeSet;

    /// The `.cu` files of the folders and the table of sources agree: `NAME/kernel.cu` is `NAME`, another file
    /// `NAME_file`.
    #[test]
    fn every_kernel_source_has_its_row() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops");
        let mut with_kernel = BTreeSet::new();
        for op in
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|op| op.is_dir())
        {
            let name = op.file_name().unwrap().to_str().unwrap().to_owned();
            for file in std::fs::read_dir(&op).unwrap().map(|entry| entry.unwrap().path()) {
                match (file.extension(), file.file_stem()) {
                    (Some(end), Some(stem)) if end == "cu" && stem == "kernel" => {
                        with_kernel.insert(name.clone())
                    }
                    (Some(end), Some(stem)) if end == "cu" => {
                        with_kernel.insert(format!("{name}_{}", stem.to_str().unwrap()))
                    }
                    _ => false,
                };
            }
        }
        let rows: BTreeSet<String> = SOURCES.iter().map(|source| source.name.to_owned()).collect();
        assert_eq!(with_kernel, rows);
    }
}
