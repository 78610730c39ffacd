//! Every kernel of this crate compiles, on a machine that may have no GPU.

use lacewing_core::chains::MonarchFactors;
use lacewing_cuda::monarch::{self, Plan};
use lacewing_cuda::{CudaError, Source, compile, compile_all_test, compile_all_with_test, dsd, two_four};

#[test]
fn every_source_compiles() {
    compile_all_test(dsd::SOURCES);
    compile_all_test(&[&two_four::SOURCE]);
}

#[test]
fn the_monarch_kernel_compiles_for_every_kind_of_size() {
    let plans: Vec<Plan> = [
        (1024, 1024, 32),
        (768, 3072, 8),
        (768, 2304, 8),
        (3072, 768, 8),
        (256, 256, 8),
        (512, 2048, 8),
        (1024, 1024, 8),
        (2048, 2048, 16),
        (4096, 2048, 8),
        (1024, 512, 16),
        (4096, 4096, 32),
    ]
    .into_iter()
    .map(|(n_in, n_out, blocks): (usize, usize, usize)| {
        let (p, s) = (n_in / blocks, n_out / blocks);
        let factors = MonarchFactors { k: blocks, q: p.min(s), p, l: blocks, s, r: p.min(s) };
        Plan::new(factors).expect("sizes that the kernel takes")
    })
    .collect();
    let mut sources: Vec<_> =
        plans.iter().map(|plan| (&monarch::SOURCE, plan.constants().to_vec())).collect();
    let resident = plans.iter().filter_map(Plan::resident).map(monarch::Resident::source);
    sources.extend(resident.map(|(source, constants)| (source, constants.to_vec())));
    let training: Vec<_> = plans.iter().filter_map(Plan::training).flat_map(|t| t.sources()).collect();
    assert_eq!(training.len(), 2, "of the one size that has them");
    sources.extend(training);
    compile_all_with_test(&sources);
}

#[test]
fn a_source_that_does_not_compile_says_where_and_why() {
    static WRONG: Source =
        Source { name: "wrong", code: "\nextern \"C\" __global__ void f() { missing(); }\n" };
    match compile(&WRONG, "sm_80") {
        Err(CudaError::Compile { source_name: "wrong", log, .. }) => {
            assert!(log.contains("wrong(2)") && log.contains("missing"), "{log}");
        }
        Err(error @ CudaError::NoLibrary { .. }) => {
            let required = std::env::var_os("LACEWING_REQUIRE_NVRTC").is_some_and(|value| value == "1");
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_prelude_compiles_for_the_oldest_chip_of_cuda_13_and_holds_what_it_says() {
    static USES: Source = Source {
        name: "uses",
        code: "using namespace lw;\n\
               extern \"C\" __global__ void f(const bf16* x, f16* y, float* z, float* s) {\n\
               __shared__ float scratch[32];\n\
               y[0] = from_f32<f16>(to_f32(x[0]) + block_sum(*s, scratch));\n\
               z[0] = warp_max(to_f32(y[1])) + first_bf16(pack_bf16(1.0f, 2.0f)); }",
    };
    for arch in ["sm_75", "sm_90"] {
        match compile(&USES, arch) {
            Ok(cubin) => assert_eq!(&cubin[..4], b"\x7fELF"),
            Err(CudaError::NoLibrary { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
