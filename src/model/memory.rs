//! Memory that was let go.

/// Gives what was let go back to the system: the allocator of glibc keeps much of it for whoever asks next.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers, and holds the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
