//! Every kernel of the engine compiles, for the GPU it is tuned for and for an older one. Needs NVRTC, not a GPU.

#[test]
fn every_kernel_compiles_for_hopper_and_ampere() {
    lacewing_cuda::compile_all_test(lacewing_engine::ops::SOURCES);
}
