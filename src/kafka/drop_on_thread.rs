//! Wrapper that drops a client without blocking the caller.

/// A client that is dropped on its own thread, because dropping one blocks.
pub(super) struct Dropped<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Dropped<T> {
    pub(super) fn new(client: T) -> Self {
        Self(Some(client))
    }

    pub(super) fn get(&self) -> &T {
        self.0.as_ref().expect("taken on drop only")
    }
}

impl<T: Send + 'static> Drop for Dropped<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        std::thread::spawn(move || drop(client));
    }
}
