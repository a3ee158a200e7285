//! One bit an item: which of a pod's items were acknowledged, and which arrived.

/// Bits numbered from 0; grows with the highest that is set.
#[derive(Debug, Clone, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    ones: u64,
}

impl Bitmap {
    /// Sets a bit; true when it was not set before.
    pub fn set(&mut self, bit: u64) -> bool {
        let (word, mask) = place(bit);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & mask == 0;
        self.words[word] |= mask;
        self.ones += u64::from(is_new);
        is_new
    }

    /// Whether a bit is set.
    pub fn has(&self, bit: u64) -> bool {
        let (word, mask) = place(bit);
        self.words.get(word).is_some_and(|word| word & mask != 0)
    }

    /// Bits that are set.
    pub fn ones(&self) -> u64 {
        self.ones
    }

    /// Where bits are set one after the other: the first of them and how many, in order.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (index, word) in self.words.iter().enumerate() {
            for bit in (0..64).filter(|bit| word & 1 << bit != 0).map(|bit| index as u64 * 64 + bit) {
                match runs.last_mut() {
                    Some((first, length)) if *first + *length == bit => *length += 1,
                    _ => runs.push((bit, 1)),
                }
            }
        }
        runs
    }

    /// Bits that are set here and not there.
    pub fn missing_in(&self, other: &Self) -> u64 {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter().zip(others).map(|(mine, theirs)| u64::from((mine & !theirs).count_ones())).sum()
    }
}

fn place(bit: u64) -> (usize, u64) {
    let word = usize::try_from(bit / 64).expect("sequences are limited far below the address space");
    (word, 1 << (bit % 64))
}
