//! Memory of a handled event that is reused for the next one: the message and the future of its
//! handler. It is used only for events that the partition's task handles directly.
//!
//! An event needs a handful of allocations, and each allocation costs about a fiftieth of the time
//! of a small event.

use std::sync::Arc;

use crate::{
    kafka::{Buffers, Message},
    subscriber::handler::Called,
};

/// Maximum size in bytes of a message that is kept. The memory of larger ones is freed, because
/// each of many partitions could hold one.
const LARGEST: usize = 16 * 1024;

/// The reusable memory of a handled event.
#[derive(Default)]
pub(crate) struct MessagePool {
    message: Option<Arc<Message>>,
    /// The future of a call that has ended.
    pub(crate) called: Option<Called>,
}

impl MessagePool {
    /// Keeps the message of a handled event.
    pub(crate) fn keep(&mut self, message: Arc<Message>) {
        self.message = Some(message).filter(|message| message.size() <= LARGEST);
    }

    /// Returns the buffers into which the next record can be copied. They are empty if a handler
    /// still holds the event.
    pub(crate) fn buffers(&mut self) -> Buffers {
        self.message
            .as_mut()
            .and_then(Arc::get_mut)
            .map(Message::take_buffers)
            .unwrap_or_default()
    }

    /// Moves a message into shared memory, if possible in the allocation of the previous one.
    pub(crate) fn share(&mut self, message: Message) -> Arc<Message> {
        let Some(mut shared) = self.message.take() else {
            return Arc::new(message);
        };
        let Some(place) = Arc::get_mut(&mut shared) else {
            return Arc::new(message);
        };
        *place = message;
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{Incoming, Place};

    fn message(buffers: Buffers, value: &str) -> Message {
        let place = Place {
            topic: "order".into(),
            partition: 0,
            offset: 0,
            timestamp: 0,
        };
        let record = Incoming::within(
            buffers,
            place,
            Some(b"7"),
            Some(value.as_bytes()),
            std::iter::empty(),
        );
        Message::read(record, Some("OrderPlaced")).expect("a type is assumed")
    }

    #[test]
    fn the_next_message_is_where_the_last_one_was_unless_somebody_has_it_still() {
        let mut pool = MessagePool::default();
        let first = Arc::new(message(Buffers::default(), "the first"));
        let (place, bytes) = (Arc::as_ptr(&first), first.data().map(<[u8]>::as_ptr));
        pool.keep(first);
        let buffers = pool.buffers();
        let second = pool.share(message(buffers, "a second"));
        assert_eq!(
            (Arc::as_ptr(&second), second.data().map(<[u8]>::as_ptr)),
            (place, bytes)
        );
        assert_eq!(second.data(), Some(&b"a second"[..]));

        let kept_by_a_handler = second.clone();
        pool.keep(second);
        let buffers = pool.buffers();
        let third = pool.share(message(buffers, "3"));
        assert_eq!(
            (kept_by_a_handler.data(), third.data()),
            (Some(&b"a second"[..]), Some(&b"3"[..]))
        );
    }

    #[test]
    fn the_memory_of_a_large_record_is_given_back() {
        let mut pool = MessagePool::default();
        pool.keep(Arc::new(message(Buffers::default(), &"x".repeat(LARGEST))));
        assert!(pool.message.is_none());
    }
}
