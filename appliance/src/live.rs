//! A value that a reload replaces while the daemon uses it.

use std::sync::{Arc, PoisonError, RwLock};

/// Shared, read often, replaced as a whole. Who took a value keeps it until they take it again.
#[derive(Debug)]
pub(crate) struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// The first value.
    pub(crate) fn new(value: T) -> Self {
        Self::shared(Arc::new(value))
    }

    /// The first value, shared already.
    pub(crate) fn shared(value: Arc<T>) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    /// The value as it is now.
    pub(crate) fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value for everybody.
    pub(crate) fn set(&self, value: Arc<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
