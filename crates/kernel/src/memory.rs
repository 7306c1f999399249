//! Memory of this process.

/// Gives whole pages that are free inside the heap back to the machine. glibc keeps them otherwise: what one large list
/// took for a moment would count as ours for ever. Takes milliseconds per hundred MB, in which other threads wait to
/// allocate.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes the locks of all arenas and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
