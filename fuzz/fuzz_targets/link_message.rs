//! Whatever a peer sends, the decoder of link messages does not panic, and takes nothing for two
//! things.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio_smc::engine::message::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some(message) = Message::decode(bytes) else { return };
    // Flags and reasons without a meaning are dropped, addresses made canonical: from then on it
    // stays what it is.
    let encoded = message.encode();
    assert!(encoded.len() == bytes.len(), "fields have their sizes");
    assert_eq!(Message::decode(&encoded), Some(message.clone()));
    assert!(!message.permits_descriptors(3), "no message has so many");
    // Of what has no CLC part, nothing shorter and nothing longer is the same.
    let mut longer = encoded.clone();
    longer.push(0);
    if Message::decode(&longer).is_none() {
        assert_eq!(Message::decode(&encoded[..encoded.len() - 1]), None);
    }
});
