//! Parse, run, exit code.

use std::process::ExitCode;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "mimalloc")]
    give_freed_pages_back_at_once();
    weir::cli::main()
}

/// Freed pages go back to the system at once, not after 10 ms: a fifth less memory at full speed, and no more CPU
/// (`benches/main_job`). `MIMALLOC_PURGE_DELAY` in the environment has the last word.
#[cfg(feature = "mimalloc")]
#[expect(unsafe_code, reason = "the allocator's options are a C function of two numbers")]
fn give_freed_pages_back_at_once() {
    /// `mi_option_purge_delay`, in milliseconds: its place in `mi_option_e` of mimalloc 2 and 3 (`mimalloc.h`), which
    /// the bindings leave out.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the function takes any number as the option, and is called before there is a second thread.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 0) };
}
