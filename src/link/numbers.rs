//! The streams of a link by the number of their signals, and whether it has died: each of them is
//! told of the death, whenever it came, and a late signal for a number that was given to another
//! stream does no more than wake that one.

use crate::sync::{AtomicU8, AtomicU32, Mutex, Ordering, lock};

/// What the numbers stand for.
pub(crate) struct Table<T> {
    all: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    /// What has that number.
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.all.get(number as usize).and_then(Option::as_ref)
    }

    fn is_empty(&self) -> bool {
        self.all.len() == self.free.len()
    }
}

/// A [`Table`], of a link that lives or has died.
pub(crate) struct Numbers<T> {
    table: Mutex<Table<T>>,
    most: usize,
    /// Below that are all numbers that were ever given.
    bound: AtomicU32,
    /// 0, or what it died of.
    death: AtomicU8,
}

impl<T> Numbers<T> {
    /// So many at most.
    pub(crate) fn new(most: usize) -> Self {
        let table = Mutex::new(Table { all: Vec::new(), free: Vec::new() });
        Numbers { table, most, bound: AtomicU32::new(0), death: AtomicU8::new(0) }
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Gives it a number; `None`: there is none left. Who has got one asks for [`Numbers::death`]
    /// afterwards: it may have missed the news.
    pub(crate) fn take(&self, thing: T) -> Option<u32> {
        let mut table = lock(&self.table);
        let number = match table.free.pop() {
            Some(number) => number,
            None if table.all.len() < self.most => {
                table.all.push(None);
                let length = table.all.len() as u32;
                // Pairs with the load in `bound`.
                self.bound.store(length, Ordering::Release);
                length - 1
            }
            None => return None,
        };
        table.all[number as usize] = Some(thing);
        Some(number)
    }

    /// The number is free again; what it stood for.
    pub(crate) fn give_back(&self, number: u32) -> Option<T> {
        let mut table = lock(&self.table);
        table.free.push(number);
        table.all[number as usize].take()
    }

    /// All numbers that were ever given are below that, as far as this thread may have heard of
    /// them.
    pub(crate) fn bound(&self) -> u32 {
        // Pairs with the store in `take`.
        self.bound.load(Ordering::Acquire)
    }

    /// Shows the table. Nothing of it is called or dropped meanwhile.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Table<T>) -> R) -> R {
        look(&lock(&self.table))
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.table).is_empty()
    }

    /// What the link has died of, or 0.
    pub(crate) fn death(&self) -> u8 {
        // Acquire: pairs with `die`.
        self.death.load(Ordering::Acquire)
    }

    /// It has died of that, which is not 0. The first death counts: `pick` then shows what is to be
    /// told of it. What takes a number later sees the death.
    pub(crate) fn die<R>(&self, of: u8, pick: impl Fn(&T) -> Option<R>) -> Option<Vec<R>> {
        // Before the look at the table. Who takes a number after that look has the lock after it,
        // and finds the death.
        self.death.compare_exchange(0, of, Ordering::AcqRel, Ordering::Acquire).ok()?;
        Some(lock(&self.table).all.iter().flatten().filter_map(pick).collect())
    }

    /// As [`Numbers::die`], if no number is given; whether it has died now.
    pub(crate) fn die_if_empty(&self, of: u8) -> bool {
        // Under the lock: who takes a number has it before or after that, and finds the death.
        let table = lock(&self.table);
        table.is_empty() && self.death.compare_exchange(0, of, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ism::interrupt::CONNECTIONS;

    #[test]
    fn all_numbers_are_given_and_given_again() {
        let numbers = Numbers::new(CONNECTIONS as usize);
        for number in 0..CONNECTIONS {
            assert_eq!(numbers.take(number), Some(number));
        }
        assert_eq!(numbers.take(CONNECTIONS), None, "there are no more");
        assert_eq!(numbers.give_back(7), Some(7));
        assert_eq!(numbers.take(CONNECTIONS), Some(7));
        assert_eq!(numbers.look(|table| table.get(7).copied()), Some(CONNECTIONS));
        assert_eq!(numbers.look(|table| table.get(u32::MAX).copied()), None);
        for number in 0..CONNECTIONS {
            numbers.give_back(number);
        }
        assert!(numbers.is_empty());
    }

    #[test]
    fn the_first_death_counts() {
        let numbers = Numbers::new(2);
        numbers.take('a');
        let number = numbers.take('b').unwrap();
        numbers.give_back(number);
        assert_eq!(numbers.die(2, |stream| Some(*stream)), Some(vec!['a']));
        assert_eq!(numbers.die(1, |stream| Some(*stream)), None);
        assert_eq!(numbers.death(), 2);
    }
}
