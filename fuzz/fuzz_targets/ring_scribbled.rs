//! A ring whose words somebody writes to in between: neither end panics, reads more than it asked
//! for, or goes on for ever. Until then every byte comes through, in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio_smc::engine::ring::{Consumer, Header, Producer, Word, grant, ring};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let window = 4096 << (input.byte() % 6);
    let Ok((producer, consumer)) = ring(window) else { return };
    let header = producer.header();
    let mut play = Play { producer, consumer, header, written: 0, read: 0, honest: true };
    while !input.0.is_empty() {
        play.step(&mut input);
    }
    play.finish();
});

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }
}

struct Play {
    producer: Producer,
    consumer: Consumer,
    header: Header,
    written: u64,
    read: u64,
    /// Nobody has scribbled yet.
    honest: bool,
}

fn at(place: u64) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

impl Play {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0..=2 => self.write(input.short()),
            3 => self.read(input.short() as usize),
            4 => self.read_in_place(input.short() as usize),
            5 => {
                let mut buffer = vec![0; input.short() as usize];
                let length = self.consumer.peek(&mut &mut buffer[..]);
                let read = self.read;
                self.judge(length, &buffer, read);
            }
            6 => {
                let granted = grant(&mut self.producer, &mut self.consumer);
                assert!(granted.is_ok() || !self.honest, "{granted:?}");
            }
            7 => {
                let (space, data) = (self.producer.wait(), self.consumer.wait());
                assert!(!self.honest || space.is_ok() && data.is_ok(), "{space:?} {data:?}");
            }
            8 => {
                self.producer.wake_reader();
                self.consumer.wake_writer();
            }
            9 => {
                let shrunk = self.producer.shrink(&mut self.consumer);
                assert!(shrunk.is_ok() || !self.honest, "{shrunk:?}");
            }
            _ => self.scribble(input),
        }
    }

    fn write(&mut self, length: u64) {
        let bytes: Vec<u8> = (self.written..self.written + length).map(at).collect();
        match self.producer.write(&bytes) {
            Ok(written) => {
                assert!(written <= bytes.len());
                self.written += written as u64;
                assert_eq!(self.producer.position(), self.written);
            }
            Err(error) => {
                assert!(!self.honest, "{error}");
                // What was written before that was noticed is written.
                let written = self.written..=self.written + length;
                self.written = self.producer.position();
                assert!(written.contains(&self.written));
            }
        }
    }

    fn read(&mut self, length: usize) {
        let mut buffer = vec![0; length];
        let result = self.consumer.read(&mut &mut buffer[..]);
        let read = self.read;
        self.read += self.judge(result, &buffer, read);
        assert_eq!(self.consumer.position(), self.read);
    }

    fn read_in_place(&mut self, length: usize) {
        let result = self.consumer.read_in_place(length);
        let bytes = result.as_deref().unwrap_or_default().to_vec();
        assert!(bytes.len() <= length);
        let read = self.read;
        self.read += self.judge(result.map(|bytes| bytes.len()), &bytes, read);
        assert_eq!(self.consumer.position(), self.read);
    }

    /// Are these the bytes from `from` on? How many they are.
    fn judge(&self, result: std::io::Result<usize>, buffer: &[u8], from: u64) -> u64 {
        match result {
            Ok(length) => {
                assert!(length <= buffer.len());
                if self.honest {
                    assert!((from..).map(at).zip(&buffer[..length]).all(|(sent, got)| sent == *got));
                }
                length as u64
            }
            Err(error) => {
                assert!(!self.honest, "{error}");
                0
            }
        }
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let record = usize::from(input.byte() % 16);
        let word = match input.byte() % 11 {
            0 => Word::Written,
            1 => Word::Hops,
            2 => Word::WakeAt,
            3 => Word::WriterFlags,
            4 => Word::HopPosition(record),
            5 => Word::HopSegment(record),
            6 => Word::Read,
            7 => Word::Followed,
            8 => Word::ReaderFlags,
            9 => Word::DataArmed,
            _ => Word::SpaceArmed,
        };
        // Near something that means something, or far from everything.
        let number = input.short();
        let value = match input.byte() % 6 {
            0 => number % 20,
            1 => self.written.wrapping_add(number % 64),
            2 => self.read.wrapping_sub(number % 64),
            3 => self.written + 4096,
            4 => u64::MAX - number % 3,
            _ => number << (number % 48),
        };
        // Who only waits or not, and where, decides about wake-ups, not about bytes.
        self.honest &= matches!(word, Word::WakeAt | Word::DataArmed | Word::SpaceArmed)
            || matches!(word, Word::WriterFlags | Word::ReaderFlags);
        self.header.scribble(word, value);
    }

    /// What was written honestly comes out to the end.
    fn finish(mut self) {
        if !self.honest {
            return;
        }
        while self.read < self.written {
            let before = self.read;
            self.read(1 << 16);
            assert!(self.read > before, "{} bytes are lost", self.written - before);
        }
    }
}
