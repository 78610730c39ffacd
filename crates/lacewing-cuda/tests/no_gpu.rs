//! On a machine without CUDA, asking for a GPU is an error in words, not a panic.

use lacewing_cuda::{CudaError, Device};

#[test]
fn a_device_that_is_not_there_is_named_in_the_error() {
    // No machine has this many; one without a driver says that instead, one without libraries stops after the driver.
    match Device::new(4096) {
        Err(
            error @ (CudaError::NoDriver { ordinal: 4096, .. }
            | CudaError::NoSuchDevice { ordinal: 4096, .. }),
        ) => {
            assert!(error.to_string().starts_with("cuda:4096 was asked for, but "), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
