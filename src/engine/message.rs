//! The messages of a link.

use crate::link::message;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message(message::Message);

impl Message {
    /// Reads the wire form of exactly one message; `None` when it is none.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        message::Message::decode(bytes).ok().map(Message)
    }

    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode()
    }

    /// May it come with so many descriptors?
    pub fn permits_descriptors(&self, number: usize) -> bool {
        self.0.descriptors().permits(number)
    }
}
