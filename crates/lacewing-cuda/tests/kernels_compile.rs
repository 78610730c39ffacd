//! Every kernel of this crate compiles, on a machine that may have no GPU.

use lacewing_cuda::{CudaError, Source, compile, compile_all_test, dsd};

#[test]
fn every_source_compiles() {
    compile_all_test(dsd::SOURCES);
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
