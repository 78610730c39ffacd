//! Kernels for the CPU, over plain slices: dense and block-sparse products, elementary functions, and the vector
//! instructions under them. Threads are rayon's; every split depends on shapes only, so results do not depend
//! on timing. The crate knows no tensor and no tape.

pub mod activation;
pub mod chain;
pub mod dsd;
pub mod finish;
pub mod gemm;
pub mod map;
pub mod math;
pub mod parallel;
pub mod peak;
pub mod reduce;
pub mod scratch;
pub mod simd;
