//! What an event that was handled where it was read leaves to the next one: the memory of its message, and of its handler's future.
//!
//! An event is a handful of allocations, and an allocation a fiftieth of what a small event costs.

use std::sync::Arc;

use crate::{
    kafka::{Buffers, Message},
    subscriber::handler::Called,
};

/// The memory of a larger record is given back: many partitions may each have had one.
const LARGEST: usize = 16 * 1024;

/// The memory of an event that was handled.
#[derive(Default)]
pub(crate) struct Spare {
    message: Option<Arc<Message>>,
    /// The future of a call that has ended.
    pub(crate) called: Option<Called>,
}

impl Spare {
    /// Takes over the message of an event that was handled.
    pub(crate) fn keep(&mut self, message: Arc<Message>) {
        self.message = Some(message).filter(|message| message.size() <= LARGEST);
    }

    /// What the next record can be copied into: nothing yet, if a handler has kept the event.
    pub(crate) fn buffers(&mut self) -> Buffers {
        self.message
            .as_mut()
            .and_then(Arc::get_mut)
            .map(Message::take_buffers)
            .unwrap_or_default()
    }

    /// A message that others can own, in the place of the one before.
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
        let mut spare = Spare::default();
        let first = Arc::new(message(Buffers::default(), "the first"));
        let (place, bytes) = (Arc::as_ptr(&first), first.data().map(<[u8]>::as_ptr));
        spare.keep(first);
        let buffers = spare.buffers();
        let second = spare.share(message(buffers, "a second"));
        assert_eq!(
            (Arc::as_ptr(&second), second.data().map(<[u8]>::as_ptr)),
            (place, bytes)
        );
        assert_eq!(second.data(), Some(&b"a second"[..]));

        let kept_by_a_handler = second.clone();
        spare.keep(second);
        let buffers = spare.buffers();
        let third = spare.share(message(buffers, "3"));
        assert_eq!(
            (kept_by_a_handler.data(), third.data()),
            (Some(&b"a second"[..]), Some(&b"3"[..]))
        );
    }

    #[test]
    fn the_memory_of_a_large_record_is_given_back() {
        let mut spare = Spare::default();
        spare.keep(Arc::new(message(Buffers::default(), &"x".repeat(LARGEST))));
        assert!(spare.message.is_none());
    }
}
